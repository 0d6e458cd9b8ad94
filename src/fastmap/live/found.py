"""Which maps are a live table: by its name, or the id of one of them."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.dtypes import fitting
from fastmap.errors import ObjectNotFound
from fastmap.kernel.inventory import MapInfo, programs
from fastmap.kernel.inventory import maps as all_maps
from fastmap.live import layout
from fastmap.maptypes.open import open as open_map


def dtype_of(fd: Fd, given: npt.DTypeLike | None, what: str) -> np.dtype[Any]:
    """Return the dtype of a map's value: what is given, or what its BTF says."""
    size = syscall.map_info(fd)["value_size"]
    if given is not None:
        return fitting(given, size, what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_map(fd=fd.fileno()) as m:
            dtype: np.dtype[Any] = m.value_dtype
    if dtype.kind == "V" and dtype.names is None and what == "value":
        return np.dtype(("u8", (size // 8,))) if size > 8 else np.dtype("u8")
    return dtype


#: Bytes of a head, by which one is known.
HEAD_BYTES = layout.HEAD.itemsize


class Parts(NamedTuple):
    """A live table among the maps of a machine.

    Attributes
    ----------
    name : str
    ids : tuple of int
        The kernel's numbers of its maps: head, index, keys, born, values and ring.
    """

    name: str
    ids: tuple[int, ...]


def tables(infos: Iterable[MapInfo]) -> list[Parts]:
    """Return the live tables that are set up, among maps; needs CAP_SYS_ADMIN.

    Those of which not every map is there are left out.
    """
    there = {info.id: info for info in infos}
    found: list[Parts] = []
    for info in there.values():
        if not info.name.endswith("_h") or info.value_size != layout.HEAD.itemsize:
            continue
        name, ids = info.name[:-2], _told(info.id)
        names = [there[number].name for number in ids if number in there]
        if names == [f"{name}_{letter}" for letter in layout.LETTERS]:
            found.append(Parts(name, ids))
    return found


def _told(head: int) -> tuple[int, ...]:
    """Return the ids of the maps that a head names; none where it is not set up, or gone."""
    with suppress(ObjectNotFound), open_map(id=head, value=f"V{layout.HEAD.itemsize}") as m:
        told = np.frombuffer(m.lookup(0), layout.HEAD, 1)[0]
        if told["abi"]:
            return tuple(told["maps"].tolist())
    return ()


def found(name: str | None, id: int | None) -> tuple[str, list[int]]:
    """Return the name of a table, and the ids of its maps."""
    if id is not None:
        if not 1 <= operator.index(id) < 1 << 32:
            raise OverflowError(f"id={id}: ids go from 1 to {(1 << 32) - 1}")
        fd = syscall.map_get_fd_by_id(id)
        try:
            whole = syscall.map_info(fd)["name"]
        finally:
            fd.close()
        name, _, letter = whole.rpartition("_")
        if letter not in layout.LETTERS or not letter or not name:
            raise ValueError(f"map {id} is named {whole!r}: no map of a live table")
    name = layout.checked_name(name)
    named: dict[str, list[int]] = {f"{name}_{letter}": [] for letter in layout.LETTERS}
    for info in all_maps():
        if info.name in named:
            named[info.name].append(info.id)
    heads = named[f"{name}_h"]
    if not all(named.values()):
        raise ObjectNotFound(2, f"no live table is named {name!r}")
    tables = [ids for head in heads if (ids := _siblings(head, named, name))]
    if id is not None:
        tables = [ids for ids in tables if id in ids]
    if not tables:
        raise ObjectNotFound(2, f"maps are named as those of {name!r}, but they belong to no table")
    if len(tables) > 1:
        raise ValueError(f"{len(tables)} live tables are named {name!r}: of the heads "
                         f"{', '.join(str(ids[0]) for ids in tables)}; open one by id=")
    return name, tables[0]


def _siblings(head: int, named: dict[str, list[int]], name: str) -> list[int] | None:
    """Return the ids of the maps that belong to a head: it says so, or a program that has all."""
    if all(len(ids) == 1 for ids in named.values()):
        return [ids[0] for ids in named.values()]
    if told := _told(head):
        return list(told)
    for program in programs():
        if head in program.map_ids:
            ids = [next((number for number in numbers if number in program.map_ids), 0)
                   for numbers in named.values()]
            if all(ids):
                return ids
    return None
