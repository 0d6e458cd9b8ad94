"""Children with less: without capabilities, or without some commands of bpf(2)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

from support import in_child

#: An ordinary user, "nobody".
NOBODY = 65534

LD_ABS_W, JEQ, JGE, RET = 0x20, 0x15, 0x35, 0x06
ALLOW, ERRNO_EINVAL = 0x7FFF0000, 0x00050000 | 22
NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
FIRST_BATCH, LAST_BATCH = 24, 27


def keep_only(*capabilities: int) -> None:
    """Drop every capability of this thread but these."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=II", 0x20080522, 0)
    masks = [sum(1 << c - 32 * word for c in capabilities if c // 32 == word) for word in (0, 1)]
    data = b"".join(struct.pack("=III", mask, mask, 0) for mask in masks)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def drop_capabilities() -> None:
    """Become an ordinary user."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)



def forbid_batches() -> None:
    """Answer BPF_MAP_*_BATCH with EINVAL from now on, in this process."""
    program = [
        (LD_ABS_W, 0, 0, 0),  # the number of the system call
        (JEQ, 0, 4, NR_BPF),
        (LD_ABS_W, 0, 0, 16),  # its first argument: the command
        (JGE, 0, 2, FIRST_BATCH),
        (JGE, 1, 0, LAST_BATCH + 1),
        (RET, 0, 0, ERRNO_EINVAL),
        (RET, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *insn) for insn in program)
    buffer = ctypes.create_string_buffer(code)
    fprog = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, fprog, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def without_batches(check: Callable[[], None]) -> None:
    """Run `check` in a child that has no batch commands; fail where it fails."""
    def task() -> None:
        forbid_batches()
        check()

    in_child(task)
