"""DEVMAP, DEVMAP_HASH and XSKMAP, between devices in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import netlink
import numpy as np
import pytest
from raw import on_device
from xdp import (
    AF_XDP,
    LIVE_FRAMES,
    XDP_DEVMAP,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    frame,
    redirect,
    returns,
    xdp_socket,
)

import fastmap
from fastmap import MapFlag, Program, ProgType
from fastmap.asm import R0, R1, R2, R3, Assembler
from fastmap.errors import BpfError, KeyExists, KeyNotFound

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

KINDS = ("devmap", "devmap_hash")


@pytest.fixture
def devices() -> Iterator[tuple[int, int]]:
    """Return the indices of a pair of devices, va and vb, in this thread's new namespace."""
    with netlink.namespace():
        yield netlink.veth()


def device_map(make: Make, kind: str, **options: Any) -> Any:
    return make(kind, max_entries=4, **options)


# ---- DEVMAP and DEVMAP_HASH --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_devices_by_index_and_by_name(make: Make, devices: tuple[int, int], kind: str) -> None:
    va, vb = devices
    m = device_map(make, kind)
    assert isinstance(m, fastmap.DevMap if kind == "devmap" else fastmap.DevMapHash)
    assert m.flags & MapFlag.RDONLY_PROG  # the kernel's own doing
    m[0] = va
    m[1] = "vb"
    m.update(3, np.uint32(va))
    assert [m[key].tolist() for key in (0, 1, 3)] == [(va, 0), (vb, 0), (va, 0)]
    assert m[0]["ifindex"] == va and hash(m[0]) == hash(m[3])
    assert 0 in m and 2 not in m and len(m) == 3 and bool(m) and sorted(m) == [0, 1, 3]
    keys, values = m.snapshot()
    assert dict(zip(keys.tolist(), values["ifindex"].tolist(), strict=True)) == {0: va, 1: vb,
                                                                                 3: va}
    values, found = m.lookup_many([1, 2])
    assert values["ifindex"].tolist() == [vb, 0] and found.tolist() == [True, False]
    m[2] = m[1]
    assert m.update_many([0, 1], ["vb", (va, None)]) == 2
    assert [m[key]["ifindex"] for key in range(4)] == [vb, va, vb, va]
    assert m.update_many(range(4), np.array([va, vb, va, vb], "u8")) == 4
    assert m.update_many([0, 1], m.snapshot().values[:2]) == 2
    assert m.update_many(range(4), "va") == 4 and {v["ifindex"] for _, v in m.items()} == {va}
    with pytest.raises(KeyExists):
        m.update(0, va, flags=fastmap.NOEXIST)
    assert m.pop(0).tolist() == (va, 0) and m.pop(0, None) is None
    with pytest.raises(KeyNotFound, match="key 0"):
        m[0]
    del m[1]
    if kind == "devmap":
        del m[1]  # the kernel does not mind
        for past in (lambda: m.delete(4), lambda: m.update(4, va), lambda: m[4]):
            with pytest.raises(KeyNotFound, match="key 4"):
                past()
        assert m.delete_many([1, 2, 99]) == 2
    else:
        assert isinstance(m, MutableMapping)
        with pytest.raises(KeyNotFound):
            del m[1]
        m.update({7: va, 8: "vb"})
        assert m.popitem()[1]["prog"] == 0 and len(m) == 3
        assert m.delete_many([1, 99]) == 0
    m.clear()
    assert len(m) == 0 and not m


@pytest.mark.parametrize("kind", KINDS)
def test_devices_that_are_none(make: Make, devices: tuple[int, int], kind: str) -> None:
    va, vb = devices
    m = device_map(make, kind)
    for wrong, error, words in (
        ("vc", ValueError, "'vc'"), ("", ValueError, "''"), (0, ValueError, "deletion"),
        (-1, OverflowError, "-1"), (1 << 32, OverflowError, "4294967296"),
        (True, TypeError, "interface"), (1.5, TypeError, "interface"),
        (None, TypeError, "interface"), ((va,), ValueError, "program"),
        ((va, m), TypeError, "program"), ((va, 5), TypeError, "program"),
        (np.zeros(1, [("a", "u4"), ("b", "u4")])[0], TypeError, "record"),
    ):
        with pytest.raises(error, match=words):
            m[0] = wrong
        with pytest.raises(error, match=words):
            m.update_many([0, 1], [va, wrong])
    assert len(m) == 0
    nowhere = max(devices) + 100
    for put in (lambda: m.update(0, nowhere), lambda: m.update_many([0], nowhere)):
        with pytest.raises(BpfError, match="no network device has that index") as caught:
            put()
        assert caught.value.errno in (errno.EINVAL, errno.ENODEV)
    m[0], m[1] = va, vb
    netlink.remove(va)
    deadline = time.monotonic() + 10
    while len(m) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(m) == 0  # devices that go leave the map


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_redirected(make: Make, devices: tuple[int, int], kind: str) -> None:
    va, vb = devices
    m = device_map(make, kind)
    with contextlib.ExitStack() as stack:
        prog = stack.enter_context(Program(ProgType.XDP, redirect(m, 2)))
        accept = stack.enter_context(Program(ProgType.XDP, returns(XDP_PASS)))
        stack.enter_context(on_device(accept, vb))
        arrived = stack.enter_context(netlink.packets("vb"))
        assert prog.run(data=frame(b"none")) == XDP_PASS
        m[2] = va
        assert prog.run(data=frame(b"test")) == XDP_REDIRECT
        prog.run(data=frame(b"live"), flags=LIVE_FRAMES, repeat=3)
        assert [_next(arrived) for _ in range(3)] == [frame(b"live")] * 3


def _next(arrived: Any) -> bytes:
    """Return the next frame of ours: a device that comes up sends some of its own."""
    while True:
        data: bytes = arrived.recv(2048)
        if data[12:14] == b"\x88\xb5":
            return data


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_on_the_way_out(make: Make, devices: tuple[int, int], kind: str) -> None:
    va, vb = devices
    m = device_map(make, kind)
    a = Assembler()
    a.ldx(4, R2, R1, 0)  # xdp_md.data, data_end
    a.ldx(4, R3, R1, 4)
    a.mov(R1, R2)
    a.add(R1, 18)
    a.mov(R0, XDP_DROP)
    a.jgt(R1, R3, "out")
    a.st(4, R2, 14, 0x21212121)
    a.mov(R0, XDP_PASS)
    a.label("out")
    a.exit()
    with contextlib.ExitStack() as stack:
        mark = stack.enter_context(
            Program(ProgType.XDP, a.assemble(), expected_attach_type=XDP_DEVMAP))
        prog = stack.enter_context(Program(ProgType.XDP, redirect(m, 1)))
        accept = stack.enter_context(Program(ProgType.XDP, returns(XDP_PASS)))
        stack.enter_context(on_device(accept, vb))
        arrived = stack.enter_context(netlink.packets("vb"))
        m.update_many([1, 3], [("va", mark), vb])
        assert m[1].tolist() == (va, mark.id) and m[3].tolist() == (vb, 0)
        prog.run(data=frame(b"live"), flags=LIVE_FRAMES, repeat=1)
        assert _next(arrived) == frame(b"!!!!")
        with pytest.raises(TypeError, match="by id"):
            m[1] = m[1]
        with pytest.raises(BpfError, match="BPF_XDP_DEVMAP") as caught:
            m[1] = (va, prog)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_4_bytes(make: Make, devices: tuple[int, int], kind: str) -> None:
    va, vb = devices
    m = device_map(make, kind, value="u4")
    m[0] = va
    assert m.update_many([1, 2], (va, vb)) == 2  # a tuple is no record here
    assert m.update_many([3], np.array([va])) == 1
    assert [m[key] for key in range(4)] == [va, va, vb, va]
    assert sorted(m.snapshot().values.tolist()) == sorted([va, va, vb, va])
    with pytest.raises(TypeError, match="value='u4'"):
        m[0] = (va, None)
    with fastmap.open(fd=m.fileno()) as same:
        assert same.value_dtype == "u4" and same[2] == vb
    with pytest.raises(ValueError, match="uint32"):
        device_map(make, kind, value="u8")


# ---- XSKMAP ------------------------------------------------------------------------------------


def test_an_xdp_socket_gets_the_frames(make: Make, devices: tuple[int, int]) -> None:
    va, vb = devices
    m = make("xskmap", max_entries=4)
    assert isinstance(m, fastmap.XskMap)
    with contextlib.ExitStack() as stack:
        prog = stack.enter_context(Program(ProgType.XDP, redirect(m, 0)))
        stack.enter_context(on_device(prog, vb))
        sender = stack.enter_context(netlink.packets("va"))
        xsk = stack.enter_context(xdp_socket(vb))
        sender.send(frame(b"before"))
        m[0] = xsk
        for number in range(3):
            sender.send(frame(b"to the socket %d" % number))
        deadline = time.monotonic() + 10
        while len(xsk.packets()) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert xsk.packets() == [frame(b"to the socket %d" % number) for number in range(3)]
        del m[0]
        sender.send(frame(b"after"))
        assert len(xsk.packets()) == 3
        m.update_many([0, 1], [xsk, xsk.fileno()])
        other = stack.enter_context(xdp_socket(va))
        with pytest.raises(KeyExists):
            m.update(0, other, flags=fastmap.NOEXIST)
        with pytest.raises(KeyNotFound):
            m.update(2, xsk, flags=fastmap.EXIST)
        assert m.delete_many([0, 1, 2, 9]) == 3
        del m[0]  # the kernel does not mind
        for past in (lambda: m.delete(4), lambda: m.update(4, xsk)):
            with pytest.raises(KeyNotFound, match="key 4"):
                past()


def test_sockets_that_are_not_for_xdp(make: Make) -> None:
    m = make("xskmap", max_entries=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for put in (lambda: m.update(0, udp), lambda: m.update_many([0], udp)):
            with pytest.raises(BpfError, match="not an AF_XDP socket") as caught:
                put()
            assert caught.value.errno == errno.EOPNOTSUPP
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0) as bare:
        try:
            m[0] = bare  # older kernels take it before it has a ring
        except BpfError as error:
            assert error.errno == errno.ENOBUFS and "ring" in str(error)
        assert m.delete_many([0]) == 1  # which an empty slot counts as well
