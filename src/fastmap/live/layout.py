"""The six maps of a live table: their names, sizes and dtypes, and how a new one is set up.

`fastmap.bpf.h` is the specification; `HEAD` is its ``struct fastmap_head``.
"""

from __future__ import annotations

import operator
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmap._core.live.table import OWN, abi, claim
from fastmap._core.system import syscall
from fastmap._core.system.memory import Mapping as MemoryMapping
from fastmap._core.system.syscall import Fd
from fastmap.enums import MapFlag, MapType
from fastmap.live.views import view

#: The maps by the last letter of their names, in the order of their ids in the head.
LETTERS = "hxkbvf"
NAME_MAX = 13
KEY_MAX = 64
VERSION = 1
_MAGIC = 0x464D
LINE = np.dtype([("e", "u8", (7,)), ("over", "u8")])
TWO = np.dtype([("slot", "u4", (2,))])
_WORDS = {
    "abi": (0, "u8"), "capacity": (8, "u4"), "columns": (12, "u4"), "line_mask": (16, "u4"),
    "column_mask": (20, "u4"), "created": (24, "u8"), "maps": (32, ("u4", (6,))),
    "reserved": (56, "u8"), "secret": (64, ("u8", (18,))), "used": (384, "u8"),
    "full": (448, "u8"),
    "races": (456, "u8"), "tombs": (464, "u8"), "lost": (472, "u8"), "free_head": (512, "u8"),
    "free_tail": (576, "u8"), "free_next": (584, "u8"), "epoch": (592, "u8"), "owner": (600, "u8"),
    "swept": (608, "u8"), "found": (616, "u8"), "spare": (640, ("u8", (64,))),
}
HEAD = np.dtype({"names": list(_WORDS), "offsets": [at for at, _ in _WORDS.values()],
                 "formats": [of for _, of in _WORDS.values()], "itemsize": 1152})


def lines_of(capacity: int) -> int:
    """Return how many lines the index of a table has: a power of two, a quarter of its slots."""
    return 1 << max((capacity + 3) // 4 - 1, 0).bit_length()


def checked(capacity: Any, columns: Any) -> tuple[int, int]:
    """Return capacity and columns, checked; one column for each possible CPU where not given."""
    capacity = operator.index(capacity)
    cpus = own_columns()
    columns = cpus if columns is None else operator.index(columns)
    if not 1 <= capacity <= 1 << 30:
        raise ValueError(f"capacity={capacity}: 1 to {1 << 30} keys")
    if columns != cpus and (not 1 <= columns <= cpus or columns & (columns - 1)):
        raise ValueError(f"columns={columns}: {cpus}, one for each possible CPU, or a power of two "
                         "below, whose programs count by atomic additions")
    if capacity * columns >= 1 << 32:
        raise ValueError(f"capacity={capacity} with {columns} columns: an array holds less than "
                         "2**32 values; take fewer columns")
    return capacity, columns


def own_columns() -> int:
    """Return how many columns give each possible CPU its own."""
    return max(syscall.possible_cpus()) + 1


def checked_dtypes(key: np.dtype[Any], value: np.dtype[Any]) -> None:
    """Refuse keys and values that a live table cannot have."""
    if key.itemsize > KEY_MAX:
        raise ValueError(f"key {key} has {key.itemsize} bytes; a live table takes up to {KEY_MAX}")
    if value.itemsize % 8 or value.itemsize >= 1 << 15:
        raise ValueError(f"value {value} has {value.itemsize} bytes; a live table takes a multiple "
                         "of 8, below 32 KiB (np.dtype(..., align=True) may be one)")


def checked_name(name: Any) -> str:
    """Return a table's name, checked."""
    if not isinstance(name, str):
        raise TypeError(f"name is a str, not {name!r}")
    if not re.fullmatch(rf"[A-Za-z_][A-Za-z0-9_]{{0,{NAME_MAX - 1}}}", name):
        raise ValueError(f"name={name!r}: a live table's name is an identifier of up to {NAME_MAX} "
                         "letters (its maps add two, of the kernel's 15)")
    return name


def expected(name: str, key: int, value: int, capacity: int,
             columns: int) -> dict[str, tuple[int, int]]:
    """Return the value size and the number of elements of each map, by its letter."""
    return {"h": (HEAD.itemsize, 1), "x": (64, lines_of(capacity)), "k": (key, capacity),
            "b": (8, capacity), "v": (value, columns * capacity), "f": (8, (capacity + 1) // 2)}


def check(name: str, infos: Mapping[str, dict[str, Any]]) -> tuple[int, int]:
    """Return capacity and columns of a table's maps, checked to belong together."""
    capacity = infos["k"]["max_entries"]
    columns = infos["v"]["max_entries"] // capacity
    wanted = expected(name, infos["k"]["value_size"], infos["v"]["value_size"], capacity, columns)
    found = []
    for letter, info in infos.items():
        size, entries = wanted[letter]
        if info["type"] != MapType.ARRAY or not info["map_flags"] & MapFlag.MMAPABLE:
            found.append(f"{name}_{letter} is no mmapable array")
        elif info["value_size"] != size:
            found.append(f"{name}_{letter} has values of {info['value_size']} bytes, not {size}")
        elif info["max_entries"] != entries:
            found.append(f"{name}_{letter} has {info['max_entries']} elements, not {entries}")
    if found:
        raise ValueError(f"the maps of {name!r} are no live table of {capacity} keys: "
                         + "; ".join(found))
    return capacity, columns


def mapped(fd: Fd, size: int, entries: int) -> MemoryMapping:
    """Return an array's memory, for reading and writing."""
    return MemoryMapping((size + 7) // 8 * 8 * entries, fd, 0, True)


def set_up(memory: MemoryMapping, key: int, value: int, capacity: int, columns: int,
           ids: list[int]) -> None:
    """Fill in the head of a table that nobody has set up; of several at once, one does."""
    head = view(memory, HEAD, 1)[0]
    if not claim(memory, HEAD.fields["created"][1], 0, time.monotonic_ns() | 1):  # type: ignore[index]
        deadline = time.monotonic() + 10
        while not head["abi"]:
            if time.monotonic() > deadline:
                raise ValueError("the table was begun to be set up, and never ended")
            time.sleep(0.001)
        return
    own = columns >= own_columns()
    head["capacity"], head["columns"] = capacity, columns
    head["line_mask"] = lines_of(capacity) - 1
    head["column_mask"] = 0xFFFFFFFF if own else columns - 1
    head["maps"] = ids
    # Chosen keys cannot flood what nobody can foresee.
    head["secret"] = np.frombuffer(os.urandom(8 * 18), "u8")
    # Last, and whole: from here on programs count.
    claim(memory, 0, 0, abi(key, value) | (OWN if own else 0))


def check_head(memory: MemoryMapping, name: str, key: int, value: int, capacity: int,
               columns: int) -> None:
    """Refuse a head of another version, or of other maps."""
    head = view(memory, HEAD, 1)[0]
    word = int(head["abi"])
    if word >> 48 != _MAGIC:
        raise ValueError(f"{name}_h is no head of a live table")
    if word >> 40 & 0xFF != VERSION:
        raise ValueError(f"{name} is a live table of version {word >> 40 & 0xFF}; this is version "
                         f"{VERSION}")
    told = (word & ~OWN, head["capacity"], head["columns"], head["line_mask"])
    if told != (abi(key, value), capacity, columns, lines_of(capacity) - 1):
        raise ValueError(f"the head of {name} is of a table of other sizes")
