"""On kernels without the batch commands, everything goes element by element.

The kernel is the real one; a seccomp filter in a child process makes it answer bpf(2)'s batch
commands with EINVAL, as one older than 5.6 does.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import in_child

import fastmap

pytestmark = pytest.mark.quick

LD_ABS_W, JEQ, JGE, RET = 0x20, 0x15, 0x35, 0x06
ALLOW, ERRNO_EINVAL = 0x7FFF0000, 0x00050000 | 22
NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
FIRST_BATCH, LAST_BATCH = 24, 27


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


@pytest.mark.parametrize("kind", ["hash", "array", "percpu_hash", "percpu_array", "lru_hash"])
def test_reads_and_writes_give_the_same(filled: Callable[..., Any], kind: str) -> None:
    m = filled(500, type=kind, max_entries=500 if kind.endswith("array") else 4000)
    cpus = len(fastmap.possible_cpus()) if m.per_cpu else 1

    def check() -> None:
        reduce = "sum" if m.per_cpu else None
        keys, values = batch = m.reader(reduce=reduce, chunk=64).read()
        assert sorted(keys.tolist()) == list(range(500))
        assert (values == 3 * keys * cpus).all()
        assert batch.complete == (kind.endswith("array"))
        assert sum(len(b) for b in m.reader(chunk=7)) == 500
        assert m.update_many(np.arange(500, dtype="u8"), 5) == 500
        assert (m.snapshot(reduce=reduce).values == 5 * cpus).all()
        assert len(m.snapshot(where=("key", "<", 10)).keys) == 10

    without_batches(check)


@pytest.mark.parametrize("kind", ["hash", "percpu_hash"])
def test_deletes_and_drains_give_the_same(filled: Callable[..., Any], kind: str) -> None:
    m = filled(500, type=kind)

    def check() -> None:
        assert m.delete_many([1, 2, 2, 9999]) == 2
        with pytest.raises(fastmap.KeyNotFound) as caught:
            m.delete_many([3, 1, 4], errors="raise")
        assert (caught.value.applied, caught.value.index) == (1, 1)
        first = next(m.reader(chunk=10).drain_chunks())
        assert len(first) == 10
        rest = m.drain()
        assert len(rest) == 500 - 3 - 10
        assert not m
        assert len(m.drain()) == 0

    without_batches(check)


def test_the_filter_forbids(filled: Callable[..., Any]) -> None:
    m = filled(3)

    def check() -> None:
        assert not m._may(fastmap.Command.MAP_LOOKUP_BATCH)

    assert m._may(fastmap.Command.MAP_LOOKUP_BATCH)
    without_batches(check)


def test_an_array_is_not_drained(filled: Callable[..., Any]) -> None:
    m = filled(3, type="array")
    with pytest.raises(fastmap.NotSupported):
        m.reader().drain()
    assert m.snapshot().complete
