"""Shared memory: arenas, and mmapable arrays by windows, as live arrays."""

from __future__ import annotations

import gc
import os
import signal
import struct
from collections.abc import Callable
from mmap import PAGESIZE
from typing import Any

import numpy as np
import pytest
from support import child, in_child

import fastmap
from fastmap import BpfError, MapFlag, NotSupported, PermissionDenied, Program
from fastmap.asm import FP, R0, R1, R2, R6, R7, Assembler, Helper

pytestmark = pytest.mark.quick

SLEEPABLE = 16
ARENA = pytest.mark.needs("ARENA")
LOCKED = [("lock", fastmap.spin_lock), ("a", "u8")]


def doubling(arena: Any) -> Any:
    """Assemble a program that doubles the u8 at the arena's address in its context.

    The context's second word gets the address back, through the program's own pointer.
    """
    a = Assembler()
    a.mov(R6, R1)
    a.ld_map(R1, arena)  # without this the verifier knows of no arena
    a.ldx(8, R7, R6, 0)
    a.cast_kern(R7, R7)
    a.ldx(8, R2, R7, 0)
    a.add(R2, R2)
    a.stx(8, R7, 0, R2)
    a.cast_user(R7, R7)
    a.stx(8, R6, 8, R7)
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


@ARENA
def test_a_program_writes_what_user_space_reads(make: Callable[..., Any]) -> None:
    m = make("arena", max_entries=16)
    assert m.address == 0
    words = m.memory(writable=True).view("u8")
    assert words.shape == (16 * PAGESIZE // 8,) and not words[:600].any()
    words[513] = 21
    where = m.address + 513 * 8
    ctx = bytearray(struct.pack("=QQ", where, 0))
    with Program("syscall", doubling(m), flags=SLEEPABLE) as program:
        program.run(ctx)
        assert words[513] == 42
        program.run(ctx)
    assert words[513] == 84 and words[512] == 0
    assert struct.unpack("=QQ", ctx) == (where, where)
    assert m.memory()[513 * 8] == 84


@ARENA
def test_parts_and_modes_of_an_arena(make: Callable[..., Any]) -> None:
    m = make("arena", max_entries=4)
    whole, part = m.memory(writable=True), m.memory(start=PAGESIZE, count=10)
    whole[PAGESIZE] = 7
    assert part.tolist() == [7] + [0] * 9
    assert whole.flags.writeable and not part.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        part.flags.writeable = True
    assert m.memory(start=4 * PAGESIZE - 1).shape == (1,)
    for wrong in ({"start": -1}, {"count": 0}, {"start": 4 * PAGESIZE}, {"count": 1 << 40}):
        with pytest.raises(ValueError, match="bytes, at least one"):
            m.memory(**wrong)
    assert not hasattr(m, "lookup")
    for call in (lambda: m[0], lambda: list(m)):
        with pytest.raises((NotSupported, TypeError)):
            call()


@ARENA
def test_it_is_mapped_again_at_its_address(make: Callable[..., Any]) -> None:
    m = make("arena", max_entries=2)
    view = m.memory(writable=True)
    view[0] = 5
    address = view.ctypes.data
    del view
    gc.collect()
    again = m.memory()
    assert again[0] == 5 and again.ctypes.data == address == m.address
    with fastmap.open(fd=m.fileno()) as other:
        assert isinstance(other, fastmap.Arena)
        assert other.memory().ctypes.data == address
    m.close()
    assert again[0] == 5  # the mapping outlives the map
    with pytest.raises(ValueError, match="closed"):
        m.memory()


@ARENA
def test_an_address_of_ones_own(make: Callable[..., Any]) -> None:
    where = 0x2000_0000_0000
    m = make("arena", max_entries=2, map_extra=where)
    assert m.address == where
    view = m.memory()
    assert view.ctypes.data == where
    with make("arena", max_entries=2, map_extra=where) as second, \
            pytest.raises(OSError, match="mmap") as caught:
        second.memory()
    assert caught.value.errno == 17 and "something else" in caught.value.__notes__[0]


@ARENA
def test_an_arena_mapped_by_another_process_first(make: Callable[..., Any]) -> None:
    m = make("arena", max_entries=2)
    read, write = os.pipe()

    def first() -> None:
        view = m.memory(writable=True)
        view[0] = 9
        os.write(write, struct.pack("=Q", m.address))
        signal.pause()

    with child(first):
        address, = struct.unpack("=Q", os.read(read, 8))
        with pytest.raises(OSError, match="mmap") as caught:
            m.memory()
        assert "another process" in caught.value.__notes__[0]
        assert m.memory(address=address)[0] == 9
    os.close(read)
    os.close(write)


@ARENA
def test_a_forked_child_maps_it_anew(make: Callable[..., Any]) -> None:
    m = make("arena", max_entries=2)
    view = m.memory(writable=True)
    view[0] = 1
    owner = view.base if isinstance(view.base, np.ndarray) else view
    mapping = memoryview(owner.base).obj if not hasattr(owner.base, "lost") else owner.base

    def inherited() -> None:
        assert mapping.lost
        with pytest.raises(RuntimeError, match="forked child"):
            memoryview(mapping)
        mine = m.memory(writable=True)
        assert mine[0] == 1 and mine.ctypes.data == m.address
        mine[1] = 2
        del mine
        gc.collect()
        assert m.memory()[1] == 2

    in_child(inherited)
    assert view[:2].tolist() == [1, 2]


@ARENA
def test_a_frozen_arena_is_read_only(make: Callable[..., Any]) -> None:
    m = make("arena", max_entries=1)
    m.freeze()
    with pytest.raises(PermissionDenied, match="frozen"):
        m.memory(writable=True)
    view = m.memory()
    assert view.shape == (PAGESIZE,) and not view.flags.writeable


@pytest.mark.parametrize(("options", "message"), [
    ({"max_entries": (1 << 20) + 1}, "at most"),
    ({"max_entries": 1, "map_extra": 123}, "whole pages"),
    ({"max_entries": 2, "map_extra": (1 << 40) - PAGESIZE}, "4 GiB"),
    ({"max_entries": 1, "value": "u8"}, "value"),
])
def test_arenas_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        fastmap.create("arena", **options)
    assert not isinstance(caught.value, OSError)


# ---- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 8, 12, 5000])
def test_windows_of_an_array(make: Callable[..., Any], size: int) -> None:
    m = make("array", value=f"V{size}", max_entries=10000, flags=MapFlag.MMAPABLE)
    expected = [bytes([i % 251]) * size for i in range(10000)]
    m.update_many(list(range(10000)), expected)
    for start, count in ((0, 1), (1, 1), (511, 3), (512, 600), (4097, 2000), (9999, 1)):
        view = m.memory(start=start, count=count)
        assert view.tolist() == expected[start:start + count]
        assert view.strides == ((size + 7) // 8 * 8,)
    assert len(m.memory(start=9990)) == 10
    part = m.memory(writable=True, start=513, count=2)
    part[1] = b"\xff" * size
    assert m[514] == b"\xff" * size and m[513] == expected[513] and m[515] == expected[515]
    for wrong in ({"start": -1}, {"start": 10000}, {"start": 9999, "count": 2}, {"count": 0}):
        with pytest.raises(ValueError, match="elements, at least one"):
            m.memory(**wrong)


def test_a_window_of_a_huge_array(make: Callable[..., Any]) -> None:
    m = make("array", value="V1048576", max_entries=64, flags=MapFlag.MMAPABLE)
    m.memory(writable=True, start=63)[0] = b"z" * (1 << 20)
    assert m[63] == b"z" * (1 << 20)
    assert m.memory(start=63).nbytes == 1 << 20


def refused(m: Any, message: str, **options: Any) -> None:
    with pytest.raises(PermissionDenied, match=message):
        m.memory(**options)


def test_why_an_array_is_not_mapped(make: Callable[..., Any], bpffs: Any) -> None:
    m = make("array", value="u8", max_entries=3, flags=MapFlag.MMAPABLE)
    m.pin(bpffs / "a")
    with fastmap.open(bpffs / "a", readonly=True) as other:
        for writable in (False, True):
            refused(other, "this handle is read-only", writable=writable)
    with fastmap.open(bpffs / "a", writeonly=True) as other:
        refused(other, "this handle is write-only")
    view = m.memory(writable=True)
    with pytest.raises(BpfError, match="writable mapping"):
        m.freeze()
    del view
    gc.collect()
    m.freeze()
    refused(m, r"the map is frozen; memory\(\)", writable=True)
    assert m.memory().tolist() == [0, 0, 0]
    fixed = make("array", value="u8", max_entries=1, flags=MapFlag.MMAPABLE | MapFlag.RDONLY_PROG)
    refused(fixed, "RDONLY_PROG", writable=True)
    fixed[0] = 4
    assert fixed.memory()[0] == 4 and not fixed.memory().flags.writeable


def test_arrays_that_no_kernel_maps(make: Callable[..., Any]) -> None:
    with pytest.raises(NotSupported, match="MMAPABLE, which no per-CPU array"):
        make("percpu_array", value="u8", max_entries=1).memory()
    with pytest.raises(NotSupported, match="MMAPABLE"):
        make("array", value="u8", max_entries=1).memory()
    m = make("array", value=np.dtype(LOCKED, align=True), max_entries=1, flags=MapFlag.MMAPABLE)
    with pytest.raises(NotSupported, match="hold a lock"):
        m.memory()


def test_a_program_writes_the_array_that_is_mapped(make: Callable[..., Any]) -> None:
    m = make("array", value="u8", max_entries=2000, flags=MapFlag.MMAPABLE)
    view = m.memory(start=1999)
    a = Assembler()
    a.st(4, FP, -4, 1999)
    a.ld_map(R1, m)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R1, 3)
    a.atomic_add(8, R0, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    with Program("syscall", a.assemble(), flags=SLEEPABLE) as program:
        program.run()
        program.run()
    assert view.tolist() == [6]
