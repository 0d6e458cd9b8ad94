"""Arenas: memory that programs and user space share."""

from __future__ import annotations

import errno
import mmap
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from fastmap._core.maps.map import MapCore
from fastmap._core.system.memory import Mapping as MemoryMapping
from fastmap.enums import MapType
from fastmap.errors import PermissionDenied
from fastmap.maptypes.arrays import window
from fastmap.maptypes.batch import Array
from fastmap.maptypes.handle import Map
from fastmap.maptypes.rules import ABSENT, Shape

#: The most pages of an arena: 4 GiB.
MOST_PAGES = (4 << 30) // mmap.PAGESIZE

# Of this process, by the ids of maps: what is mapped now, and where what was lay. All who map an
# arena see it at one address, which the first of them chooses.
_mapped: WeakValueDictionary[int, MemoryMapping] = WeakValueDictionary()
_addresses: dict[int, int] = {}
_one_at_a_time = Lock()


class Arena(Map, MapCore):
    """ARENA: pages of memory, `max_entries` of them, that programs and user space share.

    Pages come into being where `memory` is first touched, or a program allocates them.
    """

    keys_are = ABSENT
    values_are = ABSENT

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Check what the kernel would refuse without a reason."""
        size = shape.max_entries * mmap.PAGESIZE
        if shape.max_entries > MOST_PAGES:
            raise ValueError(f"max_entries={shape.max_entries}: an arena has at most {MOST_PAGES} "
                             "pages (4 GiB)")
        if shape.map_extra % mmap.PAGESIZE:
            raise ValueError(f"map_extra={shape.map_extra:#x}: an address of whole pages")
        if shape.map_extra and shape.map_extra >> 32 != (shape.map_extra + size - 1) >> 32:
            raise ValueError(f"map_extra={shape.map_extra:#x}: {size} bytes from there cross a "
                             "multiple of 4 GiB")

    @property
    def address(self) -> int:
        """Where programs and all processes see the arena; 0 before this process has mapped it.

        What `fastmap.asm.Assembler.cast_kern` takes are addresses from here on.
        """
        return _addresses.get(self.id, 0) or self.info().map_extra

    def memory(self, writable: bool = False, *, start: int = 0, count: int | None = None,
               address: int = 0) -> Array:
        """Return the arena's bytes, live, without system calls.

        Parameters
        ----------
        writable : bool
            Whether it may be written through the view.
        start, count : int, optional
            The part to return, in bytes.
        address : int
            Where another process has mapped the arena first, unless it was created with
            ``map_extra``: all must see it at the one address. `Arena.address` tells it there.

        Returns
        -------
        ndarray
            Of u1; ``.view("u8")`` and the like make more of it. 8-byte aligned words are read and
            written whole. A page is made when it is first touched, by reading too; what a program
            writes to a page that is not there is lost, without a word.

        Raises
        ------
        PermissionDenied
            To be written, and the arena is frozen.
        BpfError, OSError
            The address is not free, or is not the arena's.

        Notes
        -----
        Linux 6.9. The mapping lives as long as its views. One that is not frozen is mapped to be
        written in any case, so that `freeze` fails with EBUSY while a view lives. A forked child
        has no mapping of it: touching a view made before the fork kills the child (SIGSEGV),
        until it has called ``memory()`` itself, which maps the arena at its address.
        """
        self.fileno()
        size = self.max_entries * mmap.PAGESIZE
        start, count = window(start, count, size, "bytes")
        with _one_at_a_time:
            mapping = _mapped.get(self.id)
            if mapping is None or mapping.lost:
                mapping = self._map(size, address)
        owner: Any = mapping
        if writable and memoryview(owner).readonly:
            raise PermissionDenied(errno.EPERM, "memory(writable=True): the arena is frozen")
        whole = np.frombuffer(owner if writable else memoryview(owner).toreadonly(), np.uint8)
        return whole[start:start + count]

    def _map(self, size: int, address: int) -> MemoryMapping:
        info = self.info()
        there = address or _addresses.get(self.id, 0) or info.map_extra
        try:
            mapping = MemoryMapping(size, self.fd, 0, not info.frozen, there, False)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EBUSY) and not there:
                error.add_note("another process has mapped the arena first, at an address of its "
                               "own: give memory(address=...), or create it with map_extra=")
            elif error.errno == errno.EEXIST:
                error.add_note(f"at {there:#x} this process has something else")
            raise
        _mapped[self.id] = mapping
        _addresses[self.id] = mapping.address
        return mapping


CLASSES: dict[MapType, type[Map]] = {MapType.ARENA: Arena}
