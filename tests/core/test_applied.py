"""Calls over many keys: what is applied where one of them fails, and per-CPU values."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import raw

import fastmap
from fastmap import EXIST, NOEXIST, BatchError, KeyExists, KeyNotFound, MapFull, NotSupported
from fastmap.errors import PermissionDenied

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

CPUS = len(fastmap.possible_cpus())


def forms(keys: list[int]) -> list[Any]:
    """Return keys as an array, a strided array, and a list."""
    array = np.array(keys, "u4")
    return [array, np.repeat(array, 2)[::2], keys]


# ---- update_many -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
@pytest.mark.parametrize("flags", (fastmap.ANY, NOEXIST))
@pytest.mark.quick
def test_full_in_the_middle(make: Make, kind: str, form: int, flags: int) -> None:
    m = make(kind, key="u4", value="u4", max_entries=10)
    m[100] = 5
    with pytest.raises(MapFull, match=r"element 9: map is full.*9 applied") as caught:
        m.update_many(forms(list(range(15)))[form], 7, flags=flags)
    error = caught.value
    assert isinstance(error, BatchError) and error.applied == error.index == 9
    assert error.errno == errno.E2BIG
    assert sorted(m) == [*range(9), 100]


def test_full_and_attempt_all(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=10)
    m.update_many([100, 14], 5)
    codes = m.update_many(np.arange(16), 7, errors="return")
    assert codes.dtype == np.int32
    assert codes.tolist() == [0] * 8 + [errno.E2BIG] * 6 + [0] + [errno.E2BIG]
    assert dict(m.items()) == {**dict.fromkeys([*range(8), 14], 7), 100: 5}


@pytest.mark.parametrize("form", range(3))
def test_noexist_and_exist(make: Make, form: int) -> None:
    m = make("hash", key="u4", value="u4", max_entries=100)
    m.update_many([5, 9], 1)
    keys = forms(list(range(12)))[form]
    with pytest.raises(KeyExists) as exists:
        m.update_many(keys, 2, flags=NOEXIST)
    assert exists.value.applied == exists.value.index == 5  # type: ignore[attr-defined]
    assert sorted(m) == [0, 1, 2, 3, 4, 5, 9] and m[5] == 1
    codes = m.update_many(keys, 3, flags=EXIST, errors="return")
    assert codes.tolist() == [0] * 6 + [errno.ENOENT] * 3 + [0] + [errno.ENOENT] * 2
    with pytest.raises(KeyNotFound) as missing:
        m.update_many(keys, 4, flags=EXIST)
    assert missing.value.applied == 6 and m[5] == 4 and m[9] == 3  # type: ignore[attr-defined]


def test_arrays_past_the_end(make: Make) -> None:
    m = make("array", value="u4", max_entries=4)
    with pytest.raises(KeyNotFound, match="past the end") as caught:
        m.update_many([0, 1, 9, 2], [1, 2, 3, 4])
    assert caught.value.applied == caught.value.index == 2  # type: ignore[attr-defined]
    assert m.snapshot().values.tolist() == [1, 2, 0, 0]
    assert m.update_many([3, 9, 2], 7, errors="return").tolist() == [0, errno.E2BIG, 0]
    assert m.snapshot().values.tolist() == [1, 2, 7, 7]


def test_failure_beyond_the_first_chunk(make: Make) -> None:
    n = 70_000  # a chunk is at most 32,768 keys
    m = make("hash", key="u4", value="u4", max_entries=n)
    keys = np.arange(n + 1, dtype="u4")
    with pytest.raises(MapFull) as caught:
        m.update_many(keys[::-1], keys[::-1])
    assert caught.value.applied == caught.value.index == n  # type: ignore[attr-defined]
    assert len(m) == n and 0 not in m
    missing = np.repeat(keys[1:], 2)
    assert m.delete_many(missing) == n and not m


def test_last_of_equal_keys_wins(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8)
    assert m.update_many([1, 2, 1, 1], [10, 20, 11, 12]) == 4
    assert dict(m.items()) == {1: 12, 2: 20}
    values, found = m.lookup_many([1, 1, 2, 1])
    assert values.tolist() == [12, 12, 20, 12] and found.all()
    values, found = m.lookup_and_delete_many([1, 1, 2, 1])
    assert values.tolist() == [12, 0, 20, 0] and found.tolist() == [True, False, True, False]


def test_handles_that_may_not(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8)
    m[1] = 1
    with fastmap.open(id=m.id, readonly=True) as readonly:
        for call in (lambda: readonly.update_many([1, 2], 5), lambda: readonly.delete_many([1])):
            with pytest.raises(PermissionDenied) as caught:
                call()
            assert isinstance(caught.value, BatchError) and caught.value.applied == 0
        codes = readonly.update_many([1, 2], 5, errors="return")
        assert codes.tolist() == [errno.EPERM] * 2
    assert dict(m.items()) == {1: 1}


# ---- delete_many -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("hash", "percpu_hash", "lru_hash", "lru_percpu_hash"))
@pytest.mark.parametrize("form", range(3))
def test_missing_and_doubled_keys(make: Make, kind: str, form: int) -> None:
    m = make(kind, key="u4", value="u4", max_entries=100)
    m.update_many(np.arange(20), 1)
    keys = [50, 1, 1, 2, 60, 61, 3, 2, 19]
    assert m.delete_many(forms(keys)[form]) == 4
    assert sorted(m) == [0, *range(4, 19)]
    m.update_many(np.arange(20), 1)
    codes = m.delete_many(forms(keys)[form], errors="return")
    missing = errno.ENOENT
    assert codes.tolist() == [missing, 0, missing, 0, missing, missing, 0, missing, 0]
    m.update_many(np.arange(20), 1)
    with pytest.raises(KeyNotFound) as caught:
        m.delete_many(forms(keys[1:])[form], errors="raise")
    assert isinstance(caught.value, BatchError)
    assert caught.value.applied == caught.value.index == 1 and len(m) == 19


def test_many_more_missing_keys_than_present_ones(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=1000)
    m.update_many(np.arange(0, 5000, 7), 1)
    assert m.delete_many(np.arange(5000)) == 715 and not m


@pytest.mark.parametrize("kind", ("array", "percpu_array"))
def test_arrays_delete_nothing_and_keep_their_batches(make: Make, kind: str) -> None:
    m = make(kind, value="u8", max_entries=4)
    for errors in ("ignore", "raise"):
        with pytest.raises(NotSupported, match="write zeros"):
            m.delete_many([1], errors=errors)
    assert m.delete_many([1, 2], errors="return").tolist() == [errno.EINVAL] * 2
    assert m.update_many([1, 2], 5) == 2 and not m.no_batch


def test_errors_is_one_of_the_words(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=4)
    for call in (lambda: m.update_many([1], 1, errors="ignore"),
                 lambda: m.update_many([1], 1, errors="return "),
                 lambda: m.delete_many([1], errors=None)):
        with pytest.raises(ValueError, match="errors="):
            call()
    assert not m


def test_what_leaves_a_take_carries_what_it_took(make: Make) -> None:
    m = make("array", value="u4", max_entries=4)
    with pytest.raises(AttributeError):
        m.lookup_and_delete_many([1])
    h = make("hash", key="u4", value="u4", max_entries=4)
    h[1] = 1
    with (fastmap.open(id=h.id, readonly=True) as readonly,
          pytest.raises(PermissionDenied) as caught):
        readonly.lookup_and_delete_many(np.array([1], "u4").view("V4")
                                        if readonly.key_dtype.kind == "V" else [1])
    assert len(caught.value.batch) == 0 and h[1] == 1  # type: ignore[attr-defined]


# ---- per-CPU values ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("percpu_hash", "percpu_array", "lru_percpu_hash"))
@pytest.mark.parametrize("value", ("u8", "u4", "u1", [("a", "u1"), ("b", "u2")], "S3"), ids=str)
def test_per_cpu_shapes(make: Make, kind: str, value: Any) -> None:
    m = make(kind, key="u4", value=value, max_entries=8)
    dtype = np.dtype(value)
    filling = bytes(1 + i % 251 for i in range(3 * CPUS * dtype.itemsize))
    rows = np.frombuffer(filling, dtype).reshape(3, CPUS)
    spread = np.repeat(rows, 2, axis=1)[:, ::2]
    for given in (rows, rows[::-1][::-1], spread, rows.tolist()):
        assert m.update_many([0, 1, 2], given) == 3
        values, found = m.lookup_many([0, 1, 2])
        assert found.all() and values.shape == (3, CPUS) and values.dtype == dtype
        assert values.tolist() == rows.tolist() and values.strides[1] % 8 == 0
        m.update_many([0, 1, 2], np.zeros((3, CPUS), dtype))
    m.update_many([0, 1, 2], rows[:, :1])
    assert m.lookup_many([0, 1, 2])[0].tolist() == np.repeat(rows[:, :1], CPUS, 1).tolist()
    m.update_many([0, 1, 2], rows[0, 0])
    assert m.lookup_many([0, 1, 2])[0].tolist() == np.full((3, CPUS), rows[0, 0]).tolist()


@pytest.mark.parametrize("rows", (CPUS, 3, 1))
def test_per_cpu_shapes_that_are_refused(make: Make, rows: int) -> None:
    m = make("percpu_array", value="u4", max_entries=8)
    keys = np.arange(rows)
    for shape in ((rows,), (rows, CPUS + 1), (rows, 0), (rows, CPUS, 1), (rows + 1, CPUS)):
        with pytest.raises(ValueError, match=r"per-CPU|keys, but"):
            m.update_many(keys, np.ones(shape, "u4"))
    for values in ([5] * rows, [[1] * (CPUS + 1)] * rows, [[1.5] * CPUS] * rows):
        with pytest.raises((TypeError, ValueError)):
            m.update_many(keys, values)
    assert not m.snapshot().values.any()


def test_pad_bytes_of_many(make: Make) -> None:
    m = make("percpu_array", value="u4", max_entries=3)
    size = CPUS * 8
    for key in range(3):
        raw.put(m, struct.pack("=I", key), b"\xff" * size)
    values, _ = m.lookup_many([0, 1, 2])
    assert values.tolist() == [[2**32 - 1] * CPUS] * 3
    dirty = np.full((3, CPUS), 0xFFFFFFFF00000007, "u8").view("u4")[:, ::2]
    for given in (dirty, 7, np.full((3, 1), 7, "u4"), [[7] * CPUS] * 3):
        for key in range(3):
            raw.put(m, struct.pack("=I", key), b"\xff" * size)
        m.update_many([0, 1, 2], given)
        kept = [raw.peek(m, struct.pack("=I", key), size) for key in range(3)]
        assert kept == [(7).to_bytes(8, "little") * CPUS] * 3


def test_per_cpu_sub_arrays(make: Make) -> None:
    m = make("percpu_hash", key="u4", value=("u2", (3,)), max_entries=8)
    rows = np.arange(2 * CPUS * 3, dtype="u2").reshape(2, CPUS, 3)
    assert m.update_many([0, 1], rows) == m.update_many([2, 3], rows[:, :1]) == 2
    values, _ = m.lookup_many([0, 1, 2, 3])
    assert values.shape == (4, CPUS, 3) and values[:2].tolist() == rows.tolist()
    assert values[2:].tolist() == np.repeat(rows[:, :1], CPUS, 1).tolist()
    for wrong in (rows[0], rows[:, :, :2], rows[:, 0, 0]):
        with pytest.raises(ValueError):
            m.update_many([0, 1], wrong)


@pytest.mark.parametrize("kind", ("percpu_hash", "percpu_array", "lru_percpu_hash"))
def test_reduce_of_given_keys(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u2", max_entries=8)
    rows = np.array([[60000 + c for c in range(CPUS)], list(range(CPUS))], "u2")
    m.update_many([1, 2], rows)
    for op, expected in (("sum", rows.sum(axis=1, dtype="u8")), ("max", rows.max(axis=1)),
                         ("or", np.bitwise_or.reduce(rows, axis=1))):
        for threads in (1, 2):
            values, found = m.lookup_many([2, 50, 1], reduce=op, threads=threads)
            assert values.tolist() == [expected[1], 0, expected[0]] and values.ndim == 1
            assert found.tolist() == [True, False, True]
    # The value of CPU 0 is all zeros in one row: it takes no part.
    written = [min((n for n in row if n), default=0) for row in rows[::-1].tolist()]
    assert m.lookup_many([2, 1], reduce="min")[0].tolist() == written
    assert m.lookup_many([2, 1], reduce="sum")[0].dtype == "u8"
    if not m.indexed:
        values, found = m.lookup_and_delete_many([2, 1], reduce="sum")
        assert values.tolist() == rows[::-1].sum(axis=1).tolist() and not m
    for reduce in ("mean", "sum ", "copy", 5, {"x": "sum"}):
        with pytest.raises((TypeError, ValueError)):
            m.lookup_many([1], reduce=reduce)
    with pytest.raises(ValueError, match="per-CPU"):
        make("hash", key="u4", value="u4", max_entries=1).lookup_many([1], reduce="sum")
