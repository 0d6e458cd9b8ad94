"""Live tables on real hooks: what was sent is counted, no more and no less."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import netlink
import numpy as np
from live_programs import COUNTERS, KEY, loaded
from tools import tool

import fastmap

GETPPID = {"x86_64": 110, "aarch64": 173}[os.uname().machine]


def test_a_raw_tracepoint(bpffs: Path) -> None:
    with fastmap.LiveTable.create(key=KEY, value=COUNTERS, capacity=1 << 10,
                                  pin=bpffs / "flows") as table, loaded(bpffs, table) as programs:
        programs.variables["pid"] = os.getpid()
        with programs.programs["calls"].attach_raw_tracepoint("sys_enter"):
            for _ in range(12345):
                os.getppid()
        calls = np.zeros(1, KEY)
        calls["low"] = GETPPID
        assert table.lookup(calls[0])["events"] == 12345
        assert table.full == 0


def test_xdp_on_a_veth(bpffs: Path) -> None:
    with fastmap.LiveTable.create(key=KEY, value=COUNTERS, capacity=1 << 10,
                                  pin=bpffs / "flows") as table, loaded(bpffs, table), \
            netlink.namespace():
        netlink.veth()
        subprocess.run([tool("bpftool", "bpftool"), "net", "attach", "xdpgeneric", "pinned",
                        bpffs / "progs" / "packets", "dev", "vb"], check=True, timeout=60)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("va", 0))
            for i in range(3000):
                size = 60 + i % 7
                sender.send((b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5"
                             + (i % 50).to_bytes(2, "little")).ljust(size, b"\0"))
        batch, deadline = table.read(), time.monotonic() + 60
        while batch.values["events"].sum() + table.full < 3000 and time.monotonic() < deadline:
            batch = table.read()  # the last ones may still be on their way
        assert table.full == 0
        events = dict(zip(batch.keys["low"].tolist(), batch.values["events"].tolist(), strict=True))
        assert events == dict.fromkeys(range(50), 60)
        assert batch.values["bytes"].sum() == sum(60 + i % 7 for i in range(3000))
