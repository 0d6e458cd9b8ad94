"""Columns as text: each decoder on the shapes that programs keep its values in."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastmap.text import decoders as module
from fastmap.text.decoders import DECODERS, Decoder, decode

pytestmark = pytest.mark.quick

IPV4 = bytes([10, 0, 255, 1])
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::5")
MAPPED = b"\0" * 10 + b"\xff\xff" + IPV4
MAC = bytes.fromhex("02004c4f4f50")


def rows(dtype: Any, *values: bytes) -> Any:
    """Return values as they lie in memory, as elements of a dtype, twice and in a gap."""
    packed = np.frombuffer(b"".join(values), "u1").reshape(len(values), -1)
    column = np.empty(2 * len(values), np.dtype([("before", "u1"), ("it", dtype)]))
    for i, row in enumerate([*packed, *packed]):
        column["it"][i:i + 1].reshape(-1)[...] = np.frombuffer(row.tobytes(), dtype).reshape(-1)
    return column["it"]


@pytest.mark.parametrize(("how", "dtype", "value", "text"), [
    ("ipv4", "u4", IPV4, "10.0.255.1"),
    ("ipv4", ">u4", IPV4, "10.0.255.1"),
    ("ipv4", "V4", IPV4, "10.0.255.1"),
    ("ipv4", ("u1", 4), IPV4, "10.0.255.1"),
    ("ip", "u4", IPV4, "10.0.255.1"),
    ("ip", ("u1", 16), IPV6, "2001:db8::5"),
    ("ip", ("u1", 16), MAPPED, "10.0.255.1"),
    ("ipv6", ("u1", 16), MAPPED, "::ffff:10.0.255.1"),
    ("ipv6", ("u4", 4), IPV6, "2001:db8::5"),
    ("ipv6", "V16", IPV6, "2001:db8::5"),
    ("mac", ("u1", 6), MAC, "02:00:4c:4f:4f:50"),
    ("mac", "u8", MAC + b"\7\0", "02:00:4c:4f:4f:50"),
    ("comm", "S8", b"sshd\0\0\0\0", "sshd"),
    ("comm", "S8", b"sshd\0gar", "sshd"),
    ("comm", ("i1", 4), b"sshd", "sshd"),
    ("comm", "V4", b"a\xff\0\0", "a\\xff"),
    ("comm", "S4", "é".encode() + b"\0\0", "é"),
    ("hex", "u2", (0x1f).to_bytes(2, "little"), "0x1f"),
    ("hex", "V3", b"\0\x1f\xa0", "001fa0"),
    ("hex", "S3", b"\0\x1f\0", "001f00"),
    (None, "S4", b"ab\0\0", "ab"),
    (None, "V2", b"ab", "6162"),
    (None, ("u1", 2), b"ab", "6162"),
])
def test_bytes(how: str, dtype: Any, value: bytes, text: str) -> None:
    assert decode(rows(np.dtype(dtype), value, value), how) == [text] * 4


@pytest.mark.parametrize(("how", "dtype", "value", "text"), [
    ("errno", "i4", -2, "ENOENT"),
    ("errno", "i8", 2, "ENOENT"),
    ("errno", "u4", 2**32 - 2, "ENOENT"),
    ("errno", "u8", 2**64 - 95, "EOPNOTSUPP"),
    ("errno", ">i2", -512, "ERESTARTSYS"),
    ("errno", "i4", 0, "0"),
    ("errno", "i4", -4000, "-4000"),
    ("errno", "u8", 2**63, str(2**63)),
    ("syscall", "u4", 99999, "99999"),
    ("syscall", "i8", -1, "-1"),
    ("interface", "u4", 1, "lo"),
    ("interface", "V4", 1, "lo"),
    ("interface", "u4", 0, "0"),
    ("interface", "i4", -1, "-1"),
    ("interface", "u4", 2**32 - 1, str(2**32 - 1)),
    ("interface", "u8", 2**64 - 1, str(2**64 - 1)),
    ("interface", "u4", 987654321, "987654321"),
    ({1: "tx"}, "u1", 1, "tx"),
    ({1: "tx"}, "?", True, "tx"),
    ({1: "tx"}, "?", False, "0"),
    ({-1: "none"}, "i8", -1, "none"),
    ({1: "tx"}, "u8", 2**64 - 1, str(2**64 - 1)),
    (None, "i2", -7, "-7"),
    ("hex", "i2", -7, "-0x7"),
])
def test_numbers(how: Any, dtype: str, value: int, text: str) -> None:
    """What has no name comes out as its number: nothing raises."""
    column = np.array([value] * 3, "u4" if dtype == "V4" else dtype).view(dtype)
    assert decode(column, how) == [text] * 3


def test_system_calls_are_those_of_this_machine() -> None:
    number = {"x86_64": 1, "aarch64": 64, "riscv64": 64}[os.uname().machine]
    assert decode(np.array([number, number], "u8"), "syscall") == ["write", "write"]


def test_interfaces_are_those_of_the_kernel() -> None:
    indexes, names = zip(*socket.if_nameindex(), strict=True)
    assert decode(np.array(indexes, "u4"), "interface") == list(names)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    asked: list[int] = []

    def text(number: int) -> str:
        asked.append(number)
        return f"<{number}>"

    monkeypatch.setitem(module.DECODERS, "interface", Decoder(text, None))
    yield asked


def test_each_distinct_value_is_decoded_once(counted: list[int]) -> None:
    column = np.arange(1000, dtype="u4") % 7
    assert decode(column, "interface") == [f"<{i % 7}>" for i in range(1000)]
    assert sorted(counted) == list(range(7))


@pytest.mark.parametrize(("dtype", "how", "error"), [
    ("u8", "ipv4", "ipv4 decodes 4 bytes; uint64 has 8"),
    (("u1", 4), "ipv6", r"ipv6 decodes 16 bytes; uint8\[4\] has 4"),
    ("u4", "mac", "mac decodes 6 or 8 bytes"),
    ("f4", "ipv4", "ipv4 decodes bytes, not float32"),
    ("f8", "errno", "errno decodes integers, not float64"),
    ("V3", {1: "a"}, "a map of numbers to names decodes integers"),
    ("O", "hex", "hex decodes a column of integers or bytes"),
    ("U4", "comm", "comm decodes a column of integers or bytes"),
    ("u4", "ipv5", "'ipv5' is no decoder: ipv4, ipv6, ip, mac, comm"),
    ("u4", 7, "a decoder is one of ipv4"),
    ("u4", {"1": "tx"}, "a map of numbers to names has '1': 'tx'"),
    ("u4", {1: 2}, "a map of numbers to names has 1: 2"),
])
@pytest.mark.parametrize("count", [0, 1])
def test_what_does_not_fit_is_told(dtype: Any, how: Any, error: str, count: int) -> None:
    """Also of an empty column: a declaration can be checked before there is data."""
    with pytest.raises((TypeError, ValueError), match=error):
        decode(np.zeros(count, dtype), how)


@pytest.mark.parametrize("how", [*DECODERS, None, {1: "a"}])
def test_nothing_gives_nothing(how: Any) -> None:
    width = next(iter(DECODERS[how].widths or (8,)), 8) if isinstance(how, str) else 8
    assert decode(np.empty((0, width), "u1"), how) == []
