"""Ring buffers: records from programs, and to them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import operator
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from fastmap._core.maps.map import MapCore
from fastmap._core.rows.codec import codec_of
from fastmap._core.rows.rows import Rows, rows_of
from fastmap._core.streams.ring import Ring as RingCore
from fastmap._core.streams.ring import gather
from fastmap._core.streams.user_ring import UserRing as UserCore
from fastmap._core.system.syscall import Fd
from fastmap.dtypes import parse, slots
from fastmap.enums import MapFlag, MapType
from fastmap.errors import PermissionDenied, RingFull
from fastmap.maptypes.batch import Array
from fastmap.maptypes.consumer import Consumer, seconds_of
from fastmap.maptypes.handle import Map
from fastmap.maptypes.keyed import KeyedMap
from fastmap.maptypes.rules import ABSENT, Shape
from fastmap.maptypes.stream_batch import Kinds, Record, StreamBatch


class Positions(Protocol):
    """What is compiled of a ring."""

    @property
    def consumed(self) -> int:
        """Bytes that were ever given back."""

    @property
    def produced(self) -> int:
        """Bytes that were ever reserved."""


class Ring(Map, MapCore):
    """What both rings share: neither keys nor values, and a size in bytes as `max_entries`."""

    keys_are = ABSENT
    values_are = ABSENT

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Refuse a size that is no power of two, or no whole pages."""
        size = shape.max_entries
        if size & (size - 1) or size % mmap.PAGESIZE:
            raise ValueError(f"max_entries={size}: a ring's size in bytes is a power of two, and "
                             f"at least a page ({mmap.PAGESIZE})")

    def _mapped(self) -> Positions:
        """Return what is compiled of the ring, mapped at the first use."""
        raise NotImplementedError

    def _demand_both(self) -> None:
        """Refuse a handle that may not read or not write: both sides' positions are mapped."""
        if fcntl.fcntl(self.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise PermissionDenied(errno.EACCES, "a ring needs a handle that reads and writes, for "
                                   "its positions are memory that is shared with the kernel: open "
                                   "it without readonly= and writeonly=")

    @property
    def size(self) -> int:
        """Bytes the ring has for records and their headers."""
        return self.max_entries

    @property
    def consumed(self) -> int:
        """Bytes that their reader ever gave back; it only grows."""
        return self._mapped().consumed

    @property
    def produced(self) -> int:
        """Bytes that were ever reserved for records; it only grows."""
        return self._mapped().produced

    @property
    def available(self) -> int:
        """Bytes that wait: records with their headers, also those not submitted yet."""
        core = self._mapped()
        consumed = core.consumed  # first: what comes in between makes it more, not negative
        return max(core.produced - consumed, 0)

    @property
    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        return min(self.available / self.size, 1.0)


class RingBuffer(Ring, Consumer):
    """RINGBUF: records from programs to user space.

    Nothing is mapped or consumed before the first read. A ring has one reader: it belongs to one
    thread at a time, and to the process that opened it.

    With ``flags=MapFlag.RB_OVERWRITE`` (Linux 6.19) programs overwrite the oldest records where
    there is no room, and find none only where one that is not submitted is in the way. What is
    read, a lease too, is a copy then, made before it is looked at; `overwritten` tells how far the
    programs have come.

    Attributes
    ----------
    size : int
        Bytes the ring has for records and their headers.

    Examples
    --------
    >>> rb = fastmap.create("ringbuf", max_entries=1 << 20, record=[("pid", "u4"), ("ns", "u8")])
    >>> with rb.lease(timeout=0.1) as batch:
    ...     newest = batch.records["ns"].max(initial=0)
    """

    def __init__(self, fd: Fd, key: None, value: None, *, record: Record = None,
                 tag: str | None = None, dtype_source: str = "given", via: str = "auto") -> None:
        super().__init__(fd, key, value, dtype_source=dtype_source, via=via)
        self._kinds = Kinds(record, tag)
        self._given = {"record": record, "tag": tag}
        self._core: RingCore | None = None
        self._bytes: Array = np.empty(0, np.uint8)
        self._drops: tuple[KeyedMap, int] | None = None

    def _mapped(self) -> RingCore:
        core = self._core
        if core is None:
            self._demand_both()
            core = RingCore(self.fd, self.max_entries, bool(self.flags & MapFlag.RB_OVERWRITE))
            self._bytes = slots(core.pages, np.dtype("u1"), 1, len(core.pages))
            self._core = core
        return core

    def close(self) -> None:
        """Close the handle, once calls of other threads are out of it. Views stay valid.

        A reader that waits in another thread wakes up, within 50 ms, with a `ValueError`.
        """
        super().close()
        self._core = None
        self._bytes = np.empty(0, np.uint8)

    @property
    def overwritten(self) -> int:
        """Bytes that programs ever gave up for newer records; 0 without RB_OVERWRITE.

        Those from `consumed` on were never read.
        """
        return self._mapped().overwritten

    @property
    def available(self) -> int:
        """Bytes that wait: records with their headers, also those not submitted yet."""
        core = self._mapped()
        gone = max(core.consumed, core.overwritten)  # first: what comes in between makes it more
        return min(max(core.produced - gone, 0), self.size)

    def count_drops(self, counter: KeyedMap, index: int = 0) -> None:
        """Name the counter that programs bump when the ring is full: see `dropped`.

        Parameters
        ----------
        counter : ArrayMap or PerCpuArrayMap
            Of integers; those of all CPUs are summed.
        index : int
        """
        counter.lookup(index)
        self._drops = counter, index

    @property
    def dropped(self) -> int | None:
        """What the counter of `count_drops` says; None without one: a ring counts no drops."""
        if self._drops is None:
            return None
        counter, index = self._drops
        return int(np.sum(counter.lookup(index), dtype=np.uint64))

    # ---- reading -------------------------------------------------------------------------------

    def _taken(self, core: RingCore, most: int, out: Array | None) -> StreamBatch:
        if core.overwriting:
            return self._newest(core, most, out)
        length, waiting = core.peek()
        if length < 0:
            return StreamBatch.empty(self._kinds)
        step = (length + 15) // 8 * 8
        bound = min(most, waiting // step)
        if out is None:
            rows = np.empty((bound, length), np.uint8)
        elif length != out.dtype.itemsize:
            raise _other_size(length, out)
        else:
            rows = out[:bound].view(np.uint8).reshape(bound, length)
        n = core.take(rows, length)
        batch = StreamBatch(self._kinds, rows[:n].reshape(-1), n, length=length, step=length)
        # What waited beside these: records of other lengths, which may be shorter.
        if n < most and n * step < waiting and out is None and core.lease(most - n):
            try:
                return _joined(batch, self._leased(core))
            finally:
                core.give_back()
        return batch

    def _newest(self, core: RingCore, most: int, out: Array | None) -> StreamBatch:
        """Take what programs have not overwritten: a lease has copied it already."""
        length = -1 if out is None else out.dtype.itemsize
        if not core.lease(most, length):
            if out is not None and core.length != length:
                raise _other_size(core.length, out)
            return StreamBatch.empty(self._kinds)
        try:
            batch = self._leased(core)
        finally:
            core.give_back()
        if out is None:
            return batch
        rows = out[:len(batch)].view(np.uint8)
        gather(batch.data, batch.offsets, length, rows)
        return StreamBatch(self._kinds, rows, len(batch), length=length, step=length)

    def _leased(self, core: RingCore) -> StreamBatch:
        data = self._bytes
        if core.overwriting:  # this lease's own
            data = slots(core.copied, np.dtype("u1"), 1, len(core.copied))
        if core.length >= 0:
            return StreamBatch(self._kinds, data, core.count, first=core.first,
                               length=core.length, step=core.step)
        # Copies: the next lease writes its own there.
        offsets = slots(core.offsets, np.dtype("i8"), 8, core.count).copy()
        lengths = slots(core.lengths, np.dtype("u4"), 4, core.count).copy()
        return StreamBatch(self._kinds, data, core.count, length=-1, offsets=offsets,
                           lengths=lengths)


def _other_size(length: int, out: Array) -> ValueError:
    return ValueError(f"the next record has {length} bytes, out has {out.dtype.itemsize}")


def _joined(one: StreamBatch, other: StreamBatch) -> StreamBatch:
    """Return one batch of both; `one` is a copy already."""
    if not len(one):
        return other.copy()
    rest = other.copy()
    start = len(one.data)
    return StreamBatch(
        one._kinds, np.concatenate([one.data, rest.data]), len(one) + len(rest), length=-1,
        offsets=np.concatenate([one.offsets, rest.offsets + start]),
        lengths=np.concatenate([one.lengths, rest.lengths]))


class Reservation:
    """Room for one record in a `UserRingBuffer`: fill it, then submit or discard it.

    As a context it is submitted at the end of the block, and discarded where the block raises.
    Programs see no later record before this one is submitted or discarded; one that is forgotten
    is discarded. Views of it stay valid, but what they show and change afterwards is the ring.
    """

    __slots__ = ("_bytes", "_core", "_dtype", "_offset", "_size")

    def __init__(self, core: UserCore, pages: Array, offset: int, size: int,
                 dtype: np.dtype[Any] | None) -> None:
        self._core: UserCore | None = core
        self._offset, self._size = offset, size
        self._bytes = pages[offset:offset + size]
        self._dtype = dtype

    @property
    def data(self) -> memoryview:
        """Its bytes, to write to; whatever stood there in the ring before, at first."""
        return memoryview(self._bytes)  # type: ignore[arg-type]

    @property
    def record(self) -> Array:
        """It as one record of the ring's dtype, a 0-d array to write to."""
        if self._dtype is None or self._dtype.itemsize != self._size:
            raise ValueError(f"{self._size} bytes are no record of the dtype {self._dtype}")
        return self._bytes.view(self._dtype).reshape(())

    def submit(self) -> None:
        """Let programs have it."""
        self._finish(discard=False)

    def discard(self) -> None:
        """Let programs skip it."""
        self._finish(discard=True)

    def _finish(self, *, discard: bool) -> None:
        core, self._core = self._core, None
        if core is None:
            raise ValueError("the record was submitted or discarded already")
        core.finish(self._offset, self._size, discard)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._core is not None:
            self._finish(discard=kind is not None)

    def __del__(self) -> None:
        if self._core is not None:
            self._finish(discard=True)


class UserRingBuffer(Ring):
    """USER_RINGBUF: records from user space to programs, which drain it when they run.

    A ring has one writer: this handle, in the process that opened it. Several records may be
    reserved at a time; programs get them in the order of reservation.

    Examples
    --------
    >>> ring = fastmap.create("user_ringbuf", max_entries=1 << 20, record=[("n", "u8")])
    >>> with ring.reserve() as slot:
    ...     slot.record["n"] = 7
    >>> ring.write_many(np.arange(1000, dtype="u8").view([("n", "u8")]))
    1000
    """

    def __init__(self, fd: Fd, key: None, value: None, *, record: Record = None,
                 tag: str | None = None, dtype_source: str = "given", via: str = "auto") -> None:
        super().__init__(fd, key, value, dtype_source=dtype_source, via=via)
        if isinstance(record, Mapping) or tag is not None:
            raise TypeError("a user ring buffer has one record=, or none: write_many takes arrays "
                            "of any dtype then")
        self._record = Kinds(record, None).one
        self._given = {"record": record}
        self._core: UserCore | None = None
        self._bytes: Array = np.empty(0, np.uint8)

    def _mapped(self) -> UserCore:
        core = self._core
        if core is None:
            self._demand_both()
            core = UserCore(self.fd, self.max_entries)
            self._bytes = slots(core.pages, np.dtype("u1"), 1, len(core.pages))
            self._core = core
        return core

    def close(self) -> None:
        """Close the handle, once calls of other threads are out of it. Views stay valid.

        What is reserved can still be submitted.
        """
        super().close()
        self._core = None
        self._bytes = np.empty(0, np.uint8)

    def reserve(self, size: int | None = None, timeout: float | None = 0) -> Reservation:
        """Return room for one record.

        Parameters
        ----------
        size : int, optional
            Bytes; those of the ring's dtype where it has one.
        timeout : float, optional
            Seconds to wait for room; 0 never waits, None waits as long as it takes.

        Returns
        -------
        Reservation

        Raises
        ------
        RingFull
            A `BlockingIOError`: there is no room, in time.
        """
        length = self._length(size)
        seconds = seconds_of(timeout)
        core = self._mapped()
        deadline = None if seconds < 0 else time.monotonic() + seconds
        while (offset := core.reserve(length)) < 0:
            if not core.wait(length, _left(deadline)):
                raise RingFull(f"no room for {length} bytes", 0)
        return Reservation(core, self._bytes, offset, length, self._record)

    def _length(self, size: int | None) -> int:
        if size is None:
            if self._record is None:
                raise TypeError("size= is needed: this ring has no record=")
            return self._record.itemsize
        length = operator.index(size)
        if isinstance(size, bool):
            raise TypeError(f"size is an integer, not {size!r}")
        return length

    def write_many(self, records: Any, timeout: float | None = 0) -> int:
        """Submit many records of one size, in their order; no loop of reserve and submit.

        Parameters
        ----------
        records : ndarray or sequence
            One-dimensional, of the ring's dtype or what can be converted to it without loss; of a
            ring without one, an array of any plain dtype.
        timeout : float, optional
            Seconds to wait for room, all in all; 0 never waits, None waits as long as it takes.

        Returns
        -------
        int
            How many there were.

        Raises
        ------
        RingFull
            A `BlockingIOError`: there was no room for all, in time. Exactly the first ``.applied``
            records were submitted.
        """
        seconds = seconds_of(timeout)
        rows = self._rows(records)
        core = self._mapped()
        deadline = None if seconds < 0 else time.monotonic() + seconds
        done = core.write(rows, 0)
        try:
            while done < rows.count:
                if not core.wait(rows.size, _left(deadline)):
                    raise RingFull(f"room for {done} of {rows.count} records", done)
                done += core.write(rows, done)
        except KeyboardInterrupt as stop:
            stop.applied = done  # type: ignore[attr-defined]
            raise
        return done

    def _rows(self, records: Any) -> Rows:
        dtype = self._record
        if dtype is None:
            if not isinstance(records, np.ndarray):
                raise TypeError("a ring without record= takes arrays, not "
                                f"{type(records).__name__}")
            dtype = parse(records.dtype, "record")
        return rows_of(records, codec_of(dtype, "record"))


def _left(deadline: float | None) -> float:
    return -1 if deadline is None else max(deadline - time.monotonic(), 0)


CLASSES: dict[MapType, type[Map]] = {
    MapType.RINGBUF: RingBuffer,
    MapType.USER_RINGBUF: UserRingBuffer,
}
