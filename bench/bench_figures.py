"""Figures that README names and that stand for themselves: what single calls cost by the clock."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter_ns

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap
from fastmap.maptypes.reader import count as walk

from .conftest import Figure
from .harness import quiet
from .rows.cases import SMALL, Size, scattered
from .rows.rings import filled


def microseconds(call: Callable[[], object], rounds: int) -> float:
    """The median of single calls."""
    took = []
    for _ in range(rounds + 1):
        start = perf_counter_ns()
        call()
        took.append(perf_counter_ns() - start)
    return median(took[1:]) / 1e3


@pytest.mark.parametrize("entries", [1_024, 65_536])
def test_len(benchmark: BenchmarkFixture, figure: Figure, once: bool, entries: int) -> None:
    with fastmap.create("hash", key="u8", value="u8", max_entries=entries) as m:
        keys = scattered(entries)
        m.update_many(keys, keys)
        m.prepare()
        assert len(m) == walk(m) == entries
        benchmark.group = "len"
        rounds = 2 if once else 30
        with quiet():
            asked, walked = benchmark.pedantic(lambda: (
                microseconds(lambda: len(m), rounds), microseconds(lambda: walk(m), rounds)))
    figure(f"`len()` of {entries:,} entries, the kernel's counter", asked, "us")
    figure(f"the same by the counting walk, `m.reader()` by chunks, {entries:,} entries", walked,
           "us")


def test_programs_are_loaded(benchmark: BenchmarkFixture, figure: Figure, once: bool) -> None:
    """What `prepare()` of a further map takes, and what a second one gives for it."""
    keys = scattered(1_000)

    def fresh() -> float:
        with fastmap.create("hash", key="u8", value="u8", max_entries=1_000) as m:
            start = perf_counter_ns()
            m.prepare()
            took = perf_counter_ns() - start
            m.update_many(keys, keys, via="kernel")
            assert m.lookup_many(keys, via="kernel")[1].all()
        return took / 1e6

    benchmark.group = "programs"
    with quiet():
        took = benchmark.pedantic(lambda: [fresh() for _ in range(2 if once else 10)])
    figure("`prepare()` of a map, all its programs, not the process's first", median(took[1:]),
           "ms")


def test_a_lease(benchmark: BenchmarkFixture, figure: Figure, once: bool) -> None:
    """What a batch costs that has next to nothing in it."""
    with filled(SMALL if once else Size(), 1) as (ring, n, _, fill):
        def one() -> int:
            with ring.lease(1, 0) as batch:
                return int(batch.records["n"][0]) + len(batch)

        took = []

        def rounds() -> None:
            for _ in range(5 if once else 200):
                fill()
                for number in range(n):
                    start = perf_counter_ns()
                    assert one() == number + 1
                    took.append(perf_counter_ns() - start)

        benchmark.group = "ring buffer"
        with quiet():
            benchmark.pedantic(rounds)
    figure("a lease of one record, its sum", float(np.median(took[1:])) / 1e3, "us")
