"""Fields that the kernel acts on: `fastmap.spin_lock` in dtypes, in BTF, in the kernel."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap import MapType, UpdateFlag
from fastmap._core.system import syscall
from fastmap.btf import Btf, encode
from fastmap.btf.special import SPECIAL, marked, special_fields, special_kind

pytestmark = pytest.mark.quick
Make = Callable[..., Any]
LOCK = fastmap.spin_lock
LOCKED = np.dtype([("lock", LOCK), ("n", "u8")], align=True)


def test_a_lock_is_a_dtype_that_stays_one() -> None:
    assert (LOCK.itemsize, LOCK.alignment, special_kind(LOCK)) == (4, 4, "bpf_spin_lock")
    assert np.dtype([("val", "u4")]) != LOCK, "a dtype with a lock never equals one without"
    assert LOCKED.itemsize == 16
    array = np.zeros(3, LOCKED)
    stored = io.BytesIO()
    np.save(stored, array)
    stored.seek(0)
    for kept in (pickle.loads(pickle.dumps(LOCKED)), array.dtype, np.load(stored).dtype,
                 np.concatenate([array, array]).dtype, np.result_type(LOCKED, LOCKED),
                 np.frombuffer(array.tobytes(), LOCKED)[::2].dtype):  # fmt: skip
        assert kept == LOCKED
        assert special_fields(kept) == {"lock": ("bpf_spin_lock", 0, 1)}


def test_where_special_fields_lie() -> None:
    inner = np.dtype([("n", "u4"), ("lock", LOCK)])
    outer = np.dtype([("a", "u8"), ("inner", inner, (2, 3)), ("b", [("c", LOCK)])])
    assert special_fields(outer) == {
        "inner.lock": ("bpf_spin_lock", 12, 6), "b.c": ("bpf_spin_lock", 56, 1),
    }  # fmt: skip
    assert special_fields(LOCK) == {"": ("bpf_spin_lock", 0, 1)}
    assert special_fields(np.dtype("u4")) == {}
    forged = np.dtype([(("bpf_timer", "val"), "u4")])
    assert special_fields(np.dtype([("x", forged)])) == {}, "a title of another size says nothing"


@pytest.mark.parametrize("name", SPECIAL)
def test_there_and_back(name: str) -> None:
    kind = marked(name, SPECIAL[name].size)
    assert kind is not None and kind.alignment == SPECIAL[name].alignment
    value = np.dtype([("before", "u8"), ("it", kind), ("after", "u4")])
    data, _, value_id = encode(None, value)
    types = Btf(data)
    assert types.dtype(value_id) == value
    assert special_kind(types.dtype(value_id)["it"]) == name
    assert types.special(value_id) == {"it": name}
    assert marked(name, 3) is None


def test_as_the_kernel_declares_them() -> None:
    types = fastmap.read_btf()
    there = [name for name in SPECIAL if types.find_all(name).size]
    assert {"bpf_spin_lock", "bpf_timer"} <= set(there)
    for name in there:
        declared = types.dtype(types.named(f"struct {name}"))
        assert special_kind(declared) == name
        assert types.special(types.named(f"struct {name}")) == {"": name}


@pytest.mark.parametrize("type", ["hash", "array"])
def test_a_map_with_a_lock(make: Make, type: str) -> None:
    m = make(type, key="u4", value=LOCKED, max_entries=2)
    with fastmap.open(fd=m.fileno()) as again:
        assert again.value_dtype == LOCKED
    m[1] = ((0,), 5)
    # EINVAL where the kernel sees no lock.
    assert m.lookup(1, flags=UpdateFlag.LOCK)["n"] == 5
    assert special_fields(np.dtype([("x", fastmap.btf_dtype("value", m))])) == {
        "x.lock": ("bpf_spin_lock", 0, 1)
    }


REFUSED: list[tuple[Any, str]] = [
    (LOCK, "alone"),
    ([("n", "u1"), ("lock", LOCK)], "lock, a bpf_spin_lock, lies at offset 1.*align=True"),
    ([("lock", LOCK), ("second", LOCK)], "at most one bpf_spin_lock, not lock and second"),
    ([("locks", LOCK, (2,))], "at most one bpf_spin_lock, not an array, locks"),
    ([("parts", [("lock", LOCK), ("n", "u4")], (3,))], "an array, parts.lock"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_locks_that_the_kernel_would_not_see(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(np.dtype("u4"), np.dtype(value))
    for btf in (True, False):
        with pytest.raises(ValueError, match=message):
            fastmap.create("hash", key="u4", value=value, max_entries=1, btf=btf)


def test_locks_elsewhere() -> None:
    with pytest.raises(ValueError, match="in values only"):
        fastmap.create("hash", key=LOCKED, value="u4", max_entries=1)
    with pytest.raises(ValueError, match="btf=False"):
        fastmap.create("hash", key="u4", value=LOCKED, max_entries=1, btf=False)
    both = [("a", LOCK), ("b", marked("bpf_res_spin_lock", 4))]
    with pytest.raises(ValueError, match="at most one"):
        encode(None, np.dtype(both))
    several = np.dtype([("a", marked("bpf_list_node", 24), (2,)), ("b", marked("bpf_rb_node", 32))])
    data, _, value_id = encode(None, several)
    assert Btf(data).special(value_id) == {"a": "bpf_list_node", "b": "bpf_rb_node"}


def test_a_type_of_map_without_locks_says_so() -> None:
    # Without the lock the map could be made: the kernel's refusal must come through.
    with pytest.raises(fastmap.NotSupported):
        fastmap.create("lru_hash", key="u4", value=LOCKED, max_entries=4)


@pytest.mark.parametrize("type", ["TASK_STORAGE", "SK_STORAGE", "INODE_STORAGE"])
@pytest.mark.parametrize("key", ["i4", "u4"])
def test_storage_takes_the_btf_of_a_dtype(type: str, key: str) -> None:
    for value in ("u8", "f8", "S5", LOCKED, [("a", "f4"), ("b", "u1", (2, 3))]):
        dtype = np.dtype(value)
        data, key_id, value_id = encode(np.dtype(key), dtype)
        types = syscall.btf_load(data)
        try:
            syscall.map_create(
                MapType[type], 4, dtype.itemsize, 0, 1, btf_fd=types.fileno(),
                btf_key_type_id=key_id, btf_value_type_id=value_id,
            ).close()  # fmt: skip
        finally:
            types.close()
