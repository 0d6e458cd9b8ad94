"""What a steady-state read allocates, and that none of it grows with the entries.

Measured in a process of its own (`python -m bench.allocations WORK ENTRIES`), into which
`c/count.c` is preloaded: it counts what malloc and mmap are asked for, so that memory which is
given back before the call returns is seen as well.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .cside import CSide, build
from .harness import Result, quiet
from .rows.cases import SMALL, Size, read, read_sum

#: What one of each is worth in bytes, so that they add up to one figure.
WORTH = {
    "traced peak": 1,  # Python's own allocators, numpy's included
    "blocks kept": 16,
    "asked of C": 1,
    "page faults": os.sysconf("SC_PAGESIZE"),
}
CALLS = 21


def measure(call: Callable[[], object]) -> dict[str, float]:
    """Medians over some calls, the first few left out."""
    asked = ctypes.CDLL(None).counted_bytes
    asked.restype = ctypes.c_uint64

    def state() -> tuple[int, int, int]:
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        return sys.getallocatedblocks(), asked(), faults

    for _ in range(5):
        call()
    steps = []
    with quiet():
        for _ in range(CALLS):
            earlier = state()
            call()
            steps.append([now - then for now, then in zip(state(), earlier, strict=True)])
        peaks = []
        tracemalloc.start()
        for _ in range(CALLS):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            call()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
    kept, c_bytes, faults = (statistics.median(column) for column in zip(*steps, strict=True))
    return {
        "traced peak": statistics.median(peaks),
        "blocks kept": kept,
        "asked of C": c_bytes,
        "page faults": faults,
    }


@contextmanager
def _fresh_numpy(c: CSide, size: Size) -> Iterator[Callable[[], object]]:
    """A control: Python memory that grows, and is gone after the call."""
    yield lambda: int(np.zeros(size.entries, "u8").sum())


@contextmanager
def _fresh_c(c: CSide, size: Size) -> Iterator[Callable[[], object]]:
    """A control: C memory that grows, behind Python's back, and is gone after the call."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def call() -> None:
        block = libc.malloc(8 * size.entries)
        libc.memset(block, 1, 8 * size.entries)
        libc.free(block)

    yield call


@contextmanager
def _read(c: CSide, size: Size) -> Iterator[Callable[[], object]]:
    with read(c, size) as case:
        yield lambda: case.ours(0)


@contextmanager
def _read_sum(c: CSide, size: Size) -> Iterator[Callable[[], object]]:
    with read_sum(c, size) as case:
        yield lambda: case.ours(0)


WORKS = {"read": _read, "read_sum": _read_sum, "numpy": _fresh_numpy, "malloc": _fresh_c}


def in_child(work: str, entries: int) -> dict[str, float]:
    """The figures of one work at one size."""
    preload = [str(build("count")), os.environ.get("LD_PRELOAD", "")]
    found = subprocess.run(
        [sys.executable, "-m", __name__, work, str(entries)],
        check=True,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "LD_PRELOAD": ":".join(filter(None, preload)),
        },
    )
    return {name: float(value) for name, value in json.loads(found.stdout).items()}


#: The calls that are looked at, as users write them.
STEADY = {"read": "reader.read()", "read_sum": 'reader(reduce="sum").read()'}


def growth(work: str, few: int = 1_000, many: int = 100_000) -> Result:
    """Bytes a call at two sizes; the ratio is what each entry more has cost."""
    small, large = in_child(work, few), in_child(work, many)
    bytes_small, bytes_large = (
        sum(WORTH[what] * amount for what, amount in found.items()) for found in (small, large)
    )
    each = (bytes_large - bytes_small) / (many - few)
    return Result(
        name=f"allocations of a steady-state `{STEADY.get(work, work)}`",
        against=f"{few:,} entries (ratio: bytes an entry)",
        ours=bytes_large,
        theirs=bytes_small,
        ratio=each,
        spread=(each, each),
        entries=many,
        rounds=CALLS,
        limit=0.0,
        unit="B",
    )


def main() -> None:
    """The child: one work, one size, figures as JSON."""
    work, entries = sys.argv[1], int(sys.argv[2])
    size = Size(entries=entries, block=SMALL.block)
    with WORKS[work](CSide(), size) as call:
        print(json.dumps(measure(call)))


if __name__ == "__main__":
    main()
