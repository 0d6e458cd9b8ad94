"""What ``fastmap.bpf.h`` is for C, for programs made by `fastmap.asm`: no compiler is needed.

    a = Assembler()
    a.st(8, FP, -8, 42)                              # the key
    get(a, table, key=-8, scratch=-8 - SCRATCH)      # R0: its value; 0: no room (it is counted)
    a.jeq(R0, 0, "out")
    a.mov(R1, 1)
    a.atomic_add(8, R0, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    functions(a, table)

The protocol is the header's, and told there; it walks by ``bpf_loop`` (Linux 5.17).
"""

from __future__ import annotations

from typing import Protocol

from fastmap._core.live.table import OWN, abi
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Assembler, HasFileno, Reg
from fastmap.enums import Helper
from fastmap.live.layout import HEAD, lines_of

__all__ = ["SCRATCH", "functions", "get"]


class Table(Protocol):
    """What is asked of a `LiveTable`."""

    capacity: int
    columns: int

    @property
    def own_columns(self) -> bool: ...
    @property
    def sizes(self) -> tuple[int, int]: ...
    def map(self, letter: str) -> HasFileno: ...


# What `get` keeps on the stack, from `scratch` on; the functions have its address.
_HASH, _SELF, _KIND, _VALUE, _MINE, _RESULT, _ENTRY, _TEMP, _ZERO, _KEY = range(0, 80, 8)
#: Bytes of stack that `get` needs.
SCRATCH = _KEY + 64

_FULL, _FOUND, _HELP, _EMPTY = range(4)
_NONE = 0xFFFFFFFF
_TRIES, _LINES, _WAYS = 16, 8, 7
_CONFIRMED, _TOMB, _LOST = 1 << 32, (1 << 64) - 1, 2


def _at(field: str) -> int:
    fields = HEAD.fields
    assert fields is not None
    return int(fields[field][1])


def _pieces(size: int) -> list[tuple[int, int]]:
    """Return ``(offset, size)`` of the loads that a key takes."""
    found, at = [], 0
    for width in (8, 4, 2, 1):
        while size - at >= width:
            found.append((at, width))
            at += width
    return found


def _lookup(a: Assembler, table: Table, letter: str, index: int, base: Reg = FP) -> None:
    """Emit: R0 = the element of a map whose number stands at ``base + index``."""
    a.ld_map(R1, table.map(letter))
    a.mov(R2, base)
    a.add(R2, index)
    a.call(Helper.MAP_LOOKUP_ELEM)


def _set(a: Assembler, base: Reg, zero: int, field: int, number: int) -> None:
    """Emit: a word of the state is a number that the verifier does not know.

    Each that it knows is a state of its own to it, and walks of them are too many.
    """
    a.ldx(8, R1, base, zero)
    a.ld_imm64(R2, number)
    a.add(R1, R2)
    a.stx(8, base, field, R1)


def _count(a: Assembler, head: Reg, field: str) -> None:
    a.mov(R1, 1)
    a.atomic_add(8, head, _at(field), R1)


def _compare(a: Assembler, size: int, stored: Reg, base: Reg, key: int, differ: str) -> None:
    for at, width in _pieces(size):
        a.ldx(width, R2, stored, at)
        a.ldx(width, R3, base, key + at)
        a.jne(R2, R3, differ)


def get(a: Assembler, table: Table, *, key: int, scratch: int, insert: bool = True,
        tag: str = "live") -> None:
    """Emit code that puts the value of a key into R0: on this CPU's column; 0 where there is none.

    Parameters
    ----------
    a : Assembler
    table : LiveTable
    key : int
        Where the key is, from FP on: a multiple of 8.
    scratch : int
        Where `SCRATCH` bytes of stack are free, from FP on: a multiple of 8.
    insert : bool
        Whether a new key is inserted: NAME_get; False: NAME_peek.
    tag : str
        What the labels begin with: another one for each `get` of a function.

    Notes
    -----
    R1 to R5, R8 and R9 are lost. `functions` must be emitted behind the program's own.
    """
    if key % 8 or scratch % 8:
        raise ValueError(f"key={key} and scratch={scratch} are multiples of 8")
    key_size, value_size = table.sizes
    own = OWN if table.own_columns else 0
    a.ld_map_value(R9, table.map("h"))
    a.ldx(8, R1, R9, 0)
    a.ld_imm64(R2, abi(key_size, value_size) | own)
    a.jne(R1, R2, f"{tag}_full")
    a.ldx(8, R2, R9, _at("reserved"))
    a.stx(8, FP, scratch + _ZERO, R2)
    a.stx(8, FP, scratch + _KEY + (key_size - 1) // 8 * 8, R2)
    for at, width in _pieces(key_size):
        a.ldx(width, R1, FP, key + at)
        a.or_(R1, R2)
        a.stx(width, FP, scratch + _KEY + at, R1)
    _hash(a, scratch, (key_size + 7) // 8 * 2)
    a.mov32(R1, R3)
    a.and32(R1, lines_of(table.capacity) - 1)
    a.stx(4, FP, scratch + _TEMP, R1)
    _lookup(a, table, "x", scratch + _TEMP)
    a.jeq(R0, 0, f"{tag}_full")
    a.mov(R8, R0)
    for way in range(_WAYS):
        a.ldx(8, R1, FP, scratch + _HASH)
        a.rsh(R1, 32)
        a.or_(R1, 1)
        a.ldx(8, R2, R8, 8 * way)
        a.mov(R3, R2)
        a.rsh(R3, 32)
        a.jne(R3, R1, f"{tag}_not{way}")
        a.mov32(R2, R2)
        a.sub32(R2, 1)
        a.stx(4, FP, scratch + _TEMP, R2)
        _lookup(a, table, "k", scratch + _TEMP)
        a.jeq(R0, 0, f"{tag}_not{way}")
        _compare(a, key_size, R0, FP, scratch + _KEY, f"{tag}_not{way}")
        a.ja(f"{tag}_found")
        a.label(f"{tag}_not{way}")
    for field, start in ((_SELF, _NONE), (_KIND, _FULL), (_VALUE, 0), (_MINE, 0),
                         (_RESULT, _NONE), (_ENTRY, 0)):
        _set(a, FP, scratch + _ZERO, scratch + field, start)
    a.mov(R1, _TRIES if insert else _LINES)
    a.ld_func(R2, "live_try" if insert else "live_line")
    a.mov(R3, FP)
    a.add(R3, scratch)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    if insert:
        _give_back(a, table, scratch, tag)
        a.ldx(8, R1, FP, scratch + _RESULT)
        a.jge(R1, table.capacity, f"{tag}_full")
    else:
        a.ldx(8, R1, FP, scratch + _KIND)
        a.jne(R1, _FOUND, f"{tag}_none")
        a.ldx(8, R1, FP, scratch + _VALUE)
    a.stx(4, FP, scratch + _TEMP, R1)
    a.label(f"{tag}_found")
    a.call(Helper.GET_SMP_PROCESSOR_ID)
    if not own:
        a.and_(R0, table.columns - 1)
    a.mul(R0, table.capacity)
    a.ldx(4, R1, FP, scratch + _TEMP)
    a.add(R1, R0)
    a.stx(4, FP, scratch + _TEMP, R1)
    _lookup(a, table, "v", scratch + _TEMP)
    a.ja(f"{tag}_end")
    a.label(f"{tag}_full")
    if insert:
        _count(a, R9, "full")
    a.label(f"{tag}_none")
    a.mov(R0, 0)
    a.label(f"{tag}_end")


def _hash(a: Assembler, scratch: int, words: int) -> None:
    """Emit FASTMAP_HASH with the head in R9: into R3 and the stack."""
    secret = _at("secret")
    a.ldx(8, R3, R9, secret)
    for word in range(0, words, 2):
        for step, into in ((0, R4), (1, R5)):
            a.ldx(4, R1, FP, scratch + _KEY + 4 * (word + step))
            a.ldx(8, into, R9, secret + 8 * (word + step + 1))
            a.add(into, R1)
        a.mul(R4, R5)
        a.add(R3, R4)
    a.mov(R4, R3)
    a.rsh(R4, 32)
    a.mov32(R1, R4)
    a.rsh32(R1, 16)
    a.xor32(R4, R1)
    a.mul32(R4, 0x85EBCA6B)
    a.mov32(R1, R4)
    a.rsh32(R1, 13)
    a.xor32(R4, R1)
    a.ld_imm64(R1, 0x9E3779B97F4A7C15)
    a.mul(R3, R1)
    a.rsh(R3, 32)
    a.lsh(R3, 32)
    a.or_(R3, R4)
    a.stx(8, FP, scratch + _HASH, R3)


def _spare(a: Assembler, head: Reg, value: Reg) -> None:
    """Emit: swap `value`, which is none of R0 to R5, with this CPU's spare."""
    a.call(Helper.GET_SMP_PROCESSOR_ID)
    a.and_(R0, 63)
    a.lsh(R0, 3)
    a.mov(R1, head)
    a.add(R1, R0)
    a.atomic_xchg(8, R1, _at("spare"), value)


def _give_back(a: Assembler, table: Table, scratch: int, tag: str) -> None:
    """Emit: a slot that was taken and not needed becomes this CPU's spare."""
    a.ldx(8, R8, FP, scratch + _MINE)
    a.jeq(R8, 0, f"{tag}_kept")
    _count(a, R9, "races")
    _spare(a, R9, R8)
    a.jeq(R8, 0, f"{tag}_kept")
    a.sub(R8, 1)
    a.stx(4, FP, scratch + _TEMP, R8)
    _lookup(a, table, "b", scratch + _TEMP)
    a.jeq(R0, 0, f"{tag}_kept")
    a.mov(R1, _LOST)
    a.atomic_xchg(8, R0, 0, R1)
    _count(a, R9, "lost")
    a.label(f"{tag}_kept")


def functions(a: Assembler, table: Table, *, insert: bool = True) -> None:
    """Emit what `get` calls: behind the program's own functions, once; `insert` as any of them."""
    a.function("live_line")
    _line(a, table)
    if insert:
        a.function("live_try")
        _try(a, table)


def _return(a: Assembler, label: str, number: int) -> None:
    a.label(label)
    a.mov(R0, number)
    a.exit()


def _line(a: Assembler, table: Table) -> None:
    """The function NAME__line, as a step of NAME__walk: ends the walk where it returns 1."""
    key_size = table.sizes[0]
    a.mov(R6, R2)
    a.ldx(8, R3, R6, _HASH)
    a.mov(R4, R3)
    a.rsh(R4, 40)
    a.or32(R4, 1)
    a.mul32(R4, R1)
    a.add32(R3, R4)
    a.and32(R3, lines_of(table.capacity) - 1)
    a.stx(4, FP, -4, R3)
    a.mov(R8, R3)
    a.lsh(R8, 3)  # the place of way 0
    _lookup(a, table, "x", -4)
    a.jeq(R0, 0, "last")
    a.mov(R7, R0)
    for way in range(_WAYS):
        no = f"not{way}"
        a.ldx(8, R9, R7, 8 * way)
        a.jne(R9, 0, f"some{way}")
        a.ldx(8, R1, R6, _KIND)
        a.jne(R1, _FULL, no)
        _set(a, R6, _ZERO, _KIND, _EMPTY)
        a.mov(R1, R8)
        a.or_(R1, way)
        a.stx(8, R6, _VALUE, R1)
        a.ja(no)
        a.label(f"some{way}")
        a.ldx(8, R1, R6, _HASH)
        a.xor(R1, R9)
        a.rsh(R1, 33)
        a.jne(R1, 0, no)
        a.ldx(8, R1, R6, _SELF)
        a.mov(R2, R8)
        a.or_(R2, way)
        a.jeq(R1, R2, no)
        a.mov32(R1, R9)
        a.sub32(R1, 1)
        a.stx(4, FP, -4, R1)
        _lookup(a, table, "k", -4)
        a.jeq(R0, 0, no)
        _compare(a, key_size, R0, R6, _KEY, no)
        a.ld_imm64(R1, _CONFIRMED)
        a.jset(R9, R1, f"found{way}")
        a.ldx(8, R1, R6, _SELF)
        _jump_not_none(a, R1, f"kill{way}")
        _set(a, R6, _ZERO, _KIND, _HELP)
        a.mov(R1, R8)
        a.or_(R1, way)
        a.stx(8, R6, _VALUE, R1)
        a.ja("last")
        a.label(f"kill{way}")
        a.mov(R0, R9)
        a.ld_imm64(R1, _TOMB)
        a.atomic_cmpxchg(8, R7, 8 * way, R1)
        a.jne(R0, R9, f"late{way}")
        a.ld_map_value(R1, table.map("h"))
        a.mov(R2, 1)
        a.atomic_add(8, R1, _at("tombs"), R2)
        a.ja(no)
        a.label(f"late{way}")
        a.ld_imm64(R1, _CONFIRMED)
        a.or_(R9, R1)
        a.jne(R0, R9, no)
        a.label(f"found{way}")
        _set(a, R6, _ZERO, _KIND, _FOUND)
        a.ldx(4, R1, FP, -4)
        a.stx(8, R6, _VALUE, R1)
        a.ja("last")
        a.label(no)
    a.ldx(8, R1, R7, 56)
    a.jset(R1, 1, "on")
    a.ldx(8, R1, R6, _KIND)
    a.jne(R1, _FULL, "last")
    a.ldx(8, R1, R6, _SELF)
    _jump_not_none(a, R1, "last")
    a.mov(R1, 1)
    a.atomic_xchg(8, R7, 56, R1)
    _return(a, "on", 0)
    _return(a, "last", 1)


def _jump_not_none(a: Assembler, register: Reg, label: str) -> None:
    a.ld_imm64(R2, _NONE)
    a.jne(register, R2, label)


def _walk(a: Assembler) -> None:
    """Emit the walk along a key's path; its state is at R6, and ``_SELF`` is set."""
    _set(a, R6, _ZERO, _KIND, _FULL)
    a.mov(R1, _LINES)
    a.ld_func(R2, "live_line")
    a.mov(R3, R6)
    a.mov(R4, 0)
    a.call(Helper.LOOP)


def _try(a: Assembler, table: Table) -> None:
    """A turn of the loop of NAME__insert: ends it where it returns 1."""
    a.mov(R6, R2)
    _set(a, R6, _ZERO, _SELF, _NONE)
    _walk(a)
    a.ldx(8, R1, R6, _KIND)
    a.jeq(R1, _FOUND, "found")
    a.jeq(R1, _FULL, "over")
    a.ldx(8, R8, R6, _VALUE)  # the place
    a.mov(R1, R8)
    a.rsh(R1, 3)
    a.stx(4, FP, -4, R1)
    _lookup(a, table, "x", -4)
    a.jeq(R0, 0, "over")
    a.mov(R7, R0)
    a.mov(R1, R8)
    a.and_(R1, 7)
    a.lsh(R1, 3)
    a.add(R7, R1)  # the entry
    a.ldx(8, R1, R6, _KIND)
    a.jeq(R1, _EMPTY, "place")
    a.mov(R9, 0)
    a.atomic_add(8, R7, 0, R9, fetch=True)
    a.jeq(R9, 0, "again")
    a.ld_imm64(R1, _CONFIRMED)
    a.jset(R9, R1, "again")
    a.ja("confirm")
    a.label("place")
    a.ldx(8, R9, R6, _MINE)
    a.jne(R9, 0, "taken")
    _alloc(a, table)
    a.stx(4, FP, -4, R9)
    a.add(R9, 1)
    _lookup(a, table, "k", -4)
    a.jeq(R0, 0, "over")
    for at, width in _pieces(table.sizes[0]):
        a.ldx(width, R1, R6, _KEY + at)
        a.stx(width, R0, at, R1)
    a.stx(8, R6, _MINE, R9)
    a.label("taken")
    a.ldx(8, R1, R6, _HASH)
    a.rsh(R1, 33)
    a.lsh(R1, 33)
    a.or_(R9, R1)
    a.mov(R0, 0)
    a.atomic_cmpxchg(8, R7, 0, R9)
    a.jne(R0, 0, "again")
    a.label("confirm")
    a.stx(8, R6, _ENTRY, R9)
    a.stx(8, R6, _SELF, R8)
    _walk(a)
    a.ldx(8, R9, R6, _ENTRY)
    a.ldx(8, R8, R6, _KIND)
    a.ld_imm64(R3, _TOMB)
    a.jeq(R8, _FOUND, "yield")
    a.ld_imm64(R3, _CONFIRMED)
    a.or_(R3, R9)
    a.label("yield")
    a.mov(R0, R9)
    a.atomic_cmpxchg(8, R7, 0, R3)
    a.jeq(R0, R9, "done")
    a.ld_imm64(R1, _TOMB)
    a.jne(R0, R1, "use")  # a helper confirmed it, and publishes it
    a.jeq(R8, _FOUND, "found")
    a.ja("again")
    a.label("done")
    a.jne(R8, _FOUND, "publish")
    a.ld_map_value(R1, table.map("h"))
    a.mov(R2, 1)
    a.atomic_add(8, R1, _at("tombs"), R2)
    a.label("found")
    a.ldx(8, R1, R6, _VALUE)
    a.stx(8, R6, _RESULT, R1)
    a.ja("over")
    a.label("publish")
    a.mov32(R1, R9)
    a.sub32(R1, 1)
    a.stx(4, FP, -4, R1)
    _lookup(a, table, "b", -4)
    a.jeq(R0, 0, "over")
    a.mov(R8, R0)
    a.call(Helper.KTIME_GET_NS)
    a.or_(R0, 1)
    a.atomic_xchg(8, R8, 0, R0)
    a.label("use")
    a.mov32(R9, R9)
    a.ldx(8, R1, R6, _MINE)
    a.jne(R1, R9, "theirs")
    _set(a, R6, _ZERO, _MINE, 0)
    a.label("theirs")
    a.sub32(R9, 1)
    a.stx(8, R6, _RESULT, R9)
    _return(a, "over", 1)
    _return(a, "again", 0)


def _alloc(a: Assembler, table: Table) -> None:
    """Emit NAME__alloc: R9 is a slot; goes "over" where there is none, "again" to retry."""
    a.stx(8, FP, -16, R8)
    a.ld_map_value(R8, table.map("h"))
    a.mov(R9, 0)
    _spare(a, R8, R9)
    a.sub(R9, 1)
    a.jsge(R9, 0, "got")
    a.ldx(8, R9, R8, _at("free_head"))
    a.mov(R1, 0)
    a.atomic_add(8, R8, _at("free_tail"), R1, fetch=True)
    a.jge(R9, R1, "fresh")
    a.mov(R1, R9)
    a.mod(R1, table.capacity)
    a.mov(R2, R1)
    a.and_(R2, 1)
    a.stx(8, FP, -24, R2)
    a.rsh(R1, 1)
    a.stx(4, FP, -4, R1)
    _lookup(a, table, "f", -4)
    a.jeq(R0, 0, "fresh")
    a.ldx(8, R1, FP, -24)
    a.and_(R1, 1)
    a.lsh(R1, 2)
    a.add(R0, R1)
    a.ldx(4, R3, R0, 0)
    a.mov(R0, R9)
    a.mov(R1, R9)
    a.add(R1, 1)
    a.atomic_cmpxchg(8, R8, _at("free_head"), R1)
    a.jne(R0, R9, "again")
    a.mov(R9, R3)
    a.ja("got")
    a.label("fresh")
    a.ldx(8, R1, R8, _at("used"))
    a.jge(R1, table.capacity, "over")
    a.mov(R9, 1)
    a.atomic_add(8, R8, _at("used"), R9, fetch=True)
    a.jge(R9, table.capacity, "over")
    a.label("got")
    a.ldx(8, R8, FP, -16)
