"""A map whose BTF has enums, bitfields and addresses, as a C program's has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

import fastmap
from fastmap._core.system import syscall
from fastmap.btf import Builder, Kind
from fastmap.enums import MapType

PROTOCOLS = [("TCP", 6), ("UDP", 17), ("ALSO_UDP", 17)]


def blob(bitfields: bool) -> tuple[bytes, int, int]:
    """Return BTF of a map's key and value, and their ids.

    `struct key { enum protocol proto; __be32 saddr; u32 peer; }`,
    `struct value { u64 bytes; enum state state:3; u32 dscp:6; }`
    """
    b = Builder()
    u4, u8 = b.add_int("unsigned int", 4), b.add_int("unsigned long", 8)
    be32 = b.add_ref(Kind.TYPEDEF, u4, "__be32")
    proto = b.add_enum("protocol", 4, PROTOCOLS)
    state = b.add_enum("state", 4, [("IDLE", 0), ("BUSY", 1)])
    key = b.add_struct("key", 12, [("proto", proto, 0), ("saddr", be32, 4), ("peer", u4, 8)])
    value = b.add_struct("value", 16, [("bytes", u8, 0), ("state", state, 8), ("dscp", u4, 8)],
                         bits={"state": (64, 3), "dscp": (67, 6)}) if bitfields else b.add_struct(
        "value", 16, [("bytes", u8, 0), ("bits8", u4, 8)])
    return b.build(), key, value


@contextmanager
def described_map(*, bitfields: bool = True) -> Iterator[Any]:
    """Yield such a map with three flows, told apart by their bytes."""
    raw, key, value = blob(bitfields)
    btf = syscall.btf_load(raw)
    made = syscall.map_create(int(MapType.HASH), 12, 16, 64, name=b"described",
                              btf_fd=btf.fileno(), btf_key_type_id=key, btf_value_type_id=value)
    with closing(btf), closing(made), fastmap.open(fd=made.fileno()) as m:
        assert m.dtype_source == "btf"
        keys = np.zeros(3, m.key_dtype)
        keys["proto"] = 6, 17, 99
        keys["saddr"] = 0x0A000001, 0x0A010002, 0xC0000201
        keys["peer"] = np.array([[127, 0, 0, 1]] * 3, "u1").view("u4").reshape(3)
        values = np.zeros(3, m.value_dtype)
        values["bytes"] = 10, 20, 30
        values["bits8"] = [0 | 46 << 3, 1 | 8 << 3, 5]  # 5: a state without a name
        m.update_many(keys, values)
        yield m
