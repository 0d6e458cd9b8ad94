"""``fastmap exporter``."""

from __future__ import annotations

import argparse
import sys

from fastmap.cli.shared.command import Command
from fastmap.text.visible import visible


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the declaration: docs/prometheus.md")
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:9435",
                        help="where (default: %(default)s)")
    parser.add_argument("--log-format", choices=("text", "json"), default="text",
                        help="how the log on stderr is written (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--once", action="store_true", help="print the metrics once instead")
    instead.add_argument("--check", action="store_true", help="tell what is wrong in the "
                         "declaration instead, with line numbers; no map is opened")


def _run(given: argparse.Namespace) -> int:
    try:
        from fastmap.prometheus.service import serve
    except ImportError as error:
        print(f"fastmap exporter: {error}", file=sys.stderr)
        return 1
    if given.check:
        from fastmap.prometheus.check import checked
        wrong = checked(given.config)
        print("\n".join(map(visible, wrong)) if wrong else f"{visible(given.config)}: right")
        return 1 if wrong else 0
    return serve(given.config, given.listen, given.once, given.log_format)


EXPORTER = Command(
    "Serve the metrics that a declaration (YAML) makes of maps.",
    ("fastmap exporter flows.yaml --check", "fastmap exporter flows.yaml --once",
     "fastmap exporter flows.yaml --listen 127.0.0.1:9435"),
    _add, _run)
