"""The figures of the collector's kit: what a `Delta` costs over a read, and what an import costs.

`Delta.read()` is held against the map read alone, and its own part, the join and the subtraction,
against pandas merging two snapshots by key and subtracting, on frames made before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap
from fastmap.collect import Delta

from .conftest import Figure, Pair
from .cside import Array
from .rows.cases import SMALL, Size

KEY = np.dtype([("src", "u4"), ("dst", "u4"), ("ports", "u4"), ("proto", "u4")])
VALUE = np.dtype([(name, "u8") for name in ("packets", "bytes", "errors", "drops")])


@dataclass
class Flows:
    """A map of flows, a reader and a delta of it; and what changes the keys of 1 in 100."""

    map: Any
    keys: Array
    reader: fastmap.Reader
    delta: Delta
    turn: int = 0

    def grow(self) -> None:
        """Count every flow up by 1, 2, 3, 4."""
        values = self.map.lookup_many(self.keys)[0]
        for i, name in enumerate(VALUE.names or ()):
            values[name] += np.uint64(i + 1)
        self.map.update_many(self.keys, values)

    def churn(self) -> None:
        """Delete one flow in a hundred; add as many others."""
        self.turn += 1
        some = slice(self.turn % 100, None, 100)
        self.map.delete_many(self.keys[some])
        self.keys["proto"][some] += 1
        self.map.update_many(self.keys[some], np.zeros(len(self.keys[some]), VALUE))


@pytest.fixture(scope="module")
def flows(once: bool) -> Iterator[Flows]:
    size = SMALL if once else Size()
    rng = np.random.default_rng(7)
    keys = rng.integers(0, 2**31, (size.entries, 4), dtype="u4").view(KEY).reshape(-1)
    values = rng.integers(0, 2**40, (size.entries, 4), dtype="u8").view(VALUE).reshape(-1)
    with fastmap.create("hash", key=KEY, value=VALUE, max_entries=size.room) as m:
        m.update_many(keys, values)
        yield Flows(m, keys, m.reader(), Delta(m))


@pytest.mark.parametrize("what", ["steady", "1% came and went"])
def test_delta_against_the_read_alone(flows: Flows, what: str, pair: Pair) -> None:
    flows.delta.read()
    flows.grow()
    batch = flows.delta.read()
    for i, name in enumerate(VALUE.names or ()):
        assert (batch.values[name] == i + 1).all()
    flows.churn()
    batch = flows.delta.read()
    assert batch.new.sum() == len(batch.gone) == len(flows.keys) // 100 and not batch.resets
    pair("delta", lambda number: len(flows.delta.read()), lambda number: len(flows.reader.read()),
         name=f"`Delta.read()`, keys of 16 B, 4 counters, {what}", against="`reader.read()`",
         entries=len(flows.keys), limit=1.5, rounds=30,
         before=None if what == "steady" else flows.churn)


def test_join_against_pandas(flows: Flows, pair: Pair) -> None:
    import pandas as pd

    last = flows.map.snapshot().copy()
    flows.grow()
    now = flows.map.snapshot().copy()
    names = list(VALUE.names or ())

    def frame(batch: fastmap.Batch) -> Any:
        return pd.DataFrame({**{name: batch.keys[name] for name in KEY.names or ()},
                             **{name: batch.values[name] for name in names}})

    frames = frame(now), frame(last)

    def merged() -> Any:
        both = frames[0].merge(frames[1], on=list(KEY.names or ()), how="left",
                               suffixes=("", "_last"))
        return both[names] - both[[f"{name}_last" for name in names]].to_numpy()

    join = flows.delta._join

    def ours(number: int) -> int:
        join.differences(now.keys, now.values, last.keys, last.values)
        return len(flows.delta._batch(now, last))

    assert ours(0) == len(now)
    grown = flows.delta._batch(now, last).values
    assert all(np.array_equal(grown[name], merged()[name]) for name in names)
    pair("delta", ours, lambda number: len(merged()),
         name="a delta's join and subtraction of two reads", against="pandas, merge and subtract",
         entries=len(now), limit=0.1, rounds=20)


#: Milliseconds of an import, and the MiB that the process has then.
TIMED = """
import time
began = time.perf_counter()
import {}
took = time.perf_counter() - began
with open("/proc/self/status") as status:
    rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
print(1e3 * took, rss / 1024)
"""


def measured(modules: str) -> tuple[float, float]:
    environment = {name: value for name, value in os.environ.items()
                   if name != "PYTHONDONTWRITEBYTECODE"}  # an import compiles nothing, usually
    told = subprocess.run([sys.executable, "-c", TIMED.format(modules)], env=environment, text=True,
                          capture_output=True, check=True, cwd=Path(__file__).parent).stdout
    took, rss = map(float, told.split())
    return took, rss


def test_import_over_numpy(benchmark: BenchmarkFixture, figure: Figure, once: bool) -> None:
    """`import fastmap`, at most 15 ms and 3 MiB over `import numpy`; the first map is told too."""
    kinds = {"numpy": "numpy", "fastmap": "numpy, fastmap",
             "first name": "numpy, fastmap; fastmap.create"}
    samples: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}

    def rounds() -> int:
        for _ in range(2 if once else 25):
            for kind, modules in kinds.items():
                samples[kind].append(measured(modules))
        return len(samples["numpy"])

    benchmark.group = "import"
    assert benchmark.pedantic(rounds) == (2 if once else 25)
    base = samples["numpy"][1:]  # the first may have compiled
    for kind, name, targets in (
            ("fastmap", "`import fastmap`, over numpy's", ("<= 15", "<= 3")),
            ("first name", "the same and the first name's module", ("", ""))):
        # What disturbs an import makes it longer: of times the least counts.
        over = [least(each[i] for each in samples[kind][1:]) - least(each[i] for each in base)
                for i, least in enumerate((min, median))]
        for number, unit, target in zip(over, ("ms", "MiB"), targets, strict=True):
            figure(name, number, unit, target)
