"""The assembler: its bytes against the documented encoding, its programs against the kernel."""

from __future__ import annotations

import gc
import itertools
import operator
import random
import struct
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmap import Program, asm
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, R10, Assembler, Helper, disassemble
from fastmap.btf import Btf, Kind

VMLINUX = Path("/sys/kernel/btf/vmlinux")
SOCKET_FILTER, RAW_TRACEPOINT, SYSCALL, SLEEPABLE = "socket_filter", "raw_tracepoint", "syscall", 16
M32, M64 = (1 << 32) - 1, (1 << 64) - 1

Build = Callable[[Any], object]  # Any: so that a lambda may collect what returns nothing


def assembled(build: Build) -> bytes:
    """The instructions of `build`, without the exit that a function must end in."""
    a = Assembler()
    build(a)
    a.exit()
    return a.assemble().insns[:-8]


def returned(build: Build) -> int:
    """What the kernel says the function returns, all 64 bits: it runs once for each half."""
    halves = []
    for half in (0, 32):
        a = Assembler()
        build(a)
        a.rsh(R0, half)
        a.exit()
        with Program(SOCKET_FILTER, a.assemble()) as program:
            halves.append(program.run(data=bytes(64)))
    return halves[0] | halves[1] << 32


# --- encoding -------------------------------------------------------------------------------------

ENCODINGS: list[tuple[Build, str, str]] = [
    (lambda a: a.mov(R6, R1), "bf16000000000000", "r6 = r1"),
    (lambda a: a.mov(R1, -1), "b7010000ffffffff", "r1 = -1"),
    (lambda a: a.mov32(R2, M32), "b4020000ffffffff", "w2 = -1"),
    (lambda a: a.mov32(R2, R3), "bc32000000000000", "w2 = w3"),
    (lambda a: a.add(R1, 0x11223344), "0701000044332211", "r1 += 287454020"),
    (lambda a: a.sub32(R1, R2), "1c21000000000000", "w1 -= w2"),
    (lambda a: a.mul(R1, R2), "2f21000000000000", "r1 *= r2"),
    (lambda a: a.div(R1, 3), "3701000003000000", "r1 /= 3"),
    (lambda a: a.sdiv(R1, 3), "3701010003000000", "r1 s/= 3"),
    (lambda a: a.smod32(R1, R2), "9c21010000000000", "w1 s%= w2"),
    (lambda a: a.or_(R1, R2), "4f21000000000000", "r1 |= r2"),
    (lambda a: a.and32(R1, 255), "54010000ff000000", "w1 &= 255"),
    (lambda a: a.xor(R1, R1), "af11000000000000", "r1 ^= r1"),
    (lambda a: a.lsh(R1, 63), "670100003f000000", "r1 <<= 63"),
    (lambda a: a.rsh32(R1, 31), "740100001f000000", "w1 >>= 31"),
    (lambda a: a.arsh(R1, R2), "cf21000000000000", "r1 s>>= r2"),
    (lambda a: a.neg(R3), "8703000000000000", "r3 = -r3"),
    (lambda a: a.neg32(R3), "8403000000000000", "w3 = -w3"),
    (lambda a: a.to_be(R2, 2), "dc02000010000000", "r2 = be16 r2"),
    (lambda a: a.to_le(R2, 4), "d402000020000000", "r2 = le32 r2"),
    (lambda a: a.bswap(R2, 8), "d702000040000000", "r2 = bswap64 r2"),
    (lambda a: a.cast_kern(R2, R3), "bf32010001000000", "r2 = cast_kern(r3)"),
    (lambda a: a.cast_user(R2, R3), "bf32010000000100", "r2 = cast_user(r3)"),
    (lambda a: a.ldx(1, R2, R6, 8), "7162080000000000", "r2 = *(u8 *)(r6 + 8)"),
    (lambda a: a.ldx(2, R2, R6, -8), "6962f8ff00000000", "r2 = *(u16 *)(r6 - 8)"),
    (lambda a: a.ldx(4, R2, R6, 0x7FFF), "6162ff7f00000000", "r2 = *(u32 *)(r6 + 32767)"),
    (lambda a: a.ldx(8, R2, R6, -0x8000), "7962008000000000", "r2 = *(u64 *)(r6 - 32768)"),
    (lambda a: a.ldx(4, R2, R6, 8, signed=True), "8162080000000000", "r2 = *(s32 *)(r6 + 8)"),
    (lambda a: a.stx(8, R10, -8, R1), "7b1af8ff00000000", "*(u64 *)(r10 - 8) = r1"),
    (lambda a: a.stx(1, FP, -1, R2), "732affff00000000", "*(u8 *)(r10 - 1) = r2"),
    (lambda a: a.st(1, FP, -1, 255), "720affffff000000", "*(u8 *)(r10 - 1) = 255"),
    (lambda a: a.st(2, FP, -2, -1), "6a0afeffffffffff", "*(u16 *)(r10 - 2) = -1"),
    (lambda a: a.st(4, FP, -4, M32), "620afcffffffffff", "*(u32 *)(r10 - 4) = -1"),
    (lambda a: a.st(8, FP, -8, -1), "7a0af8ffffffffff", "*(u64 *)(r10 - 8) = -1"),
    (lambda a: a.atomic_add(8, R0, 16, R1), "db10100000000000", "lock *(u64 *)(r0 + 16) += r1"),
    (lambda a: a.atomic_add(4, R0, 16, R1, fetch=True),
     "c310100001000000", "r1 = fetch lock *(u32 *)(r0 + 16) += r1"),
    (lambda a: a.atomic_or(8, R0, 0, R1), "db10000040000000", "lock *(u64 *)(r0 + 0) |= r1"),
    (lambda a: a.atomic_and(8, R0, 0, R1, True),
     "db10000051000000", "r1 = fetch lock *(u64 *)(r0 + 0) &= r1"),
    (lambda a: a.atomic_xor(4, R0, 0, R1), "c3100000a0000000", "lock *(u32 *)(r0 + 0) ^= r1"),
    (lambda a: a.atomic_xchg(8, R0, 0, R1), "db100000e1000000", "xchg *(u64 *)(r0 + 0), r1"),
    (lambda a: a.atomic_cmpxchg(8, R0, 0, R1),
     "db100000f1000000", "cmpxchg r0, *(u64 *)(r0 + 0), r1"),
    (lambda a: a.ld_imm64(R1, 0x1122334455667788),
     "18010000887766550000000044332211", "r1 = 0x1122334455667788 ll"),
    (lambda a: a.ld_imm64(R1, -1),
     "18010000ffffffff00000000ffffffff", "r1 = 0xffffffffffffffff ll"),
    (lambda a: a.ld_map(R1, 5), "18110000050000000000000000000000", "r1 = map fd 5"),
    (lambda a: a.ld_map_value(R1, 5, 24),
     "18210000050000000000000018000000", "r1 = map fd 5 value +24"),
    (lambda a: a.call(Helper.MAP_LOOKUP_ELEM), "8500000001000000", "call map_lookup_elem"),
    (lambda a: a.call(181), "85000000b5000000", "call loop"),
    (lambda a: a.call_kfunc(0x1234, 2), "8520020034120000", "call kfunc#4660"),
    (lambda a: a.exit(), "9500000000000000", "exit"),
    (lambda a: a.call(9999), "850000000f270000", "call helper#9999"),
]  # fmt: skip


@pytest.mark.skipif(sys.byteorder != "little", reason="the expected bytes are little-endian")
def test_encoding() -> None:
    for build, expected, text in ENCODINGS:
        assert assembled(build).hex() == expected, text
        assert disassemble(bytes.fromhex(expected)) == [f"   0: {text}"]


CONDITIONS: dict[str, tuple[int, Callable[[int, int], Any], bool]] = {
    "jeq": (0x10, operator.eq, False), "jne": (0x50, operator.ne, False),
    "jgt": (0x20, operator.gt, False), "jge": (0x30, operator.ge, False),
    "jlt": (0xA0, operator.lt, False), "jle": (0xB0, operator.le, False),
    "jset": (0x40, lambda a, b: a & b, False),
    "jsgt": (0x60, operator.gt, True), "jsge": (0x70, operator.ge, True),
    "jslt": (0xC0, operator.lt, True), "jsle": (0xD0, operator.le, True),
}  # fmt: skip


def test_jump_encoding() -> None:
    for name, (operation, _, _) in CONDITIONS.items():
        for suffix, cls in (("", 5), ("32", 6)):
            a = Assembler()
            jump = getattr(a, name + suffix)
            a.label("back")
            jump(R1, -5, "out")
            jump(R1, R2, "back")
            a.label("out")
            a.exit()
            first, second, _ = struct.iter_unpack("=BBhi", a.assemble().insns)
            low, high = (0x01, 0x21) if sys.byteorder == "little" else (0x10, 0x12)
            assert first == (operation | cls, low, 1, -5), name + suffix
            assert second == (operation | 8 | cls, high, -2, 0), name + suffix


# --- labels, functions, maps ----------------------------------------------------------------------


def test_labels_belong_to_their_function() -> None:
    a = Assembler()
    a.ld_func(R2, "first")
    a.call_function("second")
    a.ja("out")
    a.label("out")
    a.exit()
    for name in ("first", "second"):
        a.function(name)
        a.label("again")
        a.jeq(R1, 0, "out")
        a.ja("again")
        a.label("out")
        a.exit()
    code = a.assemble()
    assert [line[6:] for line in disassemble(code.insns)] == [
        "r2 = function 5", "call 8", "goto 4", "exit",
        "if r1 == 0 goto 7", "goto 5", "exit",
        "if r1 == 0 goto 10", "goto 8", "exit",
    ]  # fmt: skip
    assert code.insn_cnt == 11 == len(a)


def test_function_info_names_every_function() -> None:
    a = Assembler()
    a.ld_func(R2, "callback")
    a.exit()
    a.function("callback")
    a.exit()
    code = a.assemble()
    assert code.func_info_rec_size == 8
    records = list(struct.iter_unpack("=II", code.func_info))
    assert [start for start, _ in records] == [0, 3]
    types = Btf(code.btf)
    assert [types.name(number) for _, number in records] == ["main", "callback"]
    assert {types.kind(number) for _, number in records} == {Kind.FUNC}


def test_one_function_needs_no_btf() -> None:
    a = Assembler()
    a.exit()
    code = a.assemble()
    assert (code.btf, code.func_info, code.maps) == (b"", b"", ())


class Handle:
    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        if self.number < 0:
            raise ValueError("the map is closed")
        return self.number


def test_descriptors_are_asked_for_by_assemble_and_kept_alive() -> None:
    handle = Handle(3)
    a = Assembler()
    a.ld_map(R1, handle)
    a.ld_map_value(R2, handle, 8)
    a.ld_map(R3, 77)
    a.exit()
    handle.number = 9
    code = a.assemble()
    words = [insn[3] for insn in struct.iter_unpack("=BBhi", code.insns)]
    assert words == [9, 0, 9, 8, 77, 0, 0]
    assert code.maps == (handle, 77)
    handle.number = -1
    with pytest.raises(ValueError, match="closed"):
        a.assemble()
    alive = weakref.ref(handle)
    del a, handle
    gc.collect()
    assert alive() is not None
    del code
    gc.collect()
    assert alive() is None


def test_assemble_does_not_use_the_program_up() -> None:
    a = Assembler()
    a.ja("far")
    nops(a, 40000)
    a.label("far")
    a.exit()
    first = a.assemble()
    assert first == a.assemble()
    assert struct.unpack_from("=BBhi", first.insns) == (0x06, 0, 0, 40000)


def nops(a: Any, count: int) -> object:
    return [a.mov(R0, 1) for _ in range(count)]


def test_reach_of_a_conditional_jump() -> None:
    forth = assembled(lambda a: [a.jeq(R1, 0, "far"), nops(a, 32767), a.label("far")])
    assert struct.unpack_from("=BBh", forth)[2] == 32767
    back = assembled(lambda a: [a.label("back"), nops(a, 32767), a.jeq(R1, 0, "back")])
    assert struct.unpack_from("=BBh", back, 8 * 32767)[2] == -32768
    with pytest.raises(ValueError, match="'far' goes 32768"):
        assembled(lambda a: [a.jeq(R1, 0, "far"), nops(a, 32768), a.label("far")])
    with pytest.raises(ValueError, match="'back' goes -32769"):
        assembled(lambda a: [a.label("back"), nops(a, 32768), a.jeq(R1, 0, "back")])


# --- errors ---------------------------------------------------------------------------------------

BAD_OPERANDS: list[tuple[Callable[[Any], None], type[Exception], str]] = [
    (lambda a: a.mov(3, 4), TypeError, "register.*not 3"),
    (lambda a: a.mov(R10, 4), ValueError, "frame pointer"),
    (lambda a: a.ldx(8, R10, R1, 0), ValueError, "frame pointer"),
    (lambda a: a.atomic_xchg(8, R1, 0, R10), ValueError, "frame pointer"),
    (lambda a: a.mov(R1, "x"), TypeError, "'x'"),
    (lambda a: a.mov(R1, 1 << 31), OverflowError, "2147483648"),
    (lambda a: a.mov(R1, -(1 << 31) - 1), OverflowError, "-2147483649"),
    (lambda a: a.mov32(R1, 1 << 32), OverflowError, "4294967296"),
    (lambda a: a.lsh(R1, 64), OverflowError, "64"),
    (lambda a: a.rsh32(R1, 32), OverflowError, "0 to 31, not by 32"),
    (lambda a: a.arsh(R1, -1), OverflowError, "-1"),
    (lambda a: a.div(R1, 0), ValueError, "division"),
    (lambda a: a.to_be(R1, 1), ValueError, "2, 4, 8 bytes, not 1"),
    (lambda a: a.ldx(3, R1, R2, 0), ValueError, "not 3"),
    (lambda a: a.ldx(8, R1, R2, 0, signed=True), ValueError, "1, 2, 4 bytes"),
    (lambda a: a.ldx(8, R1, R2, 0x8000), OverflowError, "offset 32768"),
    (lambda a: a.ldx(8, R1, R2, -0x8001), OverflowError, "offset -32769"),
    (lambda a: a.ldx(8, R1, 0, R2), TypeError, "register"),
    (lambda a: a.ldx(8, R1, R2, R3), TypeError, "offset"),
    (lambda a: a.stx(8, FP, R1, -8), TypeError, "R1"),
    (lambda a: a.st(1, FP, -1, 256), OverflowError, "256"),
    (lambda a: a.st(2, FP, -2, -0x8001), OverflowError, "-32769"),
    (lambda a: a.st(8, FP, -8, 1 << 31), OverflowError, "2147483648"),
    (lambda a: a.atomic_add(2, R1, 0, R2), ValueError, "4, 8 bytes, not 2"),
    (lambda a: a.ld_imm64(R1, 1 << 64), OverflowError, "18446744073709551616"),
    (lambda a: a.ld_imm64(R1, -(1 << 63) - 1), OverflowError, "-9223372036854775809"),
    (lambda a: a.ld_map(R1, -1), OverflowError, "descriptor -1"),
    (lambda a: a.ld_map(R1, "flows"), TypeError, "'flows'"),
    (lambda a: a.ld_map_value(R1, 3, 1 << 29), OverflowError, "536870912"),
    (lambda a: a.jeq(R1, 1 << 31, "x"), OverflowError, "2147483648"),
    (lambda a: a.call(0), OverflowError, "helper 0"),
    (lambda a: a.call_kfunc(0), OverflowError, "BTF id 0"),
    (lambda a: a.call_kfunc(1 << 31), OverflowError, "BTF id 2147483648"),
    *[
        (lambda a, name=name: getattr(a, name + "32")(R1, 1 << 32), OverflowError, "4294967296")
        for name in ("add", "sub", "mul", "div", "mod", "or", "and", "xor")
    ],
    (lambda a: a.call_kfunc(1, -1), OverflowError, "offset -1"),
    (lambda a: a.function("main"), ValueError, "'main'"),
    (lambda a: a.function("a-b"), ValueError, "'a-b'"),
]


def test_bad_operands() -> None:
    for build, error, text in BAD_OPERANDS:
        a = Assembler()
        with pytest.raises(error, match=text):
            build(a)
        assert len(a) == 0, "a refused instruction must not be half there"
        a.exit()
        assert a.assemble().insn_cnt == 1


WHOLE_PROGRAMS: list[tuple[Build, str]] = [
    (lambda a: None, "'main' does not end"),
    (lambda a: a.mov(R0, 0), "'main' does not end"),
    (lambda a: a.ja("nowhere"), "no label 'nowhere'"),
    (lambda a: [a.call_function("f"), a.exit()], "no function 'f'"),
    (lambda a: [a.exit(), a.function("f"), a.exit()], "nothing calls function 'f'"),
    (lambda a: [a.ja("end"), a.label("end")], "'end' at the end"),
    (lambda a: [a.call_function("f"), a.exit(), a.function("f")], "'f' does not end"),
    (lambda a: [a.call_function("f"), a.label("here"), a.exit(), a.function("f"), a.ja("here")],
     "no label 'here' in function 'f'"),
]  # fmt: skip


def test_what_only_the_whole_program_shows() -> None:
    for build, text in WHOLE_PROGRAMS:
        a = Assembler()
        build(a)
        with pytest.raises(ValueError, match=text):
            a.assemble()


def test_doubled_names() -> None:
    a = Assembler()
    a.label("x")
    with pytest.raises(ValueError, match="'x' is there already"):
        a.label("x")
    a.exit()
    a.function("f")
    a.label("x")
    with pytest.raises(ValueError, match="'f' is there already"):
        a.function("f")


# --- disassembly ----------------------------------------------------------------------------------


def test_disassembly_of_what_is_no_instruction() -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        disassemble(bytes(9))
    assert disassemble(bytes(8)) == ["   0: op=0x00 dst=0 src=0 off=0 imm=0"]
    # The second half of an ld_imm64 is missing.
    assert disassemble(bytes.fromhex("1801000000000000"))[0].startswith("   0: op=0x18")


@given(st.binary(max_size=400).map(lambda data: data[: len(data) // 8 * 8]))
def test_any_bytes_disassemble(insns: bytes) -> None:
    lines = disassemble(insns)
    numbers = [int(line.split(":")[0]) for line in lines]
    # An ld_imm64 takes the place of two.
    steps = [2 if insns[8 * n] == 0x18 and 8 * n + 8 < len(insns) else 1 for n in numbers]
    assert numbers == [sum(steps[:place]) for place in range(len(lines))]
    assert sum(steps) == len(insns) // 8


# --- against the kernel ---------------------------------------------------------------------------


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


ARITHMETIC: dict[str, Callable[[int, int, int], int]] = {
    "mov": lambda x, y, bits: y,
    "add": lambda x, y, bits: x + y,
    "sub": lambda x, y, bits: x - y,
    "mul": lambda x, y, bits: x * y,
    "div": lambda x, y, bits: x // y if y else 0,
    "mod": lambda x, y, bits: x % y if y else x,
    "sdiv": lambda x, y, bits: truncated(signed(x, bits), signed(y, bits)) if y else 0,
    "smod": lambda x, y, bits: (
        signed(x, bits) - signed(y, bits) * truncated(signed(x, bits), signed(y, bits)) if y else x
    ),
    "or_": lambda x, y, bits: x | y,
    "and_": lambda x, y, bits: x & y,
    "xor": lambda x, y, bits: x ^ y,
    "lsh": lambda x, y, bits: x << y,
    "rsh": lambda x, y, bits: x >> y,
    "arsh": lambda x, y, bits: signed(x, bits) >> y,
}


v4 = pytest.mark.needs("instructions v4")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=v4) if n in ("sdiv", "smod") else n for n in ARITHMETIC]
)
def test_arithmetic_in_the_kernel(name: str) -> None:
    rnd = random.Random(name)
    for bits in [64, 32] * 6:
        mask = (1 << bits) - 1
        method = name if bits == 64 else name.rstrip("_") + "32"
        x, y = rnd.getrandbits(64), rnd.getrandbits(rnd.choice((6, 31, 64)))
        imm = rnd.randint(-(1 << 31), (1 << 31) - 1) or 1
        if name in ("lsh", "rsh", "arsh"):
            y, imm = y % bits, imm % 32

        def by_register(a: Assembler, method: str = method, x: int = x, y: int = y) -> None:
            a.ld_imm64(R0, x)
            a.ld_imm64(R2, y)
            getattr(a, method)(R0, R2)

        def by_immediate(a: Assembler, method: str = method, x: int = x, imm: int = imm) -> None:
            a.ld_imm64(R0, x)
            getattr(a, method)(R0, imm)

        model = ARITHMETIC[name]
        assert returned(by_register) == model(x & mask, y & mask, bits) & mask, (x, y, bits)
        assert returned(by_immediate) == model(x & mask, imm & mask, bits) & mask, (x, imm, bits)


@pytest.mark.parametrize("name", CONDITIONS)
def test_jumps_in_the_kernel(name: str) -> None:
    _, condition, is_signed = CONDITIONS[name]
    pairs = [(1, 2), (2, 1), (3, 3), (-1, 1), (1, -1), (1 << 40 | 1, 1), (-5, -5)]
    for (x, y), bits, by_register in itertools.product(pairs, (64, 32), (True, False)):

        def build(
            a: Assembler, x: int = x, y: int = y, bits: int = bits, by_register: bool = by_register
        ) -> None:
            a.ld_imm64(R1, x)
            a.ld_imm64(R2, y)
            a.mov(R0, 0)
            jump = getattr(a, name if bits == 64 else f"{name}32")
            jump(R1, R2 if by_register else y, "taken")
            a.ja("out")
            a.label("taken")
            a.mov(R0, 1)
            a.label("out")

        mask = (1 << bits) - 1
        pair = (signed(x, bits), signed(y, bits)) if is_signed else (x & mask, y & mask)
        assert returned(build) == bool(condition(*pair)), (x, y, bits, by_register)


@v4
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_in_the_kernel(size: int) -> None:
    pattern, mask = 0x8182838485868788, (1 << 8 * size) - 1

    low = pattern & mask
    load = [lambda a: a.ld_imm64(R0, pattern), lambda a: a.stx(8, FP, -8, R0)]

    def after(*calls: Build) -> int:
        return returned(lambda a: [call(a) for call in (*load, *calls)])

    through_memory = after(
        lambda a: [a.st(size, FP, -16, -2), a.ldx(size, R2, FP, -16)],
        lambda a: [a.stx(size, FP, -8, R2), a.ldx(8, R0, FP, -8)],
    )
    little = sys.byteorder == "little"
    shift = 0 if little else 64 - 8 * size
    assert through_memory == pattern & ~(mask << shift) | (-2 & mask) << shift
    if size < 8:
        extended = after(lambda a: a.ldx(size, R0, FP, -8, signed=True))
        assert extended == signed(pattern >> shift, 8 * size) & M64
    if size > 1:
        swapped = int.from_bytes(low.to_bytes(size, "little"), "big")
        assert after(lambda a: a.bswap(R0, size)) == swapped
        assert after(lambda a: a.to_be(R0, size)) == (swapped if little else low)
        assert after(lambda a: a.to_le(R0, size)) == (low if little else swapped)


@pytest.mark.parametrize("size", [4, 8])
def test_atomics_in_the_kernel(size: int) -> None:
    def check(name: str, memory: int, register: int, r0: int = 12, **fetch: bool) -> None:
        result = returned(
            lambda a: [
                a.st(size, FP, -8, 12), a.mov(R1, 10), a.mov(R0, r0),
                getattr(a, f"atomic_{name}")(size, FP, -8, R1, **fetch),
                a.ldx(size, R2, FP, -8), a.lsh(R0, 48), a.lsh(R1, 32), a.or_(R0, R1), a.or_(R0, R2),
            ]
        )  # fmt: skip
        expected = (12 if name == "cmpxchg" else r0) << 48 | register << 32 | memory
        assert result == expected, (name, fetch)

    for name, memory in {"add": 22, "or": 12 | 10, "and": 12 & 10, "xor": 12 ^ 10}.items():
        check(name, memory, 10)
        check(name, memory, 12, fetch=True)
    check("xchg", 10, 12)
    check("cmpxchg", 10, 10)
    check("cmpxchg", 12, 10, r0=13)


def summing(maps: tuple[Any, Any]) -> Assembler:
    """Adds up the values of a hash by a callback, into byte 24 of the array's value."""
    table, result = maps
    a = Assembler()
    a.st(8, FP, -8, 0)
    a.ld_map(R1, table)
    a.ld_func(R2, "add")
    a.mov(R3, FP)
    a.add(R3, -8)
    a.mov(R4, 0)
    a.call(Helper.FOR_EACH_MAP_ELEM)
    a.ldx(8, R0, FP, -8)
    a.ld_map_value(R1, result, 16)
    a.stx(8, R1, 8, R0)
    a.exit()
    a.function("add")
    a.ldx(8, R5, R3, 0)
    a.ldx(8, R0, R4, 0)
    a.add(R0, R5)
    a.stx(8, R4, 0, R0)
    a.mov(R0, 0)
    a.exit()
    return a


@pytest.mark.parametrize(
    ("type", "flags"), [(SOCKET_FILTER, 0), (RAW_TRACEPOINT, 0), (SYSCALL, SLEEPABLE)]
)
def test_callback_over_a_map(make: Callable[..., Any], type: str, flags: int) -> None:
    table = make("hash", key="u4", value="u8", max_entries=100)
    result = make("array", value=("u8", (4,)), max_entries=1)
    keys = np.arange(100, dtype="u4")
    table.update_many(keys, keys.astype("u8") ** 2)
    with Program(type, summing((table, result)).assemble(), flags=flags) as program:
        assert program.run(data=bytes(64) if type == SOCKET_FILTER else None) == 328350
    assert np.asarray(result[0]).tolist() == [0, 0, 0, 328350]


def test_loop_with_a_subprogram_and_a_context() -> None:
    a = Assembler()
    a.mov(R6, R1)
    a.ldx(8, R1, R6, 0)
    a.stx(8, FP, -8, R1)
    a.ldx(4, R1, R6, 8)
    a.ld_func(R2, "body")
    a.mov(R3, FP)
    a.add(R3, -8)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    a.ldx(8, R1, FP, -8)
    a.stx(8, R6, 16, R1)
    a.call_function("twice")
    a.exit()
    a.function("body")
    a.jge(R1, 10, "out")
    a.ldx(8, R3, R2, 0)
    a.add(R3, R1)
    a.stx(8, R2, 0, R3)
    a.mov(R0, 0)
    a.exit()
    a.label("out")
    a.mov(R0, 1)
    a.exit()
    a.function("twice")
    a.mov(R0, R1)
    a.jeq(R0, 0, "out")
    a.lsh(R0, 1)
    a.label("out")
    a.exit()
    context = bytearray(struct.pack("=QIIQ", 100, 1000, 0, 0))
    with Program(SYSCALL, a.assemble(), flags=SLEEPABLE) as program:
        assert program.run(context) == 290
    assert struct.unpack("=QIIQ", context)[3] == 145


@v4
def test_long_jump_in_the_kernel() -> None:
    a = Assembler()
    a.ldx(4, R2, R1, 0)
    a.jeq(R2, 99999, "near")
    a.mov(R0, 7)
    a.ja("far")
    a.label("near")
    nops(a, 33000)
    a.label("far")
    a.exit()
    with Program(SOCKET_FILTER, a.assemble()) as program:
        assert program.run(data=bytes(64)) == 7


@pytest.mark.needs("bpf_rcu_read_lock")
def test_kfunc_in_the_kernel() -> None:
    kernel = Btf(VMLINUX.read_bytes())
    a = Assembler()
    a.call_kfunc(kernel.find("bpf_rcu_read_lock", Kind.FUNC))
    a.call_kfunc(kernel.find("bpf_rcu_read_unlock", Kind.FUNC))
    a.mov(R0, 11)
    a.exit()
    with Program(SYSCALL, a.assemble(), flags=SLEEPABLE) as program:
        assert program.run() == 11


def test_a_program_the_verifier_refuses() -> None:
    a = Assembler()
    a.ldx(8, R0, asm.R9, 0)
    a.exit()
    with pytest.raises(PermissionError, match="R9 !read_ok"):
        Program(SOCKET_FILTER, a.assemble())
