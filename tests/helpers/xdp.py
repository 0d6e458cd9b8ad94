"""Programs for XDP, and AF_XDP sockets by hand: Python knows neither the family nor its rings."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastmap.asm import R0, R1, R2, R3, Assembler, Code, Helper

XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
#: Of a program's type XDP: it runs for a DEVMAP on the way out, for a CPUMAP on the other CPU.
XDP_DEVMAP, XDP_CPUMAP = 33, 35
#: BPF_PROG_TEST_RUN with real frames, that go where the program sends them (Linux 5.18).
LIVE_FRAMES = 2

AF_XDP = 44
_SOL_XDP = 283
_MMAP_OFFSETS, _RX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 1, 2, 4, 5, 6
_PGOFF_RX, _PGOFF_FILL = 0, 0x100000000
_XDP_COPY = 2
_FRAME, _FRAMES = 4096, 8
_libc = ctypes.CDLL(None, use_errno=True)


def frame(payload: bytes) -> bytes:
    """Return an Ethernet frame of a protocol that nobody else speaks."""
    return b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5" + payload.ljust(50, b"\0")


def redirect(m: Any, key: int, otherwise: int = XDP_PASS) -> Code:
    """Send each packet to what the map holds under `key`; return `otherwise` if that is nothing."""
    a = Assembler()
    a.ld_map(R1, m)
    a.mov(R2, key)
    a.mov(R3, otherwise)
    a.call(Helper.REDIRECT_MAP)
    a.exit()
    return a.assemble()


def returns(number: int) -> Code:
    """Return a number, and no more."""
    a = Assembler()
    a.mov(R0, number)
    a.exit()
    return a.assemble()


@dataclass
class Ring:
    """A ring that the kernel and a test share."""

    memory: mmap.mmap
    producer: int
    consumer: int
    desc: int

    def word(self, at: int) -> int:
        return int(struct.unpack_from("=I", self.memory, at)[0])


@dataclass
class XdpSocket:
    """An AF_XDP socket bound to queue 0 of a device, with frames for the kernel to fill."""

    socket: Any
    frames: mmap.mmap
    received: Ring

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def packets(self) -> list[bytes]:
        """Return what has come so far."""
        found = []
        for index in range(self.received.word(self.received.producer)):
            address, length = struct.unpack_from("=QI", self.received.memory,
                                                 self.received.desc + 16 * (index % _FRAMES))
            found.append(self.frames[address:address + length])
        return found


def _mapped(sock: Any, entry: int, size: int, offsets: tuple[int, ...], where: int) -> Ring:
    producer, consumer, desc = offsets[4 * entry:4 * entry + 3]
    # MAP_SHARED | MAP_POPULATE
    return Ring(mmap.mmap(sock.fileno(), desc + _FRAMES * size, 0x8001, offset=where),
                producer, consumer, desc)


@contextlib.contextmanager
def xdp_socket(ifindex: int) -> Iterator[XdpSocket]:
    """Open an AF_XDP socket on queue 0 of a device."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(AF_XDP, socket.SOCK_RAW, 0))
        frames = stack.enter_context(mmap.mmap(-1, _FRAME * _FRAMES))
        address = (ctypes.c_char * 1).from_buffer(frames)
        sock.setsockopt(_SOL_XDP, _UMEM_REG, struct.pack(
            "=QQIII4x", ctypes.addressof(address), len(frames), _FRAME, 0, 0))
        del address  # an export would keep the mmap from being closed
        for ring in (_FILL_RING, _COMPLETION_RING, _RX_RING):
            sock.setsockopt(_SOL_XDP, ring, _FRAMES)
        # rx, tx, fill, completion: producer, consumer, desc, flags each.
        offsets = struct.unpack("=16Q", sock.getsockopt(_SOL_XDP, _MMAP_OFFSETS, 128))
        received = _mapped(sock, 0, 16, offsets, _PGOFF_RX)
        stack.callback(received.memory.close)
        fill = _mapped(sock, 2, 8, offsets, _PGOFF_FILL)
        stack.callback(fill.memory.close)
        for index in range(_FRAMES):
            struct.pack_into("=Q", fill.memory, fill.desc + 8 * index, index * _FRAME)
        struct.pack_into("=I", fill.memory, fill.producer, _FRAMES)
        where = struct.pack("=HHIII", AF_XDP, _XDP_COPY, ifindex, 0, 0)
        if _libc.bind(sock.fileno(), where, len(where)):
            raise OSError(ctypes.get_errno(), "bind AF_XDP")
        yield XdpSocket(sock, frames, received)
