"""``fastmap exporter``."""

from __future__ import annotations

import argparse
import sys

from fastmap.cli.shared.command import Command


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the declaration: docs/prometheus.md")
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:9435",
                        help="where (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print the metrics once instead")


def _run(given: argparse.Namespace) -> int:
    try:
        from fastmap.prometheus.service import serve
    except ImportError as error:
        print(f"fastmap exporter: {error}", file=sys.stderr)
        return 1
    return serve(given.config, given.listen, given.once)


EXPORTER = Command(
    "Serve the metrics that a declaration (YAML) makes of maps.",
    ("fastmap exporter flows.yaml --once", "fastmap exporter flows.yaml --listen 127.0.0.1:9435"),
    _add, _run)
