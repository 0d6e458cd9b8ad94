"""``fastmap include``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastmap.cli.shared.command import Command


def _run(given: argparse.Namespace) -> int:
    print(Path(__file__).parents[1] / "include")
    return 0


def _add(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


INCLUDE = Command(
    "Print the folder of fastmap.bpf.h, by which BPF programs in C use live tables: "
    'clang -target bpf -mcpu=v3 -O2 -g -I"$(fastmap include)" -c flows.bpf.c -o flows.bpf.o',
    ("fastmap include",), _add, _run)
