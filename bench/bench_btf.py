"""The kernel's own BTF: from the file to the layout of one struct, beside other readers.

Everybody begins with the file each time, and ends with names, offsets and sizes of all members,
those of anonymous structs and unions among them. A block is one such reading. Size and members have
to agree before the clock starts and after it stopped: a digest of them is held against fastmap's.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap
from fastmap.btf import Layout

from .bench_peers import installed
from .cside import Call, build
from .harness import Side, compare, quiet
from .peers import MASK, Child, InProcess, Peer, clock
from .peers.kinds import PATH, cilium_program, debian_version, no_bpftool, no_cilium, no_libbpf
from .rows.cases import in_turn

VMLINUX = Path("/sys/kernel/btf/vmlinux")
#: A large struct and a small one.
STRUCTS = ("task_struct", "timespec64")
QUESTION = "the kernel's BTF: from the file to the layout of {}"
RETURNS = "a dtype, nested; bitfields and enums by name"

pytestmark = pytest.mark.skipif(not VMLINUX.exists(), reason=f"no {VMLINUX}")


@dataclass(frozen=True)
class Reader:
    """A reader of BTF, as `peers.Kind` is a library; `start` gets the file and the struct."""

    name: str
    returns: str
    start: Callable[[Path, str], Peer]
    missing: Callable[[], str | None]
    rounds: int = 20
    note: str = ""


def libbpf(file: Path, name: str) -> Peer:
    """C over libbpf, in this process."""
    library = ctypes.CDLL(str(build("btf", ("-lbpf",))))
    library.libbpf_version_string.restype = ctypes.c_char_p
    library.lib_btf.restype = ctypes.c_int64
    library.lib_btf.argtypes = [ctypes.c_char_p] * 2 + [ctypes.c_void_p] * 2
    size, found = np.zeros(1, "u8"), np.zeros(1, "u8")
    call = Call(library.lib_btf, (str(file).encode(), name.encode(), size, found))
    return InProcess(library.libbpf_version_string().decode(), {"btf": in_turn([call])},
                     {"btf": (size, found)})


def cilium(file: Path, name: str) -> Peer:
    """cilium/ebpf; it may not know all kinds of types that the kernel's BTF has."""
    version = debian_version("golang-github-cilium-ebpf-dev")
    probe = {"map": -1, "ring": -1, "perf": -1, "file": str(file), "type": name}
    told = subprocess.run([cilium_program(), json.dumps(probe)], text=True, capture_output=True,
                          stdin=subprocess.DEVNULL)
    if told.returncode:
        pytest.skip(f"no cilium/ebpf: {version} says {told.stderr.strip()!r} of {file}")
    return Child([cilium_program()], file=str(file), type=name, version=version)


def bpftool(file: Path, name: str) -> Peer:
    """bpftool and json, under this Python."""
    return Child([sys.executable, "bpftool_btf.py"], file=str(file), type=name,
                 environment={"BPFTOOL": shutil.which("bpftool", path=PATH) or ""})


READERS = (
    Reader("C, libbpf", "offsets and sizes, walked by id", libbpf, no_libbpf),
    Reader("cilium/ebpf", "btf.Struct", cilium, no_cilium),
    Reader("bpftool", "dict out of JSON", bpftool, no_bpftool, 9, "a process a read"),
)


def digest(layout: Layout) -> int:
    """The sum of FNV-1a over each member's name, NUL, bit offset and bits, as c/btf.c has it."""
    fields = layout.dtype.fields or {}
    own = {name: bits for name, bits in layout.bitfields.items() if "." not in name}
    containers = {bits.container[0] for bits in own.values()}
    members = [(name, 8 * field[1], 8 * field[0].itemsize) for name, field in fields.items()
               if name not in containers]
    members += [(name, 8 * fields[bits.container[0]][1] + bits.shift, bits.width)
                for name, bits in own.items()]
    total = 0
    for name, offset, width in members:
        value = 0xCBF29CE484222325
        for byte in name.encode() + b"\0" + np.array([offset, width], "<u4").tobytes():
            value = (value ^ byte) * 0x100000001B3 & MASK
        total += value
    return total & MASK


def ours(file: Path, name: str) -> Side:
    """What a user of fastmap writes: nothing is kept from one call to the next."""
    size = fastmap.btf_layout(name, file).dtype.itemsize

    def side(number: int) -> int:
        assert fastmap.btf_layout(name, file).dtype.itemsize == size
        return 1

    return side


def run(benchmark: BenchmarkFixture, side: Side, group: str, rounds: int = 5) -> None:
    """pytest-benchmark's own statistics of one side."""
    def block() -> None:
        assert side(0) == 1

    benchmark.group = group
    with quiet():
        benchmark.pedantic(block, rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("struct", STRUCTS)
def test_fastmap(benchmark: BenchmarkFixture, struct: str) -> None:
    question = QUESTION.format(struct)
    benchmark.extra_info |= {"question": question, "peer": "fastmap", "returns": RETURNS,
                             "entries": 1}
    run(benchmark, ours(VMLINUX, struct), question)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("struct", STRUCTS)
@pytest.mark.parametrize("reader", [
    pytest.param(each, marks=installed(each.name, each.missing()), id=each.name)
    for each in READERS])
def test_reader(benchmark: BenchmarkFixture, once: bool, reader: Reader, struct: str) -> None:
    layout, question = fastmap.btf_layout(struct, VMLINUX), QUESTION.format(struct)
    want = layout.dtype.itemsize, digest(layout)
    with closing(reader.start(VMLINUX, struct)) as peer:
        assert peer.sums("btf", 0) == want
        side = peer.side("btf")
        benchmark.extra_info |= {"question": question, "peer": reader.name, "entries": 1,
                                 "version": peer.version, "returns": reader.returns,
                                 "note": reader.note}
        run(benchmark, side, question, reader.rounds // 3)
        if not once:
            result = compare(question, ours(VMLINUX, struct), side, against=reader.name, entries=1,
                             limit=1.0, rounds=reader.rounds, warmup=1, tries=2)
            benchmark.extra_info["ratio"] = result.as_dict()
        assert peer.sums("btf", 0) == want
