"""Ring buffers: records from programs, and to them."""

from __future__ import annotations

import asyncio
import mmap
import select
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from fastmap._core.ring import Ring as RingCore
from fastmap._core.syscall import Fd
from fastmap.dtypes import slots
from fastmap.enums import MapType
from fastmap.maps.base import Array, Map
from fastmap.maps.records import Kinds, Record, StreamBatch
from fastmap.maps.rules import ABSENT, Shape

#: So often a waiting reader looks for records whose producers wake nobody up, in seconds.
TICK = 0.05
_RECORD, _WAITING = 1, 2  # what RingCore.head says


class Ring(Map):
    """What both rings share: neither keys nor values, and a size in bytes as `max_entries`."""

    keys_are = ABSENT
    values_are = ABSENT
    described = "never"

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Refuse a size that is no power of two, or no whole pages."""
        size = shape.max_entries
        if size & (size - 1) or size % mmap.PAGESIZE:
            raise ValueError(f"max_entries={size}: a ring's size in bytes is a power of two, and "
                             f"at least a page ({mmap.PAGESIZE})")


class RingBuffer(Ring):
    """RINGBUF: records from programs to user space.

    Nothing is mapped or consumed before the first read. A ring has one reader: it belongs to one
    thread at a time, and to the process that opened it.

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
        self._core: RingCore | None = None
        self._bytes: Array = np.empty(0, np.uint8)
        self._drops: tuple[Map, int] | None = None

    def _mapped(self) -> RingCore:
        core = self._core
        if core is None:
            self.fileno()
            core = RingCore(self._fd, self.max_entries)
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

    # ---- what is in it -------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes the ring has for records and their headers."""
        return self.max_entries

    @property
    def consumed(self) -> int:
        """Bytes that were ever given back by readers; it only grows."""
        return self._mapped().consumed

    @property
    def produced(self) -> int:
        """Bytes that were ever reserved by programs; it only grows."""
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

    def count_drops(self, counter: Map, index: int = 0) -> None:
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

    def read(self, max: int | None = None, timeout: float | None = None, *,
             out: Array | None = None) -> StreamBatch:
        """Return the records that are there, as copies, and give their space back.

        Parameters
        ----------
        max : int, optional
            At most so many records.
        timeout : float, optional
            Seconds to wait for the first record; 0 never waits, None waits as long as it takes.
        out : ndarray, optional
            Where the records go: one-dimensional, C-contiguous, of the stream's dtype. At most
            ``len(out)`` are read, and none of another size.

        Returns
        -------
        StreamBatch
            Empty where no record came in time.
        """
        core = self._mapped()
        most = _most(max)
        if out is not None:
            most = min(most, self._check_out(out))
        if most == 0 or not self._ready(core, timeout):
            return StreamBatch.empty(self._kinds)
        return self._taken(core, most, out)

    def _taken(self, core: RingCore, most: int, out: Array | None) -> StreamBatch:
        length, waiting = core.peek()
        if length < 0:
            return StreamBatch.empty(self._kinds)
        bound = min(most, waiting // ((length + 15) // 8 * 8))
        if out is None:
            rows = np.empty((bound, length), np.uint8)
        elif length != out.dtype.itemsize:
            raise ValueError(f"the next record has {length} bytes, out has {out.dtype.itemsize}")
        else:
            rows = out[:bound].view(np.uint8).reshape(bound, length)
        n = core.take(rows, length)
        batch = StreamBatch(self._kinds, rows[:n].reshape(-1), n, length=length, step=length)
        if n < bound and out is None and core.lease(most - n):
            try:
                return _joined(batch, self._leased(core))
            finally:
                core.give_back()
        return batch

    def _check_out(self, out: Any) -> int:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out is an ndarray, not {type(out).__name__}")
        if self._kinds.each:
            raise TypeError("records of several kinds go into no array")
        if self._kinds.one is not None and out.dtype != self._kinds.one:
            raise TypeError(f"out has the dtype {out.dtype}, not {self._kinds.one}")
        if out.ndim != 1 or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError("out is one-dimensional, C-contiguous and writable")
        return len(out)

    @contextmanager
    def lease(self, max: int | None = None,
              timeout: float | None = None) -> Iterator[StreamBatch]:
        """Lend out the records that are there, as views on the ring itself.

        The end of the ``with`` block gives their space back to the kernel, which overwrites it
        sooner or later: views that are kept stay readable, and show what stands there then.
        ``batch.copy()`` keeps what they show now.

        Parameters
        ----------
        max, timeout
            As for `read`.

        Yields
        ------
        StreamBatch
            Empty where no record came in time.
        """
        core = self._mapped()
        most = _most(max)
        if most == 0 or not self._ready(core, timeout) or not core.lease(most):
            yield StreamBatch.empty(self._kinds)
            return
        try:
            yield self._leased(core)
        finally:
            core.give_back()

    def _leased(self, core: RingCore) -> StreamBatch:
        if core.length >= 0:
            return StreamBatch(self._kinds, self._bytes, core.count, first=core.first,
                               length=core.length, step=core.step)
        # Copies: the next lease writes its own there.
        offsets = slots(core.offsets, np.dtype("i8"), 8, core.count).copy()
        lengths = slots(core.lengths, np.dtype("u4"), 4, core.count).copy()
        return StreamBatch(self._kinds, self._bytes, core.count, length=-1, offsets=offsets,
                           lengths=lengths)

    def _ready(self, core: RingCore, timeout: float | None) -> bool:
        if timeout is None:
            return core.wait(-1)
        if not timeout >= 0:
            raise ValueError(f"timeout={timeout}: seconds, 0 or more")
        return core.wait(timeout)

    def ready(self) -> bool:
        """Tell whether a record can be read now."""
        return self._mapped().head() == _RECORD

    # ---- asyncio -------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until a record can be read, on asyncio's loop, without a thread."""
        core = self._mapped()
        loop = asyncio.get_running_loop()
        nap = 0.0005
        while (state := core.head()) != _RECORD:
            if state == _WAITING:  # its descriptor is ready: it would not let the loop sleep
                await asyncio.sleep(nap)
                nap = min(2 * nap, 0.01)
                continue
            nap = 0.0005
            came = loop.create_future()
            fd = core.hold()
            try:
                loop.add_reader(fd, _tell, came)
                try:
                    await asyncio.wait((came,), timeout=TICK)
                finally:
                    loop.remove_reader(fd)
            finally:
                core.let_go()

    async def aread(self, max: int | None = None, timeout: float | None = None) -> StreamBatch:
        """Return the records that are there, as `read` does, waiting on asyncio's loop."""
        core = self._mapped()
        most = _most(max)
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout}: seconds, 0 or more")
        if core.head() != _RECORD:
            try:
                await asyncio.wait_for(self.wait(), timeout)
            except TimeoutError:
                return StreamBatch.empty(self._kinds)
        return self._taken(core, most, None) if most else StreamBatch.empty(self._kinds)

    async def batches(self, max: int | None = None,
                      interval: float | None = None) -> AsyncIterator[StreamBatch]:
        """Yield batches of copies, as they come, until the map is closed.

        Parameters
        ----------
        max : int, optional
            At most so many records in a batch.
        interval : float, optional
            Seconds from one batch to the next at least: fewer and larger batches.
        """
        due = time.monotonic()
        while not self.closed:
            if interval is not None:
                due = builtin_max(due + interval, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
            try:
                batch = await self.aread(max)
            except ValueError:
                if self.closed:
                    return
                raise
            if len(batch):
                yield batch

    def __aiter__(self) -> AsyncIterator[StreamBatch]:
        return self.batches()


builtin_max = max


def _tell(came: asyncio.Future[None]) -> None:
    if not came.done():
        came.set_result(None)


def _most(given: int | None) -> int:
    if given is None:
        return 1 << 62
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise TypeError(f"max is an integer, not {given!r}")
    if given < 0:
        raise ValueError(f"max={given}: 0 or more records")
    return int(given)


def _joined(one: StreamBatch, other: StreamBatch) -> StreamBatch:
    """Return one batch of both; `one` is a copy already."""
    if not len(one):
        return other.copy()
    rest = other.copy()
    start = len(one._data)
    return StreamBatch(
        one._kinds, np.concatenate([one._data, rest._data]), len(one) + len(rest), length=-1,
        offsets=np.concatenate([one.offsets, rest.offsets + start]),
        lengths=np.concatenate([one.lengths, rest.lengths]))


class Stream(Protocol):
    """What `poll` takes."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def ready(self) -> bool:
        """Tell whether a record can be read now."""


def poll(streams: Sequence[Stream], timeout: float | None = None) -> list[Stream]:
    """Wait until one of several streams has a record; return those that have.

    Parameters
    ----------
    streams : sequence of RingBuffer
    timeout : float, optional
        Seconds; 0 never waits, None waits as long as it takes.

    Returns
    -------
    list
        Those that can be read; empty where none has a record in time. Producers that wake nobody
        up are noticed within 50 ms.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    nap = 0.0005
    while True:
        found = [stream for stream in streams if stream.ready()]
        if found:
            return found
        left = TICK if deadline is None else min(deadline - time.monotonic(), TICK)
        if left <= 0:
            return []
        files = select.poll()
        for stream in streams:
            files.register(stream, select.POLLIN)
        began = time.monotonic()
        if files.poll(left * 1000) and time.monotonic() - began < nap and not any(
                stream.ready() for stream in streams):
            # Only records that are not submitted yet: they wake at once, again and again.
            time.sleep(min(nap, left))
            nap = min(2 * nap, 0.01)


class UserRingBuffer(Ring):
    """USER_RINGBUF: records from user space to programs."""


CLASSES: dict[MapType, type[Map]] = {
    MapType.RINGBUF: RingBuffer,
    MapType.USER_RINGBUF: UserRingBuffer,
}
