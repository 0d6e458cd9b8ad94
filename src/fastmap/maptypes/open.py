"""`open`: finds a map, picks the class of its type, works out its dtypes."""

from __future__ import annotations

import operator
import os
import warnings
from contextlib import suppress
from typing import Any, Unpack, overload

import numpy as np
import numpy.typing as npt

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.btf.described import NO_LAYOUTS, Layouts
from fastmap.btf.layout import Btf
from fastmap.btf.sources import btf_blob, read_btf
from fastmap.enums import NAME_BYTES, MapFlag, MapType, map_type
from fastmap.errors import Difference, MapMismatch, ObjectNotFound, PermissionDenied
from fastmap.kernel.inventory import MapInfo, maps
from fastmap.maptypes import types
from fastmap.maptypes.arena import Arena
from fastmap.maptypes.arrays import ArrayMap, PerCpuArrayMap
from fastmap.maptypes.code import InsnArray, StackTrace, StructOps
from fastmap.maptypes.handle import Map, check_via
from fastmap.maptypes.nested import ArrayOfMaps, HashOfMaps, Inner, MapOfMaps
from fastmap.maptypes.queues import BloomFilter, Queue, Stack
from fastmap.maptypes.references import (
    CgroupArray,
    CpuMap,
    DevMap,
    DevMapHash,
    PerfEventArray,
    ProgArray,
    ReuseportSockArray,
    SockHash,
    SockMap,
    XskMap,
)
from fastmap.maptypes.registry import class_of
from fastmap.maptypes.rings import RingBuffer, UserRingBuffer
from fastmap.maptypes.storage import (
    CgroupStorage,
    CgrpStorage,
    InodeStorage,
    PerCpuCgroupStorage,
    SkStorage,
    TaskStorage,
)
from fastmap.maptypes.stream_batch import Kinds, Record
from fastmap.maptypes.table import HashMap, PerCpuHashMap, ResizableHashMap
from fastmap.maptypes.trie import LpmTrie

#: A pin.
_Path = str | os.PathLike[str] | None


@overload
def open(
    path: _Path = None, *, type: types.HashMapType, **options: Unpack[types.OpenOptions]
) -> HashMap: ...
@overload
def open(
    path: _Path = None, *, type: types.ArrayMapType, **options: Unpack[types.OpenOptions]
) -> ArrayMap: ...
@overload
def open(
    path: _Path = None, *, type: types.ProgArrayType, **options: Unpack[types.OpenOptions]
) -> ProgArray: ...
@overload
def open(
    path: _Path = None, *, type: types.PerfEventArrayType, **options: Unpack[types.OpenOptions]
) -> PerfEventArray: ...
@overload
def open(
    path: _Path = None, *, type: types.PerCpuHashMapType, **options: Unpack[types.OpenOptions]
) -> PerCpuHashMap: ...
@overload
def open(
    path: _Path = None, *, type: types.PerCpuArrayMapType, **options: Unpack[types.OpenOptions]
) -> PerCpuArrayMap: ...
@overload
def open(
    path: _Path = None, *, type: types.StackTraceType, **options: Unpack[types.OpenOptions]
) -> StackTrace: ...
@overload
def open(
    path: _Path = None, *, type: types.CgroupArrayType, **options: Unpack[types.OpenOptions]
) -> CgroupArray: ...
@overload
def open(
    path: _Path = None, *, type: types.LpmTrieType, **options: Unpack[types.OpenOptions]
) -> LpmTrie: ...
@overload
def open(
    path: _Path = None, *, type: types.ArrayOfMapsType, **options: Unpack[types.OpenOptions]
) -> ArrayOfMaps: ...
@overload
def open(
    path: _Path = None, *, type: types.HashOfMapsType, **options: Unpack[types.OpenOptions]
) -> HashOfMaps: ...
@overload
def open(
    path: _Path = None, *, type: types.DevMapType, **options: Unpack[types.OpenOptions]
) -> DevMap: ...
@overload
def open(
    path: _Path = None, *, type: types.SockMapType, **options: Unpack[types.OpenOptions]
) -> SockMap: ...
@overload
def open(
    path: _Path = None, *, type: types.CpuMapType, **options: Unpack[types.OpenOptions]
) -> CpuMap: ...
@overload
def open(
    path: _Path = None, *, type: types.XskMapType, **options: Unpack[types.OpenOptions]
) -> XskMap: ...
@overload
def open(
    path: _Path = None, *, type: types.SockHashType, **options: Unpack[types.OpenOptions]
) -> SockHash: ...
@overload
def open(
    path: _Path = None, *, type: types.CgroupStorageType, **options: Unpack[types.OpenOptions]
) -> CgroupStorage: ...
@overload
def open(
    path: _Path = None, *, type: types.ReuseportSockArrayType, **options: Unpack[types.OpenOptions]
) -> ReuseportSockArray: ...
@overload
def open(
    path: _Path = None, *, type: types.PerCpuCgroupStorageType, **options: Unpack[types.OpenOptions]
) -> PerCpuCgroupStorage: ...
@overload
def open(
    path: _Path = None, *, type: types.QueueType, **options: Unpack[types.OpenOptions]
) -> Queue: ...
@overload
def open(
    path: _Path = None, *, type: types.StackType, **options: Unpack[types.OpenOptions]
) -> Stack: ...
@overload
def open(
    path: _Path = None, *, type: types.SkStorageType, **options: Unpack[types.OpenOptions]
) -> SkStorage: ...
@overload
def open(
    path: _Path = None, *, type: types.DevMapHashType, **options: Unpack[types.OpenOptions]
) -> DevMapHash: ...
@overload
def open(
    path: _Path = None, *, type: types.StructOpsType, **options: Unpack[types.OpenOptions]
) -> StructOps: ...
@overload
def open(
    path: _Path = None, *, type: types.RingBufferType, **options: Unpack[types.OpenOptions]
) -> RingBuffer: ...
@overload
def open(
    path: _Path = None, *, type: types.InodeStorageType, **options: Unpack[types.OpenOptions]
) -> InodeStorage: ...
@overload
def open(
    path: _Path = None, *, type: types.TaskStorageType, **options: Unpack[types.OpenOptions]
) -> TaskStorage: ...
@overload
def open(
    path: _Path = None, *, type: types.BloomFilterType, **options: Unpack[types.OpenOptions]
) -> BloomFilter: ...
@overload
def open(
    path: _Path = None, *, type: types.UserRingBufferType, **options: Unpack[types.OpenOptions]
) -> UserRingBuffer: ...
@overload
def open(
    path: _Path = None, *, type: types.CgrpStorageType, **options: Unpack[types.OpenOptions]
) -> CgrpStorage: ...
@overload
def open(
    path: _Path = None, *, type: types.ArenaType, **options: Unpack[types.OpenOptions]
) -> Arena: ...
@overload
def open(
    path: _Path = None, *, type: types.InsnArrayType, **options: Unpack[types.OpenOptions]
) -> InsnArray: ...
@overload
def open(
    path: _Path = None, *, type: types.ResizableHashMapType, **options: Unpack[types.OpenOptions]
) -> ResizableHashMap: ...
@overload
def open(
    path: _Path = None, *, type: MapType | int | str | None = None,
    **options: Unpack[types.OpenOptions],
) -> Any: ...
def open(
    path: _Path = None, *, type: MapType | int | str | None = None, id: int | None = None,
    name: str | None = None, fd: int | None = None, key: npt.DTypeLike | None = None,
    value: npt.DTypeLike | None = None, record: Record = None, tag: str | None = None,
    readonly: bool = False, writeonly: bool = False, btf: str = "auto", via: str = "auto",
) -> Any:
    """Open a map that is there.

    Parameters
    ----------
    path : path, optional
        A pin. One of `path`, `id`, `name` and `fd` is given.
    type : MapType or str, optional
        What the map must be: another type raises `MapMismatch`, and type checkers know the class.
    id : int, optional
        The kernel's number of the map. Needs CAP_SYS_ADMIN.
    name : str, optional
        Its name, of which the kernel keeps 15 bytes: of a longer one the map's BTF tells the rest,
        or there is a warning that names what was opened. Needs CAP_SYS_ADMIN.
    fd : int, optional
        A descriptor; the map gets a duplicate of its own.
    key, value : dtype_like, optional
        Override what BTF says; must match the kernel's sizes.
    record, tag
        As for `create`.
    readonly, writeonly : bool
        Open a handle that may not write, or not read.
    btf : {"auto", "require"}
        Where the map has BTF that may not be read (it takes CAP_SYS_ADMIN), "auto" warns and
        gives void bytes, "require" raises; also a `ValueError` where it has none, and `key` and
        `value` are not given.
    via : {"auto", "syscall", "kernel"}
        The way of calls over many elements, where they do not say it.

    Returns
    -------
    Map
        Of the class of its type. Its ``dtype_source`` is "given", "btf" or "none".

    Raises
    ------
    ObjectNotFound
        Nothing has that path, id or name (also a `FileNotFoundError`).
    PermissionDenied
        The message names the missing capability.
    MapMismatch
        The map is not of the type that was given (also a `ValueError`).
    ValueError
        Several maps have the name: the message lists their ids. Or sizes do not match.
    """
    if sum(x is not None for x in (path, id, name, fd)) != 1:
        raise TypeError("open takes one of a path, id=, name= and fd=")
    if readonly and writeonly:
        raise ValueError("a handle is readonly or writeonly, not both")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name is a str, not {name!r}")
    check_via(via)
    if btf not in ("auto", "require"):
        raise ValueError(f"btf={btf!r}: 'auto' or 'require'")
    wanted = None if type is None else map_type(type)
    mode = int(MapFlag.RDONLY if readonly else MapFlag.WRONLY if writeonly else 0)
    if fd is not None:
        if mode:
            raise ValueError("a descriptor has its mode already: readonly and writeonly go with "
                             "a path, an id or a name")
        handle = syscall.duplicate(fd)
    elif path is not None:
        handle = syscall.obj_get(path, mode)
    elif id is not None:
        if not 0 <= operator.index(id) < 1 << 32:
            raise OverflowError(f"id={id}: ids go from 1 to {(1 << 32) - 1}")
        handle = syscall.map_get_fd_by_id(id, mode)
    else:
        handle = _by_name(name or "", mode)
    try:
        if wanted is not None:
            _check_type(handle, wanted, path if path is not None else id or name or f"fd={fd}")
        return _opened(handle, key, value, btf, via, record, tag)
    except BaseException:
        handle.close()
        raise


def _check_type(fd: Fd, wanted: MapType, given: Any) -> None:
    there = MapType(syscall.map_info(fd)["type"])
    if there is not wanted:
        raise MapMismatch(f"map {given} differs", [Difference("type", there.name, wanted.name)])


def _opened(fd: Fd, key: Any, value: Any, btf: str, via: str, record: Record = None,
            tag: str | None = None) -> Map:
    info = syscall.map_info(fd)
    kind = MapType(info["type"])
    cls = class_of(kind)
    extra = recorded(cls, record, tag)
    source = "none" if key is None and value is None else "given"
    dtypes: dict[str, np.dtype[Any]] = {}
    layouts = NO_LAYOUTS
    sides = {"key": (key, cls.keys_are), "value": (value, cls.values_are)}
    for what, (spec, side) in sides.items():
        dtype = side.of_size(spec, info[f"{what}_size"], what, kind)
        if dtype is not None:
            dtypes[what] = dtype
    missing = [what for what in sides if what not in dtypes and info[f"{what}_size"]]
    if "value" in missing and info["btf_vmlinux_value_type_id"]:
        dtypes.update(_from_kernel(info))
        source = "btf" if "value" in dtypes else source
    elif missing and info["btf_id"]:
        found, types = _from_btf(info, btf)
        told = {what: dtype for what, dtype in found.items()
                if what in missing and dtype.itemsize == info[f"{what}_size"]}
        if told:
            dtypes.update(told)
            source = "btf"
            layouts = Layouts(types, {what: info[f"btf_{what}_type_id"] for what in told})
    untyped = [what for what in missing if what not in dtypes]
    if btf == "require" and untyped:
        raise ValueError(f"map {info['id']} has no BTF that tells its {' and '.join(untyped)}: "
                         "btf='require' cannot be met; give key= and value=")
    for what in missing:
        dtypes.setdefault(what, cls.untold(kind, what, info[f"{what}_size"]))
    if issubclass(cls, MapOfMaps):
        extra = {"opener": inner_map}
    made = cls(fd, dtypes.get("key"), dtypes.get("value"), dtype_source=source, via=via, **extra)
    made.layouts = layouts
    return made


def _from_kernel(info: dict[str, Any]) -> dict[str, np.dtype[Any]]:
    """Return the dtype of a value that is a struct of the kernel's own: of STRUCT_OPS."""
    try:
        dtype = read_btf().dtype(info["btf_vmlinux_value_type_id"])
    except (OSError, ValueError):
        return {}  # a kernel without BTF for all to see
    return {"value": dtype} if dtype.itemsize == info["value_size"] else {}


def _from_btf(info: dict[str, Any], btf: str) -> tuple[dict[str, np.dtype[Any]], Btf | None]:
    try:
        blob = btf_blob(info["btf_id"])
    except PermissionDenied:
        if btf == "require":
            raise
        warnings.warn(f"map {info['id']} has BTF, but reading it needs CAP_SYS_ADMIN: its keys "
                      "and values are void bytes; give key= and value=", stacklevel=4)
        return {}, None
    ids = {what: number for what in ("key", "value") if (number := info[f"btf_{what}_type_id"])}
    try:
        types = Btf(blob)
        return {what: _bytes_whole(types.dtype(number)) for what, number in ids.items()}, types
    except ValueError as error:
        if btf == "require":
            raise
        warnings.warn(f"the BTF of map {info['id']} cannot be read ({error}): its keys and values "
                      "are void bytes; give key= and value=", stacklevel=4)
        return {}, None


def _bytes_whole(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return an array of bytes as void bytes: as a key it hashes then, and BTF knows no void."""
    if dtype.subdtype is not None and dtype.subdtype[0] == np.uint8:
        return np.dtype(f"V{dtype.itemsize}")
    return dtype


def _by_name(name: str, mode: int) -> Fd:
    kept = name.encode()[:NAME_BYTES].decode(errors="replace")
    found = [info for info in maps() if info.name == kept]
    ids = [info.id for info in found]
    if not ids:
        raise ObjectNotFound(2, f"no map is named {kept!r}")
    if len(ids) > 1:
        raise ValueError(f"{len(ids)} maps are named {kept!r}: ids {', '.join(map(str, ids))}; "
                         "open one by id=")
    if kept != name:
        _check_long_name(name, kept, found[0])
    return syscall.map_get_fd_by_id(ids[0], mode)


def _check_long_name(name: str, kept: str, info: MapInfo) -> None:
    """Refuse a name longer than the kernel keeps where BTF tells another one, otherwise warn."""
    told: list[str] = []
    with suppress(OSError, ValueError):
        if info.btf_id:
            told = [each for each in Btf(btf_blob(info.btf_id)).declared()
                    if each.encode()[:NAME_BYTES].decode(errors="replace") == kept]
    if told and name not in told:
        raise ObjectNotFound(2, f"no map is named {name!r}: map {info.id}, {kept!r} to the kernel, "
                                f"is {', '.join(told)}")
    if not told:
        warnings.warn(f"the kernel keeps {NAME_BYTES} bytes of a name: opened map {info.id}, "
                      f"{kept!r}, which may be another than {name!r}", stacklevel=4)


def recorded(cls: type[Map], record: Record, tag: str | None) -> dict[str, Any]:
    """Return what a stream's constructor takes more; refuse it for other maps, and bad dtypes."""
    if record is None and tag is None:
        return {}
    if not issubclass(cls, (RingBuffer, UserRingBuffer)):
        raise TypeError(f"record= and tag= are for ring buffers, not for {cls.__name__}")
    Kinds(record, tag)
    return {"record": record, "tag": tag}


def inner_map(number: int, like: Inner | None, via: str) -> Map:
    """Open a map in a map of maps; the dtypes of those it is like serve where it has no BTF."""
    fd = syscall.map_get_fd_by_id(number)
    try:
        if like is None or syscall.map_info(fd)["btf_id"]:
            return _opened(fd, None, None, "auto", via)
        return _opened(fd, like.key, like.value, "auto", via)
    except BaseException:
        fd.close()
        raise
