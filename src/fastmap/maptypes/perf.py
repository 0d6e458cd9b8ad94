"""Perf buffers: records from programs, by CPU."""

from __future__ import annotations

import mmap
import operator
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fastmap._core.streams.perf import PerfRings
from fastmap._core.streams.ring import gather
from fastmap._core.system.syscall import cpu_list
from fastmap.dtypes import slots
from fastmap.maptypes.consumer import Consumer
from fastmap.maptypes.perf_slots import PerfSlots
from fastmap.maptypes.references import PerfEventArray
from fastmap.maptypes.stream_batch import Array, Kinds, Record, StreamBatch

#: The kernel pads samples to 8 bytes, and does not tell how long they were.
SLACK = 7


class PerfBuffer(Consumer):
    """What programs write with bpf_perf_event_output: a ring for each CPU.

    It opens the events, puts them into the map, and takes them out when it is closed. A perf
    buffer has one reader: it belongs to one thread at a time, and to the process that made it. A
    forked child must not touch views of a lease: the kernel leaves these pages out there.

    Parameters
    ----------
    events : PerfEventArray
        The map that programs name. Each event lies under the number of its CPU.
    pages : int
        Pages of data in each ring: a power of two.
    cpus : iterable of int, optional
        Which CPUs; those that are online.
    watermark : int, optional
        Bytes in a ring that wake the reader up; without it, `wakeup` decides.
    wakeup : int
        Records in a ring that wake the reader up. What stays below is noticed within 50 ms.
    overwrite : bool
        Keep the newest records rather than the oldest. Each read pauses the rings, and returns
        what came since the last one and is still there.
    record, tag
        What the records are, as for ring buffers. The kernel pads them: what a record has more
        than its dtype, up to 7 bytes, is left out.

    Attributes
    ----------
    cpus : tuple of int
        The CPUs that have a ring, in the order of `lost`.

    Examples
    --------
    >>> events = fastmap.create("perf_event_array", max_entries=max(fastmap.possible_cpus()) + 1)
    >>> with fastmap.PerfBuffer(events, record=[("pid", "u4"), ("ns", "u8")]) as perf:
    ...     batch = perf.read(timeout=0.1)
    ...     newest = batch.records["ns"].max(initial=0)
    """

    def __init__(self, events: PerfEventArray, *, pages: int = 64,
                 cpus: Iterable[int] | None = None, watermark: int | None = None, wakeup: int = 1,
                 overwrite: bool = False, record: Record = None, tag: str | None = None) -> None:
        self._core: PerfRings | None = None
        if not isinstance(events, PerfEventArray):
            raise TypeError(f"events is a PerfEventArray, not {type(events).__name__}")
        self._kinds = Kinds(record, tag)
        pages = _whole(pages, "pages", 1 << 19)
        if pages & (pages - 1):
            raise ValueError(f"pages={pages}: a power of two")
        size = pages * mmap.PAGESIZE
        level = 0 if watermark is None else _whole(watermark, "watermark", size)
        numbers = _online() if cpus is None else [operator.index(cpu) for cpu in cpus]
        _check_cpus(numbers, events.max_entries)
        core = PerfRings(numbers, size, level, _whole(wakeup, "wakeup", 0x7FFFFFFF), overwrite,
                         cpus is None)
        try:
            events.update_many(core.cpus, core.fds())
        except BaseException:
            core.close()
            raise
        self._bytes: Array = slots(core.pages, np.dtype("u1"), 1, len(core.pages))
        self._events = events
        self._slots = core.watch = PerfSlots(events, _online)
        self._core = core

    def _mapped(self) -> PerfRings:
        if self._core is None:
            raise ValueError("operation on a closed perf buffer")
        return self._core

    # ---- the handle ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._core is None

    def fileno(self) -> int:
        """Return a descriptor that is ready when a ring wakes its reader: for epoll, selectors."""
        return self._mapped().fileno()

    def close(self) -> None:
        """Take the events out of the map and close them. Views stay valid.

        A reader that waits in another thread wakes up, within 50 ms, with a `ValueError`.
        """
        core, self._core = self._core, None
        if core is None:
            return
        try:
            if not self._events.closed and not core.pages.lost:  # a child leaves the parent's be
                self._events.delete_many(self._slots.own(core))
        finally:
            core.close()
            self._slots.close()
            self._bytes = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._core is None else f"of {len(self.cpus)} CPUs"
        return f"<fastmap.PerfBuffer {state}>"

    @property
    def cpus(self) -> tuple[int, ...]:
        """The numbers of the CPUs that have a ring."""
        return self._mapped().cpus

    @property
    def size(self) -> int:
        """Bytes of data in each ring."""
        return self._mapped().size

    @property
    def lost(self) -> Array:
        """How many records the kernel dropped so far, uint64, for each of `cpus`.

        For lack of room, or because the rings were paused. Exact at any time (before Linux 6.0, as
        of the last record read); a batch tells those that were lost in front of its records.
        """
        return np.array(self._mapped().dropped(), np.uint64)

    @property
    def gaps(self) -> Array:
        """How often an event was found gone and put back, uint64, for each of `cpus`.

        Another reader on the same map takes the events out, and a CPU that goes offline and comes
        back has none. It is looked for once a second while the buffer is read, and told by a
        `RuntimeWarning`. What programs wrote in between is lost: they were refused (ENOENT,
        EOPNOTSUPP), and neither the kernel nor `lost` counts that.
        """
        return np.array([self._slots.gaps.get(cpu, 0) for cpu in self.cpus], np.uint64)

    # ---- pausing -------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the rings are paused."""
        return self._mapped().paused

    def pause(self) -> None:
        """Let the kernel drop (and count) what comes, until `resume`: what is there stays."""
        self._mapped().toggle(True)

    def resume(self) -> None:
        """End `pause`."""
        self._mapped().toggle(False)

    # ---- reading -------------------------------------------------------------------------------

    def _empty(self) -> StreamBatch:
        batch = StreamBatch.empty(self._kinds)
        batch.cpu = np.empty(0, np.int32)
        return batch

    def _leased(self, core: PerfRings) -> StreamBatch:
        cpu = slots(core.numbers, np.dtype("i4"), 4, core.count).copy()
        if core.length >= 0:
            return StreamBatch(self._kinds, self._bytes, core.count, first=core.first,
                               length=core.length, step=core.step, slack=SLACK, cpu=cpu,
                               lost=core.lost)
        # Copies: the next lease writes its own there.
        offsets = slots(core.offsets, np.dtype("i8"), 8, core.count).copy()
        lengths = slots(core.lengths, np.dtype("u4"), 4, core.count).copy()
        return StreamBatch(self._kinds, self._bytes, core.count, length=-1, offsets=offsets,
                           lengths=lengths, slack=SLACK, cpu=cpu, lost=core.lost)

    def _taken(self, core: PerfRings, most: int, out: Array | None) -> StreamBatch:
        if not core.lease(most):
            return self._empty()
        try:
            batch = self._leased(core)
            taken = batch.copy() if out is None else self._into(batch, out)
        except BaseException:
            core.put_back()
            raise
        core.give_back()
        return taken

    def _into(self, batch: StreamBatch, out: Array) -> StreamBatch:
        size = out.dtype.itemsize
        batch.check_size(out.dtype, batch.lengths)
        rows = out[:len(batch)].view(np.uint8)
        gather(self._bytes, batch.offsets, size, rows)
        return StreamBatch(self._kinds, rows, len(batch), length=size, step=size, slack=SLACK,
                           cpu=batch.cpu, lost=batch.lost)


def _whole(given: Any, what: str, largest: int) -> int:
    if isinstance(given, bool):
        raise TypeError(f"{what} is an integer, not {given!r}")
    number = operator.index(given)
    if not 1 <= number <= largest:
        raise ValueError(f"{what}={number}: 1 to {largest}")
    return number


def _online() -> list[int]:
    return list(cpu_list(Path("/sys/devices/system/cpu/online").read_text()))


def _check_cpus(numbers: list[int], room: int) -> None:
    if not numbers or len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ValueError(f"cpus={numbers}: CPUs, each once")
    if max(numbers) >= room:
        raise ValueError(f"the map has {room} slots, none for CPU {max(numbers)}: give it "
                         "max_entries=max(fastmap.possible_cpus()) + 1, or name cpus=")
