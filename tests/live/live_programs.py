"""Programs that count in live tables, made by clang from ``tests/objects/live.bpf.c``."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tools import OBJECTS, run, tool

import fastmap

HEADER = Path(fastmap.__file__).parent / "include"
KEY = np.dtype([("low", "u4"), ("high", "u4"), ("rest", "u8")])
COUNTERS = np.dtype([("events", "u8"), ("bytes", "u8")])
MULTIARCH = Path("/usr/include") / f"{__import__('os').uname().machine}-linux-gnu"


@cache
def compiled(source: Path) -> bytes:
    """Return the object that clang makes of a source that includes fastmap.bpf.h."""
    return subprocess.run(
        [tool("clang", "clang"), "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Wextra",
         "-Werror", f"-I{HEADER}", f"-I{MULTIARCH}", "-c", source, "-o", "-"],
        check=True, stdout=subprocess.PIPE, timeout=60).stdout


def key_of(numbers: Any) -> Any:
    """Return the keys that ``count`` makes of numbers."""
    numbers = np.asarray(numbers, "u8")
    keys = np.zeros(numbers.shape, KEY)
    keys["low"], keys["high"], keys["rest"] = numbers, numbers >> 32, numbers * 3
    return keys


@dataclass
class Programs:
    """The loaded programs, and their variables."""

    folder: Path
    programs: dict[str, Any]
    variables: Any
    truth: Any

    def count(self, events: int, keys: int, first: int = 0, state: int = 1, *,
              shared: bool = False) -> int:
        """Count; return how many events found no room. ``keys=0``: events of one key each."""
        return int(self.programs["count_shared" if shared else "count"].run(
            struct.pack("=4Q", events, keys, first, state)))

    def peek(self, number: int) -> int:
        """Return the events of a key on the CPU this runs on, 0 where it is not there."""
        return int(self.programs["peek"].run(struct.pack("=Q", number)))

    def hold(self, number: int) -> int:
        """Hold a key's value until ``variables["go"]``, and add 1000 events then."""
        return int(self.programs["hold"].run(struct.pack("=Q", number)))


@contextmanager
def loaded(folder: Path, *tables: Any) -> Iterator[Programs]:
    """Load the object with `tables`, pinned in `folder`, in the places of its own."""
    maps: list[str | Path] = []
    for table in tables:
        for name in table.map_fds():
            maps += ["map", "name", name, "pinned", folder / name]
    source = folder.parent / "live.bpf.o"
    source.write_bytes(compiled(OBJECTS / "live.bpf.c"))
    run(tool("bpftool", "bpftool"), "prog", "loadall", source, folder / "progs", *maps)
    with ExitStack() as stack:
        programs = {each: stack.enter_context(fastmap.Program.open(folder / "progs" / each))
                    for each in ("count", "count_shared", "peek", "hold", "calls", "packets")}
        others = {}
        info = next(each for each in fastmap.programs() if each.id == programs["hold"].id)
        counting = next(each for each in fastmap.programs() if each.id == programs["count"].id)
        tracing = next(each for each in fastmap.programs() if each.id == programs["calls"].id)
        for number in {*info.map_ids, *counting.map_ids, *tracing.map_ids}:
            m = fastmap.open(id=number)
            if m.name in ("live.bss", "truth"):
                others[m.name] = stack.enter_context(m)
            else:
                m.close()
        them = Programs(folder, programs, others["live.bss"].variables, others["truth"].memory())
        try:
            yield them
        finally:
            del them.variables, them.truth
