"""`to_arrow` against numpy's copies of the same columns, of what a map of flows was read into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap

from .harness import Result, compare, quiet

KEY = np.dtype([("source", "u8"), ("target", "u8")])
VALUE = np.dtype([("packets", "u8"), ("bytes", "u8")])


@pytest.fixture(scope="module")
def flows(once: bool) -> Iterator[fastmap.Batch]:
    n = 10_000 if once else 1_000_000
    keys, values = np.empty(n, KEY), np.empty(n, VALUE)
    for array in (keys, values):
        for i, name in enumerate(array.dtype.names or ()):
            array[name] = np.arange(n) * (2 * i + 1)
    with fastmap.create("hash", key=KEY, value=VALUE, max_entries=n) as m:
        m.update_many(keys, values)
        batch = m.snapshot()
    assert len(batch) == n
    yield batch


def copied(batch: fastmap.Batch) -> dict[str, Any]:
    """What numpy makes of it: each column in memory of its own."""
    return {name: array[name].copy() for array in batch for name in array.dtype.names or ()}


@pytest.mark.parametrize("kind", ["a batch of its own", "a reader's batch"])
def test_to_arrow(
    benchmark: BenchmarkFixture,
    flows: fastmap.Batch,
    results: list[Result],
    once: bool,
    kind: str,
) -> None:
    batch = flows
    if kind == "a reader's batch":
        batch = fastmap.Batch(*flows, complete=True, started_ns=0, ended_ns=0)
    made = batch.to_arrow()
    for name, column in copied(batch).items():
        assert np.array_equal(made[name].to_numpy(), column)

    def ours(number: int) -> int:
        return len(batch.to_arrow())

    def theirs(number: int) -> int:
        return len(copied(batch)["bytes"])

    benchmark.group = "to_arrow"
    with quiet():
        assert benchmark.pedantic(ours, args=(0,), rounds=5, warmup_rounds=1) == len(batch)
    if once:
        return
    result = compare(
        f"`to_arrow` of {kind}, {len(batch):,} rows, 4 columns",
        ours,
        theirs,
        against="numpy, copies of the columns",
        entries=len(batch),
        limit=1.3,
        rounds=60,
    )
    benchmark.extra_info["ratio"] = result.as_dict()
    results.append(result)
    assert result.verdict != "missed", str(result)
