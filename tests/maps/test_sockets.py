"""SOCKMAP, SOCKHASH, REUSEPORT_SOCKARRAY: real sockets on loopback."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np
import pytest
from raw import attached

import fastmap
from fastmap import NotSupported, Program, ProgType
from fastmap.asm import FP, R0, R1, R2, R3, R4, Assembler, Code, Helper
from fastmap.errors import BpfError, KeyExists, KeyNotFound

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

SO_COOKIE, SO_ATTACH_REUSEPORT_EBPF = 57, 52
SK_SKB_STREAM_VERDICT, SK_MSG_VERDICT = 5, 7
SK_REUSEPORT_SELECT = 39
INGRESS = 1
KINDS = ("sockmap", "sockhash")


def cookie(sock: Any) -> int:
    raw = sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
    return int(struct.unpack("=Q", raw)[0])


def socket_map(make: Make, kind: str, **options: Any) -> Any:
    key = {"key": "u4"} if kind == "sockhash" else {}
    return make(kind, **{"max_entries": 4, **key, **options})


@contextlib.contextmanager
def connection() -> Iterator[tuple[Any, Any]]:
    """Connect two TCP sockets on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server, \
            socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            for each in (client, accepted):
                each.settimeout(10)
            yield client, accepted


@contextlib.contextmanager
def bound_udp() -> Iterator[Any]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        yield udp


# ---- SOCKMAP and SOCKHASH ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_sockets_go_in_and_cookies_come_out(make: Make, kind: str) -> None:
    m = socket_map(make, kind)
    assert isinstance(m, fastmap.SockMap if kind == "sockmap" else fastmap.SockHash)
    assert m.value_dtype == "u8"
    with connection() as (client, accepted), socket.create_server(("127.0.0.1", 0)) as listening, \
            bound_udp() as udp:
        m[0] = client
        m.update(1, accepted)
        assert m.update_many([2, 3], [listening, udp]) == 2
        cookies = [cookie(each) for each in (client, accepted, listening, udp)]
        assert [m[key] for key in range(4)] == cookies and m.get(0) == m.lookup(0) == cookies[0]
        assert len(m) == 4 and sorted(m) == [0, 1, 2, 3] and bool(m) and 3 in m and 4 not in m
        assert sorted(m.snapshot().values.tolist()) == sorted(cookies)
        assert dict(m.items()) == dict(enumerate(cookies))
        assert m.lookup_many([3, 0, 9])[0].tolist() == [cookies[3], cookies[0], 0]
        with pytest.raises(KeyExists):
            m.update(0, udp, flags=fastmap.NOEXIST)
        m[0] = udp
        assert m[0] == cookies[3] and m.pop(0) == cookies[3] and m.pop(0, None) is None
        for miss in (lambda: m[0], lambda: m.delete(0), lambda: m.pop(0)):
            with pytest.raises(KeyNotFound, match="key 0"):
                miss()
        with pytest.raises(KeyNotFound, match="key 0"):
            m.update(0, udp, flags=fastmap.EXIST)
        assert m.delete_many([0, 1, 1, 9]) == 1 and len(m) == 2
    assert len(m) == 0  # closed sockets leave it
    with bound_udp() as udp:
        m.update_many(range(4), udp)
        m.clear()
        assert len(m) == 0 and not m


@pytest.mark.parametrize("kind", KINDS)
def test_sockets_that_are_refused(make: Make, kind: str) -> None:
    m = socket_map(make, kind)
    with socket.socket() as fresh, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as other:
        for wrong in (fresh, other):
            with pytest.raises(BpfError, match="not of a kind or in a state") as caught:
                m[0] = wrong
            assert caught.value.errno == errno.EOPNOTSUPP
            assert not isinstance(caught.value, NotSupported)
    with open("/dev/null") as file, pytest.raises(BpfError, match="not a socket"):
        m[0] = file
    with pytest.raises(ValueError, match="closed"):
        m[0] = fresh
    with bound_udp() as udp:
        for number in (udp.fileno(), cookie(udp), np.uint64(5)):
            with pytest.raises(TypeError, match="number could be"):
                m[0] = number
        if kind == "sockmap":
            for past in (lambda: m.update(4, udp), lambda: m.delete(4), lambda: m[4]):
                with pytest.raises(KeyNotFound, match="key 4"):
                    past()
        else:
            m.update_many(range(4), udp)
            with pytest.raises(fastmap.MapFull):
                m[4] = udp
    with pytest.raises(NotSupported):
        m.lookup_and_delete(0)


@pytest.mark.parametrize("kind", (*KINDS, "reuseport_sockarray"))
def test_cookies_need_8_bytes(make: Make, kind: str) -> None:
    m = socket_map(make, kind, value="u4")
    with reuseport(1) as (udp,):
        m[0] = udp
        for read in (lambda: m[0], lambda: m.get(0), lambda: 0 in m, lambda: m.lookup_many([0]),
                     lambda: m.snapshot()):
            with pytest.raises(NotSupported, match="value='u8'") as caught:
                read()
            assert caught.value.errno == errno.ENOSPC
        assert m.delete_many([0]) == 1


def test_habits_of_a_dict(make: Make) -> None:
    m = make("sockhash", key=[("port", ">u2"), ("name", "S6")], max_entries=8)
    assert isinstance(m, MutableMapping)
    with bound_udp() as one, bound_udp() as other:
        key = (80, b"http")
        m.update({key: one, (22, b"ssh"): other})
        assert m[key] == cookie(one) and m[22, b"ssh"] == cookie(other)
        assert m.setdefault((1, b"x"), other) == cookie(other) == m.setdefault((1, b"x"), one)
        assert m.popitem()[1] in (cookie(one), cookie(other)) and len(m) == 2
        keys, values = m.drain()
        assert len(keys) == len(values) == 2 and len(m) == 0
        with pytest.raises(KeyError):
            m.popitem()
    with pytest.raises(BpfError):
        make("sockhash", key="V513", max_entries=1)


def test_a_verdict_sends_what_one_socket_gets_through_another(make: Make) -> None:
    m = make("sockmap", max_entries=2)
    a = Assembler()
    a.ld_map(R2, m)
    a.mov(R3, 1)
    a.mov(R4, 0)  # out of it
    a.call(Helper.SK_REDIRECT_MAP)
    a.exit()
    with connection() as (here, proxy), connection() as (there, other), \
            Program(ProgType.SK_SKB, a.assemble(),
                    expected_attach_type=SK_SKB_STREAM_VERDICT) as prog, \
            attached(prog, m, SK_SKB_STREAM_VERDICT):
        m.update_many([0, 1], [proxy, other])
        here.sendall(b"through the map")
        assert there.recv(100) == b"through the map"
        del m[0]
        here.sendall(b"as ever")
        assert proxy.recv(100) == b"as ever"


def test_a_verdict_by_key_hands_messages_over(make: Make) -> None:
    m = make("sockhash", key="u4", max_entries=2)
    a = Assembler()
    a.st(4, FP, -4, 77)
    a.ld_map(R2, m)
    a.mov(R3, FP)
    a.add(R3, -4)
    a.mov(R4, INGRESS)
    a.call(Helper.MSG_REDIRECT_HASH)
    a.exit()
    with connection() as (sender, usual), connection() as (target, _), \
            Program(ProgType.SK_MSG, a.assemble(), expected_attach_type=SK_MSG_VERDICT) as prog, \
            attached(prog, m, SK_MSG_VERDICT):
        m.update({1: sender, 77: target})
        sender.sendall(b"past the network")
        assert target.recv(100) == b"past the network"
        usual.setblocking(False)
        with pytest.raises(BlockingIOError):
            usual.recv(100)


# ---- REUSEPORT_SOCKARRAY -----------------------------------------------------------------------


@contextlib.contextmanager
def reuseport(count: int) -> Iterator[list[Any]]:
    """Bind UDP sockets of one SO_REUSEPORT group."""
    with contextlib.ExitStack() as stack:
        group: list[Any] = []
        for _ in range(count):
            each = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.settimeout(10)
            each.bind(group[0].getsockname() if group else ("127.0.0.1", 0))
            group.append(each)
        yield group


def selects(m: Any, which: Any) -> Code:
    """Choose the socket whose index is in the array `which`; drop what has none."""
    a = Assembler()
    a.mov(R4, R1)
    a.stx(8, FP, -16, R4)
    a.st(4, FP, -4, 0)
    a.ld_map(R1, which)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "drop")
    a.ldx(4, R3, R0, 0)
    a.stx(4, FP, -4, R3)
    a.ldx(8, R1, FP, -16)
    a.ld_map(R2, m)
    a.mov(R3, FP)
    a.add(R3, -4)
    a.mov(R4, 0)
    a.call(Helper.SK_SELECT_REUSEPORT)
    a.jne(R0, 0, "drop")
    a.mov(R0, 1)
    a.exit()
    a.label("drop")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


def test_a_program_chooses_the_socket(make: Make) -> None:
    m = make("reuseport_sockarray", max_entries=4)
    assert isinstance(m, fastmap.ReuseportSockArray) and m.value_dtype == "u8"
    which = make("array", value="u4", max_entries=1)
    with reuseport(3) as group, bound_udp() as client, \
            Program(ProgType.SK_REUSEPORT, selects(m, which),
                    expected_attach_type=SK_REUSEPORT_SELECT) as prog:
        group[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, prog.fileno())
        m[0] = group[0]
        assert m.update_many([1, 3], group[1:]) == 2
        cookies = {0: cookie(group[0]), 1: cookie(group[1]), 3: cookie(group[2])}
        assert dict(m.items()) == cookies and m[3] == cookies[3] and len(m) == 3 and 2 not in m
        assert m.snapshot().values.tolist() == list(cookies.values())
        for index, receiver in ((1, group[1]), (3, group[2]), (0, group[0]), (3, group[2])):
            which[0] = index
            client.sendto(b"to %d" % index, group[0].getsockname())
            assert receiver.recv(100) == b"to %d" % index
        for index in (0, 2):  # in its own place as well
            with pytest.raises(BpfError, match="REUSEPORT_SOCKARRAY already") as caught:
                m[index] = group[0]
            assert caught.value.errno == errno.EBUSY
        assert m.pop(1) == cookies[1]
        for miss in (lambda: m[1], lambda: m.delete(1), lambda: m.delete(4),
                     lambda: m.update(4, group[1])):
            with pytest.raises(KeyNotFound):
                miss()
        which[0] = 1
        client.sendto(b"dropped", group[0].getsockname())
        which[0] = 0
        client.sendto(b"after", group[0].getsockname())
        assert group[0].recv(100) == b"after"
        assert m.delete_many(range(9)) == 2 and len(m) == 0
        m[2] = group[0]
    assert len(m) == 0  # closed sockets leave it


def test_sockets_outside_of_groups(make: Make) -> None:
    m = make("reuseport_sockarray", max_entries=1)
    with bound_udp() as udp, socket.socket() as tcp:
        for wrong in (udp, tcp):
            with pytest.raises(BpfError, match="SO_REUSEPORT group") as caught:
                m[0] = wrong
            assert caught.value.errno == errno.EINVAL
