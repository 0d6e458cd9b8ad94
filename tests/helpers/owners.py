"""What the tests of storages stand on: cgroups of their own, programs attached to owners."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from raw import bpf
from support import mounted

import fastmap
from fastmap._core.system.program import Link
from fastmap._core.system.syscall import Fd
from fastmap.asm import FP, R0, R1, R2, R3, R4, Assembler, Helper, Reg
from fastmap.btf import Btf, Kind

INGRESS, EGRESS = 0, 1  # enum bpf_attach_type
LSM_MAC = 27
CREATE = 1  # BPF_LOCAL_STORAGE_GET_F_CREATE
RAW_TRACEPOINT_OPEN, LINK_CREATE = 17, 28


@cache
def kernel_types() -> Btf:
    return fastmap.read_btf()


def offset_of(struct_name: str, member: str) -> int:
    """Return where a member lies in a struct of the running kernel, in bytes."""
    types = kernel_types()
    found = [m for m in types.members(types.named(f"struct {struct_name}")) if m.name == member]
    return found[0].bit_offset // 8


def function_id(name: str) -> int:
    return int(kernel_types().find_all(name, (Kind.FUNC,))[0])


def attach_to_cgroup(program: Any, folder: Path, attach_type: int) -> Link:
    """Attach a program to a cgroup; it runs until the link is closed."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        attr = struct.pack("=IIII", program.fileno(), number, attach_type, 0)
        return Link(Fd(bpf(LINK_CREATE, attr)))
    finally:
        os.close(number)


def attach_lsm(program: Any) -> Link:
    """Attach a program of type LSM where it was loaded for."""
    return Link(Fd(bpf(RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program.fileno(), 0))))


def lsm_programs() -> bool:
    """Tell whether this kernel loads programs of type LSM, and runs them."""
    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    try:
        fastmap.Program("lsm", a.assemble(), expected_attach_type=LSM_MAC,
                        attach_btf_id=function_id("bpf_lsm_file_open")).close()
    except fastmap.PermissionDenied:
        return False
    return True


@contextlib.contextmanager
def cgroup2(tmp_path: Path) -> Iterator[Path]:
    """Give a cgroup of the test's own, in a cgroup2 that is mounted meanwhile."""
    with mounted("cgroup2", tmp_path / "cgroup2") as root:
        home = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].splitlines()[0]
        folder = root / f"fastmap-{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            (root / home.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
            folder.rmdir()


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    with cgroup2(tmp_path) as folder:
        yield folder


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Have this process in a cgroup meanwhile."""
    home = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].splitlines()[0]
    procs = folder / "cgroup.procs"
    procs.write_text(str(os.getpid()))
    try:
        yield
    finally:
        (folder.parent / home.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


def storage_get(a: Assembler, helper: Helper, storage: Any, owner: Reg) -> None:
    """Emit: R0 is the owner's value, made where there is none; to label "out" where not."""
    a.mov(R2, owner)
    a.ld_map(R1, storage)
    a.mov(R3, 0)
    a.mov(R4, CREATE)
    a.call(helper)
    a.jeq(R0, 0, "out")


def add_one(a: Assembler, offset: int = 0) -> None:
    """Emit: add 1 to the u8 at R0 + offset."""
    a.mov(R1, 1)
    a.atomic_add(8, R0, offset, R1)


def finish(a: Assembler, result: int = 0) -> Any:
    """Emit the end, label "out", and assemble."""
    a.label("out")
    a.mov(R0, result)
    a.exit()
    return a.assemble()


def only_this_process(a: Assembler) -> None:
    """Emit: to "out" in any other process."""
    a.call(Helper.GET_CURRENT_PID_TGID)
    a.rsh(R0, 32)
    a.jne(R0, os.getpid(), "out")


def store_word(a: Assembler, counters: Any, index: int, register: Reg) -> None:
    """Emit: ``counters[index] = register``, in an array of u8; `register` is one of R6 to R9."""
    a.st(4, FP, -4, index)
    a.stx(8, FP, -16, register)
    a.ld_map(R1, counters)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.mov(R3, FP)
    a.add(R3, -16)
    a.mov(R4, 0)
    a.call(Helper.MAP_UPDATE_ELEM)
