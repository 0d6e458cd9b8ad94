"""The rows of the in-kernel way: many keys a system call, against C's loops and batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

import fastmap

from .cases import Case, Row, Size, best_chunk, records, scattered
from .cside import U64, Array, CSide, touched
from .harness import CPUS, Side

RECORD = [("packets", "u8"), ("bytes", "u8")]
LOOP = "C, LOOKUP_ELEM"


def faster(times: float) -> float:
    """The limit of a ratio of times that says: so many times as fast."""
    return 1 / times


def all_cpus(call: Callable[[], int]) -> Side:
    """A side whose threads may run on all CPUs; the harness keeps the other on one."""

    def side(number: int) -> int:
        pinned = os.sched_getaffinity(0)
        os.sched_setaffinity(0, CPUS)
        try:
            return call()
        finally:
            os.sched_setaffinity(0, pinned)

    return side


def _lookups(name: str, entries: int, words: int, times: float, threads: int = 1) -> Row:
    """`lookup_many` of all keys of a map, in random order, fresh arrays out."""

    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        n = min(entries, size.entries * entries // 100_000)
        keys = scattered(n)
        values: Array = np.zeros((n, words), "u8")
        values[:, 0] = keys * np.uint64(3)  # type: ignore[call-overload]
        rows = values.view(f"V{8 * words}").reshape(n)
        asked = np.random.default_rng(5).permutation(keys)
        with fastmap.create("hash", key="u8", value=f"V{8 * words}", max_entries=n * 5 // 4) as m:
            c.update_batch(m.fileno(), keys, rows)()
            m.prepare(threads=threads)

            def ours() -> int:
                _, found = m.lookup_many(asked, threads=threads)
                return int(np.count_nonzero(found))

            def check() -> None:
                some = asked.copy()
                some[7] = 0  # no such key
                got, found = m.lookup_many(some, threads=threads)
                assert np.flatnonzero(~found).tolist() == [7]
                first = np.ascontiguousarray(got).view("u8").reshape(n, words)[:, 0]
                assert np.array_equal(first, some * np.uint64(3))

            out = touched(n, f"V{8 * words}")
            loop = c.lookup_loop(m.fileno(), asked, out)
            side = all_cpus(ours) if threads > 1 else lambda number: ours()
            yield Case(name, LOOP, faster(times), n, side, lambda number: loop(), check,
                       rounds=max(6, 2_000_000 // entries))

    return row


kernel_lookup = _lookups("`lookup_many`, 100k keys, u64 to 16 B", 100_000, 2, 7)
kernel_lookup_threads = _lookups("the same, `threads=2`", 100_000, 2, 12, 2)
kernel_lookup_1m = _lookups("`lookup_many`, 1M keys", 1_000_000, 2, 5)
kernel_lookup_1m_threads = _lookups("the same, `threads=2`", 1_000_000, 2, 8, 2)
kernel_lookup_256 = _lookups("`lookup_many`, 100k keys to 256 B", 100_000, 32, 4)
kernel_lookup_256_threads = _lookups("the same, `threads=2`", 100_000, 32, 6.5, 2)


def _updates(against: str, times: float) -> Row:
    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        n = size.entries
        keys = scattered(n)
        values = records(keys)
        asked = np.random.default_rng(5).permutation(n)
        keys, values = keys[asked], values[asked]
        with fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as m:
            c.update_batch(m.fileno(), keys, values)()
            m.prepare()

            def check() -> None:
                written, other = touched(n, RECORD), records(keys + np.uint64(1))
                assert m.update_many(keys, other) == n and m._in_kernel.has("update")
                c.lookup_loop(m.fileno(), keys, written)()
                assert np.array_equal(written, other)
                assert m.update_many(keys, values) == n

            if against == "C, UPDATE_ELEM":
                loop = c.update_loop(m.fileno(), keys, values)

                def theirs(number: int) -> int:
                    return loop()
            else:
                theirs = best_chunk(
                    lambda chunk: c.update_batch(m.fileno(), keys, values, chunk), n)
            yield Case("`update_many`, 100k keys that are there", against, faster(times), n,
                       lambda number: int(m.update_many(keys, values)), theirs, check, rounds=20)

    return row


kernel_update = _updates("C, UPDATE_ELEM", 4.5)
kernel_update_batch = _updates("C, UPDATE_BATCH, best chunk", 2.2)


@contextmanager
def kernel_delete(c: CSide, size: Size) -> Iterator[Case]:
    """`delete_many` of a whole map, refilled untimed."""
    n = size.entries
    keys = scattered(n)
    asked = np.random.default_rng(5).permutation(keys)
    with fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as m:
        refill = c.update_batch(m.fileno(), keys, records(keys))
        m.prepare()

        def before() -> None:
            assert refill() == n

        def check() -> None:
            before()
            assert m.delete_many(asked[: n // 2]) == n // 2
            assert np.array_equal(np.sort(m.snapshot().keys), np.sort(asked[n // 2 :]))
            assert m.delete_many(asked) == n - n // 2 and not m

        loop = c.delete_loop(m.fileno(), asked)
        yield Case("`delete_many`, 100k keys", "C, DELETE_ELEM", faster(3.5), n,
                   lambda number: int(m.delete_many(asked)), lambda number: loop(), check,
                   rounds=20, before=before)


def _few(count: int) -> Row:
    """So few keys a call: where the in-kernel way begins to pay, program loaded."""

    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        n, calls = size.entries, 1000 if size.entries >= 100_000 else 10
        keys = scattered(n)
        with fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as m:
            c.update_batch(m.fileno(), keys, records(keys))()
            m.prepare()
            groups: list[U64] = [keys[i * count : (i + 1) * count] for i in range(calls)]

            def ours(number: int) -> int:
                total = 0
                for group in groups:
                    total += len(m.lookup_many(group, via="kernel")[1])
                return total

            def check() -> None:
                got, found = m.lookup_many(groups[1], via="kernel")
                assert found.all() and np.array_equal(got, records(groups[1]))

            out = touched(count, RECORD)
            loops = [c.lookup_loop(m.fileno(), group, out) for group in groups]
            yield Case(f"`lookup_many` of {count} keys, `via=\"kernel\"`", LOOP, 1.0,
                       calls * count, ours,
                       lambda number: sum(loop() for loop in loops), check, rounds=30)

    return row


kernel_few_4 = _few(4)
kernel_few_8 = _few(8)
kernel_few_16 = _few(16)

KERNEL_ROWS: dict[str, Row] = {
    name: row for name, row in globals().items() if name.startswith("kernel_") and callable(row)}
