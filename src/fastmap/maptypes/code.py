"""Maps about programs' own code: stack traces, struct_ops, tables of instructions."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Any, Self

import numpy as np

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.enums import ANY, MapFlag, MapType
from fastmap.errors import NotSupported
from fastmap.maptypes.arrays import ArrayMap
from fastmap.maptypes.batch import Array, Batch
from fastmap.maptypes.handle import Map
from fastmap.maptypes.keyed import KeyedMap, Keys
from fastmap.maptypes.reader import Reader, count, sweep
from fastmap.maptypes.rules import Shape, Side, fixed
from fastmap.maptypes.table import Table

#: The frames the kernel keeps of a stack, unless sysctl kernel.perf_event_max_stack says otherwise.
FRAMES = 127
#: A frame of a map with the STACK_BUILD_ID flag. status: 1, the offset is one in the file of that
#: build id; 2, it is an address; 0, there is no frame.
BUILD_ID_FRAME = np.dtype([("status", "i4"), ("build_id", "u1", (20,)), ("offset", "u8")])
_STACK = np.dtype(("u8", (FRAMES,)))


class StackTrace(Table):
    """STACK_TRACE: stacks that programs took, under the ids they got for them.

    A stack is an array of addresses, the innermost first; with the STACK_BUILD_ID flag, of records
    ``status, build_id, offset``. The depth is that of the value dtype: ``("u8", 127)`` where
    nothing else is said. Only programs write; ``m[id]``, `stacks` and iteration give each stack
    without the empty frames behind it, whole reads give rows of the full depth.
    """

    keys_are = fixed("u4")
    values_are = Side(None, usual=_STACK)
    nothing_there = frozenset({errno.E2BIG})

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Choose the dtype of a frame, and check that the value is whole frames."""
        by_build_id = bool(shape.flags & MapFlag.STACK_BUILD_ID)
        frame = 32 if by_build_id else 8
        if by_build_id and shape.value == _STACK:
            shape.value = np.dtype((BUILD_ID_FRAME, (FRAMES,)))
        if shape.value_size % frame:
            raise ValueError(f"value {shape.value} has {shape.value_size} bytes: a stack is whole "
                             f"frames of {frame}")
        if shape.max_entries > 1 << 31:
            raise ValueError(f"max_entries={shape.max_entries}: at most {1 << 31}")

    @classmethod
    def untold(cls, kind: MapType, what: str, size: int) -> np.dtype[Any]:
        """Return an array of addresses; `__new__` knows better where frames are by build id."""
        return np.dtype(("u8", (size // 8,)))

    def __new__(cls, fd: Fd, key: np.dtype[Any] | None, value: np.dtype[Any] | None,
                **more: Any) -> Self:
        return super().__new__(cls, fd, key, _frames(fd, value), **more)

    def __init__(self, fd: Fd, key: np.dtype[Any] | None, value: np.dtype[Any] | None,
                 **more: Any) -> None:
        super().__init__(fd, key, _frames(fd, value), **more)

    def _cut(self, stack: Array) -> Array:
        if not isinstance(stack, np.ndarray) or stack.ndim != 1:
            return stack  # of a dtype of the user's own
        there = stack["status"] if stack.dtype.names and "status" in stack.dtype.names else stack
        if there.dtype.names is not None:
            return stack
        ends = np.flatnonzero(there == 0)
        return stack[:ends[0]] if ends.size else stack

    def lookup_elem(self, key: Any, flags: int) -> Any:
        return self._cut(super().lookup_elem(key, flags))

    def take_elem(self, key: Any, flags: int) -> Any:
        return self._cut(super().take_elem(key, flags))

    def __getitem__(self, key: Any, /) -> Any:
        return self.lookup_elem(key, 0)

    def stacks(self, ids: Keys | None = None) -> dict[int, Array]:
        """Return stacks by their ids, each without the empty frames behind it.

        Parameters
        ----------
        ids : array_like, optional
            All that are in the map, where not given. Those that are not there are left out, as
            are negative ones: errors that `bpf_get_stackid` gave a program.
        """
        if ids is None:
            batch = self.snapshot()
            return dict(zip(batch.keys.tolist(), map(self._cut, batch.values), strict=True))
        given = np.asarray(ids)
        if given.dtype.kind == "i":
            given = given[given >= 0]
        wanted = np.unique(given) if given.size else np.empty(0, "u4")
        values, found = self.lookup_many(wanted)
        return {int(key): self._cut(stack)
                for key, stack, there in zip(wanted, values, found, strict=True) if there}

    def clear(self) -> None:
        """Delete the stacks, in one bounded walk."""
        sweep(self)

    def drain(self) -> Batch:
        """Read the stacks and delete those that were read; see `Reader.drain`."""
        return self.fresh(Reader.drain, None, None, None)

    def __len__(self) -> int:
        return count(self)

    def __bool__(self) -> bool:
        return self.next_key() is not None


def _frames(fd: Fd, value: np.dtype[Any] | None) -> np.dtype[Any] | None:
    """Return the dtype of a stack: addresses that nobody has told are frames by build id there."""
    if value is None or value.subdtype is None or value.subdtype[0] != np.dtype("u8"):
        return value
    if not syscall.map_info(fd)["map_flags"] & MapFlag.STACK_BUILD_ID:
        return value
    return np.dtype((BUILD_ID_FRAME, (value.itemsize // BUILD_ID_FRAME.itemsize,)))


class StructOpsState(IntEnum):
    """``enum bpf_struct_ops_state``."""

    INIT = 0
    INUSE = 1
    TOBEFREE = 2
    READY = 3


class StructOps(KeyedMap):
    """STRUCT_OPS: functions of a kernel struct, implemented by programs; one value, at key 0.

    Loaders of object files make these; here they are opened, and read: the value's dtype is that
    of the kernel's own BTF.
    """

    keys_are = fixed("u4")
    values_are = Side(None, usual=np.dtype("V0"))

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Refuse: what such a map holds is made of programs' functions, by a loader."""
        raise NotSupported(524, "fastmap opens and reads STRUCT_OPS maps, it does not create them: "
                                "a loader of object files (libbpf, bpftool) does")

    @property
    def state(self) -> StructOpsState:
        """INIT: not registered yet; INUSE: the kernel uses it; TOBEFREE; READY: for a link."""
        return StructOpsState(int(_common(self[0])["state"]))

    @property
    def refcnt(self) -> int:
        """How often it is held."""
        held = _common(self[0])["refcnt"]
        while held.dtype.names is not None:  # refcount_t, an atomic_t
            held = held[held.dtype.names[0]]
        return int(held)

    @property
    def data(self) -> Any:
        """The kernel's struct, a record: numbers and names as registered, functions as zeros."""
        return _typed(self[0])["data"]


def _typed(value: Any) -> Any:
    if not isinstance(value, np.void) or value.dtype.names is None:
        raise ValueError("the value's dtype is not known: the map was opened without the BTF of "
                         "the kernel")
    return value


def _common(value: Any) -> Any:
    # Since Linux 6.9 the two have a struct of their own.
    value = _typed(value)
    return value["common"] if "common" in value.dtype.names else value


class InsnArray(ArrayMap):
    """INSN_ARRAY: where instructions of a program went, by index (Linux 6.19).

    Before the program is loaded: write each instruction's number, ``m[0] = 12``, and `freeze`.
    Then the kernel tells where it went: ``xlated_off`` in the program as the kernel keeps it,
    ``jitted_off`` in the machine's code.
    """

    values_are = fixed(np.dtype({"names": ["orig_off", "xlated_off", "jitted_off"],
                                 "formats": ["u4", "u4", "u4"], "itemsize": 16}))

    def _told(self, value: Any) -> Any:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return (value, 0, 0)
        given = value.item() if isinstance(value, np.void) else value
        if isinstance(given, tuple) and len(given) == 3 and (given[1] or given[2]):
            raise ValueError("xlated_off and jitted_off are the kernel's to write: 0, or give the "
                             "number of the instruction alone")
        return value

    def update_elem(self, key: Any, value: Any, flags: int) -> None:
        super().update_elem(key, self._told(value), flags)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        self.update_elem(key, value, ANY)



CLASSES: dict[MapType, type[Map]] = {
    MapType.STACK_TRACE: StackTrace,
    MapType.STRUCT_OPS: StructOps,
    MapType.INSN_ARRAY: InsnArray,
}
