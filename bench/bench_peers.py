"""fastmap beside every other library, on one map, question by question.

A group of pytest-benchmark is a question, with fastmap and each library in it; `extra_info` has the
ratio by the harness, and what each one returns. A library that is ahead fails nothing: the report
tells it. What is not installed is one line (`make bench-peers` installs it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap

from .cside import CSide
from .harness import Side, compare, quiet
from .peers import OPS, TAKING, WHOLE, Ground, Kind, Peer, clock, expected, fill
from .peers.kinds import KINDS
from .rows.cases import SMALL, Size, scattered
from .rows.perf_rows import PAGES, Producer, consuming, leasing
from .rows.rings import LIBBPF, consumer, filled, leased

QUESTION = {
    "lookup": "one element: lookup",
    "update": "one element: update",
    "delete": "one element: delete",
    "read": "whole read, each library's best way",
    "walk": "whole read by the library's iterator",
    "drain": "drain: the whole map, and the entries are gone",
    "given": "the values of 5,000 given keys",
    "put": "5,000 given keys updated at once",
    "ring": "ring buffer: 100,000 records of 32 bytes read and summed",
    "perf": "perf buffer: 100,000 records of 32 bytes read and summed",
}
#: What fastmap's side returns, for the table.
RETURNS = {
    "lookup": "int",
    "update": "-",
    "delete": "-",
    "read": "fresh ndarrays",
    "walk": "tuples of ints",
    "drain": "fresh ndarrays",
    "given": "fresh ndarrays, values and found",
    "put": "-",
    "ring": "a strided ndarray on the ring, by lease",
}
#: What the rounds of one comparison may take, in seconds.
BUDGET = 1.5



def installed(name: str, reason: str | None) -> list[pytest.MarkDecorator]:
    """The mark that leaves out what is not there, with its one line."""
    return [pytest.mark.skipif(reason is not None, reason=f"no {name}: {reason}")]


PAIRS = [pytest.param(op, kind, marks=installed(kind.name, kind.missing()), id=f"{op}-{kind.name}")
         for op in OPS for kind in KINDS if op in kind.returns]
RINGS = [pytest.param(kind, marks=installed(kind.name, kind.missing()), id=kind.name)
         for kind in KINDS if kind.ring]
PERFS = [pytest.param(kind, marks=installed(kind.name, kind.missing()), id=kind.name)
         for kind in KINDS if kind.perf]
#: libbpf's consumers are those of `rings` and `perf_rows`.
for streams in RINGS, PERFS:
    streams.append(pytest.param(None, marks=installed(
        "libbpf", None if LIBBPF else "apt-get install libbpf-dev"), id="C, libbpf"))


@dataclass
class Field:
    """The map, fastmap's sides, and the peers that were started."""

    ground: Ground
    map: fastmap.Map
    refill: Callable[[], int]
    ours: dict[str, Side]
    stack: ExitStack
    peers: dict[str, Peer] = field(default_factory=dict)

    def entries(self, op: str) -> int:
        """What a block processes."""
        return len(self.ground.keys) if op in WHOLE else self.ground.block

    def before(self, op: str) -> Callable[[], None] | None:
        """What goes untimed ahead of a block."""
        if op not in TAKING:
            return None

        def full() -> None:
            assert self.refill() == len(self.ground.keys)

        return full

    def peer(self, kind: Kind) -> Peer:
        """The peer, started when it is first asked."""
        if kind.name not in self.peers:
            self.peers[kind.name] = kind.start(self.ground)
            self.stack.callback(self.peers[kind.name].close)
        return self.peers[kind.name]


def fastmaps(m: fastmap.Map, ground: Ground) -> dict[str, Side]:
    """What a user of fastmap writes for each question."""
    parts = [ground.part(i) for i in range(len(ground.keys) // ground.block)]
    keys = [part.tolist() for part in parts]
    tripled = [part * np.uint64(3) for part in parts]
    pairs = [list(zip(part.tolist(), values.tolist(), strict=True))
             for part, values in zip(parts, tripled, strict=True)]

    def lookup(number: int) -> int:
        block = keys[number % len(keys)]
        for k in block:
            m[k]
        return len(block)

    def update(number: int) -> int:
        block = pairs[number % len(pairs)]
        for k, v in block:
            m[k] = v
        return len(block)

    def delete(number: int) -> int:
        block = keys[number % len(keys)]
        for k in block:
            del m[k]
        return len(block)

    def walk(number: int) -> int:
        return len(list(m.items()))

    def given(number: int) -> int:
        _, found = m.lookup_many(parts[number % len(parts)])
        return int(np.count_nonzero(found))

    return {"lookup": lookup, "update": update, "delete": delete, "walk": walk, "given": given,
            "read": lambda number: len(m.snapshot()), "drain": lambda number: len(m.drain()),
            "put": lambda number: m.update_many(parts[number % len(parts)],
                                                tripled[number % len(parts)])}


@pytest.fixture(scope="module")
def ground(once: bool, c: CSide) -> Iterator[Field]:
    size = SMALL if once else Size()
    keys = scattered(size.entries)
    with ExitStack() as stack:
        m = stack.enter_context(
            fastmap.create("hash", key="u8", value="u8", max_entries=size.room))
        m.prepare()
        ground = Ground(m.fileno(), keys, size.room, size.block)
        yield Field(ground, m, fill(c, ground), fastmaps(m, ground), stack)


def check(where: Field, op: str, peer: Peer) -> None:
    """A peer's block has the sums, the map what the block is for; then the map is whole again."""
    part, m = where.ground.part(1), where.map
    where.refill()
    if op in ("update", "put"):
        m.update_many(part, np.zeros(len(part), "u8"))
    assert peer.sums(op, 1) == expected(where.ground, op, 1)
    values, found = m.lookup_many(part)
    if op in TAKING:
        assert not found.any() and len(m) == len(where.ground.keys) - where.entries(op)
    else:
        assert np.array_equal(values, part * np.uint64(3))
    where.refill()


def check_ours(where: Field, op: str) -> None:
    """The same of fastmap's own side, by what the map is seen to hold elsewhere."""
    m, ground = where.map, where.ground
    part = ground.part(1)
    where.refill()
    if op == "lookup":
        assert [m[k] for k in part.tolist()] == (part * np.uint64(3)).tolist()
    elif op == "given":
        values, found = m.lookup_many(part)
        assert found.all() and np.array_equal(values, part * np.uint64(3))
    elif op in WHOLE:
        batch = m.drain() if op == "drain" else m.snapshot()
        got = dict(m.items()) if op == "walk" else dict(
            zip(*(column.tolist() for column in batch), strict=True))
        want = dict(zip(ground.keys.tolist(), (ground.keys * np.uint64(3)).tolist(), strict=True))
        assert got == want and len(m) == (0 if op == "drain" else len(want))
    elif op in ("update", "put"):
        m.update_many(part, np.zeros(len(part), "u8"))
        assert where.ours[op](1) == len(part)
        assert np.array_equal(m.lookup_many(part)[0], part * np.uint64(3))
    else:
        assert where.ours[op](1) == len(part)
        assert not m.lookup_many(part)[1].any() and len(m) == len(ground.keys) - len(part)
    where.refill()


def rounds_of(where: Field, op: str, *sides: Side) -> int:
    """How many rounds fit into the budget, at least as many as a verdict takes."""
    before, took = where.before(op), 0
    for side in sides:
        for number in (0, 1):
            if before is not None:
                before()
            start = perf_counter_ns()
            assert side(number) == where.entries(op)
            took += perf_counter_ns() - start
    return min(60, max(7, math.floor(BUDGET * 2e9 / took)))


def run(benchmark: BenchmarkFixture, where: Field, op: str, side: Side, rounds: int) -> None:
    """pytest-benchmark's own statistics of one side."""
    numbers = iter(range(10_000))

    def block() -> None:
        assert side(next(numbers)) == where.entries(op)

    before = where.before(op)
    benchmark.group = QUESTION[op]
    benchmark.extra_info["entries"] = where.entries(op)
    with quiet():
        benchmark.pedantic(block, setup=before, rounds=min(10, rounds), warmup_rounds=1)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("op", OPS)
def test_fastmap(benchmark: BenchmarkFixture, ground: Field, op: str) -> None:
    check_ours(ground, op)
    benchmark.extra_info |= {"question": QUESTION[op], "peer": "fastmap", "returns": RETURNS[op]}
    run(benchmark, ground, op, ground.ours[op], 10)
    ground.refill()


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(("op", "kind"), PAIRS)
def test_peer(benchmark: BenchmarkFixture, ground: Field, once: bool,
              op: str, kind: Kind) -> None:
    peer = ground.peer(kind)
    check(ground, op, peer)
    ours, theirs = ground.ours[op], peer.side(op)
    benchmark.extra_info |= {"question": QUESTION[op], "peer": kind.name, "version": peer.version,
                             "returns": kind.returns[op], "note": kind.note}
    rounds = 1 if once else rounds_of(ground, op, ours, theirs)
    if ground.before(op) is not None:
        ground.refill()
    run(benchmark, ground, op, theirs, rounds)
    if not once:
        result = compare(QUESTION[op], ours, theirs, against=kind.name,
                         entries=ground.entries(op), limit=1.0, rounds=rounds, warmup=1, tries=2,
                         before=ground.before(op))
        benchmark.extra_info["ratio"] = result.as_dict()
    ground.refill()
    check(ground, op, peer)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("kind", RINGS)
def test_ring(benchmark: BenchmarkFixture, once: bool, kind: Kind | None) -> None:
    """The peers' consumers take turns with fastmap on one ring, which a program fills."""
    with ExitStack() as stack:
        ring, n, total, refill = stack.enter_context(
            filled(SMALL if once else Size(), 100_000, flags=0))
        if kind is None:
            consume = stack.enter_context(consumer(ring))
            version, returns = "", "a C callback"

            def consumed(number: int) -> int:
                count, found = consume(number)
                assert found == total
                return count

            theirs: Side = consumed
        else:
            assert kind.ring is not None
            peer = kind.ring(ring.fileno(), n)
            stack.callback(peer.close)
            version, returns = peer.version, kind.returns["ring"]
            refill()
            assert peer.sums("ring", 0)[1] == total
            theirs = peer.side("ring")

        refill()
        assert theirs(0) == n
        benchmark.group = QUESTION["ring"]
        benchmark.extra_info |= {"entries": n, "question": QUESTION["ring"], "version": version,
                                 "peer": kind.name if kind else "C, libbpf", "returns": returns}
        with quiet():
            benchmark.pedantic(lambda: theirs(0), setup=refill, rounds=5)
        assert ring.available == 0
        if not once:
            result = compare(QUESTION["ring"], lambda number: leased(ring, n, total), theirs,
                             against=kind.name if kind else "C, libbpf", entries=n, limit=1.0,
                             rounds=12, warmup=1, tries=2, before=refill)
            benchmark.extra_info["ratio"] = result.as_dict()


class Drained:
    """A peer's side that takes what a `Producer` has put."""

    def __init__(self, side: Side, producer: Producer) -> None:
        self._side, self._producer = side, producer
        self.told = getattr(side, "told")  # noqa: B009  # a child's: it tells its own time

    def __call__(self, number: int) -> int:
        n = self._side(number)
        self._producer.drained = True
        return n


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("kind", PERFS)
def test_perf(benchmark: BenchmarkFixture, once: bool, kind: Kind | None) -> None:
    """Each side has a perf buffer of its own, for an event has one ring."""
    size = SMALL if once else Size()
    with ExitStack() as stack:
        mine, ours = stack.enter_context(leasing(size))
        version, returns, name = "", "a C callback", "C, libbpf"
        if kind is None:
            other, theirs = stack.enter_context(consuming(size))
        else:
            assert kind.perf is not None
            other = stack.enter_context(Producer(mine.n))
            peer = kind.perf(other.events.fileno(), other.n, PAGES)
            stack.callback(peer.close)
            version, returns, name = peer.version, kind.returns["perf"], kind.name
            theirs = Drained(peer.side("perf"), other)

        def before() -> None:
            mine.fill()
            other.fill()

        def check() -> None:  # libbpf's side looks at each block's sum
            before()
            if kind is not None:
                other.taken(other.n, peer.sums("perf", 0)[1])

        def block() -> None:
            assert theirs(0) == other.n

        check()
        benchmark.group = QUESTION["perf"]
        benchmark.extra_info |= {"entries": mine.n, "question": QUESTION["perf"], "peer": name,
                                 "version": version, "returns": returns}
        with quiet():
            benchmark.pedantic(block, setup=before, rounds=5)
        if not once:
            result = compare(QUESTION["perf"], ours, theirs, against=name, entries=mine.n,
                             limit=1.0, rounds=12, warmup=1, tries=2, before=before)
            benchmark.extra_info["ratio"] = result.as_dict()
        check()
