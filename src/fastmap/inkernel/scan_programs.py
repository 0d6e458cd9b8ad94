"""The programs that walk a whole map, copy what is asked for, and leave out what does not pass.

bpf_for_each_map_elem calls a function for each entry. It walks a hash without its locks: an entry
of a map that changes meanwhile may come twice, or not at all; and it cannot be resumed. Where the
kernel tells how it keeps a hash (6.9), a program goes over the buckets itself, with no more locks
and no less: so many at a time that a run stays short, and prefetching a block's elements.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from fastmap.asm import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R7,
    R8,
    R9,
    Assembler,
    Code,
    HasFileno,
    Helper,
    Reg,
)
from fastmap.inkernel.key_programs import BUCKETS, COPIED, COUNT, ERRNO, Loop, copy, pieces
from fastmap.inkernel.percpu_values import FOLDS, MOST_WORK, Values, extend, fold, swap
from fastmap.inkernel.prefetch import FOLDED, NEXT, Toucher

#: op, kind, swapped, src, dst, count: as `fastmap._core.rows.columns` takes them.
Column: TypeAlias = tuple[str, str, bool, int, int, int]
Condition: TypeAlias = tuple[Column, str, bool, Any]

#: More bytes than these are not copied word by word, nor compared.
MOST_BYTES = 512
#: The verifier follows no offset beyond 29 bits.
MOST_OUTPUT = (1 << 29) - (1 << 16)

_EAGAIN, _EFBIG = 11, 27


def why_not(columns: Sequence[Column], condition: Condition | None, cpus: int = 0) -> str:
    """Return why no program can do this; an empty text where one can.

    `cpus` is how many values a row of the map has; 0 where it is not per-CPU.
    """
    for op, kind, swapped, *_ in (*columns, *((condition[0],) if condition else ())):
        if op != "copy" and (op not in FOLDS or kind[0] == "f" or (op == "max" and swapped)):
            return ("a program takes the sum, max or or of integers over the CPUs, not the "
                    f"{op} of {kind}")
    if sum(column[5] for column in columns) > MOST_BYTES * max(cpus, 1):
        return f"values of more than {MOST_BYTES} bytes go faster by batches"
    if 8 * cpus + sum(count // 4 + 6 if op == "copy" else 6 * count * cpus
                      for op, _, _, _, _, count in columns) > MOST_WORK:
        return f"values of {cpus} CPUs go faster by batches"
    if condition is None or condition[1] in ("always", "never"):
        return ""
    column, _, _, bound = condition
    if column[1] == "bytes" and column[5] > MOST_BYTES:
        return f"where= compares more than {MOST_BYTES} bytes"
    if column[1] == "f4" and bound == bound and _f4(bound) != bound:
        return "where= compares f4 with a number that no f4 is"
    return ""


def _f4(number: float) -> float:
    try:
        return float(struct.unpack("=f", struct.pack("=f", number))[0])
    except OverflowError:
        return float("nan")


@dataclass(frozen=True)
class Output:
    """What of an entry goes where.

    Attributes
    ----------
    head, keys, rows : int or object with fileno
        Arrays of one element; the head is laid out as a buffer's.
    key_size, out_size : int
        Bytes of a key, and of a row of the values.
    capacity : int
        How many entries there is room for; one more ends the walk with an errno in the head.
    """

    head: int | HasFileno
    keys: int | HasFileno
    rows: int | HasFileno
    key_size: int
    out_size: int
    capacity: int
    columns: tuple[Column, ...]
    condition: Condition | None
    #: Of a per-CPU map: what reads the values, and bytes from one CPU's to the next in a row.
    values: Values | None = None
    slot: int = 0

    def write(self, a: Assembler, key: Reg, key_at: int, value: Reg, value_at: int) -> None:
        """Copy the entry, if it passes; else go to "dropped". R0, R1, R4 and R5 are lost."""
        decided = None if self.condition is None else _decided(self.condition)
        if decided is False:  # a jump that the verifier takes for one that may not be
            a.mov(R0, 0)
            a.jeq(R0, 0, "dropped")
        elif self.condition is not None and decided is None:
            on_key = self.condition[2]
            if on_key or self.values is None:
                _test(a, self.condition, key if on_key else value,
                      key_at if on_key else value_at)
            else:
                _test(a, self._folded(a, self.values, self.condition), R8, 0)
            a.label("passed")
        a.ld_map_value(R4, self.head)
        a.ldx(4, R5, R4, COPIED)
        a.jge(R5, self.capacity, "full")
        a.mov(R1, R5)
        a.add(R1, 1)
        a.stx(4, R4, COPIED, R1)
        a.ld_map_value(R4, self.keys)
        a.mov(R1, R5)
        a.mul(R1, self.key_size)
        a.add(R4, R1)
        copy(a, R4, key, self.key_size, R0, frm=key_at)
        if not self.out_size:
            return
        out = R4 if self.values is None else R8
        a.ld_map_value(out, self.rows)
        a.mul(R5, self.out_size)
        a.add(out, R5)
        if self.values is None:
            for _, _, _, src, dst, count in self.columns:
                copy(a, out, value, count, R0, to=dst, frm=value_at + src)
        else:
            self.values.pointer(a, R9, value)
            for which in range(len(self.values.cpus)):
                self.values.load(a, R9, which)
                for column in self.columns:
                    self._add(a, self.values, column, which)

    def _add(self, a: Assembler, values: Values, column: Column, which: int) -> None:
        """Add what one CPU's value, at R0, has of a column to the row at R8."""
        op, kind, swapped, src, dst, count = column
        if op == "copy":
            if src // self.slot == which:
                copy(a, R8, R0, count, R1, to=dst, frm=values.at + src % self.slot)
            return
        size = int(kind[1])
        for i in range(count):
            fold(a, op, kind, swapped, values.at + src + i * size, R8,
                 dst + i * (8 if op == "sum" else size), first=which == 0)

    def _folded(self, a: Assembler, values: Values, condition: Condition) -> Condition:
        """Reduce what a condition is about to the scratch map, to which R8 points then."""
        (op, kind, swapped, src, _, _), compare, on_key, bound = condition
        values.pointer(a, R9, R7)
        a.ld_map_value(R8, values.toucher.scratch)
        for which in range(len(values.cpus)):
            values.load(a, R9, which)
            fold(a, op, kind, swapped, values.at + src, R8, FOLDED, first=which == 0)
        if op == "sum":
            kind, swapped = kind[0] + "8", False
        return (op, kind, swapped, FOLDED, 0, 1), compare, on_key, bound


def walk(map: int | HasFileno, output: Output) -> Code:
    """Make a program that writes the entries of a map, in one go."""
    a = Assembler()
    a.ld_map(R1, map)
    a.ld_func(R2, "each")
    a.mov(R3, 0)
    a.mov(R4, 0)
    a.call(Helper.FOR_EACH_MAP_ELEM)
    a.mov(R0, 0)
    a.exit()
    a.function("each")
    output.write(a, R2, 0, R3, 0)
    a.label("dropped")
    a.mov(R0, 0)
    a.exit()
    a.label("full")
    a.st(4, R4, ERRNO, _EFBIG)
    a.mov(R0, 1)
    a.exit()
    return a.assemble()


def walk_buckets(toucher: Toucher, output: Output) -> Code:
    """Make a program that writes the entries of a hash's buckets, from AT to below COUNT."""
    loop = Loop(output.head, (1 << 31) - 1, may_goto=True, values=output.values)
    a = loop.a
    toucher.start(a)
    rounds = [lambda done: toucher.head(a, done), lambda done: toucher.first(a, done),
              lambda done: toucher.follow(a, done)]
    if output.values is not None:
        output.values.start(a, "astray")
        rounds.append(partial(output.values.touch, a))
    loop.head(R4)
    toucher.count(a, R2)
    a.stx(4, R4, BUCKETS, R2)
    a.ldx(4, R3, R4, COUNT)
    a.jle(R3, R2, "block")
    a.stx(4, R4, COUNT, R2)
    loop.blocks(*rounds)
    # R6 is a bucket: the elements of its list, of which an odd pointer is the end.
    toucher.slot(a, R2, loop.index, R3)
    a.ldx(8, R1, R2, 0)
    a.label("chain")
    a.jset(R1, 1, "next")
    a.may_goto("broken")
    a.mov(R2, toucher.what.elem)
    a.call_kfunc(toucher.what.cast)
    a.mov(R7, R0)
    a.ldx(8, R1, R7, 0)
    a.ld_map_value(R2, toucher.scratch)
    a.stx(8, R2, NEXT, R1)
    key_at = toucher.what.key_at
    output.write(a, R7, key_at, R7, toucher.value_at)
    a.label("dropped")
    a.ld_map_value(R2, toucher.scratch)
    a.ldx(8, R1, R2, NEXT)
    a.ja("chain")
    a.label("full")
    a.st(4, R4, ERRNO, _EFBIG)
    a.ja("stop")
    a.label("broken")  # the kernel ends the run within a bucket: its walker does it again
    loop.head(R4)
    a.st(4, R4, ERRNO, _EAGAIN)
    a.ja("stop")
    return loop.end()


def _decided(condition: Condition) -> bool | None:
    """Return whether every entry passes, or none; None where it depends."""
    (_, kind, *_), compare, _, bound = condition
    if compare in ("always", "never"):
        return compare == "always"
    if kind[0] == "f" and bound != bound:
        return compare == "!="
    return None


def _test(a: Assembler, condition: Condition, at: Reg, base: int) -> None:
    """Go to "dropped" where the entry does not pass, and on or to "passed" where it does."""
    (_, kind, swapped, src, _, count), compare, _, bound = condition
    src += base
    if kind == "bytes":
        _test_bytes(a, at, src, compare, bound[:count])
        return
    size = int(kind[1])
    a.ldx(size, R0, at, src)
    if swapped:
        swap(a, R0, size)
    if kind[0] == "f":
        bound = _ordered(a, size, compare, bound)
    elif kind[0] == "i":
        extend(a, R0, size)
    a.ld_imm64(R1, bound)
    _unless(a, compare, signed=kind[0] != "u")


def _ordered(a: Assembler, size: int, compare: str, bound: float) -> int:
    """Make of a float in R0 an integer of the same order; return that of `bound`.

    What is no number passes "!=" alone.
    """
    code, word, bits = ("=d", "=q", 64) if size == 8 else ("=f", "=i", 32)
    mask, infinite = (1 << bits - 1) - 1, 0x7FF << 52 if size == 8 else 0xFF << 23
    a.ld_imm64(R1, mask)
    a.and_(R1, R0)
    a.ld_imm64(R4, infinite)
    a.jgt(R1, R4, "passed" if compare == "!=" else "dropped")
    extend(a, R0, size)
    a.jsge(R0, 0, "ordered")
    a.ld_imm64(R1, -1 << bits - 1)
    a.sub(R1, R0)
    a.mov(R0, R1)
    a.label("ordered")
    number = int(struct.unpack(word, struct.pack(code, bound))[0])
    return number if number >= 0 else (-1 << bits - 1) - number


def _unless(a: Assembler, compare: str, *, signed: bool) -> None:
    """Go to "dropped" unless R0 compares so with R1."""
    opposite = {
        "==": a.jne, "!=": a.jeq,
        "<": a.jsge if signed else a.jge, "<=": a.jsgt if signed else a.jgt,
        ">": a.jsle if signed else a.jle, ">=": a.jslt if signed else a.jlt,
    }  # fmt: skip
    opposite[compare](R0, R1, "dropped")


def _test_bytes(a: Assembler, at: Reg, src: int, compare: str, bound: bytes) -> None:
    """Compare as memcmp does: word by word, the first byte the most significant."""
    less = "passed" if compare in ("<", "<=", "!=") else "dropped"
    more = "passed" if compare in (">", ">=", "!=") else "dropped"
    equal = "passed" if compare in ("==", "<=", ">=") else "dropped"
    for offset, width in pieces(len(bound)):
        a.ldx(width, R0, at, src + offset)
        if width > 1 and sys.byteorder == "little":
            a.to_be(R0, width)
        a.ld_imm64(R1, int.from_bytes(bound[offset:offset + width], "big"))
        a.jlt(R0, R1, less)
        a.jgt(R0, R1, more)
    a.ja(equal)
