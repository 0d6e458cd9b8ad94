"""Element commands, and the dict's habits, on all six types."""

from __future__ import annotations

import errno
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import pytest
import raw

import fastmap
from fastmap import EXIST, NOEXIST, KeyExists, KeyNotFound, MapFull, NotSupported
from fastmap.enums import running_kernel
from fastmap.errors import BpfError, PermissionDenied

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

HASHES = ("hash", "percpu_hash", "lru_hash", "lru_percpu_hash")
ARRAYS = ("array", "percpu_array")
CPUS = len(fastmap.possible_cpus())

hashes = pytest.mark.parametrize("kind", HASHES)
arrays = pytest.mark.parametrize("kind", ARRAYS)
all_types = pytest.mark.parametrize("kind", HASHES + ARRAYS)


def same(value: Any, expected: int) -> bool:
    """Tell whether a value, or each CPU's, is `expected`."""
    return bool(np.all(np.asarray(value) == expected))


# ---- commands and flags ------------------------------------------------------------------------


@all_types
@pytest.mark.quick
def test_commands(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=8)
    m.update(3, 7)
    m[4] = 9
    assert same(m.lookup(3), 7) and same(m[4], 9)
    assert 3 in m and 99 not in m
    with pytest.raises(KeyNotFound, match="99"):
        m.lookup(99)
    with pytest.raises(KeyError):
        m[99]


@hashes
def test_delete(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=8)
    m.update({1: 10, 2: 20, 3: 30})
    m.delete(1)
    del m[2]
    assert same(m.lookup_and_delete(3), 30)
    assert not m and len(m) == 0
    for missing in (m.delete, m.__delitem__, m.lookup_and_delete):
        with pytest.raises(KeyNotFound, match="key 3"):
            missing(3)


@arrays
def test_array_elements_cannot_be_deleted(make: Make, kind: str) -> None:
    m = make(kind, value="u8", max_entries=4)
    m[3] = 7
    for refused in (m.delete, m.__delitem__, m.lookup_and_delete):
        with pytest.raises(NotSupported):
            refused(3)
    assert same(m[3], 7)


@all_types
@pytest.mark.parametrize("index", [4, 2**32 - 1])
def test_past_the_end(make: Make, kind: str, index: int) -> None:
    m = make(kind, key="u4", value="u8", max_entries=4)
    assert index not in m and m.get(index) is None and m.get(index, 5) == 5
    if kind in ARRAYS:
        with pytest.raises(KeyNotFound, match="past the end"):
            m[index] = 1


@hashes
def test_update_flags(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=8)
    with pytest.raises(KeyNotFound, match="EXIST"):
        m.update(1, 10, flags=EXIST)
    m.update(1, 10, flags=NOEXIST)
    with pytest.raises(KeyExists, match="NOEXIST"):
        m.update(1, 11, flags=NOEXIST)
    assert same(m[1], 10)
    m.update(1, 12, flags=EXIST)
    m.update(2, 20, flags=fastmap.ANY)
    m.update(2, 21, flags=fastmap.ANY)
    assert same(m[1], 12) and same(m[2], 21)


@arrays
def test_update_flags_of_arrays(make: Make, kind: str) -> None:
    m = make(kind, value="u8", max_entries=8)
    m.update(1, 10, flags=EXIST)
    with pytest.raises(KeyExists):
        m.update(1, 11, flags=NOEXIST)
    assert same(m[1], 10)


@all_types
def test_flags_the_kernel_refuses(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=8)
    m[1] = 1
    if not m.per_cpu or running_kernel() < (7, 0):  # later lookups there take any flag
        with pytest.raises(BpfError) as caught:
            m.lookup(1, flags=NOEXIST)
        assert caught.value.errno == errno.EINVAL
    for call in (lambda: m.update(1, 2, flags=NOEXIST | EXIST),
                 lambda: m.update_many([1], [[2]] if m.per_cpu else [2], flags=NOEXIST | EXIST)):
        with pytest.raises(ValueError, match="both NOEXIST and EXIST"):
            call()
    assert same(m[1], 1)


@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
def test_full(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=2)
    m.update({1: 1, 2: 2})
    with pytest.raises(MapFull, match=r"key 3.*map is full"):
        m[3] = 3
    m[2] = 22  # what is there may be replaced
    assert same(m[2], 22)


def test_large_keys_and_values(make: Make) -> None:
    m = make("hash", key="V600", value="V65536", max_entries=2)
    key, value = bytes(range(200)) * 3, bytes(range(256)) * 256
    m[key] = value
    assert m[key] == value and key in m and list(m.items()) == [(key, value)]
    assert m.pop(key) == value and not m


# ---- the dict's habits -------------------------------------------------------------------------


@hashes
@pytest.mark.quick
def test_mapping(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=64)
    assert isinstance(m, MutableMapping)
    assert not m and list(m) == [] and len(m) == 0
    m.update({k: 10 * k for k in range(5)})
    m.update((k, 10 * k) for k in range(5, 9))
    m.update(9, 90)
    assert m and len(m) == 10 and sorted(m) == sorted(m.keys()) == list(range(10))
    assert sorted(np.max(v) for v in m.values()) == [10 * k for k in range(10)]
    assert all(same(v, 10 * k) for k, v in m.items())
    assert len(m.keys()) == len(m.values()) == len(m.items()) == 10 and 3 in m.keys()  # noqa: SIM118
    other = make(kind, key="u4", value="u8", max_entries=64)
    other.update(m)
    assert {k: np.max(v) for k, v in other.items()} == {k: 10 * k for k in range(10)}
    m.clear()
    assert not m and len(other) == 10


@hashes
def test_get_pop_setdefault(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=64)
    assert m.get(1) is None and m.get(1, 5) == 5 and m.pop(1, None) is None
    assert same(m.setdefault(1, 10), 10) and same(m.setdefault(1, 11), 10)
    assert same(m.get(1, 5), 10)
    assert same(m.pop(1), 10) and same(m.pop(1, 7), 7)
    with pytest.raises(KeyError, match="key 1"):
        m.pop(1)
    m.update({k: k for k in range(20)})
    popped = [m.popitem() for _ in range(20)]
    assert sorted(k for k, _ in popped) == list(range(20)) and all(same(v, k) for k, v in popped)
    with pytest.raises(KeyError):
        m.popitem()


@hashes
def test_update_mapping_is_all_or_a_batch_error(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u8", max_entries=64)
    m[3] = 33
    with pytest.raises(fastmap.BatchError) as caught:
        m.update({1: 1, 2: 2, 3: 3, 4: 4}, flags=NOEXIST)
    assert isinstance(caught.value, KeyExists) and caught.value.applied == 2
    assert sorted(m) == [1, 2, 3] and same(m[3], 33)
    m.update({})
    for given in ((), ({1: 2}, 3, 4), (5,)):
        with pytest.raises(TypeError):
            m.update(*given)


def test_update_mapping_of_a_per_cpu_map(make: Make) -> None:
    m = make("percpu_hash", key="u4", value=[("a", "u2"), ("b", "i4")], max_entries=8)
    one, each = (1, -1), [(n, -n) for n in range(CPUS)]
    m.update({1: one, 2: each, 3: np.array(each, m.value_dtype)})
    assert m[1].tolist() == [one] * CPUS and m[2].tolist() == m[3].tolist() == each


@arrays
def test_array_as_a_mapping(make: Make, kind: str) -> None:
    m = make(kind, value="u4", max_entries=5)
    for k in range(5):
        m[k] = k * k
    assert len(m) == 5 and list(m) == list(m.keys()) == list(range(5)) and bool(m)
    assert all(same(v, k * k) for k, v in m.items()) and 5 not in m
    assert [np.max(v) for v in m.values()] == [0, 1, 4, 9, 16]
    assert not isinstance(m, MutableMapping)


def test_popitem_with_padding_that_a_program_left_dirty(make: Make) -> None:
    """The walk always ends, also where no key that we encode can name the entry."""
    m = make("hash", key=np.dtype("u1, u4", align=True), value="u4", max_entries=4)
    raw.put(m, b"\x01\xaa\xbb\xcc\x02\0\0\0", b"\x07\0\0\0")
    assert (1, 2) not in m
    key, value = m.popitem()
    assert tuple(key) == (1, 2) and value == 7 and not m


# ---- per-CPU values ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("percpu_hash", "percpu_array", "lru_percpu_hash"))
def test_per_cpu_values(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u4", max_entries=4)
    each = np.arange(1, CPUS + 1, dtype="u4")
    for given in (each, each.astype(">i8"), each.tolist(), tuple(each.tolist())):
        m[0] = 0
        m[0] = given
        assert m[0].dtype == "u4" and m[0].shape == (CPUS,) and (m[0] == each).all()
    for given in (each[:-1], np.append(each, 1), each.tolist() + [1], [], each[:0]):
        with pytest.raises(ValueError, match="possible CPUs"):
            m[0] = given
    for given in (each * 1.0, [1.5] * CPUS, each.astype(object), [None] * CPUS):
        with pytest.raises(TypeError):
            m[0] = given
    assert (m[0] == each).all()


def test_per_cpu_records_and_sub_arrays(make: Make) -> None:
    m = make("percpu_hash", key="u4", value=[("a", "u4"), ("b", "u1")], max_entries=4)
    m[0] = (1, 2)  # a tuple is one record
    assert m[0].tolist() == [(1, 2)] * CPUS
    m[0] = [(n, n) for n in range(CPUS)]
    assert m[0].tolist() == [(n, n) for n in range(CPUS)]
    s = make("percpu_hash", key="u4", value=("u2", (3,)), max_entries=4)
    s[0] = [1, 2, 3]
    assert s[0].tolist() == [[1, 2, 3]] * CPUS
    rows = [[n, n, 9] for n in range(CPUS)]
    for given in (rows, np.array(rows, "u2")):
        s[0] = 0, 0, 0
        s[0] = given
        assert s[0].tolist() == rows


@pytest.mark.parametrize("kind", ("percpu_hash", "percpu_array"))
def test_one_cpu(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value="u4", max_entries=4)
    last = fastmap.possible_cpus()[-1]
    m.update(1, 7, cpu=last)
    assert m[1].tolist() == [0] * (CPUS - 1) + [7] and m.lookup(1, cpu=last) == 7
    m.update(1, [5] * CPUS)
    m.update(1, 6, cpu=last)
    assert m[1].tolist() == [5] * (CPUS - 1) + [6]
    for refused in (lambda: m.lookup(1, cpu=last + 1), lambda: m.update(1, 1, cpu=-1)):
        with pytest.raises(ValueError, match="possible CPUs"):
            refused()


def test_pad_bytes_of_per_cpu_slots(make: Make) -> None:
    """A 4-byte value sits in 8 bytes: the rest is zeroed on write, and never seen on read."""
    m = make("percpu_array", value="u4", max_entries=1)
    key, slots = bytes(4), CPUS * 8
    raw.put(m, key, b"\xff" * slots)
    assert m[0].tolist() == [2**32 - 1] * CPUS  # no more than its 4 bytes
    m[0] = 5
    assert raw.peek(m, key, slots) == (5).to_bytes(8, "little") * CPUS
    wide = np.full(CPUS, 0xFFFFFFFF00000007, "u8").view("u4")[::2]  # with dirty gaps
    raw.put(m, key, b"\xff" * slots)
    m[0] = wide
    assert raw.peek(m, key, slots) == (7).to_bytes(8, "little") * CPUS


# ---- closed maps and handles -------------------------------------------------------------------


CALLS: dict[str, Callable[[Any], Any]] = {
    "lookup": lambda m: m.lookup(1), "[]": lambda m: m[1], "in": lambda m: 1 in m,
    "update": lambda m: m.update(1, 1), "[]=": lambda m: m.__setitem__(1, 1),
    "delete": lambda m: m.delete(1), "del": lambda m: m.__delitem__(1),
    "take": lambda m: m.lookup_and_delete(1), "get": lambda m: m.get(1), "len": len, "bool": bool,
    "pop": lambda m: m.pop(1, None), "popitem": lambda m: m.popitem(), "iter": list,
    "clear": lambda m: m.clear(), "setdefault": lambda m: m.setdefault(1, 1),
    "items": lambda m: list(m.items()), "mapping": lambda m: m.update({1: 1}),
    "lookup_many": lambda m: m.lookup_many([1]), "update_many": lambda m: m.update_many([1], [1]),
    "delete_many": lambda m: m.delete_many([1]), "snapshot": lambda m: m.snapshot(),
    "take_many": lambda m: m.lookup_and_delete_many([1]), "drain": lambda m: m.drain(),
    "reader": lambda m: m.reader().read(), "chunks": lambda m: list(m.reader()),
    "fileno": lambda m: m.fileno(), "info": lambda m: m.info(), "freeze": lambda m: m.freeze(),
    "pin": lambda m: m.pin("/tmp/x"), "unpin": lambda m: m.unpin("/tmp/x"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_closed(make: Make, call: str) -> None:
    m = make("hash", key="u4", value="u4", max_entries=4)
    m[1] = 1
    assert not m.closed
    m.close()
    m.close()
    assert m.closed and "closed" in repr(m)
    with pytest.raises(ValueError, match="closed"):
        CALLS[call](m)


def test_with_closes() -> None:
    with fastmap.create("hash", key="u4", value="u4", max_entries=4) as m:
        m[1] = 1
    assert m.closed


READS = ("lookup", "[]", "in", "get", "len", "bool", "iter", "lookup_many", "snapshot")
WRITES = ("update", "[]=", "delete", "del", "update_many", "delete_many", "clear", "mapping",
          "pop", "popitem", "take", "take_many", "drain")  # fmt: skip


@pytest.mark.parametrize("call", READS + WRITES)
def test_modes_of_a_handle(make: Make, call: str) -> None:
    m = make("hash", key="u4", value="u4", max_entries=4)
    m[1] = 7
    mode = "readonly" if call in WRITES else "writeonly"
    with (fastmap.open(id=m.id, **{mode: True}) as handle,
          pytest.raises(PermissionDenied, match=f"{mode[:-4]}-only")):
        CALLS[call](handle)
    assert m[1] == 7 and len(m) == 1


def test_text_of_no_characters_is_said_to_be_none(make: Callable[..., Any]) -> None:
    """A program writes any 32 bits; numpy's text of UCS4 has them all, Python's does not."""
    m = make("array", value="u4", max_entries=2)
    m[0], m[1] = ord("a"), 0x110000
    with fastmap.open(id=m.id, value="U1") as texts:
        for entries in (texts.items, texts.values, texts.snapshot().items):
            with pytest.raises(ValueError, match="not every element is text"):
                list(entries())
        assert texts.snapshot().values.view("u4").tolist() == [ord("a"), 0x110000]
