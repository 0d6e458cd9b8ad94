"""The in-kernel path, element by element against system calls."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmap
from fastmap import EXIST, NOEXIST, BatchError, MapFlag, NotSupported, PermissionDenied

pytestmark = pytest.mark.needs("in-kernel")

Make = Callable[..., Any]

CPUS = len(fastmap.possible_cpus())
TABLES = ("hash", "lru_hash", "percpu_hash", "lru_percpu_hash", "array", "percpu_array")
ROOMY = {"lru_hash": 8, "lru_percpu_hash": 8}  # an LRU makes room before it is full


def random_values(m: Any, n: int, seed: int = 1) -> Any:
    """Return values of random bytes, as `update_many` of the map takes them."""
    dtype = m.value_dtype
    raw = np.random.default_rng(seed).integers(
        0, 256, (n, CPUS if m.per_cpu else 1, dtype.itemsize), np.uint8)
    values = raw.view(dtype)
    return values.reshape(n, CPUS) if m.per_cpu else values.reshape(n)


def keys_of(dtype: Any, numbers: Any) -> Any:
    """Return keys of any size whose first bytes, as far as there are, are the numbers."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros((len(numbers), max(size, 8)), np.uint8)
    raw[:, :8] = np.ascontiguousarray(numbers, "<u8").view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(raw[:, :size]).view(dtype).reshape(-1)


def entries(m: Any) -> dict[bytes, bytes]:
    """Return what is in the map, by batches, as bytes."""
    batch = m.snapshot(via="syscall")
    return {k.tobytes(): v.tobytes() for k, v in zip(batch.keys, batch.values, strict=True)}


# ---- sizes and types ---------------------------------------------------------------------------


KEY_SIZES = (1, 3, 4, 7, 8, 13, 16, 40, 512, 1200)
VALUE_SIZES = (1, 2, 5, 8, 12, 17, 64, 511, 512, 513, 1023, 8200, 31000)
GRID = [(kind, key, value) for kind in TABLES for key in KEY_SIZES for value in VALUE_SIZES
        if (not kind.endswith("array") or key == 4) and (key <= 40 or value in (5, 64, 513))]
QUICK = [case for case in GRID if case[1] in (4, 13) and case[2] in (1, 12, 513)]


@pytest.mark.parametrize(("kind", "key", "value"), [
    pytest.param(*case, marks=[pytest.mark.quick] if case in QUICK else []) for case in GRID])
def test_sizes(make: Make, kind: str, key: int, value: int) -> None:
    array = kind.endswith("array")
    n = 40
    dtype = "u4" if array else f"V{key}"
    m = make(kind, key=dtype, value=f"V{value}", max_entries=n * ROOMY.get(kind, 1))
    keys = keys_of(dtype, np.arange(n))
    values = random_values(m, n)
    assert m.update_many(keys[:30], values[:30], via="syscall") == 30
    asked = keys_of(dtype, np.random.default_rng(2).integers(0, 2 * n, 300 if key > 1 else 100))
    expected, there = m.lookup_many(asked, via="syscall")
    got, found = m.lookup_many(asked, via="kernel")
    assert found.tolist() == there.tolist() and 0 < found.sum() < len(found)
    assert got.tobytes() == expected.tobytes()
    if m.per_cpu:
        with pytest.raises(NotSupported, match="its own CPU only"):
            m.update_many(keys, values, via="kernel")
        m.update_many(keys, values)
    else:
        assert m.update_many(keys, values[::-1].copy(), via="kernel") == n
        again = m.lookup_many(keys, via="syscall")
        assert again[1].all() and again[0].tobytes() == values[::-1].tobytes()
    if array:
        with pytest.raises(NotSupported):
            m.delete_many(keys, via="kernel")
        return
    gone = np.concatenate([keys[5:15], keys[5:9], keys_of(dtype, [90, 91])])
    assert m.delete_many(gone, via="kernel") == 10
    assert sorted(entries(m)) == sorted(k.tobytes() for k in np.delete(keys, np.s_[5:15]))
    if not m.per_cpu:
        taken, found = m.lookup_and_delete_many(keys, via="kernel")
        assert found.sum() == 30 and not m and not np.frombuffer(taken[5:15].tobytes(), "u1").any()
        assert taken[15:].tobytes() == values[::-1][15:].tobytes()


@pytest.mark.parametrize("kind", TABLES)
def test_more_than_one_run(make: Make, kind: str) -> None:
    n = 20_000
    m = make(kind, key="u4", value="V24", max_entries=n * ROOMY.get(kind, 1))
    keys, values = np.arange(n, dtype="u4"), random_values(m, n)
    m.update_many(keys, values)
    for stride in (1, 2, -3):
        asked = np.random.default_rng(3).integers(0, n + 500, 3 * n).astype("u4")[::stride]
        expected, there = m.lookup_many(asked, via="syscall")
        for threads in (1, 3):
            got, found = m.lookup_many(asked, via="kernel", threads=threads)
            assert np.array_equal(found, there) and got.tobytes() == expected.tobytes()


def test_rows_into_out_and_reduced(make: Make) -> None:
    m = make("percpu_hash", key="u4", value=[("a", "u4"), ("b", "i2"), ("c", "S3")],
             max_entries=99)
    values = random_values(m, 99)
    m.update_many(np.arange(99), values)
    asked = np.arange(200, dtype="u4")[::-1]
    for reduce in ("sum", "max", "min", {"a": "or"}):
        expected = m.lookup_many(asked, reduce=reduce, via="syscall")
        got = m.lookup_many(asked, reduce=reduce, via="kernel")
        assert expected[0].tolist() == got[0].tolist() and expected[1].tolist() == got[1].tolist()
    out = np.full((200, CPUS), 7, "u1").repeat(9, 1).view(m.value_dtype).reshape(200, CPUS)
    got = m.lookup_many(asked, out=out, via="kernel")
    assert got[0] is out and out.tolist() == m.lookup_many(asked, via="syscall")[0].tolist()


def test_padding_and_foreign_byte_orders(make: Make) -> None:
    key, value = np.dtype([("a", "u1"), ("b", "u4")], align=True), np.dtype([("x", ">u2")])
    m = make("hash", key=key, value=value, max_entries=9)
    dirty = np.frombuffer(b"\x01\xff\xff\xff\x05\0\0\0" * 3, key)
    assert m.update_many(dirty, (7,), via="kernel") == 3 and len(m) == 1
    assert m[(1, 5)]["x"] == 7 and m.lookup_many(dirty, via="kernel")[1].all()
    n = make("hash", key=">u4", value=">u4", max_entries=9)
    n.update_many(np.array([1, 2, 3], "i8"), [4, 5, 6], via="kernel")
    assert dict(n.items()) == {1: 4, 2: 5, 3: 6}
    assert n.lookup_many([3, 9], via="kernel")[0].tolist() == [6, 0]


# ---- every call means the same -----------------------------------------------------------------

Step = st.tuples(
    st.sampled_from(["update", "delete", "lookup", "take"]),
    st.lists(st.integers(0, 40), max_size=30),
    st.sampled_from([0, NOEXIST, EXIST]),
    st.sampled_from(["raise", "return", "ignore"]),
)


def outcome(m: Any, step: Any, via: str) -> Any:
    """Do a step; return all that it told."""
    what, numbers, flags, errors = step
    keys = np.array(numbers, "u4")
    values = keys.astype("u8") * 7 + len(numbers)
    try:
        if what == "update":
            mode = "raise" if errors == "ignore" else errors
            result = m.update_many(keys, values, flags=flags, errors=mode, via=via)
        elif what == "delete":
            result = m.delete_many(keys, errors=errors, via=via)
        elif what == "lookup" or m.indexed:
            result = m.lookup_many(keys, via=via)
        else:
            result = m.lookup_and_delete_many(keys, via=via)
    except BatchError as error:
        return type(error).__name__, error.errno, error.applied, error.index, str(error)
    except NotSupported as error:
        return type(error).__name__
    return [np.asarray(part).tolist() for part in (
        result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("kind", ("hash", "array", "lru_hash"))
@settings(deadline=None, max_examples=60)
@given(steps=st.lists(Step, max_size=12))
def test_every_way_tells_the_same(kind: str, steps: Any) -> None:
    room = 300 if kind == "lru_hash" else 24
    with (fastmap.create(kind, key="u4", value="u8", max_entries=room) as by_calls,
          fastmap.create(kind, key="u4", value="u8", max_entries=room) as by_programs):
        for step in steps:
            if step[0] == "delete" and kind == "array":
                continue
            assert outcome(by_programs, step, "kernel") == outcome(by_calls, step, "syscall")
        assert entries(by_calls) == entries(by_programs)


@pytest.mark.quick
def test_the_first_failure_ends_a_run(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=10_000)
    m[9_990] = 1
    keys = np.arange(20_000)
    with pytest.raises(fastmap.KeyExists) as caught:
        m.update_many(keys, 7, flags=NOEXIST, via="kernel")
    assert caught.value.applied == caught.value.index == 9_990  # type: ignore[attr-defined]
    assert len(m) == 9_991 and 9_991 not in m
    codes = m.update_many(keys, 8, via="kernel", errors="return")
    assert (codes == 0).sum() == 10_000 and set(codes[10_000:]) == {errno.E2BIG}
    with pytest.raises(fastmap.KeyNotFound) as missing:
        m.delete_many([5, 6, 5, 7], errors="raise", via="kernel")
    assert missing.value.applied == missing.value.index == 2  # type: ignore[attr-defined]
    assert 7 in m and m.delete_many([7, 7, 8], via="kernel", errors="return").tolist() == [0, 2, 0]


# ---- increments --------------------------------------------------------------------------------


def numbers(record: Any) -> list[int]:
    return [int(record["a"]), *record["b"].tolist(), int(record["c"]["d"])]


@pytest.mark.quick
@pytest.mark.parametrize("kind", ("hash", "lru_hash", "array"))
def test_increments(make: Make, kind: str) -> None:
    record = [("a", "u8"), ("b", "i4", (2,)), ("c", [("d", "i8")])]
    m = make(kind, key="u4", value=record, max_entries=100)
    m.update_many([1, 2], [(2**64 - 1, [3, 4], (5,)), (0, [0, 0], (0,))])
    deltas = np.array([(2, (1, -5), (-6,))] * 3, record)
    found = m.increment_many([1, 300, 1], deltas)
    assert found.dtype == bool and found.tolist() == [True, False, True]
    assert numbers(m[1]) == [3, 5, -6, -7] and numbers(m[2]) == [0, 0, 0, 0]
    assert m.increment_many(np.full(30_000, 2), (1, [2, 3], (4,))).all()
    assert numbers(m[2]) == [30_000, 60_000, 90_000, 120_000]
    for wrong in ("u2", "f8", ">u4", [("a", "u1"), ("b", "u4")]):
        other = make(kind, key="u4", value=wrong, max_entries=4)
        with pytest.raises(NotSupported, match="aligned integers"):
            other.increment_many([1], np.zeros(1, wrong))
    with pytest.raises((TypeError, ValueError)):
        m.increment_many([1], [1.5])


def test_increments_of_a_per_cpu_map(make: Make) -> None:
    with pytest.raises(NotSupported, match="PERCPU_HASH"):
        make("percpu_hash", key="u4", value="u8", max_entries=4).increment_many([1], 1)


# ---- what a handle may not do ------------------------------------------------------------------


@pytest.mark.quick
def test_a_program_does_nothing_that_the_handle_may_not(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8)
    m.update_many([1, 2], 5)
    calls: dict[str, Callable[[Any], Any]] = {
        "update": lambda h: h.update_many([1, 3], 9, via="kernel"),
        "delete": lambda h: h.delete_many([1], via="kernel"),
        "take": lambda h: h.lookup_and_delete_many([1], via="kernel"),
        "increment": lambda h: h.increment_many([1], 1),
        "lookup": lambda h: h.lookup_many([1], via="kernel"),
    }
    with (fastmap.open(id=m.id, readonly=True, key="u4", value="u4") as reading,
          fastmap.open(id=m.id, writeonly=True, key="u4", value="u4") as writing):
        for name in ("update", "delete", "take", "increment"):
            with pytest.raises(PermissionDenied):
                calls[name](reading)
        assert calls["lookup"](reading)[0].tolist() == [5]
        for name in ("lookup", "take", "increment"):
            with pytest.raises(PermissionDenied):
                calls[name](writing)
        assert reading.update_many([1, 2], 1, via="kernel", errors="return").tolist() == [1, 1]
        assert dict(m.items()) == {1: 5, 2: 5}
        assert calls["update"](writing) == 2 and calls["delete"](writing) == 1
    assert dict(m.items()) == {2: 5, 3: 9}
    calls["lookup"](m), calls["update"](m)  # loaded, and frozen since
    m.freeze()
    for name in ("update", "delete", "take", "increment"):
        with pytest.raises(PermissionDenied):
            calls[name](m)
    assert calls["lookup"](m)[0].tolist() == [9] and len(m) == 3


@pytest.mark.quick
@pytest.mark.parametrize("flag", (MapFlag.RDONLY_PROG, MapFlag.WRONLY_PROG))
def test_maps_that_restrict_programs(make: Make, flag: MapFlag) -> None:
    m = make("hash", key="u4", value="u4", max_entries=9_000, flags=flag)
    for call in (lambda: m.lookup_many([1], via="kernel"),
                 lambda: m.update_many([1], 1, via="kernel")):
        with pytest.raises(NotSupported, match="restrict"):
            call()
    keys = np.arange(9_000)
    assert m.update_many(keys, 3) == 9_000 and m.lookup_many(keys)[1].all()
    assert not m._in_kernel.pool.idle


def test_flags_that_no_program_knows(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=9)
    with pytest.raises(NotSupported, match="flags=4"):
        m.update_many([1], 1, flags=fastmap.UpdateFlag.LOCK, via="kernel")
