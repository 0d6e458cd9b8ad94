"""Cost curves: time an entry over entries, key and value size, fill, chunk and threads.

Every point interleaves fastmap's ways and C's LOOKUP_BATCH (or LOOKUP_ELEM) on one map and keeps
the median and the minimum of each; what was processed is asserted each time. There are no verdicts
here: `extra_info["curve"]` is for the report.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap

from .counts import Counts, allocations, instructions, no_callgrind, system_calls
from .cside import Array, CSide, touched
from .harness import CPUS, Side, quiet, taken
from .rows.cases import SLACK, in_turn, scattered

#: What one point may take, in seconds; a large map gets three rounds at least.
BUDGET = 1.0
FULL, IN_KERNEL, C_BATCH = "snapshot()", "snapshot(exact=False)", "C, LOOKUP_BATCH"
GIVEN, GIVEN_SYSCALL, C_LOOP = "lookup_many", 'lookup_many(via="syscall")', "C, LOOKUP_ELEM"


@dataclass(frozen=True)
class Point:
    """One map: how many entries of how many there may be, their sizes, and how it is read."""

    entries: int
    key: int = 8
    value: int = 8
    room: int = 0
    chunk: int = 0
    threads: int = 1


def over(name: str, values: list[int], entries: int = 100_000) -> list[tuple[int, Point]]:
    """A curve's points: `entries` and one thing that grows."""
    return [(v, Point(**{"entries": entries, name: v})) for v in values]


CURVES: dict[str, list[tuple[int, Point]]] = {
    "entries": over("entries", [1_000, 10_000, 100_000, 1_000_000, 4_000_000]),
    "key bytes": over("key", [4, 8, 16, 64]),
    "value bytes": over("value", [4, 8, 64, 256, 1024, 4096], entries=20_000),
    "fill, percent": [(share, Point(entries=10_000 * share, room=1_000_000))
                      for share in (1, 5, 25, 100)],
    "chunk": over("chunk", [256, 1024, 4096, 16_384, 65_536]),
    "threads": over("threads", [1, 2]),
}


def keys_of(point: Point) -> Array:
    """Keys of the point's size, all different, in random order."""
    if point.key == 4:
        low = np.arange(1, point.entries + 1, dtype="u4") * np.uint32(0x9E37_79B1)
        return np.random.default_rng(1).permutation(low)
    keys = np.zeros((point.entries, point.key // 8), np.uint64)
    keys[:, 0] = scattered(point.entries)
    return keys.view(f"V{point.key}").reshape(-1) if point.key > 8 else keys.reshape(-1)


def sides_of(m: fastmap.Map, c: CSide, point: Point, keys: Array) -> dict[str, Side]:
    """fastmap's ways and C's, on this map."""
    n, fd = point.entries, m.fileno()
    if point.threads > 1 or point.chunk == 0 and n <= 100_000:
        asked = np.random.default_rng(5).permutation(keys)
        out = touched(n, f"V{point.value}")
        given: dict[str, Side] = {
            GIVEN: lambda number: int(
                np.count_nonzero(m.lookup_many(asked, threads=point.threads)[1])),
            GIVEN_SYSCALL: lambda number: int(np.count_nonzero(
                m.lookup_many(asked, via="syscall", threads=point.threads)[1])),
            C_LOOP: in_turn([c.lookup_loop(fd, asked, out)]),
        }
    else:
        given = {}
    if point.threads > 1:
        return given
    out_keys, out_values = touched(n + SLACK, keys.dtype), touched(n + SLACK, f"V{point.value}")
    chunk = point.chunk or 4096
    read: dict[str, Side] = {
        C_BATCH: in_turn([c.lookup_batch(fd, out_keys, out_values, chunk)])}
    if point.chunk:
        reader = m.reader(chunk=chunk, via="syscall")
        read["reader(chunk=).read()"] = lambda number: len(reader.read())
    else:
        read[FULL] = lambda number: len(m.snapshot())
        read[IN_KERNEL] = lambda number: len(m.snapshot(exact=False))
    return {**read, **given}


def one(c: CSide, point: Point, once: bool) -> dict[str, tuple[float, float]]:
    """The median and the least of each side at one point."""
    keys = keys_of(point)
    values = np.arange(point.entries * point.value, dtype="u8").astype("u1")
    rows = values.view(f"V{point.value}")
    with fastmap.create("hash", key=keys.dtype, value=f"V{point.value}",
                        max_entries=max(point.room, point.entries)) as m:
        assert c.update_batch(m.fileno(), keys, rows)() == point.entries
        m.prepare(threads=point.threads)
        sides = sides_of(m, c, point, keys)
        got, read = m.snapshot(exact=False)
        found, _ = m.lookup_many(got[:100])
        assert len(got) == point.entries and found.tobytes() == read[:100].tobytes()
        with quiet():
            if point.threads > 1:
                os.sched_setaffinity(0, CPUS)
            start = perf_counter_ns()
            taken(sides, point.entries, 0)
            spent = (perf_counter_ns() - start) / 1e9
            rounds = 1 if once else min(40, max(3, int(BUDGET / spent)))
            return {name: (float(np.median(each)), min(each))
                    for name, each in taken(sides, point.entries, rounds).items()}


def fitting(points: list[tuple[int, Point]], once: bool) -> list[tuple[int, Point]]:
    """The points that this machine's memory has room for; small ones alone for `--bench-once`."""
    if once:
        return [(x, p) for x, p in points if p.entries * p.value <= 1 << 21][:2]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return [(x, p) for x, p in points
            if 4 * max(p.entries, p.room) * (p.key + p.value + 48) < free]


@pytest.mark.parametrize("over", CURVES)
def test_cost_over(benchmark: BenchmarkFixture, c: CSide, once: bool, over: str) -> None:
    points = fitting(CURVES[over], once)
    series: dict[str, list[tuple[int, float, float]]] = {}

    def curve() -> int:
        for x, point in points:
            for name, (median, least) in one(c, point, once).items():
                series.setdefault(name, []).append((x, median, least))
        return len(points)

    benchmark.group = "scaling"
    assert benchmark.pedantic(curve) == len(points)
    benchmark.extra_info["curve"] = {"over": over, "series": series}


def test_latency(benchmark: BenchmarkFixture, once: bool) -> None:
    """How single calls are distributed: each one timed by itself, the clock's own cost beside."""
    n = 1_000 if once else 20_000
    keys = scattered(n)
    with fastmap.create("hash", key="u8", value="u8", max_entries=n) as m:
        m.update_many(keys, keys)
        m.prepare()
        ints, few = keys.tolist(), keys[:64]
        reader = m.reader(via="syscall")
        calls: dict[str, tuple[int, Callable[[int], object]]] = {
            "the clock itself": (n, lambda i: None),
            "m[k]": (n, lambda i: m[ints[i]]),
            "m[k] = v": (n, lambda i: m.__setitem__(ints[i], ints[i])),
            "lookup_many, 64 keys, in-kernel": (n // 4, lambda i: m.lookup_many(few, via="kernel")),
            f"reader.read(), {n:,} entries": (n // 100, lambda i: len(reader.read())),
        }
        assert m[ints[3]] == ints[3] and len(reader.read()) == n
        found = {}

        def each() -> int:
            for name, (times, call) in calls.items():
                took = np.empty(times)
                for i in range(times):
                    start = perf_counter_ns()
                    call(i)
                    took[i] = perf_counter_ns() - start
                found[name] = np.percentile(
                    took, [1, 10, 25, 50, 75, 90, 99, 99.9, 100]).tolist()
            return len(found)

        benchmark.group = "latency"
        with quiet():
            assert benchmark.pedantic(each) == len(calls)
        benchmark.extra_info["latency"] = found


def peak_over(call: Callable[[], object]) -> int:
    """Bytes by which the resident memory rose at its peak during a call."""

    def status(name: str) -> int:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10

    ctypes.CDLL(None).malloc_trim(0)  # what was freed before shall not be taken again unseen
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    kept = call()
    rose = status("VmHWM") - before
    del kept
    return rose


def test_memory_at_peak(benchmark: BenchmarkFixture, c: CSide, once: bool) -> None:
    """Peak memory of a whole read, over the bytes of its keys and values."""
    n = 10_000 if once else 1_000_000
    keys = scattered(n)
    with fastmap.create("hash", key="u8", value="u8", max_entries=n) as m:
        c.update_batch(m.fileno(), keys, keys)()
        m.prepare()
        calls: dict[str, Callable[[], object]] = {
            "snapshot()": m.snapshot,
            "snapshot(exact=False)": lambda: m.snapshot(exact=False),
            "chunk by chunk": lambda: sum(len(batch) for batch in m.reader()),
            "lookup_many": lambda: m.lookup_many(keys),
            "dict(m.items())": lambda: dict(m.items()),
        }
        found = {}

        def each() -> int:
            for name, call in calls.items():
                found[name] = peak_over(call) / (16 * n)
            return len(found)

        benchmark.group = "memory"
        assert benchmark.pedantic(each) == len(calls)
        benchmark.extra_info["memory"] = found


def test_counts(benchmark: BenchmarkFixture, once: bool) -> None:
    """System calls by our own demo program, and what is allocated and executed, for the report."""
    def each() -> dict[str, Counts]:
        found = {"system calls": system_calls(), "allocations": allocations()}
        if not once and no_callgrind() is None:  # some ten seconds
            found["instructions"] = instructions()
        return found

    benchmark.group = "counts"
    counted = benchmark.pedantic(each)
    assert counted["system calls"]["m[k]"] == {"bpf": 1}
    benchmark.extra_info["counts"] = counted
