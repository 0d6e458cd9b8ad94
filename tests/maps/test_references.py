"""PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, CPUMAP: values that are things of the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw import perf_event_open
from support import in_child
from xdp import LIVE_FRAMES, XDP_CPUMAP, XDP_DROP, XDP_PASS, XDP_REDIRECT, frame, redirect, returns

import fastmap
from fastmap import MapFlag, NotSupported, Program, ProgType
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, Assembler, Code, Helper
from fastmap.errors import BpfError, KeyExists, KeyNotFound

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

READ_ONLY_BY_PROGRAMS = ("perf_event_array", "cgroup_array", "xskmap")


def raw_tracepoint(code: Code) -> Program:
    return Program(ProgType.RAW_TRACEPOINT, code)


# ---- what all of them share --------------------------------------------------------------------


@pytest.mark.parametrize("kind", READ_ONLY_BY_PROGRAMS)
def test_what_cannot_be_read_says_so(make: Make, kind: str) -> None:
    m = make(kind, max_entries=4)
    assert m.key_dtype == "u4" and m.value_dtype == "u4"
    for read in (lambda: m[0], lambda: m.lookup(0), lambda: m.get(0), lambda: 0 in m):
        with pytest.raises(NotSupported, match="does not tell what an element"):
            read()
    for word in ("snapshot", "reader", "items", "__len__"):
        assert not hasattr(m, word)


@pytest.mark.parametrize("kind", ("prog_array", "perf_event_array", "cgroup_array", "sockmap",
                                  "sockhash", "xskmap", "reuseport_sockarray"))
def test_values_that_are_nothing_of_the_kind(make: Make, kind: str) -> None:
    key = {"key": "u4"} if kind == "sockhash" else {}
    m, other = make(kind, max_entries=4, **key), make("array", value="u4", max_entries=1)
    plain = kind in READ_ONLY_BY_PROGRAMS
    for wrong in (None, 1.5, True, other, [1], *([] if plain else [other.fileno(), np.uint32(3)])):
        with pytest.raises(TypeError, match="a value is"):
            m[0] = wrong
        with pytest.raises(TypeError, match="a value is"):
            m.update_many([0, 1], [wrong, wrong])
    if plain:
        with pytest.raises(OverflowError):
            m[0] = 1 << 31
        with pytest.raises(ValueError, match="no descriptor"):
            m[0] = -1
    else:
        with pytest.raises(TypeError, match="a value is"):
            m.update_many([0, 1], np.array([3, 4]))
    with (Path(__file__)).open() as file:
        with pytest.raises(BpfError) as caught:  # a descriptor, but of a file
            m[0] = file
        assert caught.value.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
        assert "key 0" in str(caught.value)
    with pytest.raises(ValueError, match="closed"):
        m[0] = file


# ---- PROG_ARRAY --------------------------------------------------------------------------------


def tail_caller(m: Any) -> Code:
    """Jump to the program of the index in the context; return 99 if none is there."""
    a = Assembler()
    a.ldx(8, R3, R1, 0)
    a.ld_map(R2, m)
    a.call(Helper.TAIL_CALL)
    a.mov(R0, 99)
    a.exit()
    return a.assemble()


def test_tail_calls(make: Make) -> None:
    m = make("prog_array", max_entries=8)
    assert isinstance(m, fastmap.ProgArray) and len(m) == 0 and not m
    with contextlib.ExitStack() as stack:
        seven, eight = (stack.enter_context(raw_tracepoint(returns(n))) for n in (7, 8))
        caller = stack.enter_context(raw_tracepoint(tail_caller(m)))

        def run(index: int) -> int:
            return caller.run(struct.pack("=Q", index))

        assert run(0) == 99
        m[0] = seven
        m.update(5, eight)
        assert [run(index) for index in (0, 5, 1, 8)] == [7, 8, 99, 99]
        assert m[0] == m.lookup(0) == seven.id and m.get(5) == eight.id and m.get(1) is None
        assert 0 in m and 1 not in m and 8 not in m and len(m) == 2 and bool(m)
        assert list(m) == [0, 5] and dict(m.items()) == {0: seven.id, 5: eight.id}
        batch = m.snapshot()
        assert batch.keys.tolist() == [0, 5] and batch.values.dtype == "u4" and batch.complete
        m[0] = eight
        assert run(0) == 8
        assert m.update_many([1, 2, 3], seven) == 3
        other = stack.enter_context(os.fdopen(os.dup(eight.fileno())))
        assert m.update_many(np.array([1, 2]), [eight, other]) == 2
        values, found = m.lookup_many([1, 2, 3, 4])
        assert values.tolist() == [eight.id, eight.id, seven.id, 0]
        assert found.tolist() == [True, True, True, False]
        del m[1]
        assert run(1) == 99 and m.pop(2) == eight.id and m.pop(2, None) is None
        for miss in (lambda: m[1], lambda: m.delete(1), lambda: m.pop(1), lambda: m.delete(8),
                     lambda: m.update(8, seven), lambda: m[8]):
            with pytest.raises(KeyNotFound, match="key [18]"):
                miss()
        assert m.delete_many([1, 3, 3, 9]) == 1
        m.clear()
        assert len(m) == 0 and [run(index) for index in (0, 3, 5)] == [99] * 3


def test_programs_that_do_not_fit(make: Make) -> None:
    m = make("prog_array", max_entries=2)
    with raw_tracepoint(returns(1)) as one, Program(ProgType.XDP, returns(1)) as other:
        m[0] = one
        with pytest.raises(BpfError, match="type and attributes") as caught:
            m[1] = other
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(BpfError, match="flag other than ANY"):
            m.update(1, one, flags=fastmap.NOEXIST)
        with pytest.raises(fastmap.BatchError) as batch:
            m.update_many([1, 0], [one, other])
        assert batch.value.applied == batch.value.index == 1 and len(m) == 2
        errnos = m.update_many([1, 7], [other, one], errors="return")
        assert errnos.tolist() == [errno.EINVAL, errno.E2BIG]
        with pytest.raises(NotSupported):
            m.lookup_and_delete(0)
    with pytest.raises(ValueError, match="closed"):
        m[0] = one


def test_programs_go_with_the_last_handle(make: Make) -> None:
    m = make("prog_array", max_entries=1)
    with raw_tracepoint(returns(7)) as seven, raw_tracepoint(tail_caller(m)) as caller:
        m[0] = seven
        m.close()
        deadline = time.monotonic() + 10
        while caller.run(bytes(8)) == 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert caller.run(bytes(8)) == 99


# ---- PERF_EVENT_ARRAY --------------------------------------------------------------------------


@contextlib.contextmanager
def event(cpu: int) -> Iterator[tuple[int, mmap.mmap]]:
    """Open an event for programs' output with a ring of one page: its descriptor and memory."""
    fd = perf_event_open(cpu)
    try:
        with mmap.mmap(fd, 2 * mmap.PAGESIZE) as ring:
            yield fd, ring
    finally:
        os.close(fd)


def output(m: Any) -> Code:
    a = Assembler()
    a.ld_imm64(R6, 0x1122334455667788)
    a.stx(8, FP, -8, R6)
    a.ld_map(R2, m)
    a.ld_imm64(R3, 0xFFFFFFFF)  # BPF_F_CURRENT_CPU
    a.mov(R4, FP)
    a.add(R4, -8)
    a.mov(R5, 8)
    a.call(Helper.PERF_EVENT_OUTPUT)
    a.exit()
    return a.assemble()


def signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


@pytest.mark.parametrize("flags", (MapFlag(0), MapFlag.PRESERVE_ELEMS))
def test_what_a_program_writes_reaches_the_event(make: Make, flags: MapFlag) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    m = make("perf_event_array", max_entries=max(cpus) + 1, flags=flags)
    assert isinstance(m, fastmap.PerfEventArray)
    with contextlib.ExitStack() as stack:
        prog = stack.enter_context(raw_tracepoint(output(m)))
        assert signed(prog.run()) == -errno.ENOENT
        events = {cpu: stack.enter_context(event(cpu)) for cpu in cpus}
        assert m.update_many(cpus, [fd for fd, _ in events.values()]) == len(cpus)
        assert prog.run() == 0
        records = [ring[mmap.PAGESIZE:mmap.PAGESIZE + 20] for _, ring in events.values()
                   if struct.unpack_from("=Q", ring, 1024)[0]]
        assert len(records) == 1 and struct.unpack_from("=I", records[0])[0] == 9
        assert struct.unpack_from("=IQ", records[0], 8) == (12, 0x1122334455667788)
        # Closing a handle takes out what was put in with it; unless they are preserved.
        with fastmap.open(fd=m.fileno()) as same:
            same[cpus[0]] = events[cpus[0]][0]
        m.delete_many(cpus)
        assert signed(prog.run()) == -errno.ENOENT
        with pytest.raises(KeyNotFound):
            del m[cpus[0]]


def test_events_go_with_the_handle_they_came_by(make: Make, bpffs: Path) -> None:
    for flags, left in ((MapFlag(0), 0), (MapFlag.PRESERVE_ELEMS, 1)):
        m = make("perf_event_array", max_entries=4, flags=flags)
        m.pin(bpffs / "m")
        fd = perf_event_open(0)
        try:
            with fastmap.open(bpffs / "m") as other:
                other[2] = fd
            assert m.delete_many([2]) == left
        finally:
            os.close(fd)
            m.unpin(bpffs / "m")


# ---- CGROUP_ARRAY ------------------------------------------------------------------------------


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """Return a cgroup2 folder of the test's own, below a mount of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    mount = tmp_path / "cgroup"
    mount.mkdir()
    if libc.mount(b"cgroup2", os.fsencode(mount), b"cgroup2", 0, None):
        raise OSError(ctypes.get_errno(), "mount cgroup2")
    child = mount / f"fastmap.{os.getpid()}"
    try:
        child.mkdir()
        yield child
    finally:
        with contextlib.suppress(FileNotFoundError):
            child.rmdir()
        if libc.umount2(os.fsencode(mount), 2):
            raise OSError(ctypes.get_errno(), "umount cgroup2")


def under_cgroup(m: Any, index: int) -> Code:
    a = Assembler()
    a.ld_map(R1, m)
    a.mov(R2, index)
    a.call(Helper.CURRENT_TASK_UNDER_CGROUP)
    a.exit()
    return a.assemble()


def test_cgroups(make: Make, cgroup: Path) -> None:
    m = make("cgroup_array", max_entries=4)
    assert isinstance(m, fastmap.CgroupArray)
    with contextlib.ExitStack() as stack:
        whole, own, none = (stack.enter_context(raw_tracepoint(under_cgroup(m, index)))
                            for index in range(3))
        folder = os.open(cgroup.parent, os.O_RDONLY)
        try:
            m[0] = folder
        finally:
            os.close(folder)
        m.update_many([1, 3], [cgroup, str(cgroup)])
        assert (whole.run(), own.run(), signed(none.run())) == (1, 0, -errno.EAGAIN)

        def inside() -> None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            assert (whole.run(), own.run()) == (1, 1)

        in_child(inside)
        m[1] = os.fsencode(cgroup.parent)
        assert own.run() == 1
        del m[1]
        assert signed(own.run()) == -errno.EAGAIN
        for past in (lambda: m.delete(1), lambda: m.delete(4), lambda: m.update(4, cgroup)):
            with pytest.raises(KeyNotFound):
                past()
        assert m.delete_many(range(9)) == 2
        with pytest.raises(BpfError, match="not a folder of cgroup2") as caught:
            m[1] = "/tmp"
        assert caught.value.errno == errno.EBADF
        with pytest.raises(FileNotFoundError):
            m[1] = cgroup / "none"
        with pytest.raises(NotADirectoryError):
            m[1] = cgroup / "cgroup.procs"


# ---- CPUMAP ------------------------------------------------------------------------------------

FRAME = frame(b"to a CPU")


def test_queues_of_cpus(make: Make) -> None:
    cpu = fastmap.possible_cpus()[0]
    m = make("cpumap", max_entries=len(fastmap.possible_cpus()))
    assert isinstance(m, fastmap.CpuMap) and m.value_dtype.names == ("qsize", "prog")
    with Program(ProgType.XDP, redirect(m, cpu)) as prog:
        assert prog.run(data=FRAME) == XDP_PASS  # nothing there
        m[cpu] = 192
        assert prog.run(data=FRAME) == XDP_REDIRECT
        assert m[cpu].tolist() == (192, 0) and cpu in m and list(m) == [cpu] and len(m) == 1
        assert m.snapshot().values["qsize"].tolist() == [192]
        m[cpu] = m[cpu]
        assert m.update_many([cpu], np.array([64])) == 1 and m[cpu]["qsize"] == 64
        assert m.update_many([cpu], (32, None)) == 1 and m[cpu]["qsize"] == 32
        assert m.update_many([cpu], m.snapshot().values) == 1 and m[cpu]["qsize"] == 32
        with pytest.raises(KeyExists):
            m.update(cpu, 5, flags=fastmap.NOEXIST)
        del m[cpu]
        assert cpu not in m and prog.run(data=FRAME) == XDP_PASS
        del m[cpu]  # the kernel does not mind
        m[cpu] = 5
        assert m.pop(cpu).tolist() == (5, 0)
        m[cpu] = 5
        m.clear()
        assert len(m) == 0


def test_a_program_on_another_cpu(make: Make) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    cpu = cpus[-1]
    m = make("cpumap", max_entries=cpu + 1)
    seen = make("array", value="u8", max_entries=1 << 10)
    a = Assembler()
    a.call(Helper.GET_SMP_PROCESSOR_ID)
    a.stx(4, FP, -4, R0)
    a.ld_map(R1, seen)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R1, 1)
    a.atomic_add(8, R0, 0, R1)
    a.label("out")
    a.mov(R0, XDP_DROP)
    a.exit()
    with Program(ProgType.XDP, a.assemble(), expected_attach_type=XDP_CPUMAP) as there, \
            Program(ProgType.XDP, redirect(m, cpu)) as here:
        m[cpu] = (256, there)
        assert m[cpu].tolist() == (256, there.id)
        here.run(data=FRAME, flags=LIVE_FRAMES, repeat=100)
        deadline = time.monotonic() + 10
        while seen.snapshot().values.sum() < 100 and time.monotonic() < deadline:
            time.sleep(0.001)
        runs = seen.snapshot().values
        assert runs[cpu] == 100 == runs.sum()
        m[cpu] = (256, there)
        with pytest.raises(TypeError, match="by id"):
            m[cpu] = m[cpu]
        with pytest.raises(BpfError, match="BPF_XDP_CPUMAP") as caught:
            m[cpu] = (256, here)
        assert caught.value.errno in (errno.EINVAL, errno.ENOMEM)


def test_queues_that_are_refused(make: Make) -> None:
    m = make("cpumap", max_entries=2)
    for wrong, error, words in (
        (0, ValueError, "deletion"), (-1, OverflowError, "-1"), (16385, OverflowError, "16384"),
        (True, TypeError, "queue"), ("5", TypeError, "queue"), (1.5, TypeError, "queue"),
        ((1, 2, 3), ValueError, "program"), ((5, 7), TypeError, "a program"),
        ((5, m), TypeError, "program"), (b"12345678", TypeError, "queue"),
    ):
        with pytest.raises(error, match=words):
            m[0] = wrong
        with pytest.raises(error, match=words):
            m.update_many([0, 1], [7, wrong])
    for array in (np.array([5, 0]), np.array([5, -1]), np.array([5, 1 << 40]), np.array([1.5, 2])):
        with pytest.raises((ValueError, OverflowError, TypeError)):
            m.update_many([0, 1], array)
    assert len(m) == 0
    for past in (lambda: m.update(2, 5), lambda: m.delete(2), lambda: m[2]):
        with pytest.raises(KeyNotFound):
            past()
    assert m.delete_many([0, 1, 2]) == 2  # of an empty slot the kernel says that it is deleted
    large = make("cpumap", max_entries=64)
    nowhere = next(cpu for cpu in range(64) if cpu not in fastmap.possible_cpus())
    with pytest.raises(BpfError, match="no CPU of that number") as caught:
        large[nowhere] = 5
    assert caught.value.errno == errno.ENODEV
    lengths = make("cpumap", value="u4", max_entries=2)
    cpu = fastmap.possible_cpus()[0]
    lengths[cpu] = 9
    assert lengths[cpu] == 9 and lengths.snapshot().values.tolist() == [9]
    with pytest.raises(TypeError, match="value='u4'"):
        lengths[cpu] = (9, None)
    assert lengths.update_many([cpu], np.array([8], "u2")) == 1 and lengths[cpu] == 8
