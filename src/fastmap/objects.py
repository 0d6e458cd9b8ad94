"""`create` and `open`: picks the class of a map's type, works out its dtypes."""

from __future__ import annotations

import errno
import operator
import os
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap import btf as btf_module
from fastmap._core import syscall
from fastmap._core.syscall import Fd, Held
from fastmap.btf_special import check_special, special_fields
from fastmap.compatible import differences
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
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
)
from fastmap.inventory import maps as maps
from fastmap.maps.base import Map, check_way, locked
from fastmap.maps.families import class_of
from fastmap.maps.nested import Inner, MapOfMaps, check_inner
from fastmap.maps.records import Kinds, Record
from fastmap.maps.rules import LOCKABLE, Described, Shape
from fastmap.maps.streams import RingBuffer, UserRingBuffer
from fastmap.token import Token
from fastmap.types import btf_blob, read_btf


def create(
    type: MapType | int | str, *, key: npt.DTypeLike | None = None,
    value: npt.DTypeLike | None = None, record: Record = None, tag: str | None = None,
    max_entries: int | None = None, flags: int = 0, name: str = "",
    inner: Map | dict[str, Any] | None = None, map_extra: int = 0, numa_node: int | None = None,
    pin: str | os.PathLike[str] | None = None, exist_ok: bool = False,
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
        An argument does not fit; the kernel was not asked. Or, with `exist_ok`, another map is
        pinned there: the message tells each difference.
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
    cls = class_of(kind)
    check_way(via)
    if btf not in (True, False, "bpftool"):
        raise ValueError(f"btf={btf!r}: True, False or 'bpftool'")
    shape = Shape(
        kind, cls.keys_are.settle(key, "key", kind), cls.values_are.settle(value, "value", kind),
        _entries(max_entries, cls.entries_are, kind),
        MapFlag(_uint(flags, "flags", 32)) | cls.always, _uint(map_extra, "map_extra", 64))
    encoded = _name(name)
    if numa_node is not None:
        numa_node = _uint(numa_node, "numa_node", 31)
        shape.flags |= MapFlag.NUMA_NODE
    if exist_ok and pin is None:
        raise ValueError("exist_ok=True goes with pin=")
    if token is not None:
        shape.flags |= MapFlag.TOKEN_FD
    elif MapFlag.TOKEN_FD in shape.flags and running_kernel() >= MapFlag.TOKEN_FD.since:
        raise ValueError("TOKEN_FD goes with token=, and need not be said")
    cls.settle(shape)
    check_special(shape.key, shape.value)
    described = cls.described
    if shape.value is not None and special_fields(shape.value):
        if not btf or described == "never":
            raise ValueError(f"the kernel knows a lock by the BTF alone: "
                             f"{'btf=False' if not btf else kind.name + ' maps have none'}")
        if locked(shape.value) and kind not in LOCKABLE:
            raise NotSupported(ENOTSUPP, f"{kind.name} maps take no values with a bpf_spin_lock; "
                               f"{', '.join(each.name for each in LOCKABLE)} do")
        described = "must"
    elif not btf and described != "must":
        described = "never"
    extra = _recorded(cls, record, tag)
    with _like(cls, inner) as like, Held([] if like is None else [like._fd]):
        options = {"name": encoded, "numa_node": numa_node or 0, "map_extra": shape.map_extra,
                   "inner_map_fd": 0 if like is None else like.fileno(),
                   "map_token_fd": 0 if token is None else token.fileno()}

        def made() -> Fd:
            try:
                return _made(shape, described, options, btf == "bpftool")
            except BpfError as error:
                raise _explained(error, shape) from None

        fd = made() if pin is None else _pinned(made, pin, exist_ok, shape)
        if like is not None:
            extra = {"inner": Inner.of(like), "opener": _inner}
        return cls(fd, shape.key, shape.value, dtype_source="given", via=via, **extra)


def _recorded(cls: type[Map], record: Record, tag: str | None) -> dict[str, Any]:
    """Return what a stream's constructor takes more; refuse it for other maps, and bad dtypes."""
    if record is None and tag is None:
        return {}
    if not issubclass(cls, (RingBuffer, UserRingBuffer)):
        raise TypeError(f"record= and tag= are for ring buffers, not for {cls.__name__}")
    Kinds(record, tag)
    return {"record": record, "tag": tag}


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


def _inner(number: int, like: Inner | None, via: str) -> Map:
    """Open a map in a map of maps; the dtypes of those it is like serve where it has no BTF."""
    fd = syscall.map_get_fd_by_id(number)
    try:
        if like is None or syscall.map_info(fd)["btf_id"]:
            return _opened(fd, None, None, "auto", via)
        return _opened(fd, like.key, like.value, "auto", via)
    except BaseException:
        fd.close()
        raise


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
        blob, key_id, value_id = btf_module.encode(shape.key, shape.value, bpftool_safe=bpftool)
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
            shape: Shape) -> Fd:
    """Return a map pinned at `pin`: a new one, or with `exist_ok` the one that is there."""
    mode = int(shape.flags & (MapFlag.RDONLY | MapFlag.WRONLY))
    for _ in range(9):
        if exist_ok:
            with suppress(ObjectNotFound):
                return _compatible(syscall.obj_get(pin, mode), pin, shape)
        fd = made()
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


def _compatible(fd: Fd, pin: str | os.PathLike[str], shape: Shape) -> Fd:
    try:
        found = differences(fd, shape)
        if found:
            raise ValueError(f"the map at {os.fspath(pin)} differs: {'; '.join(found)}")
    except BaseException:
        fd.close()
        raise
    return fd


def open(
    path: str | os.PathLike[str] | None = None, *, id: int | None = None, name: str | None = None,
    fd: int | None = None, key: npt.DTypeLike | None = None, value: npt.DTypeLike | None = None,
    record: Record = None, tag: str | None = None,
    readonly: bool = False, writeonly: bool = False, btf: str = "auto", via: str = "auto",
) -> Any:
    """Open a map that is there.

    Parameters
    ----------
    path : path, optional
        A pin. One of `path`, `id`, `name` and `fd` is given.
    id : int, optional
        The kernel's number of the map. Needs CAP_SYS_ADMIN.
    name : str, optional
        Its name, of which the kernel keeps 15 bytes. Needs CAP_SYS_ADMIN.
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
        gives void bytes, "require" raises.
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
    ValueError
        Several maps have the name: the message lists their ids. Or sizes do not match.
    """
    if sum(x is not None for x in (path, id, name, fd)) != 1:
        raise TypeError("open takes one of a path, id=, name= and fd=")
    if readonly and writeonly:
        raise ValueError("a handle is readonly or writeonly, not both")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name is a str, not {name!r}")
    check_way(via)
    if btf not in ("auto", "require"):
        raise ValueError(f"btf={btf!r}: 'auto' or 'require'")
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
        return _opened(handle, key, value, btf, via, record, tag)
    except BaseException:
        handle.close()
        raise


def _opened(fd: Fd, key: Any, value: Any, btf: str, via: str, record: Record = None,
            tag: str | None = None) -> Map:
    info = syscall.map_info(fd)
    kind = MapType(info["type"])
    cls = class_of(kind)
    extra = _recorded(cls, record, tag)
    source = "none" if key is None and value is None else "given"
    dtypes: dict[str, np.dtype[Any]] = {}
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
        found = _from_btf(info, btf)
        for what, dtype in found.items():
            if what in missing and dtype.itemsize == info[f"{what}_size"]:
                dtypes[what] = dtype
                source = "btf"
    for what in missing:
        dtypes.setdefault(what, cls.untold(kind, what, info[f"{what}_size"]))
    if issubclass(cls, MapOfMaps):
        extra = {"opener": _inner}
    return cls(fd, dtypes.get("key"), dtypes.get("value"), dtype_source=source, via=via, **extra)


def _from_kernel(info: dict[str, Any]) -> dict[str, np.dtype[Any]]:
    """Return the dtype of a value that is a struct of the kernel's own: of STRUCT_OPS."""
    try:
        dtype = read_btf().dtype(info["btf_vmlinux_value_type_id"])
    except (OSError, ValueError):
        return {}  # a kernel without BTF for all to see
    return {"value": dtype} if dtype.itemsize == info["value_size"] else {}


def _from_btf(info: dict[str, Any], btf: str) -> dict[str, np.dtype[Any]]:
    try:
        blob = btf_blob(info["btf_id"])
    except PermissionDenied:
        if btf == "require":
            raise
        warnings.warn(f"map {info['id']} has BTF, but reading it needs CAP_SYS_ADMIN: its keys "
                      "and values are void bytes; give key= and value=", stacklevel=4)
        return {}
    ids = {what: number for what in ("key", "value") if (number := info[f"btf_{what}_type_id"])}
    try:
        types = btf_module.Btf(blob)
        return {what: _bytes_whole(types.dtype(number)) for what, number in ids.items()}
    except ValueError as error:
        if btf == "require":
            raise
        warnings.warn(f"the BTF of map {info['id']} cannot be read ({error}): its keys and values "
                      "are void bytes; give key= and value=", stacklevel=4)
        return {}


def _bytes_whole(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return an array of bytes as void bytes: as a key it hashes then, and BTF knows no void."""
    if dtype.subdtype is not None and dtype.subdtype[0] == np.uint8:
        return np.dtype(f"V{dtype.itemsize}")
    return dtype


def _by_name(name: str, mode: int) -> Fd:
    kept = name.encode()[:NAME_BYTES].decode(errors="replace")
    ids = [info.id for info in maps() if info.name == kept]
    if not ids:
        raise ObjectNotFound(2, f"no map is named {kept!r}")
    if len(ids) > 1:
        raise ValueError(f"{len(ids)} maps are named {kept!r}: ids {', '.join(map(str, ids))}; "
                         "open one by id=")
    return syscall.map_get_fd_by_id(ids[0], mode)
