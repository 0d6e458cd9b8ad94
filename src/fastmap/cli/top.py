"""``fastmap top``: the entries of a map that grow fastest, live."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap.cli.shared.cells import text_columns
from fastmap.cli.shared.command import Command
from fastmap.cli.shared.output import Column, Misuse, print_table, table_lines
from fastmap.cli.shared.selection import column, count, positive, table_of
from fastmap.cli.shared.target import add_dtypes, add_map, opened_table
from fastmap.collect.delta import Delta, DeltaBatch
from fastmap.collect.groups import top
from fastmap.live.batch import LiveBatch
from fastmap.live.table import LiveTable
from fastmap.maptypes.handle import Map
from fastmap.maptypes.trie import LpmTrie, ip_version

Array = npt.NDArray[Any]
#: What grew: of a map, or of a live table.
Grown = DeltaBatch | LiveBatch


def _add(parser: argparse.ArgumentParser) -> None:
    add_map(parser)
    add_dtypes(parser)
    parser.add_argument("--by", metavar="COLUMN",
                        help="the counter to sort by, such as value.bytes (default: the first)")
    parser.add_argument("--rows", metavar="N", type=count, default=20,
                        help="how many entries (default: 20)")
    parser.add_argument("--interval", metavar="S", type=positive, default=1.0,
                        help="seconds between two readings (default: 1)")
    parser.add_argument("--count", metavar="N", type=count, help="end after N readings")


def _run(given: argparse.Namespace) -> int:
    with opened_table(given) as m:
        if isinstance(m, LiveTable):
            read: Callable[[], Grown] = m.delta
            read()  # what was counted before is no growth
        else:
            read = Delta(table_of(m), reduce="sum" if m.per_cpu else None).read
        readings = _readings(read, given.interval, given.count)
        live = _live() if sys.stdout.isatty() else None
        if live is None:
            for number, batch in enumerate(readings):
                heading, columns, rows = _reading(batch, given, m)
                print(("\n" if number else "") + heading)
                print_table(columns, rows)
                sys.stdout.flush()
        else:
            _in_place(live, readings, given, m)
    return 0


def _readings(read: Callable[[], Grown], interval: float,
              most: int | None) -> Iterator[Grown]:
    """Yield what grew, each time `interval` is over; late readings do not heap up."""
    due = time.monotonic()
    done = 0
    while most is None or done < most:
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        yield read()
        done += 1


def _counter(batch: Grown, by: str | None) -> str:
    """Return the column to sort by: the one that is said, or the first counter."""
    if by is not None:
        return by
    names = batch.values.dtype.names
    if names is None:
        return "value"
    first = next((name for name in names if batch.values.dtype[name].kind in "iuf"), None)
    if first is None:
        raise Misuse(f"which counter? --by, with one of value.{', value.'.join(names)}")
    return f"value.{first}"


def _reading(batch: Grown, given: argparse.Namespace,
             m: Map | LiveTable) -> tuple[str, list[Column], list[Sequence[str]]]:
    """Return a heading, the columns, and the rows of those that grew, the fastest first."""
    by = _counter(batch, given.by)
    if not by.startswith("value"):
        raise Misuse(f"--by {by}: a counter is 'value', or a field of it")
    grown = column(batch, by)
    grew = (grown > 0) & (grown < np.inf)  # a live table's floats may be anything
    busiest = top(batch if grew.ndim > 1 or grew.all() else batch.take(grew), given.rows, by)
    new = 0 if batch.new is None else np.count_nonzero(batch.new)
    heading = (f"{m.name or m.id}: {np.count_nonzero(grew):,} of {len(batch):,} entries grew in "
               f"{batch.seconds:.1f} s, {new:,} new")
    if isinstance(batch, DeltaBatch):  # who expires a live table has told
        heading += f", {len(batch.gone):,} gone"
    columns, cells = [], []
    networks = isinstance(m, LpmTrie) and ip_version(m.key_dtype) > 0
    for each, texts in text_columns(busiest.described(), False, networks):
        if each.heading.startswith("value") and each.right:
            texts = _rates(column(busiest, each.heading), batch.seconds)
            each = Column(f"{each.heading}/s", True)
        columns.append(each)
        cells.append(texts)
    return heading, columns, list(zip(*cells, strict=True))


def _rates(grown: Array, seconds: float) -> list[str]:
    return [f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"
            for rate in (grown.astype("f8") / max(seconds, 1e-9)).tolist()]


def _live() -> Any:
    """Return rich's screen that stays in place; None without rich."""
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        return None
    return Live(auto_refresh=False, transient=False), Text


def _in_place(tools: Any, readings: Iterator[Grown], given: argparse.Namespace,
              m: Map | LiveTable) -> None:
    live, text = tools
    with live:
        for batch in readings:
            heading, columns, rows = _reading(batch, given, m)
            lines = "\n".join([heading, *table_lines(columns, rows)])
            live.update(text.from_ansi(lines), refresh=True)


TOP = Command(
    "Read a map again and again, and show which entries grew fastest, per second. Per-CPU values "
    "are summed. On a terminal the table stays in place.",
    ("fastmap top flows", "fastmap top flows --by value.bytes --rows 5",
     "fastmap top calls --interval 5 --count 3 > calls.txt"),
    _add, _run)
