"""Whether a pinned map is the one that `create` was asked for: told field by field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.btf.encoder import encode
from fastmap.btf.layout import Btf
from fastmap.enums import MapFlag, MapType
from fastmap.errors import Difference, PermissionDenied
from fastmap.kernel.map_facts import FACTS
from fastmap.maptypes.rules import Shape

DType = np.dtype[Any]

#: Flags of the handle or of the call, which the kernel does not keep with the map.
_NOT_KEPT = MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.TOKEN_FD
#: The number of hashes of a Bloom filter that was given none.
_HASHES = 5


def differences(fd: Fd, shape: Shape) -> list[Difference]:
    """Return in what a map differs from what was asked for; nothing where it will do.

    What the kernel adds or rounds by itself is no difference, nor is a dtype of void bytes, or
    BTF that is not there or may not be read.
    """
    info = syscall.map_info(fd)
    if info["type"] != shape.kind:
        return [Difference("type", MapType(info["type"]).name, shape.kind.name)]
    wanted = {
        "key_size": shape.key_size, "value_size": shape.value_size,
        "max_entries": _entries(shape), "flags": _flags(shape), "map_extra": _extra(shape),
    }
    there = {
        **{size: info[size] for size in ("key_size", "value_size", "max_entries", "map_extra")},
        "flags": MapFlag(info["map_flags"]),
    }
    if FACTS[shape.kind].family == "bloom":
        there["map_extra"] = info["map_extra"] or _HASHES
    found = [Difference(field, _text(there[field]), _text(wanted[field]))
             for field in wanted if there[field] != wanted[field]]
    for side, dtype, asked in _dtypes(info, shape):
        if dtype.itemsize == asked.itemsize:  # else it was told above
            found += _unlike(side, dtype, asked)
    return found


def _text(value: Any) -> str:
    if not isinstance(value, MapFlag):
        return str(value)
    return value.name or f"{int(value):#x}" if value else "none"


def _entries(shape: Shape) -> int:
    if MapFlag.NO_COMMON_LRU not in shape.flags:
        return shape.max_entries
    # A share for each CPU: the kernel rounds up.
    cpus = len(syscall.possible_cpus())
    return -(-shape.max_entries // cpus) * cpus


def _flags(shape: Shape) -> MapFlag:
    return shape.flags & ~_NOT_KEPT | FACTS[shape.kind].added


def _extra(shape: Shape) -> int:
    if FACTS[shape.kind].family == "bloom":
        return shape.map_extra or _HASHES
    return shape.map_extra


def _dtypes(info: dict[str, Any], shape: Shape) -> Iterator[tuple[str, DType, DType]]:
    """Yield each side whose dtype the map's BTF tells: its name, the dtype there, the one asked."""
    if not info["btf_id"]:
        return
    try:
        loaded = syscall.btf_get_fd_by_id(info["btf_id"])
    except PermissionDenied:
        return  # it takes CAP_SYS_ADMIN: sizes must do
    try:
        blob = syscall.btf_bytes(loaded)
    finally:
        loaded.close()
    for side, asked in (("key", shape.key), ("value", shape.value)):
        number = info[f"btf_{side}_type_id"]
        if number and asked is not None:
            try:
                there = Btf(blob).dtype(number)
            except ValueError:
                continue  # numpy has no dtype for it (or it is hostile): as if it were not there
            yield side, there, _as_btf(asked)


def _as_btf(dtype: DType) -> DType:
    """Return what BTF makes of a dtype: names that it cannot hold are changed in it."""
    try:
        blob, _, number = encode(np.dtype("u4"), dtype)
    except (TypeError, ValueError):
        return dtype
    return Btf(blob).dtype(number)


def _opaque(dtype: DType) -> bool:
    base = dtype.subdtype[0] if dtype.subdtype else dtype
    return base.names is None and (base.kind == "V" or base == np.uint8 and bool(dtype.subdtype))


def _unlike(path: str, there: DType, asked: DType) -> Iterator[Difference]:
    """Yield in which fields two dtypes of one size differ."""
    if there == asked or _opaque(there) or _opaque(asked):
        return
    if there.names is not None and asked.names is not None:
        here = {name: field[:2] for name, field in (there.fields or {}).items()}
        wanted = {name: field[:2] for name, field in (asked.fields or {}).items()}
        yield from (Difference(f"{path}.{name}", "", str(wanted[name][0]), "is not there")
                    for name in wanted if name not in here)
        for name, (dtype, offset) in here.items():
            if name not in wanted:
                yield Difference(f"{path}.{name}", str(dtype), "",
                                 f"is there as {dtype}, and was not asked for")
                continue
            if offset != wanted[name][1]:
                yield Difference(f"{path}.{name}", f"byte {offset}", f"byte {wanted[name][1]}",
                                 f"lies at byte {offset}, not {wanted[name][1]}")
            yield from _unlike(f"{path}.{name}", dtype, wanted[name][0])
    elif there.subdtype and asked.subdtype and there.shape == asked.shape:
        yield from _unlike(f"{path}[]", there.base, asked.base)
    else:
        yield Difference(path, str(there), str(asked))
