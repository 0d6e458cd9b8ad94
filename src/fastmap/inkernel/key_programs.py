"""The programs of the in-kernel path: pure assembly, no system call.

Each program works through many elements of one map. Keys, values and results stand in a buffer
that user space has mapped: an array map of one element, laid out as a `Layout` says. A program is
made for one map and one buffer, whose descriptors are in it, and for their sizes; how many elements
a run has, and what it found, is in the buffer's head.

The loop is `may_goto` where the kernel has it (6.9): jumps within one function. Elsewhere it is
bpf_loop (5.17), whose body is a function that is called, and returned from, once an element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastmap.asm import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Assembler,
    Code,
    HasFileno,
    Helper,
    Reg,
)
from fastmap.inkernel.percpu_values import Values
from fastmap.inkernel.prefetch import BLOCK, Toucher

#: The buffer's head, in bytes from its start; all else is aligned to as much.
HEAD = 64
# u32: elements of this run; the one that it is at; the mode.
COUNT, AT, MODE = 0, 4, 8
# u32: how many elements failed; the errno that ended the run, and at which element.
FAILED, ERRNO, INDEX = 12, 16, 20
# u64: the flags of an update or a push.
FLAGS = 24
# u32: the one that is prefetched, and the end of the block that is.
AHEAD, END = 32, 36
# u32 of a walk: how many entries were copied, and how many buckets there are.
COPIED, BUCKETS = 40, 44

#: What a run does about an element that fails; the numbers stand in `_core/run.pyx` as well.
STOP, RETURN, IGNORE = range(3)

#: Values up to so many bytes are copied word by word, larger ones by a helper (measured).
WORDWISE = 512

_ENOENT, _EFAULT = 2, 14


@dataclass(frozen=True)
class Layout:
    """Where things stand in a buffer.

    Attributes
    ----------
    key_size : int
    row_size : int
        Bytes of a row: a value, or those of all CPUs, each in a slot of `slot` bytes.
    value_size : int
        Of one CPU.
    cpus : tuple of int
        The numbers of the possible CPUs; empty where the map is not per-CPU.
    chunk : int
        How many elements the buffer holds.
    """

    key_size: int
    value_size: int
    chunk: int
    cpus: tuple[int, ...] = ()

    @property
    def slot(self) -> int:
        return -(-self.value_size // 8) * 8 if self.cpus else self.value_size

    @property
    def row_size(self) -> int:
        return self.slot * max(len(self.cpus), 1)

    @property
    def keys_at(self) -> int:
        return HEAD + _aligned(4 * len(self.cpus))

    @property
    def codes_at(self) -> int:
        """A byte each of a lookup: found or not; an errno of 4 bytes each of an update."""
        return self.keys_at + _aligned(self.chunk * self.key_size)

    @property
    def values_at(self) -> int:
        return self.codes_at + _aligned(self.chunk * 4)

    @property
    def size(self) -> int:
        return self.values_at + _aligned(self.chunk * self.row_size)

    @property
    def wordwise(self) -> bool:
        """Whether looked-up values are copied word by word, into this buffer."""
        return self.value_size <= WORDWISE


def _aligned(size: int) -> int:
    return -(-size // HEAD) * HEAD


class Loop:
    """A program that does something with each element of a run.

    Parameters
    ----------
    buffer : int or object with fileno
        The buffer's map.
    bound : int
        What the verifier shall know of the number of elements.
    may_goto : bool
    toucher : Toucher, optional
        What prefetches; takes `may_goto`.
    """

    def __init__(self, buffer: int | HasFileno, bound: int, *, may_goto: bool,
                 toucher: Toucher | None = None, keys_at: int = HEAD,
                 values: Values | None = None) -> None:
        self.a = Assembler()
        self.buffer = buffer
        self.bound = bound
        self.may_goto = may_goto
        self.toucher = toucher if may_goto else None
        self.keys_at = keys_at
        self.values = values

    def head(self, register: Reg) -> None:
        """Let `register` point to the buffer's head."""
        self.a.ld_map_value(register, self.buffer)

    def element(self, register: Reg, at: int, size: int, scratch: Reg, index: Reg = R6) -> None:
        """Let `register` point to an element: `at` is where they begin, `size` of what each."""
        a = self.a
        a.ld_map_value(register, self.buffer, at)
        if size == 1:
            a.add(register, index)
            return
        a.mov(scratch, index)
        if size & (size - 1):
            a.mul(scratch, size)
        else:
            a.lsh(scratch, size.bit_length() - 1)
        a.add(register, scratch)

    #: The register of the element that a round is about.
    index = R6

    def build(self, body: Callable[[], None]) -> Code:
        """Assemble: `body` works on element R6; it goes to "next" or "stop"."""
        a = self.a
        if self.may_goto:
            toucher = self.toucher
            if toucher is None:
                self._round("loop", AT, COUNT, "stop")
            else:
                toucher.start(a)
                rounds = [lambda done: toucher.bucket(a, self._key, done),
                          lambda done: toucher.first(a, done),
                          lambda done: toucher.second(a, done)]
                if self.values is not None:
                    self.values.start(a, "astray")
                    rounds.append(partial(self.values.touch, a))
                self.blocks(*rounds)
            body()
            return self.end()
        self.head(R1)
        a.ldx(4, R1, R1, COUNT)
        a.ld_func(R2, "each")
        a.mov(R3, 0)
        a.mov(R4, 0)
        a.call(Helper.LOOP)
        a.mov(R0, 0)
        a.exit()
        a.function("each")
        a.mov(R6, R1)
        a.jge(R6, self.bound, "stop")
        body()
        a.label("next")
        a.mov(R0, 0)
        a.exit()
        a.label("stop")
        a.mov(R0, 1)
        a.exit()
        return a.assemble()

    def _key(self, register: Reg, scratch: Reg) -> None:
        assert self.toucher is not None
        self.element(register, self.keys_at, self.toucher.key_size, scratch)

    def _round(self, name: str, index: int, end: int, done: str) -> None:
        """Begin a round of the loop `name` for element R6; go to `done` behind the last.

        The index comes from memory in each round: the verifier, which follows an index in a
        register round by round, is done after two.
        """
        a = self.a
        a.label(name)
        self.head(R1)
        a.ldx(4, R6, R1, index)
        a.ldx(4, R2, R1, end)
        a.jge(R6, R2, done)
        a.jge(R6, self.bound, "stop")
        a.may_goto("stop")
        a.mov(R2, R6)
        a.add(R2, 1)
        a.stx(4, R1, index, R2)

    def end(self) -> Code:
        """End the loop of `blocks` or of a round, and the program."""
        a = self.a
        a.label("next")
        a.ja("loop")
        if self.values is not None:
            a.label("astray")
            self.head(R1)
            a.st(4, R1, ERRNO, _EFAULT)
        a.label("stop")
        a.mov(R0, 0)
        a.exit()
        return a.assemble()

    def blocks(self, *rounds: Callable[[str], None]) -> None:
        """Begin a loop of which each block begins with these rounds that touch what it needs.

        Each is about element R6, and goes to the label it is given.
        """
        a = self.a
        a.label("block")
        self.head(R1)
        a.ldx(4, R6, R1, AT)
        a.ldx(4, R2, R1, COUNT)
        a.jge(R6, R2, "stop")
        a.may_goto("stop")
        a.stx(4, R1, AHEAD, R6)
        a.mov(R3, R6)
        a.add(R3, BLOCK)
        a.jle(R3, R2, "whole")
        a.mov(R3, R2)
        a.label("whole")
        a.stx(4, R1, END, R3)
        for number, each in enumerate(rounds):
            if number:
                self.head(R1)
                a.ldx(4, R6, R1, AT)
                a.stx(4, R1, AHEAD, R6)
            name, done = f"touch {number}", f"touched {number}"
            self._round(name, AHEAD, END, done)
            each(name)
            a.label(done)
        self._round("loop", AT, END, "block")

    def count_failure(self) -> None:
        """Count an element that failed; R1 and R2 are lost."""
        a = self.a
        self.head(R1)
        a.ldx(4, R2, R1, FAILED)
        a.add(R2, 1)
        a.stx(4, R1, FAILED, R2)

    def failed(self, codes_at: int) -> None:
        """Do what the run's mode says about element R6, which failed with -R0."""
        a = self.a
        a.neg32(R0)  # before Linux 6.4 the helpers return 32 bits, without the sign above
        self.head(R1)
        a.ldx(4, R2, R1, MODE)
        a.jeq(R2, RETURN, "return")
        a.jeq(R2, STOP, "halt")
        a.jne(R0, _ENOENT, "halt")
        a.ja("failed")
        a.label("return")
        self.element(R2, codes_at, 4, R3)
        a.stx(4, R2, 0, R0)
        a.label("failed")
        self.count_failure()
        a.ja("next")
        a.label("halt")
        a.stx(4, R1, ERRNO, R0)
        a.stx(4, R1, INDEX, R6)
        a.ja("stop")


def pieces(size: int) -> list[tuple[int, int]]:
    """Return ``(offset, bytes)`` of the words that `size` bytes are copied by."""
    found, at = [], 0
    for width in (8, 4, 2, 1):
        while size - at >= width:
            found.append((at, width))
            at += width
    return found


def copy(a: Assembler, dst: Reg, src: Reg, size: int, by: Reg, *, to: int = 0,
         frm: int = 0) -> None:
    """Copy `size` bytes from `src` + `frm` to `dst` + `to`, word by word."""
    for at, width in pieces(size):
        a.ldx(width, by, src, frm + at)
        a.stx(width, dst, to + at, by)


def _zero(a: Assembler, dst: Reg, size: int) -> None:
    for at, width in pieces(size):
        a.st(width, dst, at, 0)


def lookup(map: int | HasFileno, buffer: int | HasFileno, layout: Layout, *, may_goto: bool,
           delete: bool = False, rows: int | HasFileno | None = None,
           toucher: Toucher | None = None, take: bool = False,
           id_at: int | None = None) -> Code:
    """Make a program that looks up each key: rows go to the values, a byte each to the codes.

    Rows of missing keys become zeros; where values are large they go to `rows`, another array of
    a value each, and those of missing keys keep what was there. With `delete`, what is found is
    deleted. With `take`, what was touched and is the key's is copied without another search.
    Where values are maps, `id_at` is where a map has its id.
    """
    loop = Loop(buffer, layout.chunk, may_goto=may_goto, toucher=toucher,
                keys_at=layout.keys_at)
    a = loop.a

    def found() -> None:
        loop.element(R7, layout.codes_at, 1, R8)
        a.st(1, R7, 0, 1)
        a.ja("next")

    def body() -> None:
        if take and loop.toucher is not None:
            _find(loop, loop.toucher, layout)
            loop.element(R7, layout.values_at, layout.row_size, R8)
            copy(a, R7, R0, layout.value_size, R1, frm=loop.toucher.value_at)
            found()
            a.label("search")
        loop.element(R2, layout.keys_at, layout.key_size, R3)
        a.ld_map(R1, map)
        a.call(Helper.MAP_LOOKUP_ELEM)
        a.jeq(R0, 0, "missing")
        if rows is None:
            loop.element(R7, layout.values_at, layout.row_size, R8)
            copy(a, R7, R0, layout.value_size, R1, frm=id_at or 0)
        else:
            _copy_by_helper(a, rows, R0, R6)
        if delete:
            loop.element(R2, layout.keys_at, layout.key_size, R3)
            a.ld_map(R1, map)
            a.call(Helper.MAP_DELETE_ELEM)
            a.jne(R0, 0, "missing")  # someone else was faster: it is theirs
        found()
        a.label("missing")
        loop.element(R7, layout.codes_at, 1, R8)
        a.st(1, R7, 0, 0)
        if rows is None:
            loop.element(R7, layout.values_at, layout.row_size, R8)
            _zero(a, R7, layout.value_size)

    return loop.build(body)


def _find(loop: Loop, toucher: Toucher, layout: Layout) -> None:
    """Let R0 point to the touched element of key R6; go to "search" where it is another's.

    As after a lookup by the kernel, the element may be given to another key meanwhile.
    """
    a = loop.a
    toucher.slot(a, R7, R6, R3)
    toucher.candidate(a, R7, "search")
    loop.element(R2, layout.keys_at, layout.key_size, R3)
    for at, width in pieces(layout.key_size):
        a.ldx(width, R3, R0, toucher.what.key_at + at)
        a.ldx(width, R4, R2, at)
        a.jne(R3, R4, "search")


def _copy_by_helper(a: Assembler, rows: int | HasFileno, value: Reg, index: Reg) -> None:
    """Copy a value to element `index` of the array `rows`."""
    a.mov(R3, value)
    a.stx(4, FP, -4, index)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.ld_map(R1, rows)
    a.mov(R4, 0)
    a.call(Helper.MAP_UPDATE_ELEM)


def lookup_percpu(map: int | HasFileno, buffer: int | HasFileno, layout: Layout, *,
                  may_goto: bool, rows: int | HasFileno | None = None,
                  toucher: Toucher | None = None, values: Values | None = None) -> Code:
    """Make a program that looks up each key on each CPU.

    Rows of missing keys keep what was there: the reader of the buffer knows them by their code.
    With `values`, those of an element that was touched and is the key's are copied from there.
    """
    cpus = len(layout.cpus)
    loop = Loop(buffer, layout.chunk, may_goto=may_goto, toucher=toucher, keys_at=layout.keys_at,
                values=None if toucher is None else values)
    a = loop.a

    def body() -> None:
        if loop.toucher is not None and loop.values is not None:
            _find(loop, loop.toucher, layout)
            loop.values.pointer(a, R7)
            loop.element(R8, layout.values_at, layout.row_size, R3)
            for which in range(cpus):
                loop.values.load(a, R7, which)
                copy(a, R8, R0, layout.value_size, R1, to=which * layout.slot,
                     frm=loop.values.at)
            loop.element(R7, layout.codes_at, 1, R8)
            a.st(1, R7, 0, 1)
            a.ja("next")
            a.label("search")
        a.mov(R9, 0)
        a.label("cpu")
        loop.element(R2, HEAD, 4, R3, R9)
        a.ldx(4, R3, R2, 0)
        loop.element(R2, layout.keys_at, layout.key_size, R4)
        a.ld_map(R1, map)
        a.call(Helper.MAP_LOOKUP_PERCPU_ELEM)
        a.jeq(R0, 0, "missing")
        if rows is None:
            loop.element(R8, layout.values_at, layout.row_size, R2)
            a.mov(R2, R9)
            a.mul(R2, layout.slot)
            a.add(R8, R2)
            copy(a, R8, R0, layout.value_size, R1)
        else:
            a.mov(R7, R6)
            a.mul(R7, cpus)
            a.add(R7, R9)
            _copy_by_helper(a, rows, R0, R7)
        a.add(R9, 1)
        a.jlt(R9, cpus, "cpu")
        loop.element(R3, layout.codes_at, 1, R2)
        a.st(1, R3, 0, 1)
        a.ja("next")
        a.label("missing")
        loop.element(R3, layout.codes_at, 1, R2)
        a.st(1, R3, 0, 0)

    return loop.build(body)


def update(map: int | HasFileno, buffer: int | HasFileno, layout: Layout, *,
           may_goto: bool, toucher: Toucher | None = None) -> Code:
    """Make a program that sets each key to its value, with the head's flags."""
    loop = Loop(buffer, layout.chunk, may_goto=may_goto, toucher=toucher,
                keys_at=layout.keys_at)
    a = loop.a

    def body() -> None:
        loop.element(R2, layout.keys_at, layout.key_size, R4)
        loop.element(R3, layout.values_at, layout.row_size, R4)
        loop.head(R4)
        a.ldx(8, R4, R4, FLAGS)
        a.ld_map(R1, map)
        a.call(Helper.MAP_UPDATE_ELEM)
        a.jeq(R0, 0, "next")
        loop.failed(layout.codes_at)

    return loop.build(body)


def delete(map: int | HasFileno, buffer: int | HasFileno, layout: Layout, *,
           may_goto: bool, toucher: Toucher | None = None) -> Code:
    """Make a program that deletes each key."""
    loop = Loop(buffer, layout.chunk, may_goto=may_goto, toucher=toucher,
                keys_at=layout.keys_at)
    a = loop.a

    def body() -> None:
        loop.element(R2, layout.keys_at, layout.key_size, R4)
        a.ld_map(R1, map)
        a.call(Helper.MAP_DELETE_ELEM)
        a.jeq(R0, 0, "next")
        loop.failed(layout.codes_at)

    return loop.build(body)


def increment(map: int | HasFileno, buffer: int | HasFileno, layout: Layout,
              fields: Sequence[tuple[int, int]], *, may_goto: bool) -> Code:
    """Make a program that adds to ``(offset, bytes)`` of each key's value, atomically.

    What is added stands in the buffer's values, laid out as a value.
    """
    loop = Loop(buffer, layout.chunk, may_goto=may_goto)
    a = loop.a

    def body() -> None:
        loop.element(R2, layout.keys_at, layout.key_size, R3)
        a.ld_map(R1, map)
        a.call(Helper.MAP_LOOKUP_ELEM)
        loop.element(R7, layout.codes_at, 1, R8)
        a.jeq(R0, 0, "missing")
        loop.element(R5, layout.values_at, layout.row_size, R4)
        for at, width in fields:
            a.ldx(width, R1, R5, at)
            a.atomic_add(width, R0, at, R1)
        a.st(1, R7, 0, 1)
        a.ja("next")
        a.label("missing")
        a.st(1, R7, 0, 0)

    return loop.build(body)


def push(map: int | HasFileno, buffer: int | HasFileno, layout: Layout, *,
         may_goto: bool) -> Code:
    """Make a program that pushes each value, with the head's flags, onto a queue or stack."""
    loop = Loop(buffer, layout.chunk, may_goto=may_goto)
    a = loop.a

    def body() -> None:
        loop.element(R2, layout.values_at, layout.row_size, R4)
        loop.head(R3)
        a.ldx(8, R3, R3, FLAGS)
        a.ld_map(R1, map)
        a.call(Helper.MAP_PUSH_ELEM)
        a.jeq(R0, 0, "next")
        loop.failed(layout.codes_at)

    return loop.build(body)


def pop(map: int | HasFileno, buffer: int | HasFileno, layout: Layout, *, may_goto: bool) -> Code:
    """Make a program that pops values off a queue or stack; an empty one ends the run."""
    loop = Loop(buffer, layout.chunk, may_goto=may_goto)
    a = loop.a

    def body() -> None:
        loop.element(R2, layout.values_at, layout.row_size, R4)
        a.ld_map(R1, map)
        a.call(Helper.MAP_POP_ELEM)
        a.jeq(R0, 0, "next")
        loop.failed(layout.codes_at)

    return loop.build(body)
