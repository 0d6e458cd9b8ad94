"""create and open, dtypes and BTF, pins."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap import MapFlag, MapType
from fastmap.errors import (
    BpfError,
    KeyExists,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
)

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

CLASSES = {
    "hash": fastmap.HashMap, "array": fastmap.ArrayMap, "percpu_hash": fastmap.PerCpuHashMap,
    "percpu_array": fastmap.PerCpuArrayMap, "lru_hash": fastmap.HashMap,
    "lru_percpu_hash": fastmap.PerCpuHashMap,
}  # fmt: skip
RECORD = [("packets", "u8"), ("bytes", "u4")]
U4 = {"key": "u4", "value": "u4", "max_entries": 4}


# ---- create ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.quick
def test_create(make: Make, kind: str) -> None:
    number = MapType[kind.upper()]
    for name in (kind, kind.upper(), number, int(number)):
        m = make(name, key="u4", value=RECORD, max_entries=7, name="my.flows_1")
        assert type(m) is CLASSES[kind] and isinstance(m, fastmap.Map)
        assert (m.type, m.name, m.max_entries, m.flags) == (number, "my.flows_1", 7, MapFlag(0))
        assert m.key_dtype == "u4" and m.value_dtype == np.dtype(RECORD)
        assert m.dtype_source == "given" and m.id > 0 and not m.closed
        assert not os.get_inheritable(m.fileno())
        for word in (type(m).__name__, "my.flows_1", str(m.id)):
            assert word in repr(m)


def test_info(make: Make) -> None:
    m = make("hash", key="u2", value=RECORD, max_entries=100, name="flows",
             flags=MapFlag.NO_PREALLOC, btf=False)
    info = m.info()
    assert (info.type, info.id, info.name) == (MapType.HASH, m.id, "flows")
    assert (info.key_size, info.value_size, info.max_entries) == (2, 12, 100)
    assert info.map_flags == m.flags == MapFlag.NO_PREALLOC
    assert info.memlock > 0 and info.frozen is False and info.btf_id == 0
    m.freeze()
    assert m.info().frozen is True


BAD: list[tuple[dict[str, Any], Any, str]] = [
    ({"type": "hsh"}, ValueError, "'hsh'.*percpu_hash"), ({"type": 999}, ValueError, "999"),
    ({"type": None}, TypeError, "NoneType"), ({"type": True}, TypeError, "bool"),
    ({"type": "unspec"}, (ValueError, NotSupported), "(?i)unspec"),
    ({"key": None}, TypeError, "key="), ({"value": None}, TypeError, "value="),
    ({"key": object}, TypeError, "Python objects"), ({"value": "V0"}, ValueError, "no bytes"),
    ({"value": [("a", "O")]}, TypeError, "Python objects"), ({"value": "S"}, ValueError, "S0"),
    ({"value": "nonsense"}, TypeError, "nonsense"), ({"value": []}, ValueError, "no bytes"),
    ({"max_entries": 0}, ValueError, "max_entries=0"), ({"max_entries": -1}, ValueError, "-1"),
    ({"max_entries": 1 << 32}, ValueError, "4294967296"), ({"max_entries": 1.5}, TypeError, "1.5"),
    ({"max_entries": True}, TypeError, "True"), ({"max_entries": "4"}, TypeError, "'4'"),
    ({"flags": -1}, ValueError, "flags=-1"), ({"flags": 1 << 32}, ValueError, "flags"),
    ({"flags": 1.0}, TypeError, "float"), ({"flags": "1"}, TypeError, "str"),
    ({"name": "a" * 16}, ValueError, "15 bytes.*16"), ({"name": "é" * 8}, ValueError, "16"),
    ({"name": "a-b"}, ValueError, "'a-b'"), ({"name": "a\0b"}, ValueError, "letters"),
    ({"name": None}, TypeError, "name"), ({"name": b"x"}, TypeError, "name"),
    ({"numa_node": -1}, ValueError, "numa_node=-1"), ({"numa_node": "x"}, TypeError, "integer"),
    ({"exist_ok": True}, ValueError, "pin="), ({"via": "magic"}, ValueError, "magic"),
    ({"type": "array", "key": "u8"}, ValueError, "uint32"),
    ({"type": "array", "key": ">u4"}, ValueError, "uint32"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "words"), BAD, ids=lambda x: str(x)[:30])
def test_arguments_that_are_refused(bpffs: Path, wrong: Any, error: Any, words: str) -> None:
    pin = {} if "exist_ok" in wrong else {"pin": bpffs / "m"}
    with pytest.raises(error, match=words):
        fastmap.create(**{"type": "hash", **U4, **pin, **wrong})
    assert not list(bpffs.glob("m"))


REFUSED: list[tuple[dict[str, Any], int, Any]] = [
    ({"flags": 1 << 30}, errno.EINVAL, BpfError), ({"numa_node": 77}, errno.EINVAL, BpfError),
    ({"flags": MapFlag.MMAPABLE}, errno.EINVAL, BpfError),
    ({"flags": MapFlag.RDONLY | MapFlag.WRONLY}, errno.EINVAL, BpfError),
    ({"value": "V4194304"}, errno.E2BIG, BpfError),
    ({"max_entries": 1 << 31}, errno.E2BIG, BpfError),
    ({"type": "percpu_hash", "value": "V32769"}, errno.E2BIG, BpfError),
    ({"type": "lru_hash", "flags": MapFlag.NO_PREALLOC}, 524, NotSupported),
    ({"type": "array", "flags": MapFlag.NO_PREALLOC}, errno.EINVAL, BpfError),
    ({"type": "stack_trace", "value": "V1024"}, errno.EINVAL, BpfError),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "code", "cls"), REFUSED, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("btf", (True, False))
def test_what_the_kernel_refuses(wrong: Any, code: int, cls: Any, btf: bool) -> None:
    with pytest.raises(cls) as caught:
        fastmap.create(**{"type": "hash", **U4, "btf": btf, **wrong})
    assert caught.value.errno == code and isinstance(caught.value, OSError)


# ---- open --------------------------------------------------------------------------------------


def test_open_by_fd_id_name_and_pin(make: Make, bpffs: Path) -> None:
    name = f"one.{os.getpid()}"[:15]
    m = make("percpu_hash", key="u4", value=RECORD, max_entries=4, name=name)
    m[1] = (2, 3)
    m.pin(bpffs / "m")
    ways = ({"fd": m.fileno()}, {"id": m.id}, {"name": name}, {"path": bpffs / "m"},
            {"path": str(bpffs / "m")}, {"path": os.fsencode(bpffs / "m")})
    for way in ways:
        with fastmap.open(**way) as other:
            assert other.id == m.id and other.fileno() != m.fileno() and type(other) is type(m)
            assert not os.get_inheritable(other.fileno())
            other[2] = other[1]
            assert m[2].tolist() == m[1].tolist() and m.pop(2) is not None
    m.unpin(bpffs / "m")


def test_open_of_nothing(make: Make, bpffs: Path) -> None:
    for way, words in (({"path": bpffs / "no"}, "no"), ({"id": 2**31 - 1}, "2147483647"),
                       ({"name": "no.such.map"}, "no.such.map")):
        with pytest.raises(ObjectNotFound, match=words) as caught:
            fastmap.open(**way)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.errno == errno.ENOENT
    m = make("hash", **U4)
    for wrong, error in (
        ({}, TypeError), ({"fd": 3, "id": 3}, TypeError), ({"id": -1}, OverflowError),
        ({"id": "1"}, TypeError), ({"name": 5}, TypeError), ({"fd": 9999}, OSError),
        ({"path": 5}, TypeError), ({"fd": m.fileno(), "readonly": True}, ValueError),
        ({"id": m.id, "readonly": True, "writeonly": True}, ValueError),
        ({"id": m.id, "via": "x"}, ValueError), ({"id": m.id, "btf": 1}, ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            fastmap.open(**wrong)
    with open("/dev/null") as file, pytest.raises(ValueError, match="/dev/null"):
        fastmap.open(fd=file.fileno())
    with pytest.raises(PermissionDenied, match="/etc/passwd"):
        fastmap.open("/etc/passwd")


def test_several_maps_of_one_name(make: Make) -> None:
    name = f"twin.{os.getpid()}"
    one, two = make("hash", **U4, name=name), make("array", value="u4", max_entries=1, name=name)
    with pytest.raises(ValueError, match=f"{one.id}, {two.id}"):
        fastmap.open(name=name)
    ids = [info.id for info in fastmap.maps() if info.name == name]
    assert ids == [one.id, two.id]
    one.close()
    gc.collect()
    with fastmap.open(name=name) as left:
        assert left.id == two.id


def test_names_are_compared_as_the_kernel_keeps_them(make: Make) -> None:
    name = f"a_{os.getpid():013}"
    assert len(name) == 15
    m = make("hash", **U4, name=name)
    assert m.name == name
    with fastmap.open(name=name) as other:
        assert other.id == m.id
    for given in (name + "x", name + "_and_more"):
        with pytest.warns(UserWarning, match=f"opened map {m.id}"), \
                fastmap.open(name=given) as other:
            assert other.id == m.id
    with pytest.raises(ObjectNotFound):
        fastmap.open(name=name[:14])


def test_maps_walks_by_id(make: Make) -> None:
    made = [make("hash", **U4, name=f"walk{n}") for n in range(3)]
    ids = [info.id for info in fastmap.maps()]
    assert ids == sorted(set(ids)) and {m.id for m in made} <= set(ids)
    found = {info.id: info for info in fastmap.maps()}
    assert found[made[1].id].name == "walk1" and found[made[1].id].max_entries == 4


# ---- dtypes and BTF ----------------------------------------------------------------------------

DTYPES: list[Any] = [
    "u8", ">u2", "i1", "?", "f4", "f8", ">f8", "S5", RECORD, np.dtype(RECORD, align=True),
    [("ip", ">u4"), ("port", ">u2"), ("name", "S16"), ("raw", "u1", (6,))],
    [("id", "i8"), ("deep", [("x", "f8"), ("y", RECORD, (2,))]), ("m", "u2", (2, 3))],
    np.dtype({"names": ["a", "b"], "formats": ["u1", "u4"], "offsets": [3, 8], "itemsize": 16}),
    ("u2", (4,)), "M8[ns]",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[:40])
def test_btf_keeps_the_dtypes(make: Make, dtype: Any) -> None:
    m = make("hash", key=dtype, value=dtype, max_entries=4)
    assert m.info().btf_id > 0
    with fastmap.open(fd=m.fileno()) as other:
        assert other.dtype_source == "btf"
        assert other.key_dtype == m.key_dtype == np.dtype(dtype) == other.value_dtype
        assert other.value_dtype.itemsize == np.dtype(dtype).itemsize


@pytest.mark.parametrize("kind", CLASSES)
def test_without_btf_dtypes_are_void(make: Make, kind: str) -> None:
    m = make(kind, key="u4", value=RECORD, max_entries=4, btf=False)
    with fastmap.open(fd=m.fileno()) as other:
        assert other.value_dtype == "V12" and other.dtype_source == "none"
        assert other.key_dtype == ("u4" if m.indexed else "V4")
    with fastmap.open(id=m.id, value=RECORD) as other:
        assert other.value_dtype == np.dtype(RECORD) and other.dtype_source == "given"


def test_given_dtypes_override_btf_and_must_fit(make: Make) -> None:
    aligned = np.dtype([("a", "u1"), ("b", "u8")], align=True)
    m = make("hash", key="u4", value=aligned, max_entries=4)
    with fastmap.open(fd=m.fileno(), key=">i4", value="V16") as other:
        assert (other.key_dtype, other.value_dtype) == (np.dtype(">i4"), np.dtype("V16"))
        assert other.dtype_source == "given"
    with fastmap.open(fd=m.fileno(), key="V4") as other:
        assert other.value_dtype == aligned and other.key_dtype == "V4"
    packed = [("a", "u1"), ("b", "u8")]
    for spec in (packed, np.dtype(packed)):
        with pytest.raises(ValueError, match=r"16 bytes.*has 9.*align=True"):
            fastmap.open(fd=m.fileno(), value=spec)
    for wrong in ({"key": "u8"}, {"value": "u8"}, {"value": [("a", "u4"), ("b", "u4")]}):
        with pytest.raises(ValueError, match="bytes") as caught:
            fastmap.open(fd=m.fileno(), **wrong)
        assert "align" not in str(caught.value)
    array = make("array", value="u4", max_entries=1)
    with pytest.raises(ValueError, match="uint32"):
        fastmap.open(fd=array.fileno(), key="V4")


# ---- pins --------------------------------------------------------------------------------------


@pytest.mark.quick
def test_pin_and_unpin(make: Make, bpffs: Path) -> None:
    m, other = make("hash", **U4), make("hash", **U4)
    m[1] = 5
    m.pin(bpffs / "a")
    m.pin(str(bpffs / "b"))
    with pytest.raises(KeyExists, match="/a.*pinned") as caught:
        other.pin(bpffs / "a")
    assert isinstance(caught.value, FileExistsError)
    with pytest.raises(ValueError, match=f"map {m.id}, not of {other.id}"):
        other.unpin(bpffs / "a")
    m.unpin(bpffs / "a")
    with pytest.raises(ObjectNotFound):
        m.unpin(bpffs / "a")
    m.pin(bpffs / "a")
    for path, error in (("no/x", ObjectNotFound), ("with.dot", PermissionDenied)):
        with pytest.raises(error, match=path):
            m.pin(bpffs / path)
    with pytest.raises(PermissionDenied, match="bpffs"):
        m.pin(bpffs.parent / "x")
    m.close()
    for name in "ab":
        with fastmap.open(bpffs / name) as again:
            assert again[1] == 5
            again.unpin(bpffs / name)
    with pytest.raises(ObjectNotFound):
        fastmap.open(bpffs / "a")


@pytest.mark.parametrize("exist_ok", (False, True))
def test_create_with_a_pin(make: Make, bpffs: Path, exist_ok: bool) -> None:
    m = make("hash", **U4, pin=bpffs / "m", exist_ok=exist_ok)
    with fastmap.open(bpffs / "m") as other:
        assert other.id == m.id
    with pytest.raises(KeyExists, match="/m"):
        make("hash", **U4, pin=bpffs / "m")
    again = make("hash", **U4, pin=bpffs / "m", exist_ok=True)
    assert again.id == m.id
    for bad in (bpffs / "no" / "m", bpffs.parent / "m"):
        with pytest.raises((ObjectNotFound, PermissionDenied)):
            make("hash", **U4, pin=bad, exist_ok=exist_ok)


@pytest.mark.parametrize(("change", "words"), [
    ({"type": "lru_hash"}, "type is HASH, not LRU_HASH"), ({"key": "u8"}, "key_size is 4, not 8"),
    ({"value": "u2"}, "value_size is 4, not 2"), ({"max_entries": 5}, "max_entries is 4, not 5"),
    ({"flags": MapFlag.NO_PREALLOC}, "flags is none, not NO_PREALLOC"),
    ({"key": "u8", "max_entries": 3}, "key_size.*max_entries"),
])  # fmt: skip
def test_exist_ok_wants_the_same_map(make: Make, bpffs: Path, change: Any, words: str) -> None:
    m = make("hash", **U4, pin=bpffs / "m")
    with pytest.raises(ValueError, match=rf"{bpffs}/m differs: .*{words}"):
        fastmap.create(**{"type": "hash", **U4, **change}, pin=bpffs / "m", exist_ok=True)
    with fastmap.open(bpffs / "m") as there:
        assert there.id == m.id


def test_exist_ok_where_the_kernel_rounds_up(make: Make, bpffs: Path) -> None:
    wanted = {"key": "u4", "value": "u4", "max_entries": 5, "flags": MapFlag.NO_COMMON_LRU}
    ids = {make("lru_hash", **wanted, pin=bpffs / "m", exist_ok=True).id for _ in range(2)}
    assert len(ids) == 1


@pytest.mark.parametrize("number", (-1, 1 << 32, 1 << 70))
def test_ids_that_no_map_can_have(number: int) -> None:
    with pytest.raises(OverflowError, match=f"id={number}: ids go from 1 to 4294967295"):
        fastmap.open(id=number)
