"""Live tables beside HASH and PERCPU_HASH of the same content: what an event and what a read costs.

The programs are ``c/live.bpf.c``, loaded by bpftool; keys of 16 bytes, values of two u64, room for
2**20 keys.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap
from fastmap.collect import Delta

from .conftest import Figure, Pair
from .cside import CSide, touched

HERE = Path(__file__).parent
KEY = np.dtype([("number", "u8"), ("rest", "u8")])
VALUE = np.dtype([("packets", "u8"), ("bytes", "u8")])
ROOM = 1 << 20
#: The largest batch that LOOKUP_BATCH is quick with.
CHUNK = 1 << 16
#: Blocks of a million events, or reads of a million keys.
ROUNDS = 12


@dataclass
class Counting:
    """The tables, the maps, and what counts in each: ``count["hash"](events, first, depends)``."""

    own: Any
    shared: Any
    hash: Any
    percpu: Any
    draws: Any
    count: dict[str, Callable[..., int]]
    keys: int = 0

    def fill(self, keys: int, skew: float = 0) -> None:
        """Have events be of `keys` keys, uniform or by a power law, and count each key once."""
        random = np.random.default_rng(7)
        if skew:
            weights = 1 / np.arange(1, keys + 1) ** skew
            drawn = np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(ROOM))
            self.draws[:] = drawn.clip(max=keys - 1)
        else:
            self.draws[:] = random.integers(0, keys, ROOM)
        mixed = self.draws.copy()
        if self.keys != keys:
            self.empty()
            self.draws[:keys] = random.permutation(keys)
            for count in self.count.values():
                assert count(keys, 0, 0) == 0
            self.draws[:] = mixed
            self.keys = keys

    def empty(self) -> None:
        self.keys = 0
        for table in (self.own, self.shared):
            table.expire(idle=0)
        for m in (self.hash, self.percpu):
            m.clear()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counting]:
    clang, bpftool = shutil.which("clang"), shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin")
    if not clang or not bpftool:
        pytest.skip("needs clang and bpftool")
    folder = tmp_path_factory.mktemp("live")
    include = Path(fastmap.__file__).parent / "include"
    subprocess.run([clang, "-target", "bpf", "-mcpu=v3", "-O2", "-g", f"-I{include}",
                    f"-I/usr/include/{os.uname().machine}-linux-gnu", "-c",
                    HERE / "c" / "live.bpf.c", "-o", folder / "live.o"], check=True)
    (folder / "fs").mkdir()
    with ExitStack() as stack:
        fs = stack.enter_context(fastmap.bpffs(folder / "fs"))
        own, shared = (stack.enter_context(fastmap.LiveTable.create(
            key=KEY, value=VALUE, capacity=ROOM, columns=columns, pin=fs / name))
            for name, columns in (("own", None), ("shared", 1)))
        maps = [word for table in (own, shared) for name in table.map_fds()
                for word in ("map", "name", name, "pinned", str(fs / name))]
        hash, percpu = (stack.enter_context(fastmap.create(
            kind, key=KEY, value=VALUE, max_entries=ROOM, pin=fs / kind, name=name))
            for kind, name in (("hash", "hash"), ("percpu_hash", "percpu")))
        draws = stack.enter_context(fastmap.create(
            "array", value="u8", max_entries=ROOM, flags=fastmap.MapFlag.MMAPABLE, name="draws",
            pin=fs / "draws"))
        for name, pin in (("hash", "hash"), ("percpu", "percpu_hash"), ("draws", "draws")):
            maps += ["map", "name", name, "pinned", str(fs / pin)]
        subprocess.run([bpftool, "prog", "loadall", folder / "live.o", fs / "progs", *maps],
                       check=True)

        def counter(name: str) -> Callable[..., int]:
            program = stack.enter_context(fastmap.Program.open(fs / "progs" / f"{name}_count"))
            return lambda events, first, depends: program.run(
                struct.pack("=3Q", events, first, depends))

        yield Counting(own, shared, hash, percpu, draws.memory(writable=True),
                       {name: counter(name) for name in ("own", "shared", "hash", "percpu")})


def events(counting: Counting, name: str, number: int, depends: int = 0, _: int = 0) -> int:
    assert counting.count[name](number, 0, depends) == 0
    return number


@pytest.mark.parametrize("other", ["own", "shared"])
@pytest.mark.parametrize(("keys", "skew"), [(10_000, 0), (100_000, 0), (1_000_000, 0),
                                            (1_000_000, 1.0)])
def test_event(counting: Counting, pair: Pair, once: bool, keys: int, skew: float,
               other: str) -> None:
    number = 1 << (14 if once else 20)
    keys = min(keys, number)
    counting.fill(keys, skew)
    kind = f"{keys} keys, {'Zipf' if skew else 'uniform'}"
    pair("an event", partial(events, counting, other, number, 0),
         partial(events, counting, "hash", number, 0), name=f"live ({other}): event, {kind}",
         against="HASH, two atomic adds", entries=number, limit=0.65 if other == "own" else 0.75,
         rounds=ROUNDS)


def test_event_that_depends_on_the_last(counting: Counting, pair: Pair, once: bool) -> None:
    number = 1 << (14 if once else 20)
    keys = min(1_000_000, number)
    counting.fill(keys)
    pair("an event", partial(events, counting, "own", number, 1),
         partial(events, counting, "hash", number, 1), name="live: event that waits for the last",
         against="HASH, two atomic adds", entries=number, limit=0.9, rounds=ROUNDS)


def test_hot_keys_on_every_cpu(counting: Counting, pair: Pair, once: bool) -> None:
    number, cpus = 1 << (14 if once else 21), 2
    counting.fill(1000)

    def both(name: str, _: int) -> int:
        threads = [threading.Thread(target=events, args=(counting, name, number))
                   for _ in range(cpus)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return cpus * number

    pair("an event", partial(both, "own"), partial(both, "percpu"),
         name="live: two CPUs, 1000 hot keys", against="PERCPU_HASH", entries=cpus * number,
         limit=0.8, rounds=ROUNDS)


def test_inserts(counting: Counting, pair: Pair, once: bool) -> None:
    number = 1 << (14 if once else 19)
    counting.draws[:] = np.random.default_rng(3).permutation(ROOM)
    pair("an insert", partial(events, counting, "own", number, 0),
         partial(events, counting, "hash", number, 0), name="live: a new key", against="HASH",
         entries=number, limit=0.75, rounds=5, before=counting.empty)
    counting.empty()


@pytest.fixture
def full(counting: Counting, once: bool) -> int:
    keys = 1 << 14 if once else 1_000_000
    counting.fill(keys)
    return keys


def checked(batch: Any, keys: int) -> int:
    assert len(batch) == keys
    return keys


def reads(counting: Counting, keys: int) -> dict[str, tuple[Callable[[int], int], float]]:
    """What reads all keys, and how many times as fast as LOOKUP_BATCH it should be."""
    own, shared = counting.own, counting.shared
    reader = own.reader()

    def column(_: int) -> int:
        sums = own.values["bytes"][:, :keys].sum(axis=0)
        return len(sums)

    def zero_copy(_: int) -> int:
        shared.values["bytes"][0, :keys].sum()
        return keys

    own.delta()
    return {
        "read()": (lambda _: checked(own.read(), keys), 28),
        "reader().read()": (lambda _: checked(reader.read(), keys), 40),
        "one field, summed by numpy": (column, 60), "one column, .sum()": (zero_copy, 100),
        "delta()": (lambda _: checked(own.delta(), keys), 30),
    }


@pytest.mark.parametrize("what", ["read()", "reader().read()",
                                  "one field, summed by numpy", "one column, .sum()", "delta()"])
def test_read(counting: Counting, full: int, c: CSide, pair: Pair, what: str) -> None:
    ours, times = reads(counting, full)[what]
    theirs = c.lookup_batch(counting.hash.fileno(), touched(ROOM, KEY), touched(ROOM, VALUE), CHUNK)
    pair("a read", ours, lambda _: theirs(), name=f"live: {what}",
         against="C, LOOKUP_BATCH of HASH",
         entries=full, limit=1 / times, rounds=ROUNDS)


def test_read_beside_a_percpu_hash(counting: Counting, full: int, pair: Pair) -> None:
    reader, theirs = counting.own.reader(), counting.percpu.reader(reduce="sum")
    pair("a read", lambda _: checked(reader.read(), full),
         lambda _: checked(theirs.read(), full), name="live: reader().read()",
         against="PERCPU_HASH, reader(reduce='sum')", entries=full, limit=1 / 40, rounds=6)


def test_delta_beside_delta(counting: Counting, full: int, pair: Pair) -> None:
    theirs = Delta(counting.hash)
    counting.own.delta()
    pair("a read", lambda _: checked(counting.own.delta(), full),
         lambda _: checked(theirs.read(), full), name="live: delta()", against="Delta(HASH).read()",
         entries=full, limit=1 / 25, rounds=6)


def test_lookups(counting: Counting, full: int, pair: Pair) -> None:
    keys = np.random.default_rng(5).permutation(counting.own.read().keys)

    def ours(_: int) -> int:
        return int(counting.own.lookup_many(keys)[1].sum())

    def theirs(_: int) -> int:
        return int(counting.hash.lookup_many(keys, via="kernel")[1].sum())

    pair("lookups", ours, theirs, name="live: lookup_many", against="HASH, in the kernel",
         entries=full, limit=1 / 1.5, rounds=6)


def test_memory(counting: Counting, benchmark: BenchmarkFixture, figure: Figure) -> None:
    """Bytes of a key, by the kernel's own account."""
    benchmark.group = "memory"
    benchmark.pedantic(lambda: None)
    for name, used in (("live", counting.own.nbytes), ("shared", counting.shared.nbytes),
                       ("HASH", counting.hash.info().memlock),
                       ("PERCPU_HASH", counting.percpu.info().memlock)):
        figure(f"memory of a key: {name}", used / ROOM, "bytes")
