"""What a subcommand is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand.

    Attributes
    ----------
    description : str
        What ``--help`` says of it.
    examples : tuple of str
        What ``--help`` ends with.
    add : callable
        Adds its arguments to a parser.
    run : callable
        Does it; returns the exit status.
    """

    description: str
    examples: tuple[str, ...]
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, the one option of many."""
    parser.add_argument("--json", action="store_true", help="JSON, for programs")
