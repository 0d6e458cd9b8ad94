"""A small eBPF assembler: method calls in, instruction bytes out.

    a = Assembler()
    a.ld_map(R1, flows)
    a.ld_func(R2, "count")
    ...
    a.call(Helper.FOR_EACH_MAP_ELEM)
    a.exit()
    a.function("count")
    a.mov(R0, 0)
    a.exit()
    code = a.assemble()

What is wrong with an operand is said by the call that gives it; what only the whole program can
show (a label that is nowhere, a jump too far) is said by `Assembler.assemble`.
"""

from __future__ import annotations

import enum
import operator
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from fastmap.btf.encoder import Builder
from fastmap.enums import Helper

__all__ = [
    "FP", "R0", "R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10",
    "Assembler", "Code", "Helper", "Reg", "disassemble",
]  # fmt: skip


class Reg(enum.Enum):
    """A register; not an integer, so that it is never taken for an immediate."""

    R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg
FP = R10


# An opcode is a class (3 bits) with an operation and a source bit, or with a size and a mode.
_LD, _LDX, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = range(8)
_REG = 0x08
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_BITS = {code: 8 * size for size, code in _SIZES.items()}
_MEM, _MEMSX, _ATOMIC = 0x60, 0x80, 0xC0
_LD_IMM64 = 0x18
_JA, _CALL, _EXIT, _MAY_GOTO = 0x05, 0x85, 0x95, 0xE5
_GOTOL = 0x06
_DIV, _LSH, _RSH, _NEG, _MOD, _MOV, _ARSH = 0x30, 0x60, 0x70, 0x80, 0x90, 0xB0, 0xC0
_TO_LE, _TO_BE, _BSWAP = 0xD4, 0xDC, 0xD7
_ADD_ATOMIC, _OR_ATOMIC, _AND_ATOMIC, _XOR_ATOMIC, _XCHG, _CMPXCHG = 0, 0x40, 0x50, 0xA0, 0xE1, 0xF1
_FETCH = 0x01
# What the source register's field says in ld_imm64 and in call.
_MAP_FD, _MAP_VALUE, _FUNC = 1, 2, 4
_LOCAL_CALL, _KFUNC_CALL = 1, 2

_ALU_SIGN = {
    0x00: "+", 0x10: "-", 0x20: "*", _DIV: "/", 0x40: "|", 0x50: "&", _LSH: "<<", _RSH: ">>",
    _MOD: "%", 0xA0: "^", _MOV: "", _ARSH: "s>>",
}  # fmt: skip
_JUMP_SIGN = {
    0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&", 0x50: "!=", 0x60: "s>", 0x70: "s>=",
    0xA0: "<", 0xB0: "<=", 0xC0: "s<", 0xD0: "s<=",
}  # fmt: skip
_HELPER_NAMES = {int(helper): helper.name.lower() for helper in Helper}
_ATOMIC_SIGN = {_ADD_ATOMIC: "+", _OR_ATOMIC: "|", _AND_ATOMIC: "&", _XOR_ATOMIC: "^"}

_MAIN = "main"
_FUNC_INFO = struct.Struct("=II")


class HasFileno(Protocol):
    """What owns a descriptor."""

    def fileno(self) -> int: ...


@dataclass(frozen=True)
class Code:
    """What BPF_PROG_LOAD takes.

    Attributes
    ----------
    insns : bytes
        The instructions, 8 bytes each.
    func_info : bytes
        A `struct bpf_func_info` of `func_info_rec_size` bytes for each function; empty where there
        is only one.
    btf : bytes
        The BTF that `func_info` refers to; empty where there is only one function.
    maps : tuple
        The maps the instructions name by descriptor, held here: a descriptor whose owner is
        collected before the load would name another map, or none.
    """

    insns: bytes
    func_info: bytes
    func_info_rec_size: int
    btf: bytes
    maps: tuple[int | HasFileno, ...]

    @property
    def insn_cnt(self) -> int:
        """Number of instructions, an `ld_imm64` counted as the two it is made of."""
        return len(self.insns) // 8


@dataclass
class _Insn:
    op: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0

    def pack(self) -> bytes:
        regs = self.dst | self.src << 4 if sys.byteorder == "little" else self.dst << 4 | self.src
        return struct.pack("=BBHI", self.op, regs, self.off & 0xFFFF, self.imm & 0xFFFFFFFF)


def _reg(value: object) -> int:
    if not isinstance(value, Reg):
        raise TypeError(f"a register (R0 to R10) is needed, not {value!r}")
    return int(value.value)


def _dst(value: object) -> int:
    if value is R10:
        raise ValueError("R10 is the frame pointer: a program cannot write it")
    return _reg(value)


def _int(what: str, value: object, low: int, high: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {value!r}") from None
    if not low <= number <= high:
        raise OverflowError(f"{what} {number} is not within {low} to {high}")
    return number


def _off(value: object) -> int:
    return _int("offset", value, -0x8000, 0x7FFF)


def _imm(value: object, bits: int) -> int:
    # The field has 32 bits and 64-bit operations extend its sign: for them 0xffffffff would mean
    # -1. Narrower operations see no more than their own bits, so both readings are one.
    narrow = min(bits, 32)
    high = (1 << narrow) - 1 if bits < 64 else 0x7FFFFFFF
    return _int("immediate", value, -(1 << narrow - 1), high)


def _size(size: object, allowed: tuple[int, ...] = (1, 2, 4, 8)) -> int:
    number = _int("size", size, 0, 1 << 30)
    if number not in allowed:
        raise ValueError(f"size is {', '.join(map(str, allowed))} bytes, not {number}")
    return number


_AluMethod = Callable[["Assembler", Reg, "Reg | int"], None]
_JumpMethod = Callable[["Assembler", Reg, "Reg | int", str], None]


def _alu(operation: int, bits: int, *, off: int = 0) -> _AluMethod:
    cls = _ALU64 if bits == 64 else _ALU

    def emit(self: Assembler, dst: Reg, src: Reg | int) -> None:
        if isinstance(src, Reg):
            return self._emit(operation | _REG | cls, _dst(dst), _reg(src), off)
        imm = _imm(src, bits)
        if operation in (_LSH, _RSH, _ARSH) and not 0 <= imm < bits:
            raise OverflowError(f"a shift of {bits} bits is by 0 to {bits - 1}, not by {imm}")
        if operation in (_DIV, _MOD) and not imm:
            raise ValueError("division by an immediate 0")
        return self._emit(operation | cls, _dst(dst), 0, off, imm)

    emit.__doc__ = f"`dst {_ALU_SIGN[operation]}= src` in {bits} bits, src a register or immediate."
    return emit


def _neg(cls: int) -> Callable[[Assembler, Reg], None]:
    def emit(self: Assembler, dst: Reg) -> None:
        self._emit(_NEG | cls, _dst(dst))

    return emit


def _swap(op: int, sizes: tuple[int, ...]) -> Callable[[Assembler, Reg, int], None]:
    def emit(self: Assembler, dst: Reg, size: int) -> None:
        self._emit(op, _dst(dst), imm=8 * _size(size, sizes))

    emit.__doc__ = "Converts the low `size` (2, 4 or 8) bytes of `dst` and zeroes those above."
    return emit


def _jump(operation: int, bits: int) -> _JumpMethod:
    cls = _JMP if bits == 64 else _JMP32

    def emit(self: Assembler, dst: Reg, src: Reg | int, target: str) -> None:
        if isinstance(src, Reg):
            self._goto(target, operation | _REG | cls, _reg(dst), _reg(src))
        else:
            self._goto(target, operation | cls, _reg(dst), 0, _imm(src, bits))

    emit.__doc__ = f"Goes to label `target` if `dst {_JUMP_SIGN[operation]} src` in {bits} bits."
    return emit


class Assembler:
    """Collects the instructions of a program: the main function first, then its subprograms.

    Sizes are in bytes, offsets too, except those of `call_kfunc`. Labels belong to the function
    they stand in, so that two functions may both have an "out".
    """

    def __init__(self) -> None:
        self._insns: list[_Insn] = []
        self._functions = {_MAIN: 0}
        self._function = _MAIN
        self._labels: dict[tuple[str, str], int] = {}
        # What assemble() fills in: (index of the instruction, what it refers to).
        self._gotos: list[tuple[int, tuple[str, str]]] = []
        self._func_refs: list[tuple[int, str]] = []
        self._map_refs: list[tuple[int, int | HasFileno]] = []

    def __len__(self) -> int:
        return len(self._insns)

    def _emit(self, op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        self._insns.append(_Insn(op, dst, src, off, imm))

    def _goto(self, target: str, op: int, dst: int = 0, src: int = 0, imm: int = 0) -> None:
        self._gotos.append((len(self._insns), (self._function, target)))
        self._emit(op, dst, src, 0, imm)

    # Arithmetic. The 32-bit forms zero the upper half of `dst`.
    mov, mov32 = _alu(_MOV, 64), _alu(_MOV, 32)
    add, add32 = _alu(0x00, 64), _alu(0x00, 32)
    sub, sub32 = _alu(0x10, 64), _alu(0x10, 32)
    mul, mul32 = _alu(0x20, 64), _alu(0x20, 32)
    div, div32 = _alu(_DIV, 64), _alu(_DIV, 32)
    mod, mod32 = _alu(_MOD, 64), _alu(_MOD, 32)
    sdiv, sdiv32 = _alu(_DIV, 64, off=1), _alu(_DIV, 32, off=1)  # 6.6
    smod, smod32 = _alu(_MOD, 64, off=1), _alu(_MOD, 32, off=1)  # 6.6
    or_, or32 = _alu(0x40, 64), _alu(0x40, 32)
    and_, and32 = _alu(0x50, 64), _alu(0x50, 32)
    xor, xor32 = _alu(0xA0, 64), _alu(0xA0, 32)
    lsh, lsh32 = _alu(_LSH, 64), _alu(_LSH, 32)
    rsh, rsh32 = _alu(_RSH, 64), _alu(_RSH, 32)
    arsh, arsh32 = _alu(_ARSH, 64), _alu(_ARSH, 32)

    neg, neg32 = _neg(_ALU64), _neg(_ALU)
    to_le = _swap(_TO_LE, (2, 4, 8))
    to_be = _swap(_TO_BE, (2, 4, 8))
    bswap = _swap(_BSWAP, (2, 4, 8))  # 6.6

    def cast_kern(self, dst: Reg, src: Reg) -> None:
        """Makes an arena's user address one the program can read and write through."""
        self._emit(_MOV | _REG | _ALU64, _dst(dst), _reg(src), 1, 1)

    def cast_user(self, dst: Reg, src: Reg) -> None:
        """Makes an arena pointer the address user space knows."""
        self._emit(_MOV | _REG | _ALU64, _dst(dst), _reg(src), 1, 1 << 16)

    # Memory.
    def ldx(self, size: int, dst: Reg, src: Reg, off: int, *, signed: bool = False) -> None:
        """`dst = *(src + off)`; `signed` (6.6) extends the sign of 1, 2 or 4 bytes."""
        code = _SIZES[_size(size, (1, 2, 4) if signed else (1, 2, 4, 8))]
        self._emit((_MEMSX if signed else _MEM) | code | _LDX, _dst(dst), _reg(src), _off(off))

    def stx(self, size: int, dst: Reg, off: int, src: Reg) -> None:
        """`*(dst + off) = src`."""
        self._emit(_MEM | _SIZES[_size(size)] | _STX, _reg(dst), _reg(src), _off(off))

    def st(self, size: int, dst: Reg, off: int, imm: int) -> None:
        """`*(dst + off) = imm`, for 8 bytes with the sign of 32 bits extended."""
        bits = 8 * _size(size)
        self._emit(_MEM | _SIZES[size] | _ST, _reg(dst), 0, _off(off), _imm(imm, bits))

    def _atomic(self, operation: int, size: int, dst: Reg, off: int, src: Reg) -> None:
        code = _SIZES[_size(size, (4, 8))]
        # A fetching operation writes the old value into src (cmpxchg into R0).
        source = _dst(src) if operation & _FETCH and operation != _CMPXCHG else _reg(src)
        self._emit(_ATOMIC | code | _STX, _reg(dst), source, _off(off), operation)

    def atomic_add(self, size: int, dst: Reg, off: int, src: Reg, fetch: bool = False) -> None:
        """`*(dst + off) += src`; `fetch` (5.12, as all below) leaves the old value in `src`."""
        self._atomic(_ADD_ATOMIC | fetch, size, dst, off, src)

    def atomic_or(self, size: int, dst: Reg, off: int, src: Reg, fetch: bool = False) -> None:
        """`*(dst + off) |= src`."""
        self._atomic(_OR_ATOMIC | fetch, size, dst, off, src)

    def atomic_and(self, size: int, dst: Reg, off: int, src: Reg, fetch: bool = False) -> None:
        """`*(dst + off) &= src`."""
        self._atomic(_AND_ATOMIC | fetch, size, dst, off, src)

    def atomic_xor(self, size: int, dst: Reg, off: int, src: Reg, fetch: bool = False) -> None:
        """`*(dst + off) ^= src`."""
        self._atomic(_XOR_ATOMIC | fetch, size, dst, off, src)

    def atomic_xchg(self, size: int, dst: Reg, off: int, src: Reg) -> None:
        """Swaps `*(dst + off)` with `src`."""
        self._atomic(_XCHG, size, dst, off, src)

    def atomic_cmpxchg(self, size: int, dst: Reg, off: int, src: Reg) -> None:
        """Stores `src` in `*(dst + off)` if R0 is there; R0 becomes what was there."""
        self._atomic(_CMPXCHG, size, dst, off, src)

    # 64-bit loads, two instructions each.
    def _load(self, dst: Reg, kind: int, low: int = 0, high: int = 0) -> None:
        self._emit(_LD_IMM64, _dst(dst), kind, 0, low)
        self._emit(0, imm=high)

    def ld_imm64(self, dst: Reg, value: int) -> None:
        """Loads any 64 bits, signed or unsigned."""
        number = _int("immediate", value, -1 << 63, (1 << 64) - 1)
        self._load(dst, 0, number, number >> 32)

    def ld_map(self, dst: Reg, map: int | HasFileno) -> None:
        """Loads the map's pointer, the first argument of the helpers for maps."""
        self._ld_map(dst, _MAP_FD, map, 0)

    def ld_map_value(self, dst: Reg, map: int | HasFileno, offset: int = 0) -> None:
        """Loads the address of byte `offset` of the one value of an array."""
        # From 1 << 29 on (BPF_MAX_VAR_OFF) the verifier refuses.
        self._ld_map(dst, _MAP_VALUE, map, _int("offset", offset, 0, (1 << 29) - 1))

    def _ld_map(self, dst: Reg, kind: int, map: int | HasFileno, high: int) -> None:
        if not callable(getattr(map, "fileno", None)):
            map = _int("descriptor", map, 0, 0x7FFFFFFF)
        at = len(self)
        self._load(dst, kind, 0, high)
        self._map_refs.append((at, map))

    def ld_func(self, dst: Reg, name: str) -> None:
        """Loads the address of a function of this program, to be called back."""
        at = len(self)
        self._load(dst, _FUNC)
        self._func_refs.append((at, name))

    # Jumps and calls.
    jeq, jeq32 = _jump(0x10, 64), _jump(0x10, 32)
    jgt, jgt32 = _jump(0x20, 64), _jump(0x20, 32)
    jge, jge32 = _jump(0x30, 64), _jump(0x30, 32)
    jset, jset32 = _jump(0x40, 64), _jump(0x40, 32)
    jne, jne32 = _jump(0x50, 64), _jump(0x50, 32)
    jsgt, jsgt32 = _jump(0x60, 64), _jump(0x60, 32)
    jsge, jsge32 = _jump(0x70, 64), _jump(0x70, 32)
    jlt, jlt32 = _jump(0xA0, 64), _jump(0xA0, 32)
    jle, jle32 = _jump(0xB0, 64), _jump(0xB0, 32)
    jslt, jslt32 = _jump(0xC0, 64), _jump(0xC0, 32)
    jsle, jsle32 = _jump(0xD0, 64), _jump(0xD0, 32)

    def ja(self, target: str) -> None:
        """Goes to `target`; beyond 16 bits of distance as `gotol` (6.6)."""
        self._goto(target, _JA)

    def may_goto(self, target: str) -> None:
        """Goes to `target` once the verifier's budget of loops is used up (6.9)."""
        self._goto(target, _MAY_GOTO)

    def label(self, name: str) -> None:
        """Names the next instruction, within this function."""
        if (self._function, name) in self._labels:
            raise ValueError(f"label {name!r} is there already in function {self._function!r}")
        self._labels[self._function, name] = len(self)

    def call(self, helper: Helper | int) -> None:
        """Calls a helper: arguments in R1 to R5, result in R0, R1 to R5 lost."""
        self._emit(_CALL, imm=_int("helper", helper, 1, 0x7FFFFFFF))

    def call_function(self, name: str) -> None:
        """Calls a function of this program."""
        self._func_refs.append((len(self), name))
        self._emit(_CALL, src=_LOCAL_CALL)

    def call_kfunc(self, btf_id: int, off: int = 0) -> None:
        """Calls a kernel function by its BTF id; `off` is 0 for vmlinux, else the index in the
        load's fd_array of the module's BTF."""
        number = _int("BTF id", btf_id, 1, 0x7FFFFFFF)
        self._emit(_CALL, src=_KFUNC_CALL, off=_int("offset", off, 0, 0x7FFF), imm=number)

    def exit(self) -> None:
        """Returns R0."""
        self._emit(_EXIT)

    def function(self, name: str) -> None:
        """Starts a static subprogram that returns an integer; what follows belongs to it."""
        if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
            raise ValueError(f"a function's name is an ASCII identifier, not {name!r}")
        if name in self._functions:
            raise ValueError(f"function {name!r} is there already")
        self._functions[name] = len(self)
        self._function = name

    def assemble(self) -> Code:
        """Puts labels, functions and descriptors in.

        Raises
        ------
        ValueError
            For a label or function that is not there, a function that nothing calls or that runs
            past its end (the kernel would refuse both), a conditional jump beyond 16 bits, a closed
            map.
        """
        self._check_functions()
        insns = [replace(insn) for insn in self._insns]
        for at, (function, name) in self._gotos:
            if (function, name) not in self._labels:
                raise ValueError(f"no label {name!r} in function {function!r}")
            insn, distance = insns[at], self._labels[function, name] - at - 1
            if -0x8000 <= distance <= 0x7FFF:
                insn.off = distance
            elif insn.op == _JA:
                insn.op, insn.imm = _GOTOL, distance
            else:
                raise ValueError(
                    f"the jump at {at} to {name!r} goes {distance} instructions, a conditional one"
                    " reaches -32768 to 32767: let it go to a nearby ja"
                )
        for at, name in self._func_refs:
            insns[at].imm = self._functions[name] - at - 1
        for at, map in self._map_refs:
            fd = map if isinstance(map, int) else map.fileno()
            insns[at].imm = _int("descriptor", fd, 0, 0x7FFFFFFF)
        func_info, blob = self._func_info()
        maps = tuple({id(map): map for _, map in self._map_refs}.values())
        return Code(b"".join(i.pack() for i in insns), func_info, _FUNC_INFO.size, blob, maps)

    def _check_functions(self) -> None:
        called = {name for _, name in self._func_refs}
        if unknown := called - self._functions.keys():
            raise ValueError(f"no function {min(unknown)!r}")
        if unused := self._functions.keys() - called - {_MAIN}:
            raise ValueError(f"nothing calls function {min(unused)!r}: the kernel would refuse it")
        starts = [*self._functions.values(), len(self)]
        for name, start, end in zip(self._functions, starts, starts[1:], strict=False):
            if start == end or self._insns[end - 1].op not in (_EXIT, _JA):
                raise ValueError(f"function {name!r} does not end in exit or ja")
            for (function, label), at in self._labels.items():
                if function == name and at == end:
                    raise ValueError(f"label {label!r} at the end of {name!r} names nothing")

    def _func_info(self) -> tuple[bytes, bytes]:
        if len(self._functions) == 1:
            return b"", b""
        builder = Builder()
        proto = builder.add_func_proto(builder.add_int("int", 4, encoding=builder.SIGNED))
        info = b""
        for name, start in self._functions.items():
            # A callback must be static, and only what is static is verified with its caller.
            info += _FUNC_INFO.pack(start, builder.add_func(name, proto, static=name != _MAIN))
        return info, builder.build()


def disassemble(insns: bytes) -> list[str]:
    """One line of text per instruction, numbered as jumps count them.

    Any bytes will do, in whole instructions: what is none is shown as its numbers.
    """
    if len(insns) % 8:
        raise ValueError(f"{len(insns)} bytes are no whole number of 8-byte instructions")
    slots = list(struct.iter_unpack("=BBhi", insns))
    lines = []
    at = 0
    while at < len(slots):
        op, regs, off, imm = slots[at]
        dst, src = (regs & 15, regs >> 4) if sys.byteorder == "little" else (regs >> 4, regs & 15)
        insn = _Insn(op, dst, src, off, imm)
        wide = op == _LD_IMM64 and at + 1 < len(slots)
        text = _wide_text(insn, slots[at + 1][3], at) if wide else _text(insn, at)
        lines.append(f"{at:4d}: {text or f'op={op:#04x} {dst=} {src=} {off=} {imm=}'}")
        at += 2 if wide else 1
    return lines


def _wide_text(insn: _Insn, high: int, at: int) -> str:
    value = {
        0: f"{(high & 0xFFFFFFFF) << 32 | insn.imm & 0xFFFFFFFF:#x} ll",
        _MAP_FD: f"map fd {insn.imm}",
        _MAP_VALUE: f"map fd {insn.imm} value {high:+d}",
        _FUNC: f"function {at + insn.imm + 1}",
    }.get(insn.src)
    return f"r{insn.dst} = {value}" if value else ""


def _text(insn: _Insn, at: int) -> str:
    cls, operation, off, imm = insn.op & 7, insn.op & 0xF0, insn.off, insn.imm
    if cls in (_ALU, _ALU64):
        return _alu_text(insn)
    if insn.op in (_JA, _MAY_GOTO, _GOTOL):
        word = {_JA: "goto", _MAY_GOTO: "may_goto", _GOTOL: "gotol"}[insn.op]
        return f"{word} {at + 1 + (imm if insn.op == _GOTOL else off)}"
    if insn.op == _EXIT:
        return "exit"
    if insn.op == _CALL:
        helper = f"call {_HELPER_NAMES.get(imm, f'helper#{imm}')}"
        texts = {0: helper, _LOCAL_CALL: f"call {at + imm + 1}", _KFUNC_CALL: f"call kfunc#{imm}"}
        return texts.get(insn.src, "")
    if cls in (_JMP, _JMP32):
        if operation not in _JUMP_SIGN:
            return ""
        r = "r" if cls == _JMP else "w"
        right = f"{r}{insn.src}" if insn.op & _REG else imm
        return f"if {r}{insn.dst} {_JUMP_SIGN[operation]} {right} goto {at + 1 + off}"
    bits, mode = _BITS[insn.op & 0x18], insn.op & 0xE0
    there = f"(r{insn.src if cls == _LDX else insn.dst} {'-' if off < 0 else '+'} {abs(off)})"
    if cls == _LDX and mode in (_MEM, _MEMSX):
        return f"r{insn.dst} = *({'u' if mode == _MEM else 's'}{bits} *){there}"
    if cls in (_ST, _STX) and mode == _MEM:
        return f"*(u{bits} *){there} = {f'r{insn.src}' if cls == _STX else imm}"
    if cls == _STX and mode == _ATOMIC:
        return _atomic_text(insn, f"*(u{bits} *){there}")
    return ""


def _alu_text(insn: _Insn) -> str:
    wide, operation, off = insn.op & 7 == _ALU64, insn.op & 0xF0, insn.off
    dst, src = (f"{'r' if wide else 'w'}{n}" for n in (insn.dst, insn.src))
    if insn.op in (_TO_LE, _TO_BE, _BSWAP):
        word = {_TO_LE: "le", _TO_BE: "be", _BSWAP: "bswap"}[insn.op]
        return f"r{insn.dst} = {word}{insn.imm} r{insn.dst}"
    if operation == _NEG:
        return f"{dst} = -{dst}"
    if operation not in _ALU_SIGN:
        return ""
    if insn.op == _MOV | _REG | _ALU64 and off == 1:
        return f"{dst} = cast_{'kern' if insn.imm == 1 else 'user'}({src})"
    if operation == _MOV and off:
        return f"{dst} = (s{off}){src}"
    sign = ("s" if off else "") + _ALU_SIGN[operation]
    return f"{dst} {sign}= {src if insn.op & _REG else insn.imm}"


def _atomic_text(insn: _Insn, there: str) -> str:
    if insn.imm in (_XCHG, _CMPXCHG):
        return f"{'xchg' if insn.imm == _XCHG else 'cmpxchg r0,'} {there}, r{insn.src}"
    if insn.imm & ~_FETCH not in _ATOMIC_SIGN:
        return ""
    text = f"lock {there} {_ATOMIC_SIGN[insn.imm & ~_FETCH]}= r{insn.src}"
    return f"r{insn.src} = fetch {text}" if insn.imm & _FETCH else text
