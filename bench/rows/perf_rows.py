"""The rows about perf buffers: records of 32 bytes that a program puts, read and summed.

A perf event's ring has one reader, so that each side has a map, events and a program of its own;
ahead of each block the program of the side that has drained its own fills it again. Each body
asserts how many came, their sum, and that none was dropped; without libbpf-dev there are no rows.
All buffers wake their reader once a block: a wake for each record, the default of every library,
takes the program thirty times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np

import fastmap
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, R7, R8, Assembler, Code, Helper

from ..cside import CSide
from ..harness import Side
from .cases import Case, Row, Size
from .rings import LEASE, LIBBPF, RECORD, library

#: One side of a row: a context manager that yields its producer, and what reads.
Opened = Callable[[Size], AbstractContextManager["tuple[Producer, Side]"]]
#: Of each CPU's ring: 8 MB, for 100,000 records of 48 bytes as the kernel lays them.
PAGES = 2048


def writer(events: Any) -> Code:
    """Assemble: put ``ctx[0]`` records on this CPU, numbered from 0 on; return the dropped ones."""
    a = Assembler()
    a.stx(8, FP, -8, R1)  # for the helper
    a.st(8, FP, -16, 0)  # the next number
    a.st(8, FP, -24, 0)  # how many were dropped
    a.ldx(8, R1, R1, 0)
    a.ld_func(R2, "one")
    a.mov(R3, FP)
    a.add(R3, -24)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    a.ldx(8, R0, FP, -24)
    a.exit()
    a.function("one")
    a.mov(R6, R2)
    a.ldx(8, R7, R6, 8)
    a.stx(8, FP, -32, R7)
    for at in (-24, -16, -8):
        a.st(8, FP, at, 1)
    a.add(R7, 1)
    a.stx(8, R6, 8, R7)
    a.ldx(8, R1, R6, 16)
    a.ld_map(R2, events)
    a.mov(R3, -1)
    a.rsh(R3, 32)  # BPF_F_CURRENT_CPU
    a.mov(R4, FP)
    a.add(R4, -32)
    a.mov(R5, 32)
    a.call(Helper.PERF_EVENT_OUTPUT)
    a.jeq(R0, 0, "out")
    a.ldx(8, R8, R6, 0)
    a.add(R8, 1)
    a.stx(8, R6, 0, R8)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


class Producer:
    """A map of perf events, and a program that puts `n` records into it once they were drained."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.drained = True
        self.events = fastmap.create("perf_event_array",
                                     max_entries=max(fastmap.possible_cpus()) + 1)
        self.program = fastmap.Program("raw_tracepoint", writer(self.events))

    def fill(self) -> None:
        """Put the records, if the reader has taken those of the last time."""
        if self.drained:
            assert self.program.run(struct.pack("=Q", self.n)) == 0
            self.drained = False

    def taken(self, n: int, total: int, lost: int = 0) -> int:
        """What a reader says it got, looked at."""
        assert (n, total, lost) == (self.n, self.n * (self.n - 1) // 2, 0)
        self.drained = True
        return n

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.close()
        self.events.close()


def many(size: Size) -> int:
    """How many records a block has."""
    return 100_000 if size.entries >= 100_000 else 1000


def _fastmap(take: Callable[[fastmap.PerfBuffer], AbstractContextManager[Any]]) -> Opened:
    """fastmap: batch after batch, each summed."""

    @contextmanager
    def opened(size: Size) -> Iterator[tuple[Producer, Side]]:
        with Producer(many(size)) as producer, fastmap.PerfBuffer(
                producer.events, pages=PAGES, wakeup=producer.n, record=RECORD) as perf:
            def side(number: int) -> int:
                seen = found = lost = 0
                while seen < producer.n:
                    with take(perf) as batch:
                        assert len(batch)
                        seen += len(batch)
                        found += int(batch.records["n"].sum())
                        lost += batch.lost
                return producer.taken(seen, found, lost)

            yield producer, side
            assert not perf.lost.any()

    return opened


leasing = _fastmap(lambda perf: perf.lease(LEASE, 0))
reading = _fastmap(lambda perf: nullcontext(perf.read(LEASE, 0)))


@contextmanager
def consuming(size: Size) -> Iterator[tuple[Producer, Side]]:
    """libbpf: perf_buffer__consume, its callback in C sums."""
    lib, found = library(), np.zeros(2, "u8")
    where = found.ctypes.data
    with Producer(many(size)) as producer:
        handle = lib.lib_perf_open(producer.events.fileno(), PAGES, producer.n)
        if handle < 0:
            raise OSError(-handle, "perf_buffer__new")
        try:
            yield producer, lambda number: producer.taken(
                lib.lib_perf_consume(handle, where), int(found[0]), int(found[1]))
        finally:
            lib.lib_perf_close(handle)


def _row(ours: Opened, name: str, limit: float) -> Row:
    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        with ExitStack() as stack:
            (mine, read), (other, consume) = (
                stack.enter_context(side(size)) for side in (ours, consuming))

            def before() -> None:
                mine.fill()
                other.fill()

            def check() -> None:
                before()
                assert read(0) == consume(0) == mine.n

            yield Case(name, "C, libbpf's perf_buffer__consume with a summing callback", limit,
                       mine.n, read, consume, check, rounds=40, before=before)

    return row


PERFS: dict[str, Row] = {
    "perf_lease": _row(leasing, "perf buffer: lease and sum of 100k records of 32 bytes", 1.0),
    "perf_read": _row(reading, "perf buffer: `read()` and sum of 100k records of 32 bytes", 2.0),
} if LIBBPF else {}
