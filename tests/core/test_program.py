"""`Program` and `Link`: what is loaded runs, what is refused says why, what is closed is gone."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap import BpfError, PermissionDenied, Program, ProgType
from fastmap.asm import FP, R0, R1, R2, R3, R4, R6, Assembler, Code, Helper

pytestmark = pytest.mark.quick

SLEEPABLE = 16
GETPPID = 110  # x86-64


def returning(number: int) -> Code:
    a = Assembler()
    a.mov(R0, number)
    a.exit()
    return a.assemble()


def adder() -> Code:
    """Assemble a program that stores the sum of the context's first two words in its third."""
    a = Assembler()
    a.ldx(4, R2, R1, 0)
    a.ldx(4, R3, R1, 4)
    a.add(R2, R3)
    a.stx(4, R1, 8, R2)
    a.mov(R0, 7)
    a.exit()
    return a.assemble()


def test_load_run_close() -> None:
    program = Program("syscall", returning(41), flags=SLEEPABLE, name="fortyone")
    assert program.run() == 41
    assert program.name == "fortyone" and program.type == ProgType.SYSCALL and program.id > 0
    assert "fortyone" in repr(program) and not program.closed
    os.fstat(program.fileno())
    number = program.fileno()
    program.close()
    program.close()
    assert program.closed and "closed" in repr(program)
    with pytest.raises(OSError):
        os.fstat(number)
    for call in (program.run, program.fileno, lambda: program.id, lambda: program.pin("/x"),
                 lambda: program.attach_raw_tracepoint("sys_enter")):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_the_result_is_an_unsigned_word() -> None:
    with Program(ProgType.SYSCALL, returning(-1), flags=SLEEPABLE) as program:
        assert program.run() == 0xFFFFFFFF
    assert program.closed


@pytest.mark.parametrize("make_ctx", [
    lambda: bytearray(struct.pack("=III", 5, 6, 0)),
    lambda: memoryview(bytearray(struct.pack("=III", 5, 6, 0))),
    lambda: np.array([5, 6, 0], "u4"),
    lambda: np.array([(5, 6, 0)], [("a", "u4"), ("b", "u4"), ("sum", "u4")]),
    lambda: np.array([[5], [6], [0]], "u4"),
], ids=["bytearray", "memoryview", "array", "records", "2-d"])
def test_a_writable_context_gets_back_what_was_left_in_it(make_ctx: Callable[[], Any]) -> None:
    ctx = make_ctx()
    with Program("syscall", adder(), flags=SLEEPABLE) as program:
        assert program.run(ctx) == 7
    assert bytes(memoryview(ctx).tobytes()) == struct.pack("=III", 5, 6, 11)


def test_a_read_only_context_stays_as_it_is() -> None:
    ctx = struct.pack("=III", 5, 6, 0)
    with Program("syscall", adder(), flags=SLEEPABLE) as program:
        assert program.run(ctx) == 7
        assert ctx == struct.pack("=III", 5, 6, 0)
        with pytest.raises(TypeError):
            program.run(12)  # a size is no context
        with pytest.raises(ValueError, match="contiguous"):
            program.run(np.zeros(6, "u4")[::2])
        with pytest.raises(BpfError) as caught:
            program.run(bytearray(8))  # the program uses 12
    assert caught.value.errno == 22


def test_packets_are_handed_over() -> None:
    a = Assembler()
    a.ldx(4, R2, R1, 4)  # xdp_md.data_end
    a.ldx(4, R1, R1, 0)  # xdp_md.data
    a.sub(R2, R1)
    a.mov(R0, R2)
    a.exit()
    with Program("xdp", a.assemble()) as program:
        assert program.run(data=bytes(77), repeat=3) == 77


def test_a_refusal_carries_the_end_of_the_log() -> None:
    a = Assembler()
    a.mov(R1, 0)
    a.ldx(8, R0, R1, 0)  # a scalar is no pointer
    a.exit()
    with pytest.raises(PermissionDenied, match="R1 invalid mem access 'scalar'") as caught:
        Program("raw_tracepoint", a.assemble())
    assert caught.value.errno == 13 and isinstance(caught.value, PermissionError)
    assert caught.value.command == fastmap.Command.PROG_LOAD


def test_a_license_that_is_not_enough() -> None:
    a = Assembler()
    a.mov(R1, FP)
    a.st(8, FP, -8, 0)
    a.add(R1, -8)
    a.mov(R2, 8)
    a.call(Helper.TRACE_PRINTK)
    a.exit()
    with pytest.raises(BpfError, match="GPL"):
        Program("raw_tracepoint", a.assemble(), license="MIT")
    Program("raw_tracepoint", a.assemble(), license="GPL").close()


@pytest.mark.parametrize(("arguments", "error"), [
    (("syscall", b""), ValueError),
    (("syscall", returning(0).insns[:-1]), ValueError),
    (("nonsense", returning(0)), ValueError),
    ((4711, returning(0)), ValueError),
    (("syscall", "text"), TypeError),
])
def test_wrong_arguments(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        Program(*arguments, flags=SLEEPABLE)


def test_a_name_is_15_bytes() -> None:
    Program("syscall", returning(0), flags=SLEEPABLE, name="a" * 15).close()
    with pytest.raises(ValueError, match="15 bytes"):
        Program("syscall", returning(0), flags=SLEEPABLE, name="ä" * 8)


def test_subprograms_are_called_back(make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="u8", max_entries=16)
    m.update_many([1, 2, 3], [10, 20, 30])
    a = Assembler()
    a.st(8, FP, -8, 0)
    a.ld_map(R1, m)
    a.ld_func(R2, "add")
    a.mov(R3, FP)
    a.add(R3, -8)
    a.mov(R4, 0)
    a.call(Helper.FOR_EACH_MAP_ELEM)
    a.ldx(8, R0, FP, -8)
    a.exit()
    a.function("add")  # (map, key, value, what R3 was)
    a.ldx(8, R1, R3, 0)
    a.ldx(8, R2, R4, 0)
    a.add(R1, R2)
    a.stx(8, R4, 0, R1)
    a.mov(R0, 0)
    a.exit()
    with Program("syscall", a.assemble(), flags=SLEEPABLE) as program:
        assert program.run() == 60
        m.close()  # the program holds the map
        assert program.run() == 60


def looker(m: Any) -> Code:
    """Assemble a program that returns ``m[0]`` of an array of u4."""
    a = Assembler()
    a.st(4, FP, -4, 0)
    a.ld_map(R1, m)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.ldx(4, R0, R0, 0)
    a.label("out")
    a.exit()
    return a.assemble()


def test_a_map_closed_before_the_load_is_not_another_one(make: Callable[..., Any]) -> None:
    m = make("array", value="u4", max_entries=1)
    code = looker(m)
    m.close()
    other = make("array", value="u4", max_entries=1)  # has its number now
    other[0] = 99
    with pytest.raises(ValueError, match="closed"):
        Program("syscall", code, flags=SLEEPABLE)


def counting() -> tuple[Any, Code]:
    """Assemble a program that counts the system calls of this process in a per-CPU hash."""
    m = fastmap.create("percpu_hash", key="u8", value="u8", max_entries=1024)
    a = Assembler()
    a.mov(R6, R1)
    a.call(Helper.GET_CURRENT_PID_TGID)
    a.rsh(R0, 32)
    a.jne(R0, os.getpid(), "out")
    a.ldx(8, R1, R6, 8)  # the number of the system call
    a.stx(8, FP, -8, R1)
    a.ld_map(R1, m)
    a.mov(R2, FP)
    a.add(R2, -8)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "new")
    a.mov(R1, 1)
    a.atomic_add(8, R0, 0, R1)
    a.ja("out")
    a.label("new")
    a.st(8, FP, -16, 1)
    a.ld_map(R1, m)
    a.mov(R2, FP)
    a.add(R2, -8)
    a.mov(R3, FP)
    a.add(R3, -16)
    a.mov(R4, 1)  # NOEXIST
    a.call(Helper.MAP_UPDATE_ELEM)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return m, a.assemble()


def test_a_tracepoint_counts_on_every_cpu() -> None:
    m, code = counting()
    cpus = sorted(os.sched_getaffinity(0))
    with m, Program("raw_tracepoint", code, name="count") as program:
        assert GETPPID not in m
        m[GETPPID] = 0  # the program then only adds to it
        with program.attach_raw_tracepoint("sys_enter") as link:
            assert not link.closed and link.fileno() > 2
            try:
                for nth, cpu in enumerate(cpus, 1):
                    os.sched_setaffinity(0, {cpu})
                    for _ in range(100 * nth):
                        os.getppid()
            finally:
                os.sched_setaffinity(0, cpus)
        assert link.closed
        counted = m[GETPPID]
        expected = dict.fromkeys(fastmap.possible_cpus(), 0)  # also those that are not online
        expected |= {cpu: 100 * nth for nth, cpu in enumerate(cpus, 1)}
        assert dict(zip(fastmap.possible_cpus(), counted.tolist(), strict=True)) == expected
        os.getppid()  # nobody counts any more
        assert m[GETPPID].tolist() == counted.tolist()
        total = m.reader(reduce="sum").read()
        assert dict(total.items())[GETPPID] == sum(expected.values())


def test_a_program_lives_while_it_is_attached() -> None:
    m, code = counting()
    with m:
        m[GETPPID] = 0
        program = Program("raw_tracepoint", code)
        link = program.attach_raw_tracepoint("sys_enter")
        program.close()
        os.getppid()
        assert m[GETPPID].sum() == 1
        del link  # the link ends with its object
        os.getppid()
        assert m[GETPPID].sum() == 1


def test_a_tracepoint_that_is_not_there() -> None:
    with (Program("raw_tracepoint", returning(0)) as program,
          pytest.raises(BpfError, match="no_such_point") as caught):
        program.attach_raw_tracepoint("no_such_point")
    assert caught.value.errno == 2


def test_a_pinned_program_stays(bpffs: Path) -> None:
    with Program("syscall", returning(3), flags=SLEEPABLE) as program:
        program.pin(bpffs / "three")
        assert (bpffs / "three").exists()
        with pytest.raises(ValueError, match="NUL"):
            program.pin(f"{bpffs}/four\0")
        assert not (bpffs / "four").exists()
        with pytest.raises(fastmap.KeyExists):
            program.pin(bpffs / "three")
        with pytest.raises(ValueError, match="bpf-prog"):
            fastmap.open(bpffs / "three")  # no map


def test_close_waits_for_a_run() -> None:
    # A program that takes its time: XDP, repeated for about a second, without the GIL.
    program, results, started = Program("xdp", returning(2)), [], threading.Event()
    number = program.fileno()

    def run() -> None:
        started.set()
        results.append(program.run(data=bytes(64), repeat=20_000_000))

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    time.sleep(0.1)
    program.close()
    os.fstat(number)  # the run goes on: the descriptor is still open
    with pytest.raises(ValueError):
        program.run(data=bytes(64))
    thread.join()
    assert results == [2]
    with pytest.raises(OSError):
        os.fstat(number)
