"""The assembler's programs, against the kernel that runs them."""

from __future__ import annotations

import itertools
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_asm import CONDITIONS, nops

from fastmap import Program, asm
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, Assembler, Helper
from fastmap.btf import Btf, Kind

VMLINUX = Path("/sys/kernel/btf/vmlinux")
SOCKET_FILTER, RAW_TRACEPOINT, SYSCALL, SLEEPABLE = "socket_filter", "raw_tracepoint", "syscall", 16
M32, M64 = (1 << 32) - 1, (1 << 64) - 1

Build = Callable[[Any], object]  # Any: so that a lambda may collect what returns nothing


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
