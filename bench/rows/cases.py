"""The timed rows of the table: what fastmap does, what C does, and that both did it.

Each row is a context manager that makes a map, fills it by C, and yields a `Case`: the same work
by both sides on that map. Keys and values use all 64 bits: Python's integers are at their dearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np

import fastmap

from ..cside import U64, Array, Call, CSide, possible_cpus, touched
from ..harness import Result, Side, compare, fastest

RECORD = [("packets", "u8"), ("bytes", "u8")]
CHUNKS = (256, 1024, 4096, 16_384, 65_536)
SLACK = 1024  # room beyond the live entries: a full buffer cannot tell the end of a map


@dataclass(frozen=True)
class Size:
    """How much work: the real thing, or just enough to see that it works."""

    entries: int = 100_000
    block: int = 5_000
    lru: int = 60_000

    @property
    def blocks(self) -> int:
        """An odd number: the sides' turns come in twos, and each side must meet every block."""
        return (self.entries // self.block - 2) | 1

    @property
    def room(self) -> int:
        """max_entries of the maps: some air, as a collector would leave."""
        return self.entries * 5 // 4


SMALL = Size(entries=2_000, block=100, lru=1_200)


@dataclass(frozen=True)
class Case:
    """The same work by fastmap and by C, `entries` a call; `before` runs untimed ahead of each."""

    name: str
    against: str
    limit: float
    entries: int
    ours: Side
    theirs: Side
    check: Callable[[], None]
    rounds: int = 140
    before: Callable[[], None] | None = None

    def compare(self) -> Result:
        """The ratio, by the harness."""
        return compare(
            self.name,
            self.ours,
            self.theirs,
            against=self.against,
            entries=self.entries,
            limit=self.limit,
            rounds=self.rounds,
            warmup=min(6, 1 + self.rounds // 8),  # few rounds are long ones
            before=self.before,
        )


Row = Callable[[CSide, Size], AbstractContextManager[Case]]


def scattered(n: int, seed: int = 1) -> U64:
    """`n` different u64 all over the range, in random order."""
    spread = np.arange(1, n + 1, dtype="u8") * np.uint64(0x9E37_79B9_7F4A_7C15)
    return np.random.default_rng(seed).permutation(spread)


def records(keys: U64) -> Array:
    """A record for each key, made from it."""
    values = np.empty(len(keys), RECORD)
    values["packets"], values["bytes"] = keys * np.uint64(3), keys * np.uint64(5)
    return values


def split(keys: U64, size: Size) -> list[U64]:
    """The keys in blocks."""
    return [keys[i * size.block : (i + 1) * size.block] for i in range(size.blocks)]


def in_turn(calls: Sequence[Call]) -> Side:
    """One prepared C call a block."""
    return lambda number: calls[number % len(calls)]()


def best_chunk(
    prepare: Callable[[int], Call], entries: int, before: Callable[[], None] | None = None
) -> Side:
    """C's whole-map call at the chunk that suits it best on this machine."""
    chunks = [chunk for chunk in CHUNKS if chunk < entries] + [entries]
    calls = {chunk: prepare(chunk) for chunk in chunks}
    sides: dict[int, Side] = {chunk: in_turn([call]) for chunk, call in calls.items()}
    return sides[fastest(sides, entries, before, rounds=7 if entries <= 200_000 else 3)]


@contextmanager
def get_int(c: CSide, size: Size) -> Iterator[Case]:
    """`m[k]`, a plain loop over Python ints."""
    keys = scattered(size.entries)
    with fastmap.create("hash", key="u8", value="u8", max_entries=size.room) as m:
        c.update_batch(m.fileno(), keys, keys * np.uint64(3))()
        lists = [block.tolist() for block in split(keys, size)]
        value = touched(1, "u8")

        def ours(number: int) -> int:
            block = lists[number % len(lists)]
            for k in block:
                m[k]
            return len(block)

        def check() -> None:
            assert [m[k] for k in lists[0]] == [k * 3 % 2**64 for k in lists[0]]

        theirs = in_turn([c.lookup_each(m.fileno(), b, value) for b in split(keys, size)])
        yield Case("`m[k]`, int to int", "C, LOOKUP_ELEM", 1.20, size.block, ours, theirs, check)


@contextmanager
def get_record(c: CSide, size: Size) -> Iterator[Case]:
    """`m[k]` that gives a record of two fields."""
    keys = scattered(size.entries)
    with fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as m:
        c.update_batch(m.fileno(), keys, records(keys))()
        lists = [block.tolist() for block in split(keys, size)]
        value = touched(1, RECORD)

        def ours(number: int) -> int:
            block = lists[number % len(lists)]
            for k in block:
                m[k]
            return len(block)

        def check() -> None:
            for k in lists[0]:
                assert m[k].tolist() == (k * 3 % 2**64, k * 5 % 2**64)

        theirs = in_turn([c.lookup_each(m.fileno(), b, value) for b in split(keys, size)])
        yield Case(
            "`m[k]`, int to a 2-field record",
            "C, LOOKUP_ELEM",
            1.50,
            size.block,
            ours,
            theirs,
            check,
        )


@contextmanager
def set_int(c: CSide, size: Size) -> Iterator[Case]:
    """`m[k] = v` over pairs of Python ints; the keys are there already."""
    keys = scattered(size.entries)
    values = keys * np.uint64(3)
    with fastmap.create("hash", key="u8", value="u8", max_entries=size.room) as m:
        c.update_batch(m.fileno(), keys, values)()
        pairs = list(zip(split(keys, size), split(values, size), strict=True))
        lists = [list(zip(k.tolist(), v.tolist(), strict=True)) for k, v in pairs]

        def ours(number: int) -> int:
            block = lists[number % len(lists)]
            for k, v in block:
                m[k] = v
            return len(block)

        def check() -> None:
            written = touched(size.block, "u8")
            for k, v in lists[0]:
                m[k] = v ^ 1
            c.lookup_loop(m.fileno(), pairs[0][0], written)()
            assert np.array_equal(written, pairs[0][1] ^ np.uint64(1))
            ours(0)

        theirs = in_turn([c.update_loop(m.fileno(), k, v) for k, v in pairs])
        yield Case("`m[k] = v`, ints", "C, UPDATE_ELEM", 1.25, size.block, ours, theirs, check)


@contextmanager
def lookup_many(c: CSide, size: Size) -> Iterator[Case]:
    """`lookup_many` with fresh arrays out, by system calls."""
    keys = scattered(size.entries)
    with fastmap.create("hash", key="u8", value="u8", max_entries=size.room) as m:
        c.update_batch(m.fileno(), keys, keys * np.uint64(3))()
        blocks = split(keys, size)

        def ours(number: int) -> int:
            _, found = m.lookup_many(blocks[number % len(blocks)], via="syscall")
            return int(np.count_nonzero(found))

        def check() -> None:
            some = blocks[0].copy()
            some[7] = 0  # no such key
            values, found = m.lookup_many(some, via="syscall")
            assert np.flatnonzero(~found).tolist() == [7]
            assert np.array_equal(values, some * np.uint64(3))

        out = touched(size.block, "u8")
        theirs = in_turn([c.lookup_loop(m.fileno(), block, out) for block in blocks])
        yield Case(
            "`lookup_many`, syscall path",
            "C, LOOKUP_ELEM",
            1.05,
            size.block,
            ours,
            theirs,
            check,
        )


@contextmanager
def read(c: CSide, size: Size) -> Iterator[Case]:
    """A reader's whole read, in its steady state."""
    keys = scattered(size.entries)
    with fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as m:
        c.update_batch(m.fileno(), keys, records(keys))()
        reader = m.reader(via="syscall")
        out_keys = touched(size.entries + SLACK, "u8")
        out_values = touched(size.entries + SLACK, RECORD)

        def check() -> None:
            got, values = reader.read()
            assert np.array_equal(np.sort(got), np.sort(keys))
            assert np.array_equal(values, records(got))

        theirs = best_chunk(
            lambda chunk: c.lookup_batch(m.fileno(), out_keys, out_values, chunk), size.entries
        )
        yield Case(
            "`reader.read()`, u64 to 16 bytes",
            "C, LOOKUP_BATCH, best chunk",
            1.05,
            size.entries,
            lambda number: len(reader.read()),
            theirs,
            check,
            rounds=40,
        )


@contextmanager
def read_sum(c: CSide, size: Size) -> Iterator[Case]:
    """A per-CPU map, summed over the CPUs."""
    keys, cpus = scattered(size.entries), possible_cpus()
    with fastmap.create("percpu_hash", key="u8", value="u8", max_entries=size.room) as m:
        values = keys[:, None] * np.arange(3, 3 + cpus, dtype="u8")
        c.update_batch(m.fileno(), keys, values)()
        reader = m.reader(reduce="sum")
        out_keys = touched(size.entries + SLACK, "u8")
        sums = touched(size.entries + SLACK, "u8")
        factor = np.arange(3, 3 + cpus, dtype="u8").sum()

        def check() -> None:
            got, summed = reader.read()
            assert np.array_equal(np.sort(got), np.sort(keys))
            assert np.array_equal(summed, got * factor)

        theirs = best_chunk(
            lambda chunk: c.percpu_sum(m.fileno(), out_keys, sums, cpus, chunk), size.entries
        )
        yield Case(
            '`reader(reduce="sum").read()`, per-CPU u64',
            "C, batch and sum, best chunk",
            1.10,
            size.entries,
            lambda number: len(reader.read()),
            theirs,
            check,
            rounds=40,
        )


@contextmanager
def drain(c: CSide, size: Size) -> Iterator[Case]:
    """`drain` of an LRU map into fresh arrays; refilled between the calls, untimed."""
    n = size.lru
    keys = np.zeros((n, 3), "u8")
    keys[:, 1] = scattered(n)
    values = np.repeat(keys[:, 1:2] * np.uint64(3), 16, axis=1)
    flat_keys, flat_values = keys.view("V24").reshape(n), values.view("V128").reshape(n)
    with fastmap.create("lru_hash", key="V24", value="V128", max_entries=65_536) as m:
        out_keys, out_values = touched(n + SLACK, "V24"), touched(n + SLACK, "V128")
        refill = c.update_batch(m.fileno(), flat_keys, flat_values)

        def before() -> None:
            assert refill() == n

        def check() -> None:
            before()
            got, drained = m.drain()
            numbers = np.ascontiguousarray(got).view("u8").reshape(-1, 3)[:, 1]
            assert np.array_equal(np.sort(numbers), np.sort(keys[:, 1]))
            seen = np.ascontiguousarray(drained).view("u8").reshape(-1, 16)
            assert (seen == numbers[:, None] * np.uint64(3)).all()
            assert len(m.drain()) == 0

        theirs = best_chunk(
            lambda chunk: c.drain_batch(m.fileno(), out_keys, out_values, chunk), n, before
        )
        yield Case(
            f"`drain()` of {n:,} LRU entries, 24 to 128 bytes",
            "C, LOOKUP_AND_DELETE_BATCH, best chunk",
            1.10,
            n,
            lambda number: len(m.drain()),
            theirs,
            check,
            rounds=25,
            before=before,
        )


@contextmanager
def update_many(c: CSide, size: Size) -> Iterator[Case]:
    """`update_many` of keys that are there already."""
    keys = scattered(size.entries)
    values = keys * np.uint64(3)
    with fastmap.create("hash", key="u8", value="u8", max_entries=size.room) as m:
        c.update_batch(m.fileno(), keys, values)()

        def check() -> None:
            written = touched(size.entries, "u8")
            assert m.update_many(keys, values ^ np.uint64(1)) == size.entries
            c.lookup_loop(m.fileno(), keys, written)()
            assert np.array_equal(written, values ^ np.uint64(1))
            assert m.update_many(keys, values) == size.entries

        theirs = best_chunk(
            lambda chunk: c.update_batch(m.fileno(), keys, values, chunk), size.entries
        )
        yield Case(
            "`update_many`",
            "C, UPDATE_BATCH, best chunk",
            1.05,
            size.entries,
            lambda number: int(m.update_many(keys, values)),
            theirs,
            check,
            rounds=30,
        )


@contextmanager
def lookup_prefixes(c: CSide, size: Size) -> Iterator[Case]:
    """`lookup_many` of an LPM trie: addresses without prefix lengths, of which every other fits."""
    prefix = np.dtype([("prefixlen", "u4"), ("addr", "u1", (4,))])
    with fastmap.create("lpm_trie", key="ipv4", value="u8", max_entries=size.room) as m:
        numbers = np.arange(size.entries // 2).astype("u4")
        networks = np.empty(len(numbers), prefix)
        networks["prefixlen"] = 26
        networks["addr"] = (numbers << 6).astype(">u4").view("u1").reshape(-1, 4)
        c.update_batch(m.fileno(), networks, numbers.astype("u8"))()
        spread = np.random.default_rng(1).permutation(size.entries).astype("u4")
        blocks = [((spread[i * size.block : (i + 1) * size.block] << 6) | 5).astype(">u4")
                  for i in range(size.blocks)]
        whole = []
        for block in blocks:
            whole.append(np.empty(len(block), prefix))
            whole[-1]["prefixlen"] = 32
            whole[-1]["addr"] = block.view("u1").reshape(-1, 4)

        def ours(number: int) -> int:
            values, _ = m.lookup_many(blocks[number % len(blocks)], via="syscall")
            return len(values)

        def check() -> None:
            values, found = m.lookup_many(blocks[0], via="syscall")
            asked = blocks[0].astype("u8") >> np.uint64(6)
            assert np.array_equal(found, asked < len(numbers)) and 0 < found.sum() < len(found)
            assert np.array_equal(values, np.where(found, asked, 0))

        out = touched(size.block, "u8")
        calls = [c.lookup_loop(m.fileno(), keys, out) for keys in whole]

        def theirs(number: int) -> int:
            calls[number % len(calls)]()
            return size.block

        yield Case("`lookup_many`, IPv4 addresses in an LPM trie", "C, LOOKUP_ELEM", 1.10,
                   size.block, ours, theirs, check)


@contextmanager
def queue_many(c: CSide, size: Size) -> Iterator[Case]:
    """`push_many` and `pop_many` of a queue."""
    values = scattered(size.block)
    out = touched(size.block, "u8")
    with fastmap.create("queue", value="u8", max_entries=size.block) as q:
        def ours(number: int) -> int:
            q.push_many(values, via="syscall")
            return len(q.pop_many(size.block, via="syscall"))

        def check() -> None:
            assert q.push_many(values) == size.block
            assert np.array_equal(q.pop_many(size.block), values) and not q
            assert c.queue_round(q.fileno(), values, out)() == size.block
            assert np.array_equal(out, values)

        theirs = in_turn([c.queue_round(q.fileno(), values, out)])
        yield Case("`push_many` and `pop_many`", "C, UPDATE_ELEM, LOOKUP_AND_DELETE_ELEM", 1.05,
                   size.block, ours, theirs, check)


ROWS: tuple[Row, ...] = (
    get_int,
    get_record,
    set_int,
    lookup_many,
    read,
    read_sum,
    drain,
    update_many,
    lookup_prefixes,
    queue_many,
)
