"""The rows of the in-kernel path: many keys a system call, against C's loops and batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

import fastmap
from fastmap.maptypes.reader import count as walk

from ..cside import U64, Array, CSide, touched
from ..harness import CPUS, Side
from .cases import SLACK, Case, Row, Size, best_chunk, records, scattered

RECORD = [("packets", "u8"), ("bytes", "u8")]
LOOP, BATCH = "C, LOOKUP_ELEM", "C, LOOKUP_BATCH, best chunk"


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


kernel_lookup = _lookups("`lookup_many`, 100k keys to 16 B", 100_000, 2, 7)
kernel_lookup_threads = _lookups("`lookup_many`, 100k keys to 16 B, `threads=2`", 100_000, 2, 12, 2)
kernel_lookup_1m = _lookups("`lookup_many`, 1M keys to 16 B", 1_000_000, 2, 5)
kernel_lookup_1m_threads = _lookups("`lookup_many`, 1M keys to 16 B, `threads=2`",
                                    1_000_000, 2, 8, 2)
kernel_lookup_256 = _lookups("`lookup_many`, 100k keys to 256 B", 100_000, 32, 4)
kernel_lookup_256_threads = _lookups("`lookup_many`, 100k keys to 256 B, `threads=2`",
                                     100_000, 32, 6.5, 2)


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
                assert m.update_many(keys, other) == n and m._in_kernel.pool.has("update")
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


@contextmanager
def kernel_read(c: CSide, size: Size) -> Iterator[Case]:
    """A whole read of a full map that need not be exact."""
    n = 10 * size.entries
    keys = scattered(n)
    with fastmap.create("hash", key="u8", value=RECORD, max_entries=n) as m:
        c.update_batch(m.fileno(), keys, records(keys))()
        reader = m.reader(exact=False, via="kernel")
        out_keys, out_values = touched(n + SLACK, "u8"), touched(n + SLACK, RECORD)

        def check() -> None:
            got, values = reader.read()
            assert np.array_equal(np.sort(got), np.sort(keys))
            assert np.array_equal(values, records(got))

        theirs = best_chunk(
            lambda chunk: c.lookup_batch(m.fileno(), out_keys, out_values, chunk), n)
        yield Case("`reader(exact=False).read()`, 1M entries", BATCH, faster(3.5), n,
                   lambda number: len(reader.read()), theirs, check, rounds=8)


@contextmanager
def kernel_snapshot(c: CSide, size: Size) -> Iterator[Case]:
    """The same into fresh arrays."""
    n = 10 * size.entries
    keys = scattered(n)
    with fastmap.create("hash", key="u8", value=RECORD, max_entries=n) as m:
        c.update_batch(m.fileno(), keys, records(keys))()
        out_keys, out_values = touched(n + SLACK, "u8"), touched(n + SLACK, RECORD)

        def check() -> None:
            got, values = m.snapshot(exact=False)
            assert np.array_equal(np.sort(got), np.sort(keys))
            assert np.array_equal(values, records(got))

        theirs = best_chunk(
            lambda chunk: c.lookup_batch(m.fileno(), out_keys, out_values, chunk), n)
        yield Case("`snapshot(exact=False)`, 1M entries", BATCH, faster(3.3), n,
                   lambda number: len(m.snapshot(exact=False)), theirs, check, rounds=8)


@contextmanager
def kernel_where(c: CSide, size: Size) -> Iterator[Case]:
    """One field of eight, of the one entry in a hundred that passes."""
    n = 10 * size.entries
    keys = scattered(n)
    values = np.zeros(n, [(f"f{i}", "u8") for i in range(8)])
    values["f0"], values["f3"] = keys, np.arange(n) % 100
    with fastmap.create("hash", key="u8", value=values.dtype, max_entries=n) as m:
        c.update_batch(m.fileno(), keys, values)()
        reader = m.reader(exact=False, via="kernel", fields=["value.f0"],
                          where=("value.f3", "==", 7))
        out_keys, out_values = touched(n + SLACK, "u8"), touched(n + SLACK, values.dtype)

        def check() -> None:
            got, kept = reader.read()
            assert np.array_equal(np.sort(got), np.sort(keys[values["f3"] == 7]))
            assert np.array_equal(kept["f0"], got)

        def ours(number: int) -> int:
            assert len(reader.read()) == n // 100
            return n

        theirs = best_chunk(
            lambda chunk: c.lookup_batch(m.fileno(), out_keys, out_values, chunk), n)
        yield Case("`reader(fields=, where=).read()`, 1M entries of 64 B, 1% pass", BATCH,
                   faster(4.5), n, ours, theirs, check, rounds=8)


@contextmanager
def kernel_prefixes(c: CSide, size: Size) -> Iterator[Case]:
    """Addresses that all hit one of 10,000 prefixes."""
    n, many = size.entries, size.entries // 10
    with fastmap.create("lpm_trie", key="ipv4", value="u4", max_entries=many) as m:
        prefixes = np.zeros(many, m.key_dtype)
        prefixes["prefixlen"] = 24
        numbers = np.random.default_rng(7).permutation(1 << 24)[:many].astype("u4")
        prefixes["addr"] = (numbers << 8).astype(">u4").view("u1").reshape(-1, 4)
        m.update_many(prefixes, np.arange(many, dtype="u4"))
        which = np.random.default_rng(8).integers(0, many, n)
        asked = np.zeros(n, m.key_dtype)
        asked["prefixlen"], asked["addr"] = 32, prefixes["addr"][which]
        asked["addr"][:, 3] = np.random.default_rng(9).integers(0, 256, n)
        m.prepare()

        def ours(number: int) -> int:
            return int(np.count_nonzero(m.lookup_many(asked)[1]))

        def check() -> None:
            values, found = m.lookup_many(asked)
            assert found.all() and np.array_equal(values, which)

        loop = c.lookup_loop(m.fileno(), asked, touched(n, "u4"))
        yield Case("LPM `lookup_many`, 100k addresses, 10k prefixes", LOOP, faster(5), n, ours,
                   lambda number: loop(), check, rounds=15)


def _queue(push: bool) -> Row:
    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        n = size.entries
        values = scattered(n)
        with fastmap.create("queue", value="u8", max_entries=n) as m:
            m.prepare()
            out = touched(n, "u8")
            pushes, pops = c.push_loop(m.fileno(), values), c.pop_loop(m.fileno(), out)

            def before() -> None:
                m.clear()
                if not push:
                    assert m.push_many(values) == n

            def check() -> None:
                m.clear()
                assert m.push_many(values) == n and np.array_equal(m.pop_many(n), values)

            if push:
                yield Case("QUEUE `push_many`, 8 B", "C, UPDATE_ELEM", faster(12), n,
                           lambda number: int(m.push_many(values)), lambda number: pushes(),
                           check, rounds=15, before=before)
            else:
                yield Case("QUEUE `pop_many`, 8 B", "C, LOOKUP_AND_DELETE_ELEM", faster(12), n,
                           lambda number: len(m.pop_many(n)), lambda number: pops(), check,
                           rounds=15, before=before)

    return row


kernel_push = _queue(True)
kernel_pop = _queue(False)


def _few(count: int) -> Row:
    """So few keys a call: where the in-kernel path begins to pay, program loaded."""

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


@contextmanager
def kernel_len(c: CSide, size: Size) -> Iterator[Case]:
    """`len` of a full map by the kernel's counter, against the walk that counts elsewhere."""
    n = size.entries
    keys = scattered(n)
    with fastmap.create("hash", key="u8", value=RECORD, max_entries=n) as m:
        c.update_batch(m.fileno(), keys, records(keys))()
        m.prepare()

        def check() -> None:
            assert len(m) == walk(m) == n

        yield Case("`len`, 100k entries", "the counting walk", faster(50), n,
                   lambda number: len(m), lambda number: walk(m), check, rounds=15)



@contextmanager
def kernel_percpu_lookup(c: CSide, size: Size) -> Iterator[Case]:
    """The values of all CPUs of all keys, in random order."""
    n, cpus = size.entries, len(fastmap.possible_cpus())
    keys = scattered(n)
    values = keys[:, None] + np.arange(cpus, dtype="u8")
    asked = np.random.default_rng(5).permutation(keys)
    with fastmap.create("percpu_hash", key="u8", value="u8", max_entries=size.room) as m:
        m.update_many(keys, values)
        m.prepare()

        def check() -> None:
            got, found = m.lookup_many(asked)
            assert found.all() and np.array_equal(got, asked[:, None] + np.arange(cpus, dtype="u8"))

        loop = c.lookup_loop(m.fileno(), asked, touched(n, f"V{8 * cpus}"))
        yield Case("`lookup_many`, 100k keys of a per-CPU hash", LOOP, faster(7), n,
                   lambda number: int(np.count_nonzero(m.lookup_many(asked)[1])),
                   lambda number: loop(), check, rounds=20)


@contextmanager
def kernel_percpu_sum(c: CSide, size: Size) -> Iterator[Case]:
    """A per-CPU map, summed over the CPUs, that need not be exact."""
    n, cpus = size.entries, len(fastmap.possible_cpus())
    keys = scattered(n)
    with fastmap.create("percpu_hash", key="u8", value="u8", max_entries=size.room) as m:
        m.update_many(keys, keys[:, None] + np.arange(cpus, dtype="u8"))
        reader = m.reader(reduce="sum", exact=False, via="kernel")
        out_keys, sums = touched(n + SLACK, "u8"), touched(n + SLACK, "u8")

        def check() -> None:
            got, summed = reader.read()
            assert np.array_equal(np.sort(got), np.sort(keys))
            assert np.array_equal(summed, got * np.uint64(cpus) + cpus * (cpus - 1) // 2)

        theirs = best_chunk(
            lambda chunk: c.percpu_sum(m.fileno(), out_keys, sums, cpus, chunk), n)
        yield Case('`reader(reduce="sum", exact=False).read()`', "C, batch and sum, best chunk",
                   faster(1.5), n, lambda number: len(reader.read()), theirs, check, rounds=15)


@contextmanager
def kernel_ids(c: CSide, size: Size) -> Iterator[Case]:
    """The ids of the maps in a map of maps."""
    n, many = size.entries, 256
    sides = {"type": "hash", "key": "u4", "value": "u8", "max_entries": 1}
    with ExitStack() as stack:
        m = stack.enter_context(fastmap.create("hash_of_maps", key="u4", inner=sides,
                                               max_entries=many))
        maps = [stack.enter_context(fastmap.create(**sides)) for _ in range(many)]
        m.update_many(np.arange(many), maps)
        asked = np.random.default_rng(8).integers(0, many, n).astype("u4")
        ids = np.array([each.id for each in maps], "u4")
        m.prepare()

        def check() -> None:
            got, found = m.lookup_many(asked)
            assert found.all() and np.array_equal(got, ids[asked])

        loop = c.lookup_loop(m.fileno(), asked, touched(n, "u4"))
        yield Case("`lookup_many`, 100k ids of a hash of maps", LOOP, faster(7), n,
                   lambda number: int(np.count_nonzero(m.lookup_many(asked)[1])),
                   lambda number: loop(), check, rounds=10)


KERNEL_ROWS: dict[str, Row] = {
    name: row for name, row in globals().items() if name.startswith("kernel_") and callable(row)}
