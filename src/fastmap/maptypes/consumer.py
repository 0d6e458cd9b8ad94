"""What all that is read has in common: copies, leases, waiting, asyncio, `poll`."""

from __future__ import annotations

import select
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastmap.maptypes.stream_batch import Array, Kinds, StreamBatch

if TYPE_CHECKING:  # those who use it have it: importing it takes longer than all of fastmap
    import asyncio

#: So often a waiting reader looks for records whose producers wake nobody up, in seconds.
TICK = 0.05
#: So long a loop over batches that are always there keeps the event loop to itself, in seconds.
SHARE = 0.005
_RECORD, _WAITING = 1, 2  # what Core.head says


class Core(Protocol):
    """What is compiled of a consumer: `fastmap._core.streams.ring.Ring` is one."""

    def hold(self) -> int:
        """Return the descriptor to wait on, which stays open until `let_go`."""

    def let_go(self) -> None:
        """End `hold`."""

    def head(self) -> int:
        """Tell whether a record is there (1), one is being written (2), or none (0)."""

    def wait(self, seconds: float) -> bool:
        """Wait for a record, so many seconds (below 0: for ever)."""

    def lease(self, most: int) -> bool:
        """Find up to `most` records, which stay where they are until `give_back`."""

    def give_back(self) -> None:
        """End the lease."""


class Lease:
    """The context that `Consumer.lease` returns; a class, for one by contextlib takes longer."""

    __slots__ = ("_consumer", "_core", "_most", "_seconds")

    def __init__(self, consumer: Consumer, most: int, seconds: float) -> None:
        self._consumer, self._most, self._seconds = consumer, most, seconds
        self._core: Core | None = None

    def __enter__(self) -> StreamBatch:
        consumer = self._consumer
        core = consumer._mapped()
        if self._most == 0 or not _waited(core, self._seconds) or not core.lease(self._most):
            return consumer._empty()
        try:
            batch = consumer._leased(core)
        except BaseException:
            core.give_back()
            raise
        self._core = core
        return batch

    def __exit__(self, *_: object) -> None:
        core, self._core = self._core, None
        if core is not None:
            core.give_back()


class Consumer:
    """The face of what is read: of ring buffers and perf buffers."""

    _kinds: Kinds

    def _mapped(self) -> Core:
        raise NotImplementedError

    def _empty(self) -> StreamBatch:
        """Return a batch of no records."""
        return StreamBatch.empty(self._kinds)

    def _leased(self, core: Any) -> StreamBatch:
        """Return what a lease found, as views."""
        raise NotImplementedError

    def _taken(self, core: Any, most: int, out: Array | None) -> StreamBatch:
        """Return copies of up to `most` records, and give their space back."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        raise NotImplementedError

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
        most, seconds = _most(max), seconds_of(timeout)
        if out is not None:
            most = min(most, self._check_out(out))
        if most == 0 or not _waited(core, seconds):
            return self._empty()
        return self._taken(core, most, out)

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

    def lease(self, max: int | None = None, timeout: float | None = None) -> Lease:
        """Lend out the records that are there, as views on the ring itself.

        The end of the ``with`` block gives their space back to the kernel, which overwrites it
        sooner or later: views that are kept stay readable, and show what stands there then.
        ``batch.copy()`` keeps what they show now.

        Parameters
        ----------
        max, timeout
            As for `read`.

        Returns
        -------
        Lease
            A context of a `StreamBatch`, which is empty where no record came in time.
        """
        self._mapped()
        return Lease(self, _most(max), seconds_of(timeout))

    def ready(self) -> bool:
        """Tell whether a record can be read now."""
        return self._mapped().head() == _RECORD

    # ---- asyncio -------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Wait until a record can be read, on asyncio's loop, without a thread."""
        import asyncio

        core = self._mapped()
        loop = asyncio.get_running_loop()
        nap, hollow = 0.0005, False
        while (state := core.head()) != _RECORD:
            if state == _WAITING or hollow:
                # The descriptor is ready and nothing is there (a record that is not submitted yet,
                # a CPU that went away): it would not let the loop sleep.
                await asyncio.sleep(nap)
                nap, hollow = min(2 * nap, 0.02), False
                continue
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
            hollow = came.done() and core.head() != _RECORD
            if not hollow:
                nap = 0.0005

    async def aread(self, max: int | None = None, timeout: float | None = None, *,
                    out: Array | None = None) -> StreamBatch:
        """Return the records that are there, as `read` does, waiting on asyncio's loop."""
        import asyncio

        core = self._mapped()
        most, seconds = _most(max), seconds_of(timeout)
        if out is not None:
            most = min(most, self._check_out(out))
        if core.head() != _RECORD:
            try:
                await asyncio.wait_for(self.wait(), None if seconds < 0 else seconds)
            except TimeoutError:
                return self._empty()
        return self._taken(core, most, out) if most else self._empty()

    async def batches(self, max: int | None = None, interval: float | None = None, *,
                      out: Array | None = None) -> AsyncIterator[StreamBatch]:
        """Yield batches of copies, as they come, until the stream is closed.

        Parameters
        ----------
        max : int, optional
            At most so many records in a batch.
        interval : float, optional
            Seconds from one batch to the next at least: fewer and larger batches.
        out : ndarray, optional
            Where the records of each batch go, over those of the one before.
        """
        import asyncio

        due = yielded = time.monotonic()
        while not self.closed:
            if interval is not None:
                due = builtin_max(due + interval, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
            elif time.monotonic() - yielded > SHARE:
                # While records are always there, nothing below would let other tasks run.
                await asyncio.sleep(0)
                yielded = time.monotonic()
            try:
                batch = await self.aread(max, out=out)
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


def _waited(core: Core, seconds: float) -> bool:
    """Tell whether there is a record in time; `Core.wait` gives up the GIL, which this need not."""
    return core.head() == _RECORD or core.wait(seconds)


def seconds_of(timeout: float | None) -> float:
    """Return a timeout as the core takes it: below 0 for ever."""
    if timeout is None:
        return -1
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, np.number)):
        raise TypeError(f"timeout is in seconds, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout={timeout}: seconds, 0 or more")
    return float(timeout) if timeout < 1e9 else -1


def _most(given: int | None) -> int:
    if given is None:
        return 1 << 62
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise TypeError(f"max is an integer, not {given!r}")
    if given < 0:
        raise ValueError(f"max={given}: 0 or more records")
    return int(given)


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
    streams : sequence of RingBuffer and PerfBuffer
    timeout : float, optional
        Seconds; 0 never waits, None waits as long as it takes.

    Returns
    -------
    list
        Those that can be read; empty where none has a record in time. Producers that wake nobody
        up are noticed within 50 ms.
    """
    seconds = seconds_of(timeout)
    deadline = None if seconds < 0 else time.monotonic() + seconds
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
