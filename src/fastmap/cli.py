"""The command line: ``python -m fastmap``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fastmap import demo


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _export(config: str, listen: str, once: bool) -> int:
    try:
        from fastmap.prometheus import serve
    except ImportError as error:
        print(f"fastmap exporter: {error}", file=sys.stderr)
        return 1
    return serve(config, listen, once)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="fastmap", description="Linux BPF maps as numpy arrays.",
        epilog="example: fastmap demo --seconds 5 --top 10")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser(
        "demo", help="show this machine's system calls, live",
        description="Count the system calls of this machine with a BPF program, and show the "
                    "busiest processes once a second.")
    show.add_argument("--seconds", type=_positive, default=10, help="how long (default: 10)")
    show.add_argument("--top", type=_count, default=15, help="how many rows (default: 15)")
    export = commands.add_parser(
        "exporter", help="serve maps to Prometheus",
        description="Serve the metrics that a declaration (YAML) makes of maps.",
        epilog="example: fastmap exporter flows.yaml --listen 127.0.0.1:9435")
    export.add_argument("config", metavar="CONFIG", help="the declaration: docs/prometheus.md")
    export.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:9435",
                        help="where (default: %(default)s)")
    export.add_argument("--once", action="store_true", help="print the metrics once instead")
    given = parser.parse_args(arguments)
    try:
        if given.command == "exporter":
            return _export(given.config, given.listen, given.once)
        return demo.run(given.seconds, given.top)
    except BrokenPipeError:
        # The reader of our output has gone: nothing more to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
