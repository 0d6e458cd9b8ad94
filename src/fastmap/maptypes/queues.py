"""Maps without keys: queues, stacks, Bloom filters."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fastmap._core.maps.map import MapCore
from fastmap._core.maps.queue import contains, contains_rows, pop_rows, push_rows
from fastmap._core.rows.rows import Rows, rows_of
from fastmap._core.system.syscall import rescue
from fastmap.enums import ANY, EXIST, MapType
from fastmap.inkernel.routes import QueueRoute
from fastmap.maptypes.batch import Array
from fastmap.maptypes.handle import Map, check_via
from fastmap.maptypes.rules import ABSENT, Shape

#: A queue pops into so many bytes at first, and goes on into twice as many.
FIRST_ROOM = 1 << 20
#: The most hashes of a Bloom filter, and the kernel's choice.
MOST_HASHES, USUAL_HASHES = 15, 5


class Keyless(Map, MapCore):
    """Values without keys: no `len()` and no iteration, for which the kernel has no command.

    The map itself is the route by system calls: a `QueueRoute`.
    """

    keys_are = ABSENT

    def push_rows(self, values: Rows, flags: int, errnos: Array | None) -> int:
        """Push each value by a system call; see `QueueRoute`."""
        return push_rows(self, values, flags, errnos)

    def pop_rows(self, rows: Array, done: Array, stop: int) -> bool:
        """Pop values by a system call each; see `QueueRoute`."""
        return pop_rows(self, rows, done, stop)

    def queue_route(self, via: str | None, work: str, count: int, flags: int = 0) -> QueueRoute:
        """Return what pushes or pops `count` values: programs, or the map by system calls."""
        via = self.default_via if via is None else check_via(via)
        if via == "syscall" or (via == "auto" and not count):
            return self
        return self.in_kernel().queue_route(self, work, via, count, flags) or self

    def _push_all(self, values: Any, flags: int, errors: str, via: str | None) -> Any:
        if errors not in ("raise", "return"):
            raise ValueError(f"errors={errors!r}: one of raise, return")
        rows = rows_of(values, self.value)
        errnos = np.zeros(rows.count, np.int32) if errors == "return" else None
        applied = self.queue_route(via, "push", rows.count, flags).push_rows(rows, flags, errnos)
        return applied if errnos is None else errnos


class Queue(Keyless):
    """QUEUE: first in, first out.

    >>> q = fastmap.create("queue", value="u8", max_entries=1024)
    >>> q.push(7)
    >>> q.push_many([8, 9])
    2
    >>> q.peek(), q.pop(), q.pop_many(100)
    (7, 7, array([8, 9], dtype=uint64))

    ``bool(q)`` tells whether there is something in it; how many there are, the kernel does not say.

    Notes
    -----
    Linux 4.20.
    """

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Check the size: the kernel counts the bytes of a queue in 32 bits, and may not notice."""
        if (shape.max_entries + 1) * shape.value_size >= 1 << 32:
            raise ValueError(f"(max_entries + 1) * {shape.value_size} bytes must stay below 4 GiB; "
                             f"max_entries={shape.max_entries}")
        if shape.map_extra:
            raise ValueError(f"map_extra={shape.map_extra}: not for {shape.kind.name} maps")

    def push(self, value: Any, *, flags: int = ANY) -> None:
        """Add a value (BPF_MAP_UPDATE_ELEM).

        Parameters
        ----------
        value : object
            Of the value dtype.
        flags : UpdateFlag
            EXIST: where there is no room, the oldest value makes room (of a stack, too).

        Raises
        ------
        MapFull
            There is no room.
        TypeError, ValueError, OverflowError
            The value does not fit the dtype, or another flag; the kernel was not asked.
        """
        self.update_elem(None, value, _checked(flags))

    def push_many(self, values: Any, *, flags: int = ANY, errors: str = "raise",
                  via: str | None = None) -> Any:
        """Add many values, in their order.

        Parameters
        ----------
        values : array_like
            ``(n,)``, of the value dtype and any strides, or a sequence of values.
        flags : UpdateFlag
            As for `push`.
        errors : {"raise", "return"}
            "raise" stops at the first that fails; exactly the first ``.applied`` are pushed.
            "return" attempts all and returns their errnos.
        via : {"auto", "syscall", "kernel"}, optional
            The way; the map's where it is not given.

        Returns
        -------
        int or ndarray
            How many were pushed; or with ``errors="return"`` an int32 array, 0 where pushed.

        Raises
        ------
        BatchError
            Also of the class of the one failure: `MapFull`, `PermissionDenied`, ...

        Notes
        -----
        A system call a value: the kernel has no batch command for queues; or a program in the
        kernel (see docs/inkernel.md). The GIL is released.
        """
        return self._push_all(values, _checked(flags), errors, via)

    def pop(self) -> Any:
        """Take the next value out (BPF_MAP_LOOKUP_AND_DELETE_ELEM).

        Raises
        ------
        KeyNotFound
            It is empty (also a `KeyError`).
        """
        return self.take_elem(None, 0)

    def peek(self) -> Any:
        """Return the next value and leave it there (BPF_MAP_LOOKUP_ELEM).

        Raises
        ------
        KeyNotFound
            It is empty (also a `KeyError`).
        """
        return self.lookup_elem(None, 0)

    def pop_many(self, n: int, *, via: str | None = None) -> Array:
        """Take up to `n` values out.

        Parameters
        ----------
        n : int
        via : {"auto", "syscall", "kernel"}, optional
            The way; the map's where it is not given.

        Returns
        -------
        ndarray
            ``(m,)``, in the order of `pop`. Fewer than `n` where it was empty then.

        Raises
        ------
        BaseException
            Whatever interrupts it, KeyboardInterrupt included, carries as ``.batch`` the array of
            what was taken out until then.

        Notes
        -----
        A system call a value: the kernel has no batch command for queues; or a program in the
        kernel (see docs/inkernel.md). The GIL is released.
        """
        if isinstance(n, bool):
            raise TypeError(f"n is an integer, not {n!r}")
        n = operator.index(n)
        if n < 0:
            raise ValueError(f"n={n}: at least 0")
        return self._popped(n, self.queue_route(via, "pop", n))

    def drain(self, *, via: str | None = None) -> Array:
        """Take all values out, at most ``max_entries``: it ends also while others push.

        As `pop_many` otherwise.
        """
        return self._popped(
            self.max_entries, self.queue_route(via, "pop", self.max_entries))

    def clear(self) -> None:
        """Take all values out, at most ``max_entries``, and forget them."""
        self._popped(self.max_entries, self)

    def _popped(self, limit: int, route: QueueRoute) -> Array:
        base, shape = self.value_dtype.subdtype or (self.value_dtype, ())
        size = self.value_dtype.itemsize
        done = np.zeros(1, np.int64)  # counted up by whoever pops, with each value that is out
        room = min(limit, max(1, FIRST_ROOM // size))
        raw = np.empty((room, size), np.uint8)
        try:
            while route.pop_rows(raw, done, room) and room < limit:
                room = min(limit, 2 * room)
                more = np.empty((room, size), np.uint8)
                more[:len(raw)] = raw
                raw = more
            count = int(done[0])
            if 2 * count < room:  # what is kept is not mostly nothing
                raw = raw[:count].copy()
            return _typed(raw, count, base, shape)
        except BaseException as error:
            rescue(error, lambda: _typed(raw, int(done[0]), base, shape))
            raise

    def __bool__(self) -> bool:
        return self.holds(None)


def _typed(raw: Array, count: int, base: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return the first `count` rows of bytes as values."""
    values: Array = raw[:count].reshape(-1).view(base).reshape(count, *shape)
    return values


def _checked(flags: int) -> int:
    if flags not in (ANY, EXIST):
        raise ValueError(f"flags={flags!r}: ANY, or EXIST for the oldest value to make room")
    return flags


class Stack(Queue):
    """STACK: last in, first out.

    >>> s = fastmap.create("stack", value="u8", max_entries=1024)
    >>> s.push_many([7, 8, 9])
    3
    >>> s.pop(), s.pop_many(100)
    (9, array([8, 7], dtype=uint64))

    As a `Queue` otherwise.
    """


class BloomFilter(Keyless):
    """BLOOM_FILTER: a set that can answer "perhaps" for what is not in it, but never misses.

    >>> seen = fastmap.create("bloom_filter", value="u8", max_entries=100_000, map_extra=3)
    >>> seen.add(7)
    >>> seen.add_many([8, 9])
    2
    >>> 7 in seen, seen.contains_many([7, 8, 10**9]), seen.hashes
    (True, array([ True,  True, False]), 3)

    Nothing can be taken out or counted. ``map_extra`` of `create` is the number of hashes, 1 to 15;
    ``max_entries`` is how many values it is made for: with more of them, "perhaps" is said more
    often.

    Notes
    -----
    Linux 5.16.
    """

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Check the number of hashes."""
        if shape.map_extra > MOST_HASHES:
            raise ValueError(f"map_extra={shape.map_extra}: of a Bloom filter it is the number of "
                             f"hashes, 1 to {MOST_HASHES}, or 0 for the kernel's {USUAL_HASHES}")

    @property
    def hashes(self) -> int:
        """The number of hashes of a value."""
        return self.info().map_extra & MOST_HASHES or USUAL_HASHES

    def add(self, value: Any) -> None:
        """Put a value into the set (BPF_MAP_UPDATE_ELEM).

        Raises
        ------
        TypeError, ValueError, OverflowError
            The value does not fit the dtype; the kernel was not asked.
        """
        self.update_elem(None, value, ANY)

    def add_many(self, values: Any, *, errors: str = "raise", via: str | None = None) -> Any:
        """Put many values into the set; parameters and result are those of `Queue.push_many`."""
        return self._push_all(values, ANY, errors, via)

    def __contains__(self, value: Any, /) -> bool:
        return contains(self, value)

    def contains_many(self, values: Any, *, via: str | None = None) -> Array:
        """Tell for many values whether they may be in the set.

        Parameters
        ----------
        values : array_like
            ``(n,)``, of the value dtype and any strides, or a sequence of values.
        via : {"auto", "syscall", "kernel"}, optional
            The way; the map's where it is not given.

        Returns
        -------
        ndarray of bool
            ``(n,)``. False: the value was never added. True: it was, or it only seems so.

        Raises
        ------
        BatchError
            Also of the class of the one failure, such as `PermissionDenied`.
        """
        rows = rows_of(values, self.value)
        self.queue_route(via, "", rows.count)
        found = np.zeros(rows.count, np.bool_)
        contains_rows(self, rows, found)
        return found


CLASSES: dict[MapType, type[Map]] = {
    MapType.QUEUE: Queue,
    MapType.STACK: Stack,
    MapType.BLOOM_FILTER: BloomFilter,
}
