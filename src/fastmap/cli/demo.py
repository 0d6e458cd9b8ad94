"""``fastmap demo``."""

from __future__ import annotations

import argparse

from fastmap.cli import system_calls
from fastmap.cli.shared.command import Command
from fastmap.cli.shared.selection import count, positive


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=positive, default=10, help="how long (default: 10)")
    parser.add_argument("--top", type=count, default=15, help="how many rows (default: 15)")


DEMO = Command(
    "Count the system calls of this machine with a BPF program, and show the busiest processes "
    "once a second.",
    ("fastmap demo --seconds 5 --top 10",), _add,
    lambda given: system_calls.run(given.seconds, given.top))
