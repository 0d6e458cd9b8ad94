"""Results as a Markdown table, and the line that says where they were measured."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .harness import CPUS, FEWEST, Result

_HEADER = ("work", "against", "fastmap", "reference", "ratio (95%)", "target", "verdict")


def _row(result: Result) -> tuple[str, ...]:
    low, high = result.spread
    if result.rounds < FEWEST:
        nothing = ("", "", "too busy to say")
        return (result.name, result.against, *nothing, result.target, result.verdict)
    return (
        result.name,
        result.against,
        f"{result.ours:,.1f} {result.unit}",
        f"{result.theirs:,.1f} {result.unit}",
        f"{result.ratio:.3f} ({low:.3f}-{high:.3f})",
        result.target,
        result.verdict,
    )


def markdown(results: Iterable[Result]) -> str:
    """The table, its columns aligned so that a terminal shows it as well."""
    rows = [_HEADER, *map(_row, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def environment() -> str:
    """The machine, the kernel, and the versions that a figure depends on."""
    return (
        f"{_processor()}, {len(CPUS)} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )
