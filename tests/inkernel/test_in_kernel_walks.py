"""Whole reads, prefixes and queues in the kernel, and memory that is prefetched."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import child, in_child

import fastmap
from fastmap import EXIST, MapFlag, NotSupported, PermissionDenied
from fastmap.enums import running_kernel
from fastmap.inkernel import policy, prefetch, self_check

pytestmark = pytest.mark.needs("in-kernel")

Make = Callable[..., Any]
Filled = Callable[..., Any]

RECORD = np.dtype([("a", "u8"), ("b", "f8"), ("c", "f4"), ("d", ">i2"), ("e", "S3"), ("f", "i1"),
                   ("g", ">f4"), ("h", "u4")])
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


def sorted_rows(batch: Any) -> list[tuple[bytes, Any]]:
    """Return the entries in the order of their keys' bytes; values as Python objects."""
    return sorted(((k.tobytes(), repr(v)) for k, v in zip(
        batch.keys, batch.values.tolist(), strict=True)))


@pytest.fixture(scope="module")
def some_records() -> Any:
    n, rng = 600, np.random.default_rng(1)
    values = np.zeros(n, RECORD)
    values["a"], values["h"] = rng.integers(0, 2**64, n, "u8"), np.arange(n)
    values["b"] = rng.choice([0.0, -0.0, 1.5, -1.5, np.nan, np.inf, -np.inf, 5e-324], n)
    values["c"] = values["g"] = rng.choice([0.0, -0.0, 0.25, -3, np.nan, np.inf], n)
    values["d"], values["f"] = rng.integers(-300, 300, n), rng.integers(-128, 128, n)
    values["e"] = rng.choice([b"", b"a", b"ab", b"abc", b"b"], n)
    return values


# ---- whole reads -------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("kind", ("hash", "lru_hash", "array"))
@pytest.mark.parametrize("value", (1, 7, 8, 24, 511))
def test_a_walk_reads_what_batches_read(make: Make, kind: str, value: int) -> None:
    n = 500
    for key in (("u4",) if kind == "array" else ("u4", "V13", "u1")):
        m = make(kind, key=key, value=f"V{value}", max_entries=4 * n)
        keys = np.frombuffer(np.random.default_rng(1).bytes(13 * n), "V13")
        if key != "V13":
            keys = np.arange(n if key == "u4" else 200, dtype=key)
        values = np.frombuffer(np.random.default_rng(2).bytes(value * len(keys)), f"V{value}")
        m.update_many(keys, values, via="syscall")
        expected = m.snapshot(via="syscall")
        got = m.snapshot(via="kernel", exact=False)
        assert sorted_rows(got) == sorted_rows(expected)
        assert len(got) == (4 * n if kind == "array" else len(keys))
        assert got.complete == (kind == "array") and got.started_ns < got.ended_ns
        reader = m.reader(via="kernel", exact=False, fields=["key"])
        assert sorted(reader.read().keys.tobytes()) == sorted(expected.keys.tobytes())


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([*RECORD.names]), st.sampled_from(COMPARISONS), st.data())
def test_conditions(some_records: Any, column: str, compare: str, data: Any) -> None:
    kind = RECORD[column].kind
    bound = data.draw({
        "u": st.integers(-5, 2**64 + 5) | st.integers(0, 600), "i": st.integers(-400, 400),
        "f": st.sampled_from([0.0, -0.0, 1.5, -1.5, 0.1, float("nan"), float("inf"), 0.25, 1e300]),
        "S": st.sampled_from([b"", b"a", b"ab", b"abc", b"b", b"\xff"]),
    }[kind])
    with fastmap.create("hash", key="u4", value=RECORD, max_entries=900) as m:
        m.update_many(np.arange(len(some_records)), some_records, via="syscall")
        for fields in (None, ["value.e", "value.a"]):
            where = (f"value.{column}", compare, bound)
            expected = m.snapshot(via="syscall", where=where, fields=fields)
            got = m.snapshot(via="kernel", exact=False, where=where, fields=fields)
            assert got.values.dtype == expected.values.dtype
            assert sorted_rows(got) == sorted_rows(expected)
        where = ("key", compare, int(bound) if kind == "i" else 77)
        assert sorted_rows(m.snapshot(via="kernel", exact=False, where=where)) == sorted_rows(
            m.snapshot(via="syscall", where=where))


PER_CPU = running_kernel() >= (6, 9)  # before, no program can go over the buckets itself


@pytest.mark.quick
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")),
                          st.sampled_from("<>"), st.sampled_from(("sum", "or", "max")),
                          st.sampled_from(((), (3,)))), min_size=1, max_size=4),
       st.sampled_from(("percpu_hash", "lru_percpu_hash")), st.sampled_from(COMPARISONS),
       st.integers(-2**33, 2**33), st.booleans())
def test_values_of_all_cpus(fields: Any, kind: str, compare: str, bound: int,
                            reduced: bool) -> None:
    dtype = np.dtype([(f"f{i}", order + code, shape)
                      for i, (code, order, _, shape) in enumerate(fields)])
    reduce = {f"f{i}": "sum" if how == "max" and order == ">" else how
              for i, (_, order, how, _) in enumerate(fields)} if reduced else None
    n = 50
    with fastmap.create(kind, key="V5", value=dtype, max_entries=4 * n) as m:
        keys = np.frombuffer(np.random.default_rng(3).bytes(5 * n), "V5")
        raw = np.random.default_rng(4).bytes(m.value.size * n)
        rows = np.zeros((n, len(fastmap.possible_cpus())), dtype)
        rows.view("u1")[:] = np.frombuffer(raw, "u1", rows.nbytes).reshape(rows.view("u1").shape)
        m.update_many(keys, rows, via="syscall")
        if not PER_CPU:
            with pytest.raises(NotSupported, match=r"6\.9"):
                m.snapshot(via="kernel", exact=False, reduce=reduce)
            return
        conditions: list[Any] = [None, ("key", "!=", keys[7].tobytes())]
        if reduced and not fields[0][3]:
            conditions.append(("value.f0", compare, bound))
        for where in conditions:
            for chosen in (None, ["value.f0"]):
                expected = m.snapshot(via="syscall", reduce=reduce, where=where, fields=chosen)
                got = m.snapshot(via="kernel", exact=False, reduce=reduce, where=where,
                                 fields=chosen)
                assert got.values.dtype == expected.values.dtype
                assert by_key(got) == by_key(expected)


def by_key(batch: Any) -> list[tuple[bytes, bytes]]:
    values = np.ascontiguousarray(batch.values)
    return sorted(zip(batch.keys.tolist(), (row.tobytes() for row in values), strict=True))


@pytest.mark.quick
def test_auto_walks_per_cpu_maps_too(make: Make) -> None:
    m = make("percpu_hash", key="u8", value="u8", max_entries=5000)
    keys = np.arange(5000, dtype="u8")
    m.update_many(keys, np.stack([keys + i for i in range(len(fastmap.possible_cpus()))], 1))
    for exact in (True, False):
        reader = m.reader(exact=exact, reduce="sum")
        batch = reader.read()
        cpus = len(fastmap.possible_cpus())
        assert np.array_equal(batch.values, cpus * batch.keys + cpus * (cpus - 1) // 2)
        assert len(batch) == 5000
        assert (reader._core is not reader._batches) == (not exact and PER_CPU)


def test_more_pass_than_there_was_room_for(filled: Filled) -> None:
    m = filled(50_000)
    reader = m.reader(via="kernel", exact=False, where=("key", ">=", 10))
    first = reader.read()
    assert len(first) == 49_990 and np.array_equal(first.values, 3 * first.keys)
    m.clear()
    assert len(reader.read()) == 0
    m.update_many(np.arange(5, 15, dtype="u8"), 7)
    again = reader.read()
    assert sorted(again.keys.tolist()) == [10, 11, 12, 13, 14] and (again.values == 7).all()


@pytest.mark.quick
def test_auto_walks_where_it_is_as_exact(filled: Filled) -> None:
    n = policy.LOAD_PAYS
    m = filled(n)
    for exact, walks in ((True, False), (False, True)):
        reader = m.reader(exact=exact)
        batch = reader.read()
        assert len(batch) == n and batch.complete != walks
        assert (reader._core is not reader._batches) == walks
    a = filled(n, type="array")
    reader = a.reader()
    batch = reader.read()
    assert reader._core is not reader._batches and batch.complete
    assert batch.keys.tolist() == list(range(n)) and np.array_equal(batch.values, 3 * batch.keys)
    with pytest.raises(NotSupported, match="exact=False"):
        m.snapshot(via="kernel")
    assert len(a.snapshot(via="kernel")) == n


def test_auto_reads_what_is_sparse_by_batches(make: Make) -> None:
    m = make("hash", key="u8", value="u8", max_entries=100_000)
    reader = m.reader(exact=False)
    for count, walks in ((100, True), (100, False), (50_000, False), (50_000, True), (9, True),
                         (9, False)):
        m.clear()
        m.update_many(np.arange(count, dtype="u8"), 3)
        assert len(reader.read()) == count
        assert (reader._core is not reader._batches) == walks, count
    asked = m.reader(exact=False, via="kernel")
    for _ in range(2):
        assert len(asked.read()) == 9 and asked._core is not asked._batches


@pytest.mark.quick
def test_what_no_walk_can_do(make: Make, filled: Filled) -> None:
    p = make("percpu_hash", key="u4", value=[("n", "u8"), ("x", "f8")], max_entries=10)
    for reduce, words in (("min", "not the min of u8"), ({"n": "sum", "x": "max"}, "max of f8"),
                          ({"n": "any", "x": "any"}, "not the any of bytes")):
        with pytest.raises(NotSupported, match=words):
            p.snapshot(via="kernel", exact=False, reduce=reduce)
    with pytest.raises(NotSupported, match="exact=False" if PER_CPU else r"6\.9"):
        p.snapshot(via="kernel", fields=["value.n"], reduce="sum")
    m = make("hash", key="u4", value="V600", max_entries=10)
    with pytest.raises(NotSupported, match="512 bytes"):
        m.snapshot(via="kernel", exact=False)
    with pytest.raises(NotSupported, match="drain"):
        m.drain(via="kernel")
    large = make("hash", key="u4", value="V300", max_entries=1 << 18, flags=MapFlag.NO_PREALLOC)
    with pytest.raises(NotSupported, match="too many"):
        large.snapshot(via="kernel", exact=False)
    assert len(large.snapshot(exact=False)) == 0
    h = filled(10)
    h.snapshot(via="kernel", exact=False)
    with (fastmap.open(id=h.id, writeonly=True, key="u8", value="u8") as writing,
          pytest.raises(PermissionDenied)):
        writing.snapshot(via="kernel", exact=False)


def test_views_of_a_walk_live_as_long_as_they_are_looked_at(filled: Filled) -> None:
    m = filled(5000)
    reader = m.reader(via="kernel", exact=False)
    keys, values = reader.read()
    m.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read()
    del reader
    assert np.array_equal(values, 3 * keys)


def test_a_forked_child_walks_into_its_own(filled: Filled) -> None:
    m = filled(3000)
    reader = m.reader(via="kernel", exact=False)
    before = reader.read()
    kept = before.copy()

    def read() -> None:
        m.update_many(np.arange(3000, dtype="u8"), 1)
        assert (reader.read().values == 1).all()

    in_child(read)
    assert np.array_equal(before.values, kept.values), "the child has written to our buffer"
    assert (reader.read().values == 1).all()


def test_a_walk_ends_whatever_comes_and_goes(filled: Filled) -> None:
    n = 20_000
    m = filled(n, max_entries=3 * n)
    stable = np.arange(n, dtype="u8")

    def churn() -> None:
        others = np.arange(n, 2 * n, dtype="u8")
        while True:
            m.update_many(others, 1, via="syscall")
            m.delete_many(others, via="syscall")

    reader = m.reader(via="kernel", exact=False)
    with child(churn):
        until, reads = time.monotonic() + 2, 0
        while time.monotonic() < until:
            batch = reader.read()
            there = np.unique(batch.keys[batch.keys < n])
            assert len(there) > 0.99 * n and not batch.complete
            assert (batch.values[batch.keys < n] == 3 * batch.keys[batch.keys < n]).all()
            reads += 1
    assert reads > 3 and len(stable) == n


# ---- prefixes ----------------------------------------------------------------------------------


@pytest.mark.quick
def test_prefixes(make: Make) -> None:
    key = [("prefixlen", "u4"), ("addr", "u1", (4,))]
    m = make("lpm_trie", key=key, value="u4", max_entries=1000)
    rng = np.random.default_rng(1)
    keys = np.zeros(300, m.key_dtype)
    keys["prefixlen"], keys["addr"] = rng.integers(0, 33, 300), rng.integers(0, 8, (300, 4)) << 5
    m.update_many(keys, np.arange(300), via="syscall")
    asked = np.zeros(9000, m.key_dtype)
    asked["prefixlen"], asked["addr"] = 32, rng.integers(0, 256, (9000, 4))
    asked["addr"][:, 0] = rng.integers(0, 4, 9000) << 5
    expected, there = m.lookup_many(asked, via="syscall")
    for via, threads in (("kernel", 1), ("auto", 1), ("kernel", 2)):
        values, found = m.lookup_many(asked, via=via, threads=threads)
        assert np.array_equal(found, there) and np.array_equal(values, expected)
    assert there.any() and m._in_kernel.pool.has("lookup")
    with pytest.raises(NotSupported, match="LPM_TRIE"):
        m.update_many(keys, 1, via="kernel")


# ---- queues and stacks -------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("kind", ("queue", "stack"))
@pytest.mark.parametrize("size", (1, 8, 13, 600))
def test_queues(make: Make, kind: str, size: int) -> None:
    n = 20_000
    m = make(kind, value=f"V{size}", max_entries=n)
    values = np.frombuffer(np.random.default_rng(1).bytes(size * n), f"V{size}")
    order = slice(None) if kind == "queue" else slice(None, None, -1)
    for via in ("kernel", "auto", "syscall"):
        assert m.push_many(values[:7], via=via) == 7
        assert m.pop_many(20, via=via).tobytes() == values[:7][order].tobytes() and not m
        with pytest.raises(fastmap.MapFull) as caught:
            m.push_many(np.concatenate([values, values[:3]]), via=via)
        assert caught.value.applied == n  # type: ignore[attr-defined]
        codes = m.push_many(values[:3], via=via, errors="return")
        assert codes.tolist() == [errno.E2BIG] * 3
        assert m.drain(via=via).tobytes() == values[order].tobytes() and not m
        assert len(m.pop_many(5, via=via)) == 0
    assert m._in_kernel.pool.has("push") and m._in_kernel.pool.has("pop")
    m.push_many(values, via="kernel")
    assert m.push_many(values[:5], flags=EXIST, via="kernel") == 5
    with (fastmap.open(id=m.id, readonly=True, value=f"V{size}") as reading,
          pytest.raises(PermissionDenied)):
        reading.push_many(values[:1], via="kernel")


# ---- memory that is prefetched ---------------------------------------------------------------


@pytest.mark.parametrize("size", (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 23, 24, 25, 37, 60, 64, 65))
def test_touching(make: Make, size: int) -> None:
    n = 200 if size == 1 else 5000
    m = make("hash", key=f"V{size}", value="V200", max_entries=6000)
    raw = np.zeros((n, max(size, 8)), "u1")
    raw[:, :8] = np.arange(n, dtype="<u8").view("u1").reshape(n, 8)
    raw[:, 8:] = np.random.default_rng(1).integers(0, 256, (n, max(size, 8) - 8))
    keys = np.ascontiguousarray(raw[:, :size]).view(f"V{size}").reshape(n)
    values = np.frombuffer(np.random.default_rng(2).bytes(200 * n), "V200")
    assert m.update_many(keys[: n // 2], values[: n // 2], via="kernel") == n // 2
    got, found = m.lookup_many(keys, via="kernel")
    assert found.tolist() == [True] * (n // 2) + [False] * (n // 2)
    assert got[: n // 2].tobytes() == values[: n // 2].tobytes()
    assert not np.frombuffer(got[n // 2 :].tobytes(), "u1").any()
    assert m.delete_many(keys[::2], via="kernel") == n // 4
    assert len(m) == n // 4
    touched = running_kernel() >= (6, 9) and size <= prefetch.LONGEST_KEY
    assert m._in_kernel.pool.prefetches == touched, "not the layout that fastmap knows"


@pytest.mark.native("takes Linux 6.9")
@pytest.mark.parametrize("wrong", ({"key_at": 8}, {"pptrs_at": 8}, {}))
@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
def test_a_kernel_that_is_built_otherwise(make: Make, monkeypatch: pytest.MonkeyPatch,
                                          kind: str, wrong: dict[str, int]) -> None:
    """Nothing is read from where the trial did not find it."""
    there = prefetch.inside()
    assert there is not None
    moved = replace(there, **{name: getattr(there, name) + by for name, by in wrong.items()})
    monkeypatch.setattr(prefetch, "inside", lambda: moved)
    self_check.layout_is_known.cache_clear()
    try:
        m = make(kind, key="u4", value="u8", max_entries=4096)
        keys = np.arange(4000, dtype="u4")
        m.update_many(keys, 5, via="syscall")
        values, found = m.lookup_many(keys, via="kernel")
        assert found.all() and (values == 5).all()
        harmless = not wrong or (kind == "hash" and "pptrs_at" in wrong)
        assert m._in_kernel.pool.prefetches == harmless
        assert self_check.layout_is_known(kind != "hash") == harmless
        if kind == "hash" or harmless:
            batch = m.snapshot(via="kernel", exact=False)
            assert np.array_equal(np.sort(batch.keys), keys) and (batch.values == 5).all()
        else:
            with pytest.raises(NotSupported, match="layout that fastmap knows"):
                m.snapshot(via="kernel", exact=False)
    finally:
        self_check.layout_is_known.cache_clear()


def test_the_kernel_tells_where_it_keeps_its_hashes() -> None:
    there = prefetch.inside()
    if running_kernel() < (6, 2):
        assert there is None  # no bpf_rdonly_cast
    else:
        assert there is not None and there.bucket_size >= 16 and there.key_at > there.hash_at > 16
    assert os.sysconf("SC_PAGESIZE") > prefetch.SCRATCH
