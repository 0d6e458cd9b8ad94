"""On kernels without the batch commands, everything goes element by element.

The kernel is the real one; a seccomp filter in a child process makes it answer bpf(2)'s batch
commands with EINVAL, as one older than 5.6 does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from privileges import without_batches

import fastmap

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("kind", ["hash", "array", "percpu_hash", "percpu_array", "lru_hash"])
def test_reads_and_writes_give_the_same(filled: Callable[..., Any], kind: str) -> None:
    m = filled(500, type=kind, max_entries=500 if kind.endswith("array") else 4000)
    cpus = len(fastmap.possible_cpus()) if m.per_cpu else 1

    def check() -> None:
        reduce = "sum" if m.per_cpu else None
        keys, values = batch = m.reader(reduce=reduce, chunk=64).read()
        assert sorted(keys.tolist()) == list(range(500))
        assert (values == 3 * keys * cpus).all()
        assert batch.complete == (kind.endswith("array"))
        assert sum(len(b) for b in m.reader(chunk=7)) == 500
        assert m.update_many(np.arange(500, dtype="u8"), 5) == 500
        assert (m.snapshot(reduce=reduce).values == 5 * cpus).all()
        assert len(m.snapshot(where=("key", "<", 10)).keys) == 10

    without_batches(check)


@pytest.mark.parametrize("kind", ["hash", "percpu_hash"])
def test_deletes_and_drains_give_the_same(filled: Callable[..., Any], kind: str) -> None:
    m = filled(500, type=kind)

    def check() -> None:
        assert m.delete_many([1, 2, 2, 9999]) == 2
        with pytest.raises(fastmap.KeyNotFound) as caught:
            m.delete_many([3, 1, 4], errors="raise")
        assert (caught.value.applied, caught.value.index) == (1, 1)
        first = next(m.reader(chunk=10).drain_chunks())
        assert len(first) == 10
        rest = m.drain()
        assert len(rest) == 500 - 3 - 10
        assert not m
        assert len(m.drain()) == 0

    without_batches(check)


def test_the_filter_forbids(filled: Callable[..., Any]) -> None:
    m = filled(3)

    def check() -> None:
        assert not m.may(fastmap.Command.MAP_LOOKUP_BATCH)

    assert m.may(fastmap.Command.MAP_LOOKUP_BATCH)
    without_batches(check)


def test_an_array_is_not_drained(filled: Callable[..., Any]) -> None:
    m = filled(3, type="array")
    with pytest.raises(fastmap.NotSupported):
        m.reader().drain()
    assert m.snapshot().complete
