"""Calls over many given keys: every stride, every refusal, and exact counts."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

import fastmap
from fastmap import NOEXIST, BatchError, KeyExists
from fastmap.errors import PermissionDenied

Make = Callable[..., Any]
Array = npt.NDArray[Any]

CPUS = len(fastmap.possible_cpus())
HASHES = ("hash", "percpu_hash", "lru_hash", "lru_percpu_hash")
ALL = (*HASHES, "array", "percpu_array")
RECORD = [("a", "u1"), ("b", "u4")]


def flat(values: Array) -> list[Any]:
    """Return one value a row; of a per-CPU map every CPU's must be the same."""
    if values.ndim == 2:
        assert (values == values[:, :1]).all()
        values = values[:, 0]
    return list(values.tolist())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.quick
def test_round(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=100)
    keys = np.arange(50, dtype="u4")
    assert m.update_many(keys, (3 * keys[:, None]) if m.per_cpu else 3 * keys) == 50
    values, found = m.lookup_many(np.arange(40, 110, dtype="u4"))
    there = 100 if m.indexed else 50
    assert values.dtype == "u8" and found.dtype == bool
    assert found.tolist() == [k < there for k in range(40, 110)]
    assert flat(values) == [3 * k if k < 50 else 0 for k in range(40, 110)]
    if not m.indexed:
        assert m.delete_many(keys[::2]) == 25
        values, found = m.lookup_and_delete_many(keys)
        assert found.tolist() == [False, True] * 25 and not m
        assert flat(values) == [3 * k if k % 2 else 0 for k in range(50)]


# ---- strides -----------------------------------------------------------------------------------


def every_stride(numbers: Sequence[int], dtype: str) -> dict[str, Array]:
    """Return arrays that hold `numbers`, in memory each in another way."""
    array = np.array(numbers, dtype)
    second = np.full(2 * array.size, 77, dtype)
    second[::2] = array
    records = np.zeros(array.size, [("x", "u1"), ("field", dtype), ("y", "u2")])
    records["field"] = array
    return {"plain": array, "negative": array[::-1].copy()[::-1], "second": second[::2],
            "field": records["field"], "column": np.stack([array] * 3, axis=1)[:, 1],
            "read_only": np.frombuffer(array.tobytes(), dtype),
            "unaligned": np.frombuffer(b"x" + array.tobytes(), dtype, offset=1)}  # fmt: skip


@pytest.mark.parametrize("stride", every_stride([1], "u4"))
@pytest.mark.parametrize("threads", (1, 2))
def test_strides(make: Make, stride: str, threads: int) -> None:
    m = make("hash", key="u4", value="u8", max_entries=64)
    numbers = [7, 3, 50, 1, 9, 2]
    keys = every_stride(numbers, "u4")[stride]
    values = every_stride([10 * n for n in numbers], "u8")[stride]
    assert m.update_many(keys, values, threads=threads) == 6
    assert dict(m.items()) == {n: 10 * n for n in numbers}
    read, found = m.lookup_many(keys, threads=threads)
    assert read.tolist() == values.tolist() and found.all()
    assert m.delete_many(keys[1:], threads=threads) == 5 and list(m) == [7]


def test_stride_of_zero(make: Make) -> None:
    m = make("hash", key="u4", value="u8", max_entries=64)
    m.update_many(np.arange(5, dtype="u4"), np.broadcast_to(np.uint64(9), 5))
    assert dict(m.items()) == dict.fromkeys(range(5), 9)
    values, found = m.lookup_many(np.broadcast_to(np.uint32(3), 4))
    assert values.tolist() == [9] * 4 and found.all()
    assert m.delete_many(np.broadcast_to(np.uint32(3), 4)) == 1 and len(m) == 4


def test_strides_of_sub_arrays_and_records(make: Make) -> None:
    m = make("hash", key=("u2", (2,)), value=RECORD, max_entries=64)
    keys = np.arange(24, dtype="u2").reshape(6, 4)[::-2, ::3]  # (3, 2), not together in memory
    values = np.array([(n, 10 * n) for n in range(6)], RECORD)[::2]
    assert m.update_many(keys, values) == 3
    assert {tuple(k.tolist()): v.item() for k, v in m.items()} == {
        (20, 23): (0, 0), (12, 15): (2, 20), (4, 7): (4, 40)}  # fmt: skip
    assert m.lookup_many(keys[:, ::1])[0].tolist() == values.tolist()


# ---- conversions -------------------------------------------------------------------------------


@settings(max_examples=examples(150), deadline=None)
@given(st.sampled_from(["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">u4", ">u8", "?"]),
       st.sampled_from(["i1", "u1", ">i2", "u2", "i4", "u4", ">u4", "i8", ">i8", "u8"]), st.data())
def test_integers_are_checked_and_converted(given: str, wanted: str, data: st.DataObject) -> None:
    limits = np.iinfo(given) if given != "?" else np.iinfo("u1")
    top = 1 if given == "?" else int(limits.max)
    numbers = data.draw(st.lists(st.integers(int(limits.min), top) | st.integers(0, 1), max_size=5))
    array = np.array(numbers, given)
    target = np.iinfo(wanted)
    with fastmap.create("hash", key=wanted, value=wanted, max_entries=16) as m:
        if all(target.min <= n <= target.max for n in numbers):
            m.update_many(array, array)
            assert dict(m.items()) == {n: n for n in numbers}
            assert m.lookup_many(array)[0].tolist() == numbers
        else:
            for call in (lambda: m.update_many(array, np.zeros(len(array), wanted)),
                         lambda: m.update_many(np.zeros(len(array), wanted), array),
                         lambda: m.lookup_many(array), lambda: m.delete_many(array)):
                with pytest.raises(OverflowError, match="does not fit"):
                    call()
            assert not m


REFUSED: list[tuple[Any, Any]] = [
    (np.arange(3.0), TypeError), (np.array([1, 2], object), TypeError),
    (np.array(["1"]), TypeError), (np.zeros(2, "V4"), TypeError), (np.zeros(2, "S4"), TypeError),
    (np.zeros(2, RECORD), TypeError), (np.zeros(2, "M8[s]"), TypeError),
    (np.zeros((2, 2), "u4"), ValueError),
    (5, TypeError),
    (np.array(5, "u4"), TypeError), (None, TypeError), ("12", TypeError), (b"1234", TypeError),
    ({1: 2}, TypeError), ({1, 2}, TypeError), (iter([1]), TypeError), ([1.0], TypeError),
    ([None], TypeError), ([[1]], TypeError), ([-1], OverflowError), ([1, 2**32], OverflowError),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "error"), REFUSED, ids=lambda x: repr(x)[:40])
def test_keys_that_are_refused(make: Make, keys: Any, error: type[Exception]) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8)
    with fastmap.open(id=m.id, writeonly=True, key="u4", value="u4") as deaf:
        for call in (deaf.lookup_many, lambda k: m.update_many(k, 1), m.delete_many,
                     m.lookup_and_delete_many):
            with pytest.raises(error):
                call(keys)
    assert not m


@pytest.mark.parametrize(("values", "error"), [
    (np.zeros(2), TypeError), (np.zeros(2, object), TypeError), (np.zeros(3, "u4"), ValueError),
    (np.zeros((2, 2), "u4"), ValueError), (np.array([-1, 1]), OverflowError), (1.5, TypeError),
    ([1], ValueError), ([1, 2, 3], ValueError), ([1, "2"], TypeError), (None, TypeError),
    (2**32, OverflowError), (-1, OverflowError), ("ab", TypeError),
], ids=lambda x: repr(x)[:40])  # fmt: skip
def test_values_that_are_refused(make: Make, values: Any, error: type[Exception]) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8)
    with fastmap.open(id=m.id, readonly=True, key="u4", value="u4") as deaf:
        with pytest.raises(PermissionDenied):
            deaf.update_many([1, 2], [1, 2])
        with pytest.raises(error):
            deaf.update_many([1, 2], values)


def test_sequences(make: Make) -> None:
    m = make("hash", key="u4", value=RECORD, max_entries=64)
    assert m.update_many([1, 2, 3], [(1, 10), b"\2\x14\0\0\0", np.array((3, 30), RECORD)]) == 3
    assert m.update_many(range(4, 6), (9, 90)) == 2  # a tuple is one record
    assert m.update_many((6, np.int8(7)), np.array((7, 70), RECORD)) == 2
    values, found = m.lookup_many([3, 8, 4])
    assert values.tolist() == [(3, 30), (0, 0), (9, 90)] and found.tolist() == [True, False, True]
    assert m.delete_many((1, 2, 3, 4)) == 4
    n = make("hash", key="u4", value="u4", max_entries=64)
    assert n.update_many(range(3), range(3)) == n.update_many((3, 4, 5), (3, 4, 5)) == 3
    assert dict(n.items()) == {k: k for k in range(6)}


@pytest.mark.parametrize("kind", HASHES)
@pytest.mark.parametrize("empty", ([], (), np.zeros(0, "u4"), np.zeros(0, "i8")[::-1]), ids=repr)
def test_nothing(make: Make, kind: str, empty: Any) -> None:
    m = make(kind, key="u4", value="u8", max_entries=4)
    m[1] = 1
    shape = (0, CPUS) if m.per_cpu else (0,)
    for threads in (1, 2):
        values, found = m.lookup_many(empty, threads=threads)
        assert values.shape == shape and values.dtype == "u8" and found.shape == (0,)
        assert m.lookup_many(empty, out=np.zeros(shape, "u8"))[0].shape == shape
        assert m.update_many(empty, 5, threads=threads) == m.update_many(empty, []) == 0
        assert m.update_many(empty, np.zeros((0, 1) if m.per_cpu else 0, "u8")) == 0
        assert m.delete_many(empty, threads=threads) == 0
        assert m.delete_many(empty, errors="return").shape == (0,)
    assert m.lookup_and_delete_many(empty)[0].shape == shape and len(m) == 1


# ---- out= --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("hash", "percpu_hash", "array", "percpu_array"))
@pytest.mark.parametrize("value", ("u8", "u4", RECORD, ("u2", (3,))), ids=str)
def test_out(make: Make, kind: str, value: Any) -> None:
    m = make(kind, key="u4", value=value, max_entries=8)
    dtype = np.dtype(value)
    one = np.frombuffer(b"\1" * dtype.itemsize, dtype.base).reshape(dtype.shape)[()]
    m[1] = one
    expected, found = m.lookup_many([1, 99, 2, 1])
    out = np.full(expected.nbytes, 0xFF, "u1").view(dtype.base)[:expected.size]
    out = out.reshape(expected.shape)
    values, found_too = m.lookup_many([1, 99, 2, 1], out=out)
    assert values is out and (found_too == found).all() and found[0] and not found[1]
    assert out.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert not out[1].tobytes().strip(b"\0") and not out[2].tobytes().strip(b"\0")
    assert out[0].tobytes() == one.tobytes() * (CPUS if m.per_cpu else 1)


OUTS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "read-only": (lambda: np.frombuffer(bytes(16), "u8"), ValueError),
    "strided": (lambda: np.zeros(4, "u8")[::2], ValueError),
    "negative": (lambda: np.zeros(2, "u8")[::-1], ValueError),
    "smaller dtype": (lambda: np.zeros(2, "u4"), TypeError),
    "signed": (lambda: np.zeros(2, "i8"), TypeError),
    "order": (lambda: np.zeros(2, ">u8"), TypeError),
    "floats": (lambda: np.zeros(2, "f8"), TypeError),
    "objects": (lambda: np.zeros(2, object), TypeError),
    "short": (lambda: np.zeros(1, "u8"), ValueError),
    "long": (lambda: np.zeros(3, "u8"), ValueError),
    "two axes": (lambda: np.zeros((2, 1), "u8"), ValueError),
    "list": (lambda: [0, 0], TypeError), "bytes": (lambda: bytearray(16), TypeError),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTS)
def test_out_that_is_refused(make: Make, name: str) -> None:
    m = make("hash", key="u4", value="u8", max_entries=8)
    with (fastmap.open(id=m.id, writeonly=True, key="u4", value="u8") as deaf,
          pytest.raises(OUTS[name][1], match="out")):
        deaf.lookup_many([1, 2], out=OUTS[name][0]())


def test_out_with_reduce(make: Make) -> None:
    m = make("percpu_hash", key="u4", value="u2", max_entries=8)
    m[1] = [60000] * CPUS
    out = np.full(2, 77, "u8")
    assert m.lookup_many([1, 2], out=out, reduce="sum")[0] is out
    assert out.tolist() == [60000 * CPUS, 0]
    for wrong in (np.zeros(2, "u2"), np.zeros((2, CPUS), "u8")):
        with pytest.raises((TypeError, ValueError), match="out has"):
            m.lookup_many([1, 2], out=wrong, reduce="sum")


# ---- threads and ways --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
@pytest.mark.parametrize("threads", (2, 3, 7))
def test_threads(make: Make, kind: str, threads: int) -> None:
    m = make(kind, key="u8", value="u4", max_entries=10000)
    keys = np.random.default_rng(threads).permutation(5001).astype("u8")
    values = (keys % 1000).astype("u4")
    assert m.update_many(keys, values[:, None] if m.per_cpu else values, threads=threads) == 5001
    read, found = m.lookup_many(np.append(keys, np.array([6000, 7000], "u8")), threads=threads)
    assert flat(read) == [*values.tolist(), 0, 0] and found.sum() == 5001
    assert m.delete_many(np.append(keys[:4000], keys[:5]), threads=threads) == 4000
    assert len(m) == 1001
    codes = m.delete_many(keys, errors="return", threads=threads)
    assert codes.tolist() == [errno.ENOENT] * 4000 + [0] * 1001


def test_threads_add_up_and_raise_the_first_failure(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=100)
    m.update_many([3, 8], 1)
    with pytest.raises(KeyExists) as caught:
        m.update_many(np.arange(10), 2, flags=NOEXIST, threads=2)
    assert isinstance(caught.value, BatchError) and caught.value.index == 3
    assert caught.value.applied == 3 + 3 and len(m) == 2 + 6
    m.delete_many(range(8))
    with pytest.raises(KeyExists, match=r"element 8: .*\[8 applied\]") as caught:
        m.update_many(np.arange(10), 2, flags=NOEXIST, threads=2)
    assert caught.value.applied == caught.value.index == 8
    for bad in (0, -1):
        with pytest.raises(ValueError, match="threads"):
            m.lookup_many([1], threads=bad)


def test_via(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8, via="syscall")
    for via in (None, "auto", "syscall"):
        assert m.update_many([1], 5, via=via) == 1 and m.lookup_many([1], via=via)[0] == [5]
        assert m.snapshot(via=via).keys.tolist() == [1] and m.delete_many([1], via=via) == 1
    for call in (lambda v: m.update_many([1], 5, via=v), lambda v: m.lookup_many([1], via=v),
                 lambda v: m.delete_many([1], via=v), lambda v: m.snapshot(via=v),
                 lambda v: m.reader(via=v), lambda v: m.drain(via=v),
                 lambda v: m.lookup_and_delete_many([1], via=v),
                 lambda v: make("hash", key="u4", value="u4", max_entries=8, via=v)):  # fmt: skip
        with pytest.raises(ValueError, match="via='ebpf'"):
            call("ebpf")
    monkeypatch.setenv("FASTMAP_VIA", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        make("hash", key="u4", value="u4", max_entries=8)
