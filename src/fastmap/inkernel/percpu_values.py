"""The values of a per-CPU hash's elements, of every CPU, read where they lie.

A program gets the value of another CPU by a helper, which searches for the key once more each
time. But an element holds one pointer for all CPUs, and what is to be added to it for a CPU is the
same for all per-CPU memory: a run finds that out from an array of one element, the anchor, whose
pointer it reads as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.asm import FP, R0, R1, R2, R3, R6, R7, R8, Assembler, HasFileno, Helper, Reg
from fastmap.enums import MapType
from fastmap.inkernel.prefetch import NEXT, SCRATCH, Toucher

#: Bytes of the scratch map for each CPU, behind the toucher's.
EACH = 8
#: CPUs whose values are prefetched.
_MOST_TOUCHED = 8
#: So many instructions may be made of the CPUs' values.
MOST_WORK = 1 << 14


def anchored() -> Fd:
    """Return a new anchor: programs that name it keep it."""
    return syscall.map_create(MapType.PERCPU_ARRAY, 4, 8, 1, 0, b"fastmap_anchor")


class Values:
    """What reads the values of an element's CPUs.

    Parameters
    ----------
    toucher : Toucher
        Its scratch map has `EACH` bytes more for each CPU.
    anchor : int or object with fileno
        A PERCPU_ARRAY of one element of 8 bytes.
    cpus : sequence of int
    """

    def __init__(self, toucher: Toucher, anchor: int | HasFileno, cpus: Sequence[int]) -> None:
        self.toucher = toucher
        self.anchor = anchor
        self.cpus = cpus
        #: Where a value begins, from what `load` leaves.
        self.at = toucher.what.key_at

    def start(self, a: Assembler, failed: str) -> None:
        """Put what is added for each CPU into the scratch map; R6 and R9 alone are kept."""
        what, scratch = self.toucher.what, self.toucher.scratch
        a.ld_map(R1, self.anchor)
        a.ld_map_value(R8, scratch)
        a.stx(8, R8, NEXT, R1)
        a.ldx(8, R1, R8, NEXT)  # a number: the verifier lets nobody add to the address of a map
        a.add(R1, what.pptrs_at)
        a.mov(R2, what.bucket)
        a.call_kfunc(what.cast)
        a.ldx(8, R1, R0, 0)
        a.stx(8, R8, NEXT, R1)
        a.ldx(8, R7, R8, NEXT)
        a.st(4, FP, -4, 0)
        for i, cpu in enumerate(self.cpus):
            a.ld_map(R1, self.anchor)
            a.mov(R2, FP)
            a.add(R2, -4)
            a.mov(R3, cpu)
            a.call(Helper.MAP_LOOKUP_PERCPU_ELEM)
            a.jeq(R0, 0, failed)
            a.stx(8, R8, SCRATCH + EACH * i, R0)
            a.ldx(8, R1, R8, SCRATCH + EACH * i)
            a.sub(R1, R7)
            a.stx(8, R8, SCRATCH + EACH * i, R1)

    def pointer(self, a: Assembler, register: Reg, elem: Reg = R0) -> None:
        """Let `register` be the pointer of the element at `elem`."""
        a.ldx(8, register, elem, self.toucher.value_at)

    def load(self, a: Assembler, pointer: Reg, which: int) -> None:
        """Let R0 + `at` point to the value of CPU number `which` of them; R1 to R5 are lost."""
        a.ld_map_value(R1, self.toucher.scratch, SCRATCH + EACH * which)
        a.ldx(8, R1, R1, 0)
        a.add(R1, pointer)
        a.sub(R1, self.at)
        a.mov(R2, self.toucher.what.elem)
        a.call_kfunc(self.toucher.what.cast)

    def touch(self, a: Assembler, done: str) -> None:
        """Load from the values of the element in the slot of R6, and go to `done`."""
        toucher = self.toucher
        toucher.slot(a, R8, R6, R3)
        toucher.candidate(a, R8, done)
        self.pointer(a, R7)
        for which in range(min(len(self.cpus), _MOST_TOUCHED)):
            self.load(a, R7, which)
            a.ldx(1, R1, R0, self.at)
        a.ja(done)


def swap(a: Assembler, register: Reg, size: int) -> None:
    """Turn the bytes of a number around."""
    if size > 1:
        (a.to_be if sys.byteorder == "little" else a.to_le)(register, size)


def extend(a: Assembler, register: Reg, size: int) -> None:
    """Give a signed number of `size` bytes 64 bits."""
    if size < 8:
        a.lsh(register, 64 - 8 * size)
        a.arsh(register, 64 - 8 * size)


#: What `fold` can do.
FOLDS = frozenset({"sum", "max", "or"})


def fold(a: Assembler, op: str, kind: str, swapped: bool, src: int, to: Reg, at: int, *,
         first: bool) -> None:
    """Add the number at R0 + `src` to what is at `to` + `at`, or keep the larger; R1, R2 are lost.

    A sum has 64 bits. The value of the `first` CPU is taken as it is.
    """
    size, signed = int(kind[1]), kind[0] == "i"
    a.ldx(size, R1, R0, src)
    if op == "sum":
        if swapped:
            swap(a, R1, size)
        if signed:
            extend(a, R1, size)
        size = 8
    if first:
        a.stx(size, to, at, R1)
        return
    a.ldx(size, R2, to, at)
    if op == "sum":
        a.add(R1, R2)
    elif op == "or":
        a.or_(R1, R2)
    else:
        _larger(a, size, signed)
    a.stx(size, to, at, R1)


def _larger(a: Assembler, size: int, signed: bool) -> None:
    """Let R1 be the larger one of R1 and R2, in the machine's order of bytes."""
    if signed:
        extend(a, R1, size)
        extend(a, R2, size)
    name = f"larger {len(a)}"
    (a.jsge if signed else a.jge)(R1, R2, name)
    a.mov(R1, R2)
    a.label(name)
