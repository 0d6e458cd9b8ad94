"""Network namespaces of a test's own, and devices in them: rtnetlink by hand, no iproute2."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_AF_NETLINK, _NETLINK_ROUTE = 16, 0
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR = 16, 17, 20
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NESTED = 0x8000
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 3, 18, 1, 2, 1
_IFF_UP = 1


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """Move this thread into a new network namespace; it goes with the last of its sockets."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            _up("lo")
            yield
        finally:
            if _libc.setns(before, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(before)


def _attribute(kind: int, data: bytes) -> bytes:
    size = 4 + len(data)
    return struct.pack("=HH", size, kind) + data + bytes(-size % 4)


def _request(kind: int, flags: int, body: bytes) -> None:
    with socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as link:
        link.bind((0, 0))
        link.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST | _ACK, 1, 0) + body)
        error = struct.unpack_from("=i", link.recv(65536), 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error))


def _link(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, _IFF_UP if up else 0, _IFF_UP if up else 0)


def _up(name: str) -> int:
    index = socket.if_nametoindex(name)
    _request(_RTM_NEWLINK, 0, _link(index, up=True))
    return index


def veth(one: str = "va", other: str = "vb") -> tuple[int, int]:
    """Make a pair of devices that send to each other, up; return their indices."""
    peer = _link() + _attribute(_IFLA_IFNAME, other.encode() + b"\0")
    data = _attribute(_NESTED | _VETH_INFO_PEER, peer)
    info = _attribute(_IFLA_INFO_KIND, b"veth\0") + _attribute(_NESTED | _IFLA_INFO_DATA, data)
    _request(_RTM_NEWLINK, _CREATE | _EXCL,
             _link() + _attribute(_IFLA_IFNAME, one.encode() + b"\0")
             + _attribute(_NESTED | _IFLA_LINKINFO, info))
    return _up(one), _up(other)


def rename(index: int, name: str) -> None:
    """Give a device another name."""
    _request(_RTM_NEWLINK, 0, _link(index) + _attribute(_IFLA_IFNAME, os.fsencode(name) + b"\0"))


def remove(index: int) -> None:
    """Remove a device (and with it the other of a pair)."""
    _request(_RTM_DELLINK, 0, _link(index))


def packets(device: str) -> Any:
    """Return a socket that sends on a device, and gets all that comes in there."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    raw.bind((device, 0x0003))
    raw.settimeout(10)
    return raw
