"""Which libraries there are, what each one's calls return, and how it is found and started."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from ..cside import FLAGS, Array, Call, CSide, build, touched
from ..rows.cases import CHUNKS, SLACK, best_chunk, in_turn
from . import HERE, Child, Ground, InProcess, Kind, Peer, fill

#: Debian puts root's tools where an environment's PATH need not look.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
DEBIAN_PYTHON = Path("/usr/bin/python3")
GOPATH = Path("/usr/share/gocode")
CILIUM = GOPATH / "src/github.com/cilium/ebpf"

ARRAYS = "arrays of the caller's"


def refilled(c: CSide, ground: Ground) -> None:
    """Have every entry in the map."""
    assert fill(c, ground)() == len(ground.keys)


def raw(ground: Ground) -> Peer:
    """C over bpf(2)."""
    c, fd, n = CSide(), ground.fd, len(ground.keys)
    parts = [ground.part(i) for i in range(n // ground.block)]
    out, keys, values = (touched(size, "u8") for size in (ground.block, n + SLACK, n + SLACK))
    lookups = in_turn([c.lookup_loop(fd, part, out) for part in parts])
    found = (np.zeros(0, "u8"), out.view("u8"))
    read = (keys.view("u8"), values.view("u8"))
    return InProcess(
        "gcc " + " ".join(FLAGS[:1]),
        {
            "lookup": lookups,
            "given": lookups,
            "update": in_turn([c.update_loop(fd, p, p * np.uint64(3)) for p in parts]),
            "delete": in_turn([c.delete_loop(fd, part) for part in parts]),
            "read": best_chunk(lambda chunk: c.lookup_batch(fd, keys, values, chunk), n),
            "drain": best_chunk(lambda chunk: c.drain_batch(fd, keys, values, chunk), n,
                                lambda: refilled(c, ground)),
            "put": in_turn([c.update_batch(fd, p, p * np.uint64(3)) for p in parts]),
        },
        {"lookup": found, "given": found, "read": read, "drain": read},
    )


def libbpf(ground: Ground) -> Peer:
    """C over libbpf."""
    library = ctypes.CDLL(str(build("libbpf", ("-lbpf",))))
    library.libbpf_version_string.restype = ctypes.c_char_p
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    for name, arguments in {
        "lib_lookup": [ctypes.c_int, pointer, pointer, long],
        "lib_update": [ctypes.c_int, pointer, pointer, long],
        "lib_delete": [ctypes.c_int, pointer, long],
        "lib_put": [ctypes.c_int, pointer, pointer, long],
        "lib_read": [ctypes.c_int, pointer, pointer, long, ctypes.c_uint32, ctypes.c_int],
        "lib_walk": [ctypes.c_int, pointer, pointer, long],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, long
    fd, n = ground.fd, len(ground.keys)
    parts = [ground.part(i) for i in range(n // ground.block)]
    out, keys, values = (touched(size, "u8") for size in (ground.block, n + SLACK, n + SLACK))

    def call(name: str, *arguments: int | Array) -> Call:
        return Call(getattr(library, name), arguments)

    lookups = in_turn([call("lib_lookup", fd, p, out, len(p)) for p in parts])
    found = (np.zeros(0, "u8"), out.view("u8"))
    read = (keys.view("u8"), values.view("u8"))
    return InProcess(
        library.libbpf_version_string().decode(),
        {
            "lookup": lookups,
            "given": lookups,
            "update": in_turn([call("lib_update", fd, p, p * np.uint64(3), len(p))
                               for p in parts]),
            "delete": in_turn([call("lib_delete", fd, p, len(p)) for p in parts]),
            "put": in_turn([call("lib_put", fd, p, p * np.uint64(3), len(p)) for p in parts]),
            "read": best_chunk(
                lambda chunk: call("lib_read", fd, keys, values, n + SLACK, chunk, 0), n),
            "drain": best_chunk(
                lambda chunk: call("lib_read", fd, keys, values, n + SLACK, chunk, 1), n,
                lambda: refilled(CSide(), ground)),
            "walk": in_turn([call("lib_walk", fd, keys, values, n + SLACK)]),
        },
        {"lookup": found, "given": found, "read": read, "walk": read, "drain": read},
    )


@cache
def cilium_program() -> Path:
    """Build the Go program, unless this very source is built already."""
    source = HERE / "cilium.go"
    name = f"cilium-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    target = HERE.parent / "build" / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["go", "build", "-o", fresh, source], check=True,
                       env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH)})
        fresh.rename(target)
    return target


@cache
def debian_version(package: str) -> str:
    """The upstream version of an installed package."""
    told = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return told.stdout.rpartition("-")[0].partition("+")[0]


def cilium(ground: Ground) -> Peer:
    """cilium/ebpf in Go."""
    return Child([cilium_program()], ground=ground,
                 version=debian_version("golang-github-cilium-ebpf-dev"))


def bcc(ground: Ground) -> Peer:
    """bcc, under Debian's Python."""
    return Child([DEBIAN_PYTHON, "bcc_tables.py"], ground=ground)


def by_hand(ground: Ground) -> Peer:
    """ctypes, under this Python."""
    return Child([sys.executable, "by_hand.py"], ground=ground)


def bpfmaps(ground: Ground) -> Peer:
    """bpfmaps, under this Python."""
    return Child([sys.executable, "bpfmaps_map.py"], ground=ground)


def bpftool(ground: Ground) -> Peer:
    """bpftool and json, under this Python."""
    return Child([sys.executable, "bpftool_dump.py"], ground=ground,
                 environment={"BPFTOOL": shutil.which("bpftool", path=PATH) or ""})


def never() -> None:
    """It is always there."""


def no_libbpf() -> str | None:
    """libbpf's headers."""
    return None if Path("/usr/include/bpf/bpf.h").exists() else "apt-get install libbpf-dev"


def no_cilium() -> str | None:
    """Go, and cilium/ebpf where Debian puts it."""
    if shutil.which("go") and CILIUM.exists():
        return None
    return "apt-get install golang-go golang-github-cilium-ebpf-dev"


@cache
def no_bcc() -> str | None:
    """bcc in Debian's Python."""
    found = DEBIAN_PYTHON.exists() and subprocess.run(
        [DEBIAN_PYTHON, "-c", "import bcc"], stderr=subprocess.DEVNULL).returncode == 0
    return None if found else "apt-get install python3-bpfcc"


@cache
def no_bpfmaps() -> str | None:
    """bpfmaps, whose import loads its libbpf."""
    told = subprocess.run([sys.executable, "-c", "import bpfmaps"], stderr=subprocess.DEVNULL)
    return None if told.returncode == 0 else "pip install bpfmaps"


def no_bpftool() -> str | None:
    """bpftool."""
    return None if shutil.which("bpftool", path=PATH) else "apt-get install bpftool"


KINDS: tuple[Kind, ...] = (
    Kind("C, bpf(2)",
         {"lookup": "u64 in an array", "update": "-", "delete": "-", "read": ARRAYS,
          "drain": ARRAYS, "given": "u64 in an array, found ones counted", "put": "-"},
         raw, never,
         note=f"whole reads at the best chunk of {', '.join(map(str, CHUNKS))} and all"),
    Kind("C, libbpf",
         {"lookup": "u64 in an array", "update": "-", "delete": "-", "read": ARRAYS,
          "walk": ARRAYS, "drain": ARRAYS, "given": "u64 in an array", "put": "-"},
         libbpf, no_libbpf, note="bpf_map_lookup_batch at its best chunk"),
    Kind("cilium/ebpf",
         {"lookup": "uint64 by pointer", "update": "-", "delete": "-",
          "read": "[]uint64 of the caller's", "walk": "uint64 by pointer",
          "drain": "[]uint64 of the caller's", "given": "uint64 by pointer, a loop", "put": "-",
          "ring": "bytes in a reused Record, by ReadInto",
          "perf": "bytes in a reused Record, by ReadInto"},
         cilium, no_cilium,
         lambda ring, records: Child([cilium_program()], ring=ring, records=records,
                                     version=debian_version("golang-github-cilium-ebpf-dev")),
         lambda perf, records, pages: Child(
             [cilium_program()], perf=perf, records=records, pages=pages,
             version=debian_version("golang-github-cilium-ebpf-dev")),
         note="a Go program; batches at their best chunk; Go's collector runs between blocks"),
    Kind("bcc",
         {"lookup": "a ctypes object", "update": "-", "delete": "-",
          "read": "list of tuples of ints", "walk": "list of tuples of ctypes objects",
          "drain": "list of tuples of ints", "given": "list of ctypes objects, a loop", "put": "-",
          "ring": "a callback with a ctypes pointer",
          "perf": "a callback with a ctypes pointer"},
         bcc, no_bcc,
         lambda ring, records: Child([DEBIAN_PYTHON, "bcc_tables.py"], ring=ring,
                                     records=records),
         lambda perf, records, pages: Child([DEBIAN_PYTHON, "bcc_tables.py"], perf=perf,
                                            records=records, pages=pages),
         note="Table methods over an inherited descriptor, under Debian's Python; keys are "
              "ctypes objects before the clock starts"),
    Kind("ctypes by hand",
         {"lookup": "int in a list", "update": "-", "delete": "-", "read": "dict of ints",
          "drain": "dict of ints", "given": "list of ints, a loop", "put": "-"},
         by_hand, never, note="LOOKUP_BATCH of 16,384 into ctypes arrays, then a dict"),
    Kind("bpfmaps",
         {"lookup": "int", "update": "-", "walk": "list of tuples of ints",
          "given": "list of ints, a loop"},
         bpfmaps, no_bpfmaps, note="no delete, no batch"),
    Kind("bpftool",
         {"read": "dict of ints out of JSON"},
         bpftool, no_bpftool, note="a process a read"),
)
