"""The rows about streams: ring buffers read and written, beside C and libbpf.

Sides take turns on one ring, which a program fills ahead of each block (or drains,
where it is written). Each body asserts the sum of what it got; without libbpf-dev its rows are left
out.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import fastmap
from fastmap.asm import FP, R0, R1, R2, R3, R4, R6, R7, Assembler, Code, Helper

from ..cside import CSide, build
from .cases import Case, Row, Size

RECORD = np.dtype([("n", "u8"), ("x", "u8"), ("y", "u8"), ("z", "u8")])
RING = 1 << 26
#: Records a batch: so many that the cost of a batch itself, some 10 us, does not count, and so few
#: that they are still in the cache when they are summed.
LEASE = 32_768
SLEEPABLE, NO_WAKEUP = 16, 1
LIBBPF = Path("/usr/include/bpf/libbpf.h").exists()
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Event(ctypes.Structure):
    """A record as bcc's users declare it."""

    _fields_ = [(name, ctypes.c_uint64) for name in "nxyz"]


def library() -> ctypes.CDLL:
    """The C side, with libbpf where its headers are."""
    lib = ctypes.CDLL(str(build("rings", ("-lbpf",) if LIBBPF else ())))
    for name, arguments in {
        "ring_open": "iui", "ring_close": "p", "ring_walk": "pp", "user_loop": "ppu",
        "lib_open": "ipp", "lib_consume": "pp", "lib_close": "p",
        "lib_perf_open": "iuu", "lib_perf_consume": "pp", "lib_perf_close": "p",
    }.items():
        if LIBBPF or not name.startswith("lib"):
            function = getattr(lib, name)
            function.restype = ctypes.c_int64
            function.argtypes = [{"i": ctypes.c_int, "u": ctypes.c_uint64,
                                  "p": ctypes.c_void_p}[a] for a in arguments]
    return lib


def filler(ring: Any, flags: int = NO_WAKEUP) -> Code:
    """Assemble: put ``ctx[0]`` records into `ring`, numbered from 0 on."""
    a = Assembler()
    a.stx(8, FP, -8, R1)
    a.ldx(8, R2, R1, 8)  # 0, but the verifier does not know
    a.stx(8, FP, -16, R2)
    a.ldx(8, R1, R1, 0)
    a.ld_func(R2, "one")
    a.mov(R3, FP)
    a.add(R3, -16)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    a.mov(R0, 0)
    a.exit()
    a.function("one")
    a.mov(R6, R2)
    a.ldx(8, R7, R6, 0)
    a.stx(8, FP, -32, R7)
    for at in (-24, -16, -8):
        a.st(8, FP, at, 1)
    a.add(R7, 1)
    a.stx(8, R6, 0, R7)
    a.ld_map(R1, ring)
    a.mov(R2, FP)
    a.add(R2, -32)
    a.mov(R3, 32)
    a.mov(R4, flags)
    a.call(Helper.RINGBUF_OUTPUT)
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


def drainer(ring: Any) -> Code:
    """Assemble: drain `ring`, as far as one call goes; the count goes to ``ctx[0]``."""
    a = Assembler()
    a.mov(R6, R1)
    a.ld_map(R1, ring)
    a.ld_func(R2, "one")
    a.mov(R3, 0)
    a.mov(R4, 0)
    a.call(Helper.USER_RINGBUF_DRAIN)
    a.stx(8, R6, 0, R0)
    a.mov(R0, 0)
    a.exit()
    a.function("one")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


@contextmanager
def filled(size: Size, entries: int, flags: int = NO_WAKEUP
           ) -> Iterator[tuple[Any, int, int, Callable[[], None]]]:
    """A ring, how many records, their sum, and what fills the empty ring with them.

    `flags` 0 wakes who waits: cilium/ebpf looks into the ring only after its epoll told of it.
    """
    n = entries if size.entries >= 100_000 else 1000
    with fastmap.create("ringbuf", max_entries=RING, record=RECORD) as ring, \
            fastmap.Program("syscall", filler(ring, flags), flags=SLEEPABLE) as program:
        def fill() -> None:
            assert ring.available == 0
            program.run(bytearray(struct.pack("=QQ", n, 0)))
            assert ring.available == 40 * n

        yield ring, n, n * (n - 1) // 2, fill


def leased(ring: Any, n: int, total: int) -> int:
    """Lease after lease, each summed."""
    seen = found = 0
    while seen < n:
        with ring.lease(LEASE, 0) as batch:
            seen += len(batch)
            found += int(batch.records["n"].sum())
    assert found == total
    return seen


def copied(ring: Any, n: int, total: int) -> int:
    """Read after read, each summed."""
    seen = found = 0
    while seen < n:
        batch = ring.read(LEASE, 0)
        seen += len(batch)
        found += int(batch.records["n"].sum())
    assert found == total
    return seen


@contextmanager
def consumer(ring: Any, each: Any = None) -> Iterator[Callable[[int], tuple[int, int]]]:
    """libbpf's loop, or without it one's own, over the ring: how many, and their sum."""
    lib = library()
    found = np.zeros(1, "u8")
    where = found.ctypes.data
    if LIBBPF:
        handle = lib.lib_open(ring.fileno(), where, each)
        consume, close = lib.lib_consume, lib.lib_close
    else:
        handle = lib.ring_open(ring.fileno(), RING, 0)
        consume, close = lib.ring_walk, lib.ring_close

    try:
        yield lambda number: (consume(handle, where), int(found[0]))
    finally:
        close(handle)


def _reading(ours: Callable[[Any, int, int], int], name: str, limit: float, own: bool) -> Row:
    @contextmanager
    def row(c: CSide, size: Size) -> Iterator[Case]:
        with filled(size, 1_000_000) as (ring, n, total, fill):
            lib = library()
            handle = lib.ring_open(ring.fileno(), RING, 0)
            found = np.zeros(1, "u8")

            def walk(number: int) -> int:
                count = int(lib.ring_walk(handle, found.ctypes.data))
                assert int(found[0]) == total
                return count

            def check() -> None:
                for side in (lambda: ours(ring, n, total), lambda: theirs(0)):
                    fill()
                    assert side() == n

            try:
                with consumer(ring) as consume:
                    def callback(number: int) -> int:
                        count, sum_of = consume(number)
                        assert sum_of == total
                        return count

                    theirs = walk if own or not LIBBPF else callback
                    against = ("C, own walk and sum" if theirs is walk
                               else "C, libbpf's consume with a summing callback")
                    yield Case(name, against, limit, n, lambda number: ours(ring, n, total),
                               theirs, check, rounds=15, before=fill)
            finally:
                lib.ring_close(handle)

    row.__name__ = f"ring_{ours.__name__}{'_own' if own else ''}"
    return row


@contextmanager
def ring_async(c: CSide, size: Size) -> Iterator[Case]:
    """`async for` over batches, beside the same loop without asyncio."""
    with filled(size, 1_000_000) as (ring, n, total, fill):
        loop = asyncio.new_event_loop()

        async def follow() -> int:
            seen = found = 0
            async for batch in ring.batches(LEASE):
                seen += len(batch)
                found += int(batch.records["n"].sum())
                if seen == n:
                    break
            assert found == total
            return seen

        def check() -> None:
            fill()
            assert loop.run_until_complete(follow()) == n
            fill()
            assert copied(ring, n, total) == n

        try:
            yield Case("`async for batch in ring.batches()`", "the same by `read()` in a loop",
                       1 / 0.8, n, lambda number: loop.run_until_complete(follow()),
                       lambda number: copied(ring, n, total), check, rounds=15, before=fill)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


@contextmanager
def ring_callback(c: CSide, size: Size) -> Iterator[Case]:
    """A lease, beside a Python callback for each record, as bcc's users write it."""
    with filled(size, 100_000) as (ring, n, total, fill):
        found = 0

        def each(context: Any, data: int, length: int) -> int:
            nonlocal found
            found += ctypes.cast(data, ctypes.POINTER(Event)).contents.n
            return 0

        held = CALLBACK(each)
        with consumer(ring, ctypes.cast(held, ctypes.c_void_p)) as consume:
            def theirs(number: int) -> int:
                nonlocal found
                found = 0
                count, _ = consume(number)
                assert found == total
                return count

            def check() -> None:
                fill()
                assert leased(ring, n, total) == n
                fill()
                assert theirs(0) == n

            yield Case("lease and sum (1/150 of it)", "ctypes callback a record", 1 / 150, n,
                       lambda number: leased(ring, n, total), theirs, check, rounds=15,
                       before=fill)


@contextmanager
def ring_write(c: CSide, size: Size) -> Iterator[Case]:
    """`write_many`, beside reserve and submit in a loop."""
    n = 1_000_000 if size.entries >= 100_000 else 1000
    records = np.zeros(n, RECORD)
    records["n"] = np.arange(n)
    lib = library()
    with fastmap.create("user_ringbuf", max_entries=RING, record=RECORD) as ring, \
            fastmap.Program("syscall", drainer(ring), flags=SLEEPABLE) as program:
        handle = lib.ring_open(ring.fileno(), RING, 1)
        drained = n

        def drain() -> None:
            nonlocal drained
            drained = 0
            while ring.available:
                context = bytearray(8)
                program.run(context)
                drained += struct.unpack("=q", context)[0]

        def before() -> None:
            drain()
            assert drained in (0, n)

        def theirs(number: int) -> int:
            return int(lib.user_loop(handle, records.ctypes.data, n))

        def check() -> None:
            for side in (lambda: ring.write_many(records), lambda: theirs(0)):
                drain()
                assert side() == n
                assert ring.available == 40 * n
                pages = np.frombuffer(ring._core.pages, np.uint8)[4096:]
                start = (ring.produced - 40 * n) % RING
                written = pages[start:start + 40 * n].reshape(n, 40)
                assert (written[:, :8] == np.frombuffer(struct.pack("=II", 32, 0), "u1")).all()
                assert np.array_equal(np.ascontiguousarray(written[:, 8:]).view(RECORD)[:, 0],
                                      records)
            drain()
            assert drained == n

        try:
            yield Case("`write_many`, 1M records of 32 bytes", "C, reserve and submit in a loop",
                       0.8, n, lambda number: ring.write_many(records), theirs, check, rounds=15,
                       before=before)
        finally:
            lib.ring_close(handle)


def idle_cpu(seconds: float = 2) -> float:
    """The share of a CPU that a waiting reader takes, of `read` and of asyncio together."""
    with fastmap.create("ringbuf", max_entries=4096) as ring:
        began = time.process_time()
        assert len(ring.read(timeout=seconds)) == 0
        assert len(asyncio.run(ring.aread(timeout=seconds))) == 0
        return (time.process_time() - began) / (2 * seconds)


# The targets name libbpf; beside a walk of one's own, which calls nothing, there is none: 2.0.
ring_lease = _reading(leased, "lease and sum of 1M records of 32 bytes", 1.0, False)
ring_lease_own = _reading(leased, "lease and sum of 1M records of 32 bytes", 2.0, True)
ring_read = _reading(copied, "`read()` and sum of 1M records of 32 bytes", 2.0, False)

RINGS: tuple[Row, ...] = (
    ring_lease, ring_lease_own, ring_read, ring_async, *((ring_callback,) if LIBBPF else ()),
    ring_write,
)
