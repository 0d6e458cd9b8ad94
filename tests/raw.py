"""bpf(2) itself, by ctypes: what tests hold fastmap against, or use to do what it never would."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fastmap
from fastmap.enums import Command

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[__import__("platform").machine()]
_libc = ctypes.CDLL(None, use_errno=True)


def elem(command: Command, fd: int, key: bytes, value: bytearray, flags: int = 0) -> int:
    """Issue one element command; return 0 or the errno. `value` is read or written in place."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = (ctypes.c_char * len(value)).from_buffer(value)
    attr = struct.pack("=I4xQQQ", fd, ctypes.addressof(key_buffer),
                       ctypes.addressof(value_buffer), flags)
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
