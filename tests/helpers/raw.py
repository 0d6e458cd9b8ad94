"""bpf(2) itself, by ctypes: what tests hold fastmap against, or use to do what it never would."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fastmap
from fastmap.enums import Command

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[__import__("platform").machine()]
_libc = ctypes.CDLL(None, use_errno=True)


def elem(command: Command, fd: int, key: bytes, value: bytearray, flags: int = 0) -> int:
    """Issue one element command; return 0 or the errno. `value` is read or written in place.

    Where key or value is empty, the kernel gets no pointer to it.
    """
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = (ctypes.c_char * len(value)).from_buffer(value)
    attr = struct.pack("=I4xQQQ", fd, ctypes.addressof(key_buffer) if key else 0,
                       ctypes.addressof(value_buffer) if value else 0, flags)
    result = _libc.syscall(_SYS_BPF, int(command), attr, len(attr))
    return ctypes.get_errno() if result < 0 else 0


def put(m: Any, key: bytes, value: bytes) -> None:
    """Write an entry as these bytes, dirty padding and all."""
    assert elem(Command.MAP_UPDATE_ELEM, m.fileno(), key, bytearray(value)) == 0


def peek(m: Any, key: bytes, size: int) -> bytes:
    """Return the `size` bytes that the kernel holds for a key."""
    value = bytearray(size)
    assert elem(Command.MAP_LOOKUP_ELEM, m.fileno(), key, value) == 0
    return bytes(value)


@contextmanager
def as_bytes(m: Any) -> Iterator[Any]:
    """Open the map once more, with void bytes for key and value."""
    with fastmap.open(fd=m.fileno(), key=f"V{m.key_dtype.itemsize}",
                      value=f"V{m.value_dtype.itemsize}") as other:
        yield other


def bpf(command: int, attr: bytes) -> int:
    """Issue any command; return what it gives, or raise `OSError`."""
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = _libc.syscall(_SYS_BPF, command, buffer, len(attr))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return int(result)


@contextmanager
def attached(prog: Any, target: Any, kind: int) -> Iterator[None]:
    """Attach a program to a map (BPF_PROG_ATTACH), such as a verdict to a SOCKMAP."""
    attr = struct.pack("=IIII", target.fileno(), prog.fileno(), kind, 0)
    bpf(8, attr)
    try:
        yield
    finally:
        bpf(9, attr)


@contextmanager
def on_device(prog: Any, ifindex: int) -> Iterator[None]:
    """Run an XDP program on what a network device receives."""
    link = bpf(int(Command.LINK_CREATE), struct.pack("=IIII", prog.fileno(), ifindex, 37, 0))
    try:
        yield
    finally:
        os.close(link)


class PerfEvent(ctypes.Structure):
    """``struct perf_event_attr``, of which programs' output needs so little."""

    _fields_: ClassVar[Any] = [
        ("type", ctypes.c_uint32), ("size", ctypes.c_uint32), ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64), ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64), ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32), ("rest", ctypes.c_char * 60),
    ]


def perf_event_open(cpu: int) -> int:
    """Return the descriptor of an event that takes what programs write on `cpu`, enabled."""
    # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT, PERF_SAMPLE_RAW.
    attr = PerfEvent(type=1, size=ctypes.sizeof(PerfEvent), config=10, sample_period=1,
                     sample_type=0x400, wakeup_events=1)
    number = {"x86_64": 298, "aarch64": 241}[__import__("platform").machine()]
    fd: int = _libc.syscall(number, ctypes.byref(attr), -1, cpu, -1, 8)  # close-on-exec
    if fd < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open")
    return fd
