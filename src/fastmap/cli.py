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
    given = parser.parse_args(arguments)
    try:
        return demo.run(given.seconds, given.top)
    except BrokenPipeError:
        # The reader of our output has gone: nothing more to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
