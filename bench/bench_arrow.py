"""`to_arrow` against numpy's copies of the same columns, of what a map of flows was read into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastmap

from .conftest import Pair

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
def test_to_arrow(flows: fastmap.Batch, pair: Pair, kind: str) -> None:
    batch = flows
    if kind == "a reader's batch":
        batch = fastmap.Batch(*flows, complete=True, started_ns=0, ended_ns=0)
    made = batch.to_arrow()
    for name, column in copied(batch).items():
        assert np.array_equal(made[name].to_numpy(), column)
    pair("to_arrow", lambda number: len(batch.to_arrow()),
         lambda number: len(copied(batch)["bytes"]),
         name=f"`to_arrow` of {kind}, {len(batch):,} rows, 4 columns",
         against="numpy, copies of the columns", entries=len(batch), limit=1.3, rounds=60)
