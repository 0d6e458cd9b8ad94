"""The assembler: its bytes against the documented encoding, its programs against the kernel."""

from __future__ import annotations

import gc
import operator
import struct
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmap.asm import FP, R0, R1, R2, R3, R6, R10, Assembler, Helper, disassemble
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
