"""The kernel ends a loop that takes too long: what a program had not come to is done all the same.

Runs are short enough that this needs other work on the CPU at the wrong moment; here they are made
so long that it happens in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap.inkernel import pool

pytestmark = [
    pytest.mark.needs("in-kernel"),
    pytest.mark.slow,
    pytest.mark.native("a run has to last longer than a quarter of a second, and not much longer"),
]

N = 1 << 22


def keys(count: int) -> Any:
    return np.random.default_rng(1).permutation(count).astype("u8")


def test_given_keys(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LONGEST_RUN", N)
    monkeypatch.setattr(pool, "BUFFER_BYTES", 1 << 30)
    given = keys(N // 2)
    m = make("hash", key="u8", value="u8", max_entries=len(given))
    assert m.update_many(given, given + 1, via="kernel") == len(given) == len(m)
    values, found = m.lookup_many(given, via="kernel")
    assert found.all() and (values == given + 1).all()
    assert m.delete_many(given, via="kernel") == len(given) and len(m) == 0


def test_queue(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LONGEST_RUN", 4 * N)
    monkeypatch.setattr(pool, "BUFFER_BYTES", 1 << 30)
    q = make("queue", value="u8", max_entries=4 * N)
    given = np.arange(4 * N, dtype="u8")
    assert q.push_many(given, via="kernel") == len(given)
    assert (q.pop_many(len(given), via="kernel") == given).all()
    with pytest.raises(fastmap.KeyNotFound):
        q.pop()


def test_walk(make: Callable[..., Any]) -> None:
    given = keys(N)
    m = make("hash", key="u8", value="u8", max_entries=N)
    m.update_many(given, given)
    reader = m.reader(exact=False, via="kernel")
    reader.read()
    walker = reader._core
    if not hasattr(walker, "run_length"):
        pytest.fail("the map was read by batches")
    walker.run_length = N  # all buckets in one run
    batch = reader.read()
    assert len(batch) == N and len(np.unique(batch.keys)) == N
    assert (batch.keys == batch.values).all()
