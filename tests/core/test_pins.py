"""bpffs, pins, and create-if-missing: of every type, field by field, by several at once."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import keep_only
from support import child, in_child

import fastmap
from fastmap import MapFlag, MapType, ObjectNotFound, PermissionDenied
from fastmap.kernel.bpffs import mounted, on_bpffs

pytestmark = pytest.mark.quick

Make = Callable[..., Any]
U4 = {"key": "u4", "value": "u4", "max_entries": 4}
RECORD = [("packets", "u8"), ("bytes", "u4"), ("port", ">u2"), ("raw", "u1", (2,))]
PAGE = os.sysconf("SC_PAGESIZE")

#: One map of each type that can be created from these alone.
CREATED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("hash", "percpu_hash", "lru_hash", "lru_percpu_hash"),
                    {"key": "u8", "value": RECORD, "max_entries": 5}),
    **dict.fromkeys(("array", "percpu_array"), {"value": RECORD, "max_entries": 5}),
    **dict.fromkeys(("prog_array", "perf_event_array", "cgroup_array", "devmap", "devmap_hash",
                     "cpumap", "xskmap", "sockmap", "reuseport_sockarray"), {"max_entries": 1}),
    "sockhash": {"key": "u8", "max_entries": 5},
    "stack_trace": {"value": ("u8", (16,)), "max_entries": 5},
    "lpm_trie": {"key": [("prefixlen", "u4"), ("addr", "u1", (4,))], "value": RECORD,
                 "max_entries": 5},
    **dict.fromkeys(("cgroup_storage", "percpu_cgroup_storage", "sk_storage", "inode_storage",
                     "task_storage", "cgrp_storage"), {"value": RECORD}),
    **dict.fromkeys(("queue", "stack", "bloom_filter"), {"value": RECORD, "max_entries": 5}),
    **dict.fromkeys(("ringbuf", "user_ringbuf"), {"max_entries": PAGE}),
    "arena": {"max_entries": 5},
    "insn_array": {"max_entries": 5},
    "rhash": {"key": "u8", "value": RECORD, "max_entries": 5, "flags": MapFlag.NO_PREALLOC},
}
FLAGGED: list[tuple[str, dict[str, Any]]] = [
    ("lru_hash", {"flags": MapFlag.NO_COMMON_LRU}),
    ("lru_percpu_hash", {"flags": MapFlag.NO_COMMON_LRU}),
    ("hash", {"flags": MapFlag.NO_PREALLOC | MapFlag.RDONLY_PROG}), ("hash", {"numa_node": 0}),
    ("hash", {"flags": MapFlag.RDONLY}), ("array", {"flags": MapFlag.WRONLY}),
    ("array", {"flags": MapFlag.MMAPABLE}), ("bloom_filter", {"map_extra": 5}),
    ("bloom_filter", {"map_extra": 7}), ("hash", {"btf": False}),
]


def cases(rows: list[tuple[str, Any]]) -> list[Any]:
    """Return parameters that are skipped where the kernel is older than the type."""
    return [pytest.param(kind, more, id=f"{kind}-{more}",
                         marks=pytest.mark.needs(kind.upper())) for kind, more in rows]


def test_no_type_is_left_out() -> None:
    # These take a map, and a struct of the kernel's own.
    others = {"UNSPEC", "ARRAY_OF_MAPS", "HASH_OF_MAPS", "STRUCT_OPS"}
    assert {kind.upper() for kind in CREATED} == set(MapType.__members__) - others


@pytest.mark.parametrize(("kind", "more"), cases([*((kind, {}) for kind in CREATED), *FLAGGED]))
def test_created_twice_is_the_same_map(make: Make, bpffs: Path, kind: str, more: Any) -> None:
    wanted = {**CREATED[kind], **more, "pin": bpffs / "m", "exist_ok": True}
    one, two = make(kind, **wanted), make(kind, **wanted)
    assert one.id == two.id and one.info().pins() == [bpffs / "m"]
    assert type(one) is type(two) and one.value_dtype == two.value_dtype
    mode = MapFlag(more.get("flags", 0)) & (MapFlag.RDONLY | MapFlag.WRONLY)
    for m in (one, two):  # the handle of the one that was there is no wider
        if mode & MapFlag.RDONLY:
            with pytest.raises(PermissionDenied):
                m.update(1, m.value_dtype.type(0) if not m.value_dtype.names else (0, 0, 0, (0, 0)))
        if mode & MapFlag.WRONLY:
            with pytest.raises(PermissionDenied):
                m.lookup(0)


@pytest.mark.parametrize(("kind", "options"), cases(list(CREATED.items())))
def test_opened_by_every_way(make: Make, bpffs: Path, kind: str, options: Any) -> None:
    name = f"{kind[:8]}{os.getpid()}"[:15]
    m = make(kind, **options, name=name)
    m.pin(bpffs / "m")
    ways = [{"path": bpffs / "m"}, {"id": m.id}, {"name": name}, {"fd": m.fileno()}]
    modes = [{}, {"readonly": True}, {"writeonly": True}]
    for way in ways:
        for mode in modes if "fd" not in way else modes[:1]:
            with fastmap.open(**way, **mode) as other:
                assert other.id == m.id and type(other) is type(m) and other.name == name
                if m.info().btf_id or m.key_dtype is None or other.dtype_source == "btf":
                    assert other.key_dtype == m.key_dtype
    m.unpin(bpffs / "m")


@pytest.mark.parametrize("kind", ["hash", "array", "percpu_hash", "lpm_trie"])
def test_modes_are_kept(make: Make, bpffs: Path, kind: str) -> None:
    m = make(kind, **{**CREATED[kind], "value": "u8"})
    key = (32, (1, 2, 3, 4)) if kind == "lpm_trie" else 1
    m.pin(bpffs / "m")
    for way in ({"path": bpffs / "m"}, {"id": m.id}):
        m.update(key, 5)
        with fastmap.open(**way, readonly=True) as reading:
            assert np.sum(reading.lookup(key)) == 5 * (len(fastmap.possible_cpus())
                                                      if m.per_cpu else 1)
            with pytest.raises(PermissionDenied, match="read-only"):
                reading.update(key, 6)
        with fastmap.open(**way, writeonly=True) as writing:
            writing.update(key, 7)
            with pytest.raises(PermissionDenied, match="write-only"):
                writing.lookup(key)


# ---- what differs ------------------------------------------------------------------------------

DIFFERENT: list[tuple[str, dict[str, Any], list[str]]] = [
    ("hash", {"value": [*RECORD[:1], ("octets", "u4"), *RECORD[2:]]},
     ["value.octets is not there", "value.bytes is there as uint32, and was not asked for"]),
    ("hash", {"value": [*RECORD[:2], ("port", "u2"), *RECORD[3:]]},
     ["value.port is >u2, not uint16"]),
    ("hash", {"value": [("bytes", "u4"), ("packets", "u8"), *RECORD[2:]]},
     ["value.packets lies at byte 0, not 4", "value.bytes lies at byte 8, not 0"]),
    ("hash", {"value": [RECORD[0], ("bytes", "f4"), *RECORD[2:]]},
     ["value.bytes is uint32, not float32"]),
    ("hash", {"key": "i8"}, ["key is uint64, not int64"]),
    ("hash", {"key": "f8"}, ["key is uint64, not float64"]),
    ("hash", {"key": [("x", "u8")]}, ["key is uint64, not [('x'"]),
    ("hash", {"key": "u4", "value": "u8", "max_entries": 6, "flags": MapFlag.NO_PREALLOC},
     ["key_size is 8, not 4", "value_size is 16, not 8", "max_entries is 5, not 6",
      "flags is none, not NO_PREALLOC"]),
    ("hash", {"type": "lru_hash", "key": "u4"}, ["type is HASH, not LRU_HASH"]),
    ("bloom_filter", {"map_extra": 4}, ["map_extra is 5, not 4"]),
    ("devmap", {"value": "u4"}, ["value_size is 8, not 4"]),
    ("devmap", {"flags": MapFlag.NUMA_NODE}, ["flags is RDONLY_PROG, not "]),
    ("array", {"flags": MapFlag.MMAPABLE | MapFlag.RDONLY_PROG},
     ["flags is none, not RDONLY_PROG|MMAPABLE"]),
]


@pytest.mark.parametrize(("kind", "change", "words"), DIFFERENT, ids=str)
def test_differences_are_told(make: Make, bpffs: Path, kind: str, change: Any,
                              words: list[str]) -> None:
    m = make(kind, **CREATED[kind], pin=bpffs / "m")
    with pytest.raises(ValueError, match=f"{bpffs}/m differs: ") as caught:
        make(**{"type": kind, **CREATED[kind], **change}, pin=bpffs / "m", exist_ok=True)
    told = str(caught.value).partition("differs: ")[2].split("; ")
    assert len(told) == len(words), told
    for said, word in zip(told, words, strict=True):
        assert said.startswith(word)
    assert isinstance(caught.value, fastmap.MapMismatch)
    assert [str(each) for each in caught.value.differences] == told
    assert all(each.there != each.asked for each in caught.value.differences)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.differences == caught.value.differences
    with fastmap.open(bpffs / "m") as there:
        assert there.id == m.id


def test_replace_puts_a_new_map_in_the_place_of_another_sort(make: Make, bpffs: Path) -> None:
    """The old one stays with whoever holds it; one that fits is kept where exist_ok says so."""
    old = make("hash", **CREATED["hash"], pin=bpffs / "m")
    new = make("array", value="u4", max_entries=3, pin=bpffs / "m", exist_ok=True, replace=True)
    same = make("array", value="u4", max_entries=3, pin=bpffs / "m", exist_ok=True, replace=True)
    other = make("array", value="u4", max_entries=3, pin=bpffs / "m", replace=True)
    first = make("array", value="u4", max_entries=3, pin=bpffs / "n", replace=True)
    assert same.id == new.id and len({old.id, new.id, other.id, first.id}) == 4
    with fastmap.open(bpffs / "m") as there:
        assert there.id == other.id
    left = {name for name in os.listdir(bpffs) if not name.endswith(".debug")}  # the kernel's own
    assert left == {"m", "n"} and len(old) == 0
    with pytest.raises(ValueError, match="replace=True goes with pin="):
        make("array", value="u4", max_entries=3, replace=True)


def test_open_takes_the_type_that_a_map_must_have(make: Make, bpffs: Path) -> None:
    m = make("hash", **CREATED["hash"], pin=bpffs / "m")
    for right in ("hash", "HASH", fastmap.MapType.HASH, 1):
        with fastmap.open(bpffs / "m", type=right) as same:
            assert same.id == m.id
    with pytest.raises(fastmap.MapMismatch, match="m differs: type is HASH, not ARRAY") as caught:
        fastmap.open(bpffs / "m", type="array")
    assert caught.value.differences == [("type", "HASH", "ARRAY", "")]
    with pytest.raises(ValueError, match="no map type is called 'hush'"):
        fastmap.open(bpffs / "m", type="hush")


@pytest.mark.parametrize("value", ["V16", ("u1", (16,)),
                                   [*RECORD[:3], ("raw", "V2")]], ids=str)
def test_void_bytes_fit_anything(make: Make, bpffs: Path, value: Any) -> None:
    one = make("hash", **CREATED["hash"], pin=bpffs / "m")
    two = make("hash", **{**CREATED["hash"], "value": value}, pin=bpffs / "m", exist_ok=True)
    assert one.id == two.id and two.value_dtype == np.dtype(value)


CHANGED_BY_BTF: list[Any] = [
    "M8[ns]", "f4", ">f8", "?", "S5", [("a b", "u4"), ("class", "u4")],
    [("deep", [("x", "f8"), ("y", RECORD, (2,))]), ("m", "u2", (2, 3))],
    np.dtype([("a", "u1"), ("b", "u8")], align=True),
]


@pytest.mark.parametrize("value", CHANGED_BY_BTF, ids=str)
def test_dtypes_that_btf_changes_are_no_difference(make: Make, bpffs: Path, value: Any) -> None:
    wanted = {"key": "u4", "value": value, "max_entries": 1, "pin": bpffs / "m", "exist_ok": True}
    assert make("hash", **wanted).id == make("hash", **wanted).id


def test_without_cap_sys_admin_sizes_must_do(make: Make, bpffs: Path) -> None:
    m = make("hash", **CREATED["hash"], pin=bpffs / "m")

    def task() -> None:
        keep_only()
        again = {**CREATED["hash"], "key": "i8", "pin": bpffs / "m", "exist_ok": True}
        with fastmap.create("hash", **again) as there:
            assert there.id == m.id
        with pytest.raises(ValueError, match="max_entries is 5, not 9"):
            fastmap.create("hash", **{**again, "max_entries": 9})

    in_child(task)


# ---- pins --------------------------------------------------------------------------------------


def test_several_pins_and_pinned_again(make: Make, bpffs: Path) -> None:
    m = make("hash", **U4, pin=bpffs / "a")
    m.pin(bpffs / "b")
    for _ in range(2):
        m.unpin(bpffs / "a")
        assert m.info().pins() == [bpffs / "b"]
        m.pin(bpffs / "a")
        assert m.info().pins() == [bpffs / "a", bpffs / "b"]
    number = m.id
    m.unpin(bpffs / "a")
    m.close()
    with fastmap.open(bpffs / "b") as again:
        assert again.id == number
        again.pin(bpffs / "a")
        again.unpin(bpffs / "b")
    with fastmap.open(bpffs / "a") as last:
        assert last.id == number
    for call in (m.unpin, m.pin):
        with pytest.raises(ValueError, match="closed"):
            call(bpffs / "a")


def test_threads_that_create_at_once_get_one_map(bpffs: Path) -> None:
    ids: list[int] = []
    start = threading.Barrier(4)

    def task() -> None:
        for n in range(20):
            start.wait()
            with fastmap.create("hash", **U4, pin=bpffs / f"m{n}", exist_ok=True) as m:
                ids.append(m.id)
                start.wait()

    threads = [threading.Thread(target=task) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(ids) == 80 and len(set(ids)) == 20


def test_processes_that_create_at_once_get_one_map(bpffs: Path) -> None:
    """Each adds 1 to its own key of whatever it got; a map that lost the race would lose it."""
    def task(own: int) -> None:
        for n in range(20):
            with fastmap.create("hash", **U4, pin=bpffs / f"m{n}", exist_ok=True) as m:
                m[own] = own
        (bpffs / f"done{own}").mkdir()

    with child(lambda: task(1)), child(lambda: task(2)):
        task(3)
        until = time.monotonic() + 50
        while not all((bpffs / f"done{own}").exists() for own in (1, 2)):
            assert time.monotonic() < until, "the other processes did not finish"
            time.sleep(0.01)
    for n in range(20):
        with fastmap.open(bpffs / f"m{n}") as m:
            assert dict(m.items()) == {1: 1, 2: 2, 3: 3}


def test_created_again_while_another_unpins(bpffs: Path) -> None:
    def unpins() -> None:
        while not (bpffs / "stop").exists():
            (bpffs / "m").unlink(missing_ok=True)

    with child(unpins):
        for _ in range(50):
            with fastmap.create("hash", **U4, pin=bpffs / "m", exist_ok=True) as m:
                m[1] = 2
        (bpffs / "stop").mkdir()


# ---- bpffs -------------------------------------------------------------------------------------


def test_bpffs_is_mounted_where_none_is(make: Make, tmp_path: Path) -> None:
    m = make("hash", **U4)
    assert not on_bpffs(tmp_path)
    fs = fastmap.bpffs(tmp_path, mode=0o750)
    try:
        assert fs.mounted and fs.path == tmp_path and os.fspath(fs) == str(tmp_path)
        assert on_bpffs(tmp_path) and tmp_path in [folder for folder, _ in mounted()]
        assert tmp_path.stat().st_mode & 0o777 == 0o750
        m.pin(fs / "m")
        (tmp_path / "folder").mkdir()
        for there in (tmp_path, tmp_path / "folder"):
            with fastmap.bpffs(there) as again:  # nothing to do, and nothing to undo
                assert again == there
        assert m.info().pins() == [tmp_path / "m"] and "mounted here" in repr(fs)
    finally:
        fs.unmount()
    assert not fs.mounted and not on_bpffs(tmp_path) and not list(tmp_path.iterdir())
    fs.unmount()  # the second time there is nothing to do
    assert "mounted here" not in repr(fs)


def test_bpffs_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with fastmap.bpffs(tmp_path / "link") as fs:
        assert fs == tmp_path / "real" and on_bpffs(fs)
    assert not on_bpffs(tmp_path / "real")


def test_bpffs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, error in ((tmp_path / "no", FileNotFoundError), (tmp_path / "file",
                                                              NotADirectoryError)):
        with pytest.raises(error, match=path.name):
            fastmap.bpffs(path)
    for mode, wrong in ((True, TypeError), ("700", TypeError), (-1, ValueError),
                        (0o10000, ValueError)):
        with pytest.raises(wrong, match="mode"):
            fastmap.bpffs(tmp_path, mode=mode)
    assert not on_bpffs(tmp_path)

    def task() -> None:
        keep_only()
        with pytest.raises(PermissionDenied, match="CAP_SYS_ADMIN") as caught:
            fastmap.bpffs(tmp_path)
        assert caught.value.errno == errno.EPERM

    in_child(task)


def test_a_folder_that_is_gone_has_no_pins(make: Make, tmp_path: Path) -> None:
    with fastmap.bpffs(tmp_path) as fs, pytest.raises(ObjectNotFound):
        make("hash", **U4, pin=fs / "no" / "m", exist_ok=True)
