"""The rows about arrays: read and written through the map's own memory, and per-CPU ones.

`m.memory()` stands beside what a program does that has not mapped the map, LOOKUP_BATCH and
UPDATE_BATCH at their best chunk, and beside C over a mapping of its own. Each block of a sum
asserts it; of copies and writes, the first and the last are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import fastmap
from fastmap import MapFlag

from ..cside import U64, CSide, possible_cpus, touched
from ..harness import Side
from .cases import SLACK, Case, Row, Size, best_chunk, in_turn, scattered


@contextmanager
def mapped(c: CSide, values: U64, *, writable: bool = False
           ) -> Iterator[tuple[fastmap.ArrayMap, U64, int]]:
    """An array of these u64, fastmap's view of its memory, and the address of C's mapping."""
    n = len(values)
    with fastmap.create("array", value="u8", max_entries=n, flags=MapFlag.MMAPABLE) as m, \
            c.mapped(m.fileno(), n) as address:
        assert c.update_batch(m.fileno(), np.arange(n, dtype="u4"), values)() == n
        yield m, m.memory(writable), address


def summed(side: Side, total: U64, want: int) -> Side:
    """A side of C's, whose sum is looked at."""

    def looked_at(number: int) -> int:
        total[0] = 0
        n = side(number)
        assert int(total[0]) == want
        return n

    return looked_at


def _sum(elements: str, times: int, own: bool, limit: float) -> Row:
    """The sum of all elements, where they lie."""

    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        values, total = scattered(times * size.entries), np.zeros(1, "u8")
        n, want = len(values), int(values.sum())
        with mapped(c, values) as (m, view, address):
            def ours(number: int) -> int:
                assert int(view.sum()) == want
                return len(view)

            def check() -> None:
                m[n // 2] = 7  # it shows the map of now
                assert int(view[n // 2]) == 7
                m[n // 2] = int(values[n // 2])
                assert np.array_equal(view, values)

            if own:
                against, theirs = "C, a loop over its mmap (-O2)", in_turn(
                    [c.array_total(address, n, total)])
            else:
                against, theirs = "C, LOOKUP_BATCH and sum, best chunk", best_chunk(
                    lambda chunk: c.batch_total(m.fileno(), n, total, chunk), n)
            yield Case(f"`m.memory()`, sum of {elements} u64", against, limit, n, ours,
                       summed(theirs, total, want), check, rounds=60 if own else 30)

    return row


def _copy(elements: str, times: int, own: bool, limit: float) -> Row:
    """All elements in a fresh array; C copies them into one that it had before."""

    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        values = scattered(times * size.entries)
        n = len(values)
        with mapped(c, values) as (m, view, address):
            keys, out = touched(n + SLACK, "u4"), touched(n + SLACK, "u8")
            if own:
                against, theirs = "C, memcpy from its mmap", in_turn(
                    [c.array_copy(out, address, n)])
            else:
                against, theirs = "C, LOOKUP_BATCH, best chunk", best_chunk(
                    lambda chunk: c.lookup_batch(m.fileno(), keys, out, chunk), n)

            def check() -> None:
                out[:] = 0
                assert theirs(0) == n and np.array_equal(out[:n], values)
                assert np.array_equal(view.copy(), values)

            yield Case(f"`m.memory().copy()`, {elements} u64", against, limit, n,
                       lambda number: len(view.copy()), theirs, check,
                       rounds=60 if own else 30 // times)

    return row


def _write(own: bool, limit: float) -> Row:
    """All elements written."""

    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        values, others = scattered(size.entries), scattered(size.entries, seed=2)
        n = len(values)
        with mapped(c, values, writable=True) as (m, view, address):
            keys = np.arange(n, dtype="u4")
            if own:
                against, theirs = "C, memcpy to its mmap", in_turn(
                    [c.array_copy(address, others, n)])
            else:
                against, theirs = "C, UPDATE_BATCH, best chunk", best_chunk(
                    lambda chunk: c.update_batch(m.fileno(), keys, others, chunk), n)

            def ours(number: int) -> int:
                view[:] = values
                return len(view)

            def check() -> None:
                for side, wrote in ((theirs, others), (ours, values)):
                    assert side(0) == n and np.array_equal(m.snapshot().values, wrote)

            yield Case("`m.memory(writable=True)[:] = values`, 100k u64", against, limit, n, ours,
                       theirs, check, rounds=60 if own else 30)

    return row


def _percpu(reduce: str | None, limit: float) -> Row:
    """A whole read of a per-CPU array, which has no memory to map."""

    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        n, cpus = size.entries, possible_cpus()
        keys, values = np.arange(n, dtype="u4"), scattered(n)
        every = values[:, None] * np.arange(3, 3 + cpus, dtype="u8")
        with fastmap.create("percpu_array", value="u8", max_entries=n) as m:
            assert c.update_batch(m.fileno(), keys, every)() == n
            reader = m.reader(reduce=reduce)
            out_keys = touched(n + SLACK, "u4")
            if reduce:
                name, want = '`reader(reduce="sum").read()`', every.sum(axis=1)
                sums = touched(n + SLACK, "u8")
                against, theirs = "C, batch and sum, best chunk", best_chunk(
                    lambda chunk: c.percpu_sum(m.fileno(), out_keys, sums, cpus, chunk), n)
            else:
                name, want = "`reader().read()`", every
                out = touched((n + SLACK, cpus), "u8")
                against, theirs = "C, LOOKUP_BATCH, best chunk", best_chunk(
                    lambda chunk: c.lookup_batch(m.fileno(), out_keys, out, chunk), n)

            def check() -> None:
                assert theirs(0) == n
                assert np.array_equal((sums if reduce else out)[:n], want)
                got, read = reader.read()
                assert np.array_equal(got, keys) and np.array_equal(read, want)

            yield Case(f"{name}, a per-CPU array of 100k u64", against, limit, n,
                       lambda number: len(reader.read()), theirs, check, rounds=40)

    return row


array_sum = _sum("100k", 1, False, 0.05)
array_sum_own = _sum("100k", 1, True, 1.1)
array_sum_own_1m = _sum("1M", 10, True, 1.1)
array_copy = _copy("100k", 1, False, 0.05)
array_copy_1m = _copy("1M", 10, False, 0.05)
array_copy_own = _copy("100k", 1, True, 2.0)  # C has no pages to fault in
array_copy_own_1m = _copy("1M", 10, True, 2.0)
array_write = _write(False, 0.05)
array_write_own = _write(True, 1.1)
percpu_array_read = _percpu(None, 1.05)
percpu_array_sum = _percpu("sum", 1.1)

ARRAYS: dict[str, Row] = {
    name: row for name, row in globals().items() if name.startswith(("array_", "percpu_array_"))}
