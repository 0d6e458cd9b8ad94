"""Maps without keys: queues, stacks, Bloom filters."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, ClassVar, NoReturn

import numpy as np

from fastmap._core.map import MapCore
from fastmap._core.queue import contains, contains_rows, pop_rows, push_rows
from fastmap._core.rows import rows_of
from fastmap.accel import Loops
from fastmap.enums import ANY, EXIST, MapType
from fastmap.errors import NotSupported
from fastmap.maps.base import Map
from fastmap.maps.batch import Array
from fastmap.maps.rules import ABSENT, Described, Shape

#: A queue pops into so many bytes at first, and goes on into twice as many.
FIRST_ROOM = 1 << 20
#: The most hashes of a Bloom filter, and the kernel's choice.
MOST_HASHES, USUAL_HASHES = 15, 5


class Keyless(Map):
    """Values without keys. What takes a key is refused; there is no ``len()`` and no iteration.

    (The kernel has no command that counts, or walks.)
    """

    keys_are = ABSENT
    described: ClassVar[Described] = "never"
    __iter__ = None

    #: What to use instead of commands with keys.
    _instead = ""

    def _refused(self) -> NotSupported:
        self.fileno()  # a closed map is an error of its own
        return NotSupported(95, f"a map of type {self.type.name} has no keys: {self._instead}")

    def __getitem__(self, key: Any, /) -> NoReturn:
        raise TypeError(f"a map of type {self.type.name} has no keys: {self._instead}")

    def __setitem__(self, key: Any, value: Any, /) -> None:
        self[key]

    def __delitem__(self, key: Any, /) -> None:
        self[key]

    def __contains__(self, value: Any, /) -> bool:
        raise TypeError(f"a map of type {self.type.name} cannot be searched: {self._instead}")

    def lookup(self, key: Any, *, flags: int = 0) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def update(self, key: Any, value: Any, *, flags: int = ANY) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def delete(self, key: Any) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def lookup_and_delete(self, key: Any) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def get(self, key: Any, default: Any = None) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def update_many(self, keys: Any, values: Any, **_: Any) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def delete_many(self, keys: Any, **_: Any) -> NoReturn:
        """Refuse: there are no keys."""
        raise self._refused()

    def _push_all(self, values: Any, flags: int, errors: str, via: str | None) -> Any:
        if errors not in ("raise", "return"):
            raise ValueError(f"errors={errors!r}: one of raise, return")
        rows = rows_of(values, self._value)
        errnos = np.zeros(rows.count, np.int32) if errors == "return" else None
        loops = self._way(via, "push", rows.count, flags)
        by_call = partial(push_rows, self, rows, flags, errnos)
        applied = (loops.push_rows(rows, flags, errnos, by_call) if isinstance(loops, Loops)
                   else by_call())
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

    _instead = "push, pop, peek, push_many, pop_many, drain"

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
        self._update(None, value, _checked(flags))

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
        kernel (see README). The GIL is released.
        """
        return self._push_all(values, _checked(flags), errors, via)

    def pop(self) -> Any:
        """Take the next value out (BPF_MAP_LOOKUP_AND_DELETE_ELEM).

        Raises
        ------
        KeyNotFound
            It is empty (also a `KeyError`).
        """
        return self._lookup_and_delete(None, 0)

    def peek(self) -> Any:
        """Return the next value and leave it there (BPF_MAP_LOOKUP_ELEM).

        Raises
        ------
        KeyNotFound
            It is empty (also a `KeyError`).
        """
        return self._lookup(None, 0)

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
        kernel (see README). The GIL is released.
        """
        if isinstance(n, bool):
            raise TypeError(f"n is an integer, not {n!r}")
        n = operator.index(n)
        if n < 0:
            raise ValueError(f"n={n}: at least 0")
        return self._popped(n, self._way(via, "pop", n))

    def drain(self, *, via: str | None = None) -> Array:
        """Take all values out, at most ``max_entries``: it ends also while others push.

        As `pop_many` otherwise.
        """
        return self._popped(self.max_entries, self._way(via, "pop", self.max_entries))

    def clear(self) -> None:
        """Take all values out, at most ``max_entries``, and forget them."""
        self._popped(self.max_entries, self)

    def _popped(self, limit: int, loops: MapCore | Loops) -> Array:
        base, shape = self.value_dtype.subdtype or (self.value_dtype, ())
        size = self.value_dtype.itemsize
        done = np.zeros(1, np.int64)
        room = min(limit, max(1, FIRST_ROOM // size))
        raw = np.empty((room, size), np.uint8)
        try:
            while self._pop_into(raw, done, room, loops) and room < limit:
                room = min(limit, 2 * room)
                more = np.empty((room, size), np.uint8)
                more[:len(raw)] = raw
                raw = more
            count = int(done[0])
            if 2 * count < room:  # what is kept is not mostly nothing
                raw = raw[:count].copy()
            return _typed(raw, count, base, shape)
        except BaseException as error:
            error.batch = _typed(raw, int(done[0]), base, shape)  # type: ignore[attr-defined]
            raise

    def _pop_into(self, raw: Array, done: Array, room: int, loops: MapCore | Loops) -> bool:
        """Go on popping into `raw`, up to row `room`; whether there may be more."""
        if not isinstance(loops, Loops):
            return pop_rows(self, raw, done, room)
        before = int(done[0])

        def by_call() -> int:
            pop_rows(self, raw, done, room)
            return int(done[0]) - before

        try:
            count = loops.pop_rows(raw[before:room], by_call)
        except BaseException as error:
            done[0] = max(int(done[0]), before + getattr(error, "applied", 0))
            raise
        done[0] = before + count
        return before + count == room

    def __bool__(self) -> bool:
        return self._present(None)


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

    described = "may"
    _instead = "add, in, add_many, contains_many"

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
        self._update(None, value, ANY)

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
        self._way(via)
        rows = rows_of(values, self._value)
        found = np.zeros(rows.count, np.bool_)
        contains_rows(self, rows, found)
        return found


CLASSES: dict[MapType, type[Map]] = {
    MapType.QUEUE: Queue,
    MapType.STACK: Stack,
    MapType.BLOOM_FILTER: BloomFilter,
}
