"""Arrays, and their memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from mmap import PAGESIZE
from typing import Any

import numpy as np

from fastmap._core.system.memory import Mapping as MemoryMapping
from fastmap._core.system.syscall import fdinfo
from fastmap.dtypes import slots
from fastmap.enums import MapFlag, MapType
from fastmap.errors import ENOTSUPP, NotSupported, PermissionDenied
from fastmap.maptypes.batch import Array
from fastmap.maptypes.handle import Map
from fastmap.maptypes.rules import INDEX
from fastmap.maptypes.table import PerCpu, Table
from fastmap.maptypes.variables import Variables

#: `clear` writes so many bytes with a call.
CLEARED_BYTES = 4 << 20


class ArrayMap(Table):
    """ARRAY: the keys are the numbers from 0 to ``max_entries - 1``, and always there."""

    indexed = True
    keys_are = INDEX

    def __len__(self) -> int:
        self.fileno()  # a closed map has no length either
        return self.max_entries

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def delete(self, key: Any) -> None:
        """Refuse: an array's elements cannot be deleted, only overwritten."""
        self.fileno()
        raise NotSupported(22, "an array's elements cannot be deleted: write zeros instead")

    def clear(self) -> None:
        """Write zeros to all elements, of all CPUs."""
        zero = np.zeros((), self.value_dtype)
        step = max(1, CLEARED_BYTES // (self.value.size + 4))
        for start in range(0, len(self), step):
            indexes = np.arange(start, min(start + step, self.max_entries), dtype="u4")
            self.update_many(indexes, zero if zero.ndim else zero[()])

    def memory(self, writable: bool = False, *, start: int = 0,
               count: int | None = None) -> Array:
        """Return the array's own memory in the kernel, live, without system calls.

        Parameters
        ----------
        writable : bool
            Whether it may be written through the view.
        start, count : int, optional
            The elements to map, where it is not all of them: the window of a huge map.

        Returns
        -------
        ndarray
            ``(max_entries,)``, or ``(count,)``, of the value dtype. The mapping lives as long as
            its views, also after ``close()``.

        Raises
        ------
        NotSupported
            The map was not created with the MMAPABLE flag (Linux 5.5), is per-CPU, or has values
            with a lock, a timer or the like.
        PermissionDenied
            The handle is read-only or write-only; or to be written, the map is frozen, or
            RDONLY_PROG. The message says which.

        Notes
        -----
        Aligned words of 8 bytes and less are read and written whole; a larger value can tear:
        part of it is from before a program's write, part from after. Where that matters, let the
        fields that belong together share one word; or let the program write to one of two
        elements in turn, and tell in a word of its own which is whole (stored last, read first
        and again afterwards); or use system calls on a map with a `fastmap.spin_lock`.
        """
        self.fileno()
        if not self.flags & MapFlag.MMAPABLE:
            raise NotSupported(95, "memory() needs an array created with MapFlag.MMAPABLE"
                               + ", which no per-CPU array can be" * self.per_cpu)
        start, count = window(start, count, self.max_entries, "elements")
        stride = (self.value_dtype.itemsize + 7) // 8 * 8
        skip = start * stride % PAGESIZE
        try:
            mapping = MemoryMapping(skip + count * stride, self.fd, start * stride - skip,
                                    writable)
        except OSError as error:
            raise self._unmapped(error, writable) from error
        return slots(mapping, self.value_dtype, stride, count, skip)

    def _unmapped(self, error: OSError, writable: bool) -> OSError:
        """Return what it means that the kernel did not map the array."""
        if error.errno == ENOTSUPP:
            return NotSupported(ENOTSUPP, "the kernel maps no array whose values hold a lock, a "
                                          "timer or the like")
        info = fdinfo(self.fd)
        mode = int(info.get("flags", "2"), 8) & 3
        if mode != 2:
            kind = "write" if mode else "read"
            why = (f"this handle is {kind}-only, and the kernel maps none of these, not even to "
                   "read: take one that may read and write; the view is read-only all the same")
        elif writable and info.get("frozen") == "1":
            why = "the map is frozen; memory() without writable=True reads it"
        elif writable and self.flags & MapFlag.RDONLY_PROG:
            why = ("the map is RDONLY_PROG, which the kernel maps to be read only; memory() "
                   "without writable=True reads it, and update() writes")
        else:
            return error
        return PermissionDenied(error.errno or 0, why)

    @property
    def variables(self) -> Variables:
        """The global variables in a program's `.bss`, `.data` or `.rodata` map, by name, live.

        Each is an array on the map's own memory: 0-d for a scalar, of its shape for an array.
        They may be written where the map may be, as ``variables[name] = value`` or through the
        array; those of `.rodata` are read-only. Asking maps the memory anew: keep the result, and
        let go of it before `freeze`, which the kernel refuses while memory is mapped writable.

        Raises
        ------
        TypeError
            The map holds no global variables, or none that BTF describes; or the ``value=`` given
            has no fields.
        NotSupported
            The map cannot be mapped (before Linux 5.5).
        PermissionDenied
            The handle is read-only or write-only; or nobody has told the names: reading them when
            the map is opened takes CAP_SYS_ADMIN, or give ``value=``.

        Notes
        -----
        8-byte aligned words are read and written whole; larger values can tear while a program
        writes them.
        """
        info = self.info()
        # A value with BTF and a key without: the kernel has that for the variables of a section.
        if not info.btf_value_type_id or info.btf_key_type_id:
            raise TypeError(f"map {self.name!r} holds no global variables that BTF describes")
        if self.value_dtype.names is None and self.dtype_source == "given":
            raise TypeError(f"the value is {self.value_dtype}: it has no fields to be variables")
        if self.value_dtype.names is None:
            raise PermissionDenied(1, "the names of variables stand in the map's BTF: opening it "
                                   "with them takes CAP_SYS_ADMIN, or give value=")
        fixed = info.frozen or bool(info.map_flags & MapFlag.RDONLY_PROG)
        return Variables(self.memory(writable=not fixed))


def window(start: int, count: int | None, there: int, what: str) -> tuple[int, int]:
    """Return `start` and `count`, checked to be at least one of the `there` that there are."""
    start = operator.index(start)
    count = there - start if count is None else operator.index(count)
    if start < 0 or count < 1 or start + count > there:
        raise ValueError(f"start={start}, count={count}: a part of {there} {what}, at least one")
    return start, count


class PerCpuArrayMap(PerCpu, ArrayMap):
    """PERCPU_ARRAY: a value is an array ``(cpus,)``."""


CLASSES: dict[MapType, type[Map]] = {
    MapType.ARRAY: ArrayMap,
    MapType.PERCPU_ARRAY: PerCpuArrayMap,
}
