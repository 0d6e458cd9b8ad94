"""`create`: picks the class of a map's type, works out its dtypes, describes it by BTF."""

from __future__ import annotations

import errno
import operator
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack, overload

import numpy as np
import numpy.typing as npt

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd, Held
from fastmap.btf.encoder import encode
from fastmap.btf.special import check_special, special_fields
from fastmap.enums import (
    NAME_BYTES,
    MapFlag,
    MapType,
    map_type,
    running_kernel,
    version_text,
)
from fastmap.errors import (
    ENOTSUPP,
    BpfError,
    KeyExists,
    MapMismatch,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
)
from fastmap.kernel.map_facts import FACTS, Described, types_where
from fastmap.kernel.token import Token
from fastmap.maptypes import types
from fastmap.maptypes.arena import Arena
from fastmap.maptypes.arrays import ArrayMap, PerCpuArrayMap
from fastmap.maptypes.code import InsnArray, StackTrace, StructOps
from fastmap.maptypes.compatible import differences
from fastmap.maptypes.handle import Map, check_via, locked
from fastmap.maptypes.nested import ArrayOfMaps, HashOfMaps, Inner, MapOfMaps, check_inner
from fastmap.maptypes.open import inner_map, recorded
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
from fastmap.maptypes.rules import Shape
from fastmap.maptypes.storage import (
    CgroupStorage,
    CgrpStorage,
    InodeStorage,
    PerCpuCgroupStorage,
    SkStorage,
    TaskStorage,
)
from fastmap.maptypes.stream_batch import Record
from fastmap.maptypes.table import HashMap, PerCpuHashMap, ResizableHashMap
from fastmap.maptypes.trie import LpmTrie


@overload
def create(
    type: types.HashMapType, **options: Unpack[types.CreateOptions]
) -> HashMap: ...
@overload
def create(
    type: types.ArrayMapType, **options: Unpack[types.CreateOptions]
) -> ArrayMap: ...
@overload
def create(
    type: types.ProgArrayType, **options: Unpack[types.CreateOptions]
) -> ProgArray: ...
@overload
def create(
    type: types.PerfEventArrayType, **options: Unpack[types.CreateOptions]
) -> PerfEventArray: ...
@overload
def create(
    type: types.PerCpuHashMapType, **options: Unpack[types.CreateOptions]
) -> PerCpuHashMap: ...
@overload
def create(
    type: types.PerCpuArrayMapType, **options: Unpack[types.CreateOptions]
) -> PerCpuArrayMap: ...
@overload
def create(
    type: types.StackTraceType, **options: Unpack[types.CreateOptions]
) -> StackTrace: ...
@overload
def create(
    type: types.CgroupArrayType, **options: Unpack[types.CreateOptions]
) -> CgroupArray: ...
@overload
def create(
    type: types.LpmTrieType, **options: Unpack[types.CreateOptions]
) -> LpmTrie: ...
@overload
def create(
    type: types.ArrayOfMapsType, **options: Unpack[types.CreateOptions]
) -> ArrayOfMaps: ...
@overload
def create(
    type: types.HashOfMapsType, **options: Unpack[types.CreateOptions]
) -> HashOfMaps: ...
@overload
def create(
    type: types.DevMapType, **options: Unpack[types.CreateOptions]
) -> DevMap: ...
@overload
def create(
    type: types.SockMapType, **options: Unpack[types.CreateOptions]
) -> SockMap: ...
@overload
def create(
    type: types.CpuMapType, **options: Unpack[types.CreateOptions]
) -> CpuMap: ...
@overload
def create(
    type: types.XskMapType, **options: Unpack[types.CreateOptions]
) -> XskMap: ...
@overload
def create(
    type: types.SockHashType, **options: Unpack[types.CreateOptions]
) -> SockHash: ...
@overload
def create(
    type: types.CgroupStorageType, **options: Unpack[types.CreateOptions]
) -> CgroupStorage: ...
@overload
def create(
    type: types.ReuseportSockArrayType, **options: Unpack[types.CreateOptions]
) -> ReuseportSockArray: ...
@overload
def create(
    type: types.PerCpuCgroupStorageType, **options: Unpack[types.CreateOptions]
) -> PerCpuCgroupStorage: ...
@overload
def create(
    type: types.QueueType, **options: Unpack[types.CreateOptions]
) -> Queue: ...
@overload
def create(
    type: types.StackType, **options: Unpack[types.CreateOptions]
) -> Stack: ...
@overload
def create(
    type: types.SkStorageType, **options: Unpack[types.CreateOptions]
) -> SkStorage: ...
@overload
def create(
    type: types.DevMapHashType, **options: Unpack[types.CreateOptions]
) -> DevMapHash: ...
@overload
def create(
    type: types.StructOpsType, **options: Unpack[types.CreateOptions]
) -> StructOps: ...
@overload
def create(
    type: types.RingBufferType, **options: Unpack[types.CreateOptions]
) -> RingBuffer: ...
@overload
def create(
    type: types.InodeStorageType, **options: Unpack[types.CreateOptions]
) -> InodeStorage: ...
@overload
def create(
    type: types.TaskStorageType, **options: Unpack[types.CreateOptions]
) -> TaskStorage: ...
@overload
def create(
    type: types.BloomFilterType, **options: Unpack[types.CreateOptions]
) -> BloomFilter: ...
@overload
def create(
    type: types.UserRingBufferType, **options: Unpack[types.CreateOptions]
) -> UserRingBuffer: ...
@overload
def create(
    type: types.CgrpStorageType, **options: Unpack[types.CreateOptions]
) -> CgrpStorage: ...
@overload
def create(
    type: types.ArenaType, **options: Unpack[types.CreateOptions]
) -> Arena: ...
@overload
def create(
    type: types.InsnArrayType, **options: Unpack[types.CreateOptions]
) -> InsnArray: ...
@overload
def create(
    type: types.ResizableHashMapType, **options: Unpack[types.CreateOptions]
) -> ResizableHashMap: ...
@overload
def create(type: MapType | int | str, **options: Unpack[types.CreateOptions]) -> Any: ...
def create(
    type: MapType | int | str, *, key: npt.DTypeLike | None = None,
    value: npt.DTypeLike | None = None, record: Record = None, tag: str | None = None,
    max_entries: int | None = None, flags: int = 0, name: str = "",
    inner: Map | dict[str, Any] | None = None, map_extra: int = 0, numa_node: int | None = None,
    pin: str | os.PathLike[str] | None = None, exist_ok: bool = False, replace: bool = False,
    btf: bool | str = True, token: Token | None = None, via: str = "auto",
) -> Any:
    """Create a map.

    Parameters
    ----------
    type : MapType or str
        Such as "hash", "percpu_array", "lpm_trie": any name of `MapType`.
    key, value : dtype_like
        Anything `numpy.dtype` takes, of plain bytes. What a type fixes (an array's key is "u4", a
        queue has none) need not be said.
    record : dtype_like or dict, optional
        RINGBUF, USER_RINGBUF: the dtype of its records; of a RINGBUF also one for each kind of
        them, ``{1: EXEC, 2: EXIT}``.
    tag : str, optional
        With a dict of records: the field that tells the kind.
    max_entries : int
        Not for local storage, which grows with what it belongs to, and STRUCT_OPS.
    flags : MapFlag
        Those that a type demands need not be said.
    name : str
        At most 15 bytes of letters, digits, "_" and ".".
    inner : Map or dict
        ARRAY_OF_MAPS, HASH_OF_MAPS: what the maps in it are like: such a map, or the arguments to
        create one, ``{"type": "hash", "key": "u4", ...}``.
    map_extra : int
        BLOOM_FILTER: the number of hashes, 1 to 15 (0: the kernel's 5). ARENA: the address at
        which all who map it see it.
    numa_node : int, optional
        Where its memory shall lie.
    pin : path, optional
        Pin it there, on a bpffs.
    exist_ok : bool
        With `pin`: where a map is pinned already, return that, if it is of the same type, sizes,
        flags and map_extra, and (where its BTF may be read, which takes CAP_SYS_ADMIN) the same
        dtypes. What the kernel itself adds or rounds is no difference, nor are void bytes. Of
        processes that do so at once, all get the same map.
    replace : bool
        With `pin`: where another sort of map is pinned, pin a new one in its place, in one step;
        whoever holds the old one keeps it. With `exist_ok` a map that fits is returned.
    btf : bool or "bpftool"
        Whether to describe the dtypes to the kernel, for `bpftool map dump` and for `open`.
        bpftool stops at floats: "bpftool" calls them unsigned integers, with a tag by which `open`
        knows them again.
    token : Token, optional
        What allows this process, inside a user namespace, to create maps (Linux 6.9).
    via : {"auto", "syscall", "kernel"}
        The way of calls over many elements, where they do not say it.

    Returns
    -------
    Map
        Of the class of its type: `HashMap`, `ArrayMap`, `Queue`, ...

    Raises
    ------
    TypeError, ValueError, OverflowError
        An argument does not fit; the kernel was not asked.
    MapMismatch
        With `exist_ok`, another sort of map is pinned there: ``.differences`` tells each (also a
        `ValueError`).
    PermissionDenied
        CAP_BPF is missing.
    KeyExists
        Something is pinned at `pin`, and `exist_ok` is not set.
    BpfError
        The kernel refuses the sizes or flags (EINVAL, E2BIG), or has no memory (ENOMEM).

    Notes
    -----
    The smallest kernel of a type is `MapType.since`.
    """
    kind = map_type(type)
    cls, facts = class_of(kind), FACTS[kind]
    check_via(via)
    if btf not in (True, False, "bpftool"):
        raise ValueError(f"btf={btf!r}: True, False or 'bpftool'")
    shape = Shape(
        kind, cls.keys_are.settle(key, "key", kind), cls.values_are.settle(value, "value", kind),
        _entries(max_entries, facts.fixed_entries, kind),
        MapFlag(_uint(flags, "flags", 32)) | facts.always, _uint(map_extra, "map_extra", 64))
    encoded = _name(name)
    if numa_node is not None:
        numa_node = _uint(numa_node, "numa_node", 31)
        shape.flags |= MapFlag.NUMA_NODE
    if (exist_ok or replace) and pin is None:
        raise ValueError(f"{'exist_ok' if exist_ok else 'replace'}=True goes with pin=")
    if token is not None:
        shape.flags |= MapFlag.TOKEN_FD
    elif MapFlag.TOKEN_FD in shape.flags and running_kernel() >= MapFlag.TOKEN_FD.since:
        raise ValueError("TOKEN_FD goes with token=, and need not be said")
    cls.settle(shape)
    check_special(shape.key, shape.value)
    described = facts.described
    if shape.value is not None and special_fields(shape.value):
        if not btf or described == "never":
            raise ValueError(f"the kernel knows a lock by the BTF alone: "
                             f"{'btf=False' if not btf else kind.name + ' maps have none'}")
        if locked(shape.value) and not facts.lockable:
            takers = ", ".join(each.name for each in sorted(types_where(lambda f: f.lockable)))
            raise NotSupported(ENOTSUPP, f"{kind.name} maps take no values with a bpf_spin_lock; "
                               f"{takers} do")
        described = "must"
    elif not btf and described != "must":
        described = "never"
    extra = recorded(cls, record, tag)
    with _like(cls, inner) as like, Held([] if like is None else [like.fd]):
        options = {"name": encoded, "numa_node": numa_node or 0, "map_extra": shape.map_extra,
                   "inner_map_fd": 0 if like is None else like.fileno(),
                   "map_token_fd": 0 if token is None else token.fileno()}

        def made() -> Fd:
            try:
                return _made(shape, described, options, btf == "bpftool")
            except BpfError as error:
                raise _explained(error, shape) from None

        fd = made() if pin is None else _pinned(made, pin, exist_ok, replace, shape)
        if like is not None:
            extra = {"inner": Inner.of(like), "opener": inner_map}
        return cls(fd, shape.key, shape.value, dtype_source="given", via=via, **extra)



def _like(cls: type[Map], inner: Any) -> AbstractContextManager[Map | None]:
    """Return the map that those in a map of maps are like; made for its creation alone, or not."""
    if not issubclass(cls, MapOfMaps):
        if inner is not None:
            raise TypeError("inner= goes with ARRAY_OF_MAPS and HASH_OF_MAPS")
        return nullcontext(None)
    if isinstance(inner, Map):
        check_inner(inner.type)
        return nullcontext(inner)
    if not isinstance(inner, dict):
        raise TypeError("inner= is the map that those in it are like, or a dict of the arguments "
                        f"to create one, not {inner!r}")
    if "type" not in inner:
        raise TypeError("inner= lacks the type of the maps")
    check_inner(map_type(inner["type"]))
    if wrong := inner.keys() & {"pin", "exist_ok", "inner"}:
        raise ValueError(f"inner= says what maps are like; {min(wrong)} does not belong there")
    made: Map = create(**inner)
    return made



def _uint(given: Any, what: str, bits: int) -> int:
    number = operator.index(given)
    if isinstance(given, bool):
        raise TypeError(f"{what} is an integer, not {given!r}")
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{what}={number}: 0 to {(1 << bits) - 1}")
    return number


def _entries(given: int | None, fixed: int | None, kind: MapType) -> int:
    if fixed is not None:
        if given not in (None, fixed):
            raise ValueError(f"max_entries={given!r}: of {kind.name} maps it is {fixed}, and need "
                             "not be said")
        return fixed
    if given is None or isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise TypeError(f"max_entries is an integer, not {given!r}")
    if not 1 <= given < 1 << 32:
        raise ValueError(f"max_entries={given}: 1 to 4294967295")
    return int(given)


def _name(name: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"name is a str, not {name!r}")
    encoded = name.encode()
    if len(encoded) > NAME_BYTES:
        raise ValueError(f"the kernel keeps {NAME_BYTES} bytes of a name; {name!r} has "
                         f"{len(encoded)}")
    if re.fullmatch(rb"[A-Za-z0-9_.]*", encoded) is None:
        raise ValueError(f"a name has letters, digits, '_' and '.'; given was {name!r}")
    return encoded


def _explained(error: BpfError, shape: Shape) -> BpfError:
    """Return what a failed creation is about: EINVAL can be a kernel too old for what was asked."""
    if isinstance(error, PermissionDenied) and MapFlag.TOKEN_FD in shape.flags:
        return PermissionDenied(error.errno, f"the token does not allow {shape.kind.name} maps: "
                                             "delegate_cmds and delegate_maps of its bpffs do")
    late = [each for each in (shape.kind, *shape.flags) if each.since > running_kernel()]
    if error.errno != errno.EINVAL or not late:
        return error
    return NotSupported(errno.EINVAL, "; ".join(
        f"{each.name} needs Linux {version_text(each.since)}" for each in late)
        + f"; this is {os.uname().release}")


def _made(shape: Shape, described: Described, options: dict[str, Any],
          bpftool: bool) -> Fd:
    """Create the map; described by BTF if that may be."""
    sizes = (shape.kind, shape.key_size, shape.value_size, shape.max_entries, int(shape.flags))
    if described == "never" or shape.value is None:
        return syscall.map_create(*sizes, **options)
    try:
        blob, key_id, value_id = encode(shape.key, shape.value, bpftool_safe=bpftool)
        loaded = syscall.btf_load(blob, options["map_token_fd"])
    except (BpfError, TypeError, ValueError):
        if described == "must":
            raise
        return syscall.map_create(*sizes, **options)  # a courtesy: a map without it works as well
    try:
        return syscall.map_create(*sizes, **options, btf_fd=loaded.fileno(),
                                  btf_key_type_id=key_id, btf_value_type_id=value_id)
    except PermissionDenied:
        raise
    except BpfError:
        if described == "must":
            raise
        # And its error is about the map, not about the BTF.
        return syscall.map_create(*sizes, **options)
    finally:
        loaded.close()


def _pinned(made: Callable[[], Fd], pin: str | os.PathLike[str], exist_ok: bool,
            replace: bool, shape: Shape) -> Fd:
    """Return a map pinned at `pin`: a new one, or with `exist_ok` the one that is there."""
    mode = int(shape.flags & (MapFlag.RDONLY | MapFlag.WRONLY))
    for _ in range(9):
        if exist_ok:
            try:
                return _compatible(syscall.obj_get(pin, mode), pin, shape)
            except ObjectNotFound:
                pass
            except MapMismatch:
                if not replace:
                    raise
        fd = made()
        if replace:
            return _in_place(fd, os.fspath(pin))
        try:
            syscall.obj_pin(fd, pin)
        except KeyExists:
            fd.close()
            if not exist_ok:
                raise
            # Another process was faster: its map is the one. If it unpins meanwhile, once more.
        except BaseException:
            fd.close()
            raise
        else:
            return fd
    return _compatible(syscall.obj_get(pin, mode), pin, shape)


def _in_place(fd: Fd, pin: str) -> Fd:
    """Pin a map at `pin`, in the place of what is there: there is always one of them."""
    beside = f"{pin}_{os.getpid()}_{fd.fileno()}"
    try:
        syscall.obj_pin(fd, beside)
        try:
            os.rename(beside, pin)
        except BaseException:
            os.unlink(beside)
            raise
    except BaseException:
        fd.close()
        raise
    return fd


def _compatible(fd: Fd, pin: str | os.PathLike[str], shape: Shape) -> Fd:
    try:
        found = differences(fd, shape)
        if found:
            raise MapMismatch(f"the map at {os.fspath(pin)} differs", found)
    except BaseException:
        fd.close()
        raise
    return fd
