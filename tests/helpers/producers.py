"""Programs that write rings: `Producer` puts numbered records into a RINGBUF, at each run."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

from fastmap import Program
from fastmap.asm import FP, R0, R1, R2, R3, R4, R6, R7, R8, Assembler, Code, Helper

SLEEPABLE = 16
NO_WAKEUP, FORCE_WAKEUP = 1, 2


def writer(ring: Any, sizes: Sequence[int], discard_every: int = 0) -> Code:
    """Assemble a program that writes ``count`` records, numbered from ``first`` on.

    Record number n has ``sizes[n % len(sizes)]`` bytes: n as a u8 (or its low bytes where there is
    less room), and where 16 fit, the size as a u8 behind it. The rest is zero.
    """
    a = Assembler()
    a.mov(R6, R1)
    a.ldx(8, R1, R6, 0)
    a.stx(8, FP, -24, R1)  # the next number
    a.ldx(4, R1, R6, 12)
    a.stx(8, FP, -16, R1)  # flags of submit
    a.st(8, FP, -8, 0)  # how many found no room
    a.ldx(4, R1, R6, 8)
    a.ld_func(R2, "one")
    a.mov(R3, FP)
    a.add(R3, -24)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    a.ldx(8, R1, FP, -8)
    a.stx(8, R6, 16, R1)
    a.mov(R0, 0)
    a.exit()
    a.function("one")
    a.mov(R6, R2)
    a.ldx(8, R7, R6, 0)
    a.mov(R1, R7)
    a.add(R1, 1)
    a.stx(8, R6, 0, R1)
    a.mov(R8, R7)
    a.mod(R8, len(sizes))
    for turn, size in enumerate(sizes):
        a.jne(R8, turn, f"not{turn}")
        a.ld_map(R1, ring)
        a.mov(R2, size)
        a.mov(R3, 0)
        a.call(Helper.RINGBUF_RESERVE)
        a.jeq(R0, 0, "full")
        for at in range(0, min(size, 256) // 8 * 8, 8):
            a.st(8, R0, at, size if at == 8 else 0)
        for at in range(size // 8 * 8, size if size < 256 else 0):
            a.st(1, R0, at, 0)
        width = next(w for w in (8, 4, 2, 1) if w <= size)
        a.stx(width, R0, 0, R7)
        a.ja("filled")
        a.label(f"not{turn}")
    a.mov(R0, 0)
    a.exit()
    a.label("filled")
    a.mov(R1, R0)
    a.ldx(8, R2, R6, 8)
    if discard_every:
        a.mov(R8, R7)
        a.mod(R8, discard_every)
        a.jne(R8, 0, "submit")
        a.call(Helper.RINGBUF_DISCARD)
        a.mov(R0, 0)
        a.exit()
        a.label("submit")
    a.call(Helper.RINGBUF_SUBMIT)
    a.mov(R0, 0)
    a.exit()
    a.label("full")
    a.ldx(8, R1, R6, 16)
    a.add(R1, 1)
    a.stx(8, R6, 16, R1)
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


class Producer:
    """A loaded `writer`; ``produce(first, count)`` runs it and returns how many were dropped."""

    def __init__(self, ring: Any, *sizes: int, discard_every: int = 0) -> None:
        self.program = Program("syscall", writer(ring, sizes, discard_every), flags=SLEEPABLE)

    def __call__(self, first: int, count: int, flags: int = 0) -> int:
        context = bytearray(struct.pack("=QIIQ", first, count, flags, 0))
        self.program.run(context)
        return int(struct.unpack("=QIIQ", context)[3])

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.close()


def beside(produce: Callable[[int], object], count: int) -> threading.Event:
    """Run ``produce(i)`` for each i below `count`, in threads; return what tells that all ended."""
    threads = [threading.Thread(target=produce, args=(i,)) for i in range(count)]
    done = threading.Event()
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: [[t.join() for t in threads], done.set()]).start()
    return done
