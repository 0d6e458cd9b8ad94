"""What several tests use: children of this process, less address space, programs that write."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastmap._core.maps.map import KeyedCore
from fastmap.asm import FP, R0, R1, R2, R3, R4, R6, R7, Assembler, Code, Helper

#: Of maps' classes: what is for the package's other modules, not for users.
INSIDE = {name for name in dir(KeyedCore) if not name.startswith("_")} | {
    "apply_many", "apply_one", "fresh", "in_kernel", "pop_rows", "push_rows", "queue_route",
    "reads_by", "route", "whole_reads"}
#: Whether the machine is an emulated one of tests/guest, twenty times as slow as a real one.
EMULATED = "FASTMAP_GUEST" in os.environ


def examples(number: int) -> int:
    """Return how many examples to try: a tenth of `number` where the machine is emulated."""
    return -(-number // 10) if EMULATED else number


def _fork(task: Callable[[], Any], seconds: int) -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads: that it works is what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(seconds)
        task()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def in_child(task: Callable[[], Any], seconds: int = 30) -> None:
    """Run `task` in a forked child; fail where it raises, dies, or takes too long."""
    pid = _fork(task, seconds)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed"


@contextlib.contextmanager
def child(task: Callable[[], Any], seconds: int = 60) -> Iterator[int]:
    """Run `task` in a forked child meanwhile; the child is killed if it is still there then."""
    pid = _fork(task, seconds)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), "the child failed"


@contextlib.contextmanager
def address_space(spare: int) -> Iterator[None]:
    """Leave this process only `spare` more bytes of address space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def inserter(target: Any, counters: Any, *, pid: int = 0) -> Code:
    """Assemble a program that writes ``target[n] = 3 * n`` and counts n up, at each run.

    `target` maps u8 to u8. ``counters[0]`` (an array map of u8) is the next n, ``counters[1]``
    how many updates failed. With `pid`, only runs in that process count.
    """
    a = Assembler()
    if pid:
        a.call(Helper.GET_CURRENT_PID_TGID)
        a.rsh(R0, 32)
        a.jne(R0, pid, "out")
    for index, register in ((0, R6), (1, R7)):
        a.st(4, FP, -4, index)
        a.ld_map(R1, counters)
        a.mov(R2, FP)
        a.add(R2, -4)
        a.call(Helper.MAP_LOOKUP_ELEM)
        a.jeq(R0, 0, "out")
        a.mov(register, R0)
    a.mov(R1, 1)
    a.atomic_add(8, R6, 0, R1, fetch=True)
    a.stx(8, FP, -16, R1)
    a.mul(R1, 3)
    a.stx(8, FP, -24, R1)
    a.ld_map(R1, target)
    a.mov(R2, FP)
    a.add(R2, -16)
    a.mov(R3, FP)
    a.add(R3, -24)
    a.mov(R4, 0)
    a.call(Helper.MAP_UPDATE_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R1, 1)
    a.atomic_add(8, R7, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


@contextlib.contextmanager
def mounted(kind: str, where: Path, options: str = "") -> Iterator[Path]:
    """Mount a file system of a kind that needs no device at `where`, a new folder, meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    where.mkdir()
    if libc.mount(b"none", os.fsencode(where), kind.encode(), 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind}")
    try:
        yield where
    finally:
        if libc.umount2(os.fsencode(where), 2):
            raise OSError(ctypes.get_errno(), f"umount {kind}")
