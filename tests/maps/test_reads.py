"""Whole reads: each key exactly once, at any chunk size, drained or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reading import three_ways

import fastmap
from fastmap.errors import NotSupported

Make = Callable[..., Any]

CPUS = len(fastmap.possible_cpus())
HASHES = ("hash", "percpu_hash", "lru_hash", "lru_percpu_hash")
CHUNKS = (1, 2, 3, 7, 64, 1000, None)

chunks = pytest.mark.parametrize("chunk", CHUNKS)
hashes = pytest.mark.parametrize("kind", HASHES)


def check(keys: Any, values: Any, entries: int) -> None:
    """Check for the entries of `filled`: ``{i: 3 * i}`` (on every CPU), each once."""
    assert sorted(keys.tolist()) == list(range(entries))
    assert (values == (3 * keys[:, None] if values.ndim == 2 else 3 * keys)).all()


# ---- every key once ----------------------------------------------------------------------------


@hashes
@chunks
@pytest.mark.quick
def test_every_key_once(filled: Make, kind: str, chunk: int | None) -> None:
    m = filled(777, type=kind, max_entries=2048)
    check(*m.reader(chunk=chunk).read(), 777)
    parts = [batch.copy() for batch in m.reader(chunk=chunk)]
    check(*(np.concatenate(x) for x in zip(*parts, strict=True)), 777)
    assert not any(p.complete for p in parts) and all(len(p) for p in parts)
    check(*three_ways(m, chunk), 777)
    assert len(m) == 777


@hashes
@chunks
def test_every_key_once_drained(filled: Make, kind: str, chunk: int | None) -> None:
    n = 300  # asking for the length after each chunk takes n * n steps
    m = filled(n, type=kind, max_entries=1024)
    check(*m.reader(chunk=chunk).drain(), n)
    assert not m
    keys = np.arange(n, dtype="u8")
    m.update_many(keys, (3 * keys)[:, None] if m.per_cpu else 3 * keys)
    drained, reader = [], m.reader(chunk=chunk)
    for batch in reader.drain_chunks():
        drained.append(batch.copy())
        assert len(m) == n - sum(map(len, drained))
        assert not m.lookup_many(batch.keys)[1].any()
    check(*(np.concatenate(x) for x in zip(*drained, strict=True)), n)


@pytest.mark.parametrize("kind", ("array", "percpu_array"))
@pytest.mark.parametrize("entries", (1, 2, 6, 7, 64, 1000))
@chunks
def test_arrays(make: Make, kind: str, entries: int, chunk: int | None) -> None:
    """The cursor past the end of an array starts again at 0: nothing may come twice."""
    m = make(kind, value="u8", max_entries=entries)
    keys = np.arange(entries, dtype="u4")
    m.update_many(keys, 3 * keys[:, None].astype("u8") if m.per_cpu else 3 * keys)
    check(*three_ways(m, chunk), entries)
    sizes = [len(batch) for batch in m.reader(chunk=chunk)]
    assert max(sizes) <= (chunk or entries) and len(sizes) == -(-entries // (chunk or entries))


@hashes
@chunks
def test_empty(make: Make, kind: str, chunk: int | None) -> None:
    m = make(kind, key="u8", value="u4", max_entries=100)
    shape = (0, CPUS) if m.per_cpu else (0,)
    reader = m.reader(chunk=chunk)
    for batch in (m.snapshot(), m.drain(), reader.read(), reader.drain()):
        assert batch.complete and len(batch) == 0 and batch.values.shape == shape
        assert batch.keys.dtype == "u8" and batch.values.dtype == "u4" and not list(batch.items())
    assert list(reader) == [] and list(reader.drain_chunks()) == [] and list(m) == []


def test_a_bucket_larger_than_the_chunk_grows_it(filled: Make) -> None:
    m = filled(2000, max_entries=2048)
    sizes = [len(batch) for batch in m.reader(chunk=1)]
    assert sum(sizes) == 2000 and max(sizes) > 1  # some bucket has several entries: ENOSPC
    check(*m.reader(chunk=1).drain(), 2000)


def test_a_short_batch_is_not_the_end(filled: Make) -> None:
    m = filled(1500, max_entries=2048)
    # Of 93 batches about a fifth end before a bucket that does not fit; of 23 none may, by chance.
    sizes = [len(batch) for batch in m.reader(chunk=16)]
    assert sum(sizes) == 1500 and min(sizes[:-1]) < 16


def test_full_map(filled: Make) -> None:
    m = filled(1024, max_entries=1024)
    check(*three_ways(m, 1024), 1024)
    check(*three_ways(m, 100_000), 1024)


def test_many_entries(filled: Make) -> None:
    m = filled(150_000)  # more than one command takes
    check(*m.snapshot(), 150_000)
    check(*m.drain(), 150_000)
    assert len(m) == 0


@pytest.mark.parametrize("bad", (0, -1, 1.5, "7", 2**70))
def test_chunks_that_are_refused(filled: Make, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        filled(3).reader(chunk=bad)


def test_arrays_are_not_drained(make: Make) -> None:
    m = make("array", value="u8", max_entries=4)
    m[1] = 5
    with pytest.raises(NotSupported):
        m.reader().drain()
    with pytest.raises(AttributeError):
        m.drain()
    assert m[1] == 5


def test_a_drain_takes_no_where(filled: Make) -> None:
    """What it dropped would be gone."""
    m = filled(50)
    reader = m.reader(where=("value", ">", 30))
    for call in (reader.drain, lambda: next(reader.drain_chunks())):
        with pytest.raises(ValueError, match="where"):
            call()
    with pytest.raises(TypeError):
        m.drain(where=("value", ">", 30))
    assert len(m) == 50 and len(reader.read()) == 39


# ---- readers and batches -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("hash", "percpu_hash", "array"))
def test_views_of_a_reader_are_overwritten_and_copies_kept(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=8)
    m[3] = 5
    for options in ({}, {"fields": ["value"]}, {"where": ("key", "==", 3)}):
        reader = m.reader(**options)
        first = reader.read()
        at = first.keys.tolist().index(3)
        copy, kept = first.copy(), (first.keys[at], np.copy(first.values[at]))
        m[3] = 6
        second = reader.read()
        assert np.all(first.values[at] == 6) and np.all(second.values[at] == 6)
        assert np.shares_memory(first.values, second.values)
        assert np.all(copy.values[at] == kept[1]) and copy.keys[at] == 3
        assert not np.shares_memory(copy.values, first.values)
        m[3] = 5


def test_reader_sees_growth_and_decline(filled: Make) -> None:
    m = filled(10, max_entries=4096)
    reader = m.reader(chunk=16)
    for entries in (10, 3000, 4096, 5, 0, 700):
        m.clear()
        keys = np.arange(entries, dtype="u8")
        m.update_many(keys, 3 * keys)
        check(*reader.read(), entries)
        assert sum(len(batch) for batch in reader) == entries


@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
def test_snapshots_are_fresh(filled: Make, kind: str) -> None:
    """Memory serves again only when no view of it is left: not a slice, a field, or a column."""
    m = filled(100, type=kind, max_entries=200)
    kept = []
    for turn in range(6):
        m.update_many(np.arange(100), np.full((100, 1) if m.per_cpu else 100, turn, "u8"))
        batch = m.snapshot() if turn < 5 else m.drain()
        kept.append((turn, batch.values[50:60].T[..., ::2], batch.keys[::3]))
        del batch
    for turn, values, keys in kept:
        assert (values == turn).all() and sorted(keys.tolist())[0] < 100
    m.close()
    for turn, values, _ in kept:
        assert (values == turn).all()


@hashes
def test_batch(filled: Make, kind: str) -> None:
    m = filled(50, type=kind, max_entries=100)
    before = time.monotonic_ns()
    batches = [m.snapshot(), m.reader().read(), next(iter(m.reader(chunk=5))), m.drain()]
    after = time.monotonic_ns()
    for batch in batches:
        keys, values = batch
        assert keys is batch.keys and values is batch.values and len(batch) == len(keys)
        assert before <= batch.started_ns <= batch.ended_ns <= after
        items = list(batch.items())
        assert [k for k, _ in items] == keys.tolist() and type(items[0][0]) is int
        assert all(np.all(v == 3 * k) for k, v in items)
        assert str(len(batch)) in repr(batch)
    assert [b.complete for b in batches] == [True, True, False, True]
    copy = batches[0].copy()
    assert copy.complete and copy.started_ns == batches[0].started_ns
    assert copy.ended_ns == batches[0].ended_ns
    assert all(a.started_ns < b.started_ns for a, b in zip(batches, batches[1:], strict=False))


def test_two_readers_do_not_disturb_each_other(filled: Make) -> None:
    m = filled(300, max_entries=1024)
    one, two = m.reader(chunk=7), m.reader(chunk=64)
    seen: list[list[int]] = [[], []]
    for a in one:
        seen[0] += a.keys.tolist()
        if len(seen[1]) < 300:
            seen[1] = [k for b in two for k in b.keys.tolist()]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(300))


@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
def test_values_narrower_than_a_slot(make: Make, kind: str) -> None:
    """A plain hash packs 3-byte values, a per-CPU one rounds up to 8: neither shows padding."""
    m = make(kind, key="u2", value="V3", max_entries=100)
    for n in range(60):
        m[n] = bytes([n, n + 1, n + 2])
    for chunk in (1, 7, None):
        batch = m.reader(chunk=chunk).read()
        for key, value in zip(batch.keys.tolist(), batch.values, strict=True):
            assert all(v.tobytes() == bytes([key, key + 1, key + 2]) for v in np.atleast_1d(value))


def test_entries_that_go_while_it_is_read(filled: Make) -> None:
    m = filled(1000, max_entries=2048)
    seen: list[int] = []
    for batch in m.reader(chunk=10):
        seen += batch.keys.tolist()
        m.delete_many(np.arange(900, 1000))
        m.update_many(np.arange(5000, 5100), 1)
        m.delete_many(np.arange(5000, 5100))
    stable = [k for k in seen if k < 900]
    assert sorted(stable) == list(range(900)) and len(set(seen)) == len(seen)


def test_a_drain_of_a_closed_map_carries_nothing_again(filled: Make) -> None:
    m = filled(100, max_entries=1024)
    chunks_of = m.reader(chunk=5).drain_chunks()
    first = next(chunks_of)
    assert len(first)
    m.close()
    with pytest.raises(ValueError, match="closed") as caught:
        next(chunks_of)
    assert len(caught.value.batch) == 0  # type: ignore[attr-defined]
