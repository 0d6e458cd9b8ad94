"""The C baselines, built on demand and called through ctypes in the run that measures fastmap.

A method prepares a call: pointers are taken once, and what it returns is called without arguments,
so that C pays for one foreign call a block and nothing else.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
U64 = npt.NDArray[np.uint64]

HERE = Path(__file__).parent
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
HASH, PERCPU_HASH, LRU_HASH = 1, 5, 9

_int, _u32, _u64, _size, _ptr = (
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_size_t,
    ctypes.c_void_p,
)
_SIGNATURES = {
    "create_map": (_u32, _u32, _u32, _u32),
    "lookup_loop": (_int, _ptr, _size, _ptr, _size, _u64),
    "lookup_each": (_int, _ptr, _size, _u64, _ptr, _u64),
    "update_loop": (_int, _ptr, _size, _ptr, _size, _u64),
    "queue_round": (_int, _ptr, _ptr, _size, _u64),
    "delete_loop": (_int, _ptr, _size, _u64),
    "push_loop": (_int, _ptr, _size, _u64),
    "pop_loop": (_int, _ptr, _size, _u64),
    "read_batch": (_int, _int, _ptr, _size, _ptr, _size, _u64, _u32),
    "percpu_sum": (_int, _ptr, _size, _ptr, _u64, _ptr, _u64, _u32, _u32),
    "update_batch": (_int, _ptr, _size, _ptr, _size, _u64, _u32),
    "delete_batch": (_int, _ptr, _size, _u64, _u32),
    "batch_total": (_int, _ptr, _ptr, _u64, _u32, _ptr),
    "array_map": (_int, _u64),
    "array_unmap": (_ptr, _u64),
    "array_total": (_ptr, _u64, _ptr),
    "array_copy": (_ptr, _ptr, _u64),
}


def build(name: str = "baseline", libraries: tuple[str, ...] = ()) -> Path:
    """Compile `c/<name>.c`, unless these very sources and flags are built already."""
    compiler = os.environ.get("CC", "gcc")
    what = hashlib.sha256(" ".join((compiler, *FLAGS, *libraries)).encode())
    source = HERE / "c" / f"{name}.c"
    for file in (source, HERE / "c" / "bpf.h"):
        what.update(file.read_bytes())
    target = HERE / "build" / f"{name}-{what.hexdigest()[:12]}.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*compiler.split(), *FLAGS, "-o", fresh, source, *libraries],
                       check=True)
        fresh.rename(target)  # whole or not at all: two runs may build at once
    return target


def touched(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """A buffer whose pages are all there."""
    array = np.empty(shape, dtype)
    array.view("u1").fill(0xFF)
    return array


def _checked(result: int, function: object, arguments: object) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class Call:
    """A call with its pointers taken: returns how many entries C processed, or raises OSError."""

    def __init__(self, function: Callable[..., int], arguments: tuple[int | Array, ...]) -> None:
        self._function = function
        self._keep = arguments  # C has only the arrays' addresses
        for array in arguments:
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
                raise ValueError("an array is not contiguous")
        self._raw = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]

    def __call__(self) -> int:
        return self._function(*self._raw)


class CSide:
    """The baselines; with `hold_gil`, called without giving the GIL up (to prove it is noticed)."""

    def __init__(self, *, hold_gil: bool = False) -> None:
        loader = ctypes.PyDLL if hold_gil else ctypes.CDLL
        self._library = loader(str(build()))
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int64
            function.errcheck = _checked

    def create_map(self, kind: int, key_size: int, value_size: int, max_entries: int) -> int:
        """A descriptor of a new map, for the harness's own proofs."""
        return int(self._library.create_map(kind, key_size, value_size, max_entries))

    def _prepare(self, name: str, *arguments: int | Array) -> Call:
        return Call(getattr(self._library, name), arguments)

    def lookup_loop(self, fd: int, keys: Array, values: Array) -> Call:
        """LOOKUP_ELEM for each key into its row; counts the found."""
        return self._prepare(
            "lookup_loop", fd, keys, keys.itemsize, values, _row(values), _same(keys, values)
        )

    def lookup_each(self, fd: int, keys: Array, value: Array, count: int | None = None) -> Call:
        """LOOKUP_ELEM for each key into one value, `count` times in all, the keys in turn."""
        n = len(keys) if count is None else count
        return self._prepare("lookup_each", fd, keys, keys.itemsize, len(keys), value, n)

    def update_loop(self, fd: int, keys: Array, values: Array) -> Call:
        """UPDATE_ELEM for each key."""
        return self._prepare(
            "update_loop", fd, keys, keys.itemsize, values, _row(values), _same(keys, values)
        )

    def queue_round(self, fd: int, values: Array, out: Array) -> Call:
        """UPDATE_ELEM for each value of a queue, then LOOKUP_AND_DELETE_ELEM into `out`."""
        return self._prepare("queue_round", fd, values, out, values.itemsize, _same(values, out))

    def delete_loop(self, fd: int, keys: Array) -> Call:
        """DELETE_ELEM for each key; counts the deleted."""
        return self._prepare("delete_loop", fd, keys, keys.itemsize, len(keys))

    def push_loop(self, fd: int, values: Array) -> Call:
        """UPDATE_ELEM of each value onto a queue or stack."""
        return self._prepare("push_loop", fd, values, values.itemsize, len(values))

    def pop_loop(self, fd: int, values: Array) -> Call:
        """LOOKUP_AND_DELETE_ELEM off a queue or stack into each row."""
        return self._prepare("pop_loop", fd, values, values.itemsize, len(values))

    def lookup_batch(self, fd: int, keys: Array, values: Array, chunk: int) -> Call:
        """The whole map by LOOKUP_BATCH into `keys` and `values`."""
        return self._prepare(
            "read_batch", 0, fd, keys, keys.itemsize, values, _row(values), len(keys), chunk
        )

    def drain_batch(self, fd: int, keys: Array, values: Array, chunk: int) -> Call:
        """The whole map by LOOKUP_AND_DELETE_BATCH into `keys` and `values`."""
        return self._prepare(
            "read_batch", 1, fd, keys, keys.itemsize, values, _row(values), len(keys), chunk
        )

    def percpu_sum(self, fd: int, keys: Array, sums: Array, cpus: int, chunk: int) -> Call:
        """The whole per-CPU map of one u64 by LOOKUP_BATCH, each entry summed over its CPUs."""
        rows = max(chunk, 1024)  # a small chunk may have to grow to the largest bucket
        scratch = touched((rows, cpus), "u8")
        return self._prepare(
            "percpu_sum", fd, keys, keys.itemsize, sums, len(keys), scratch, rows, cpus, chunk
        )

    def update_batch(self, fd: int, keys: Array, values: Array, chunk: int = 1 << 16) -> Call:
        """UPDATE_BATCH of all keys; `values` may have a CPU dimension."""
        return self._prepare(
            "update_batch", fd, keys, keys.itemsize, values, _row(values), len(keys), chunk
        )

    def delete_batch(self, fd: int, keys: Array, chunk: int = 1 << 16) -> Call:
        """DELETE_BATCH of all keys, past the missing ones; counts the deleted."""
        return self._prepare("delete_batch", fd, keys, keys.itemsize, len(keys), chunk)

    def batch_total(self, fd: int, n: int, total: U64, chunk: int) -> Call:
        """The whole map of `n` u64 by LOOKUP_BATCH, all values added up into ``total[0]``."""
        rows = min(chunk, n)
        keys, values = touched(rows, "u4"), touched(rows, "u8")
        return self._prepare("batch_total", fd, keys, values, rows, chunk, total)

    @contextmanager
    def mapped(self, fd: int, n: int) -> Iterator[int]:
        """The address of C's own mapping of an array of `n` u64."""
        view = int(self._library.array_map(fd, 8 * n))
        try:
            yield view
        finally:
            self._library.array_unmap(view, 8 * n)

    def array_total(self, view: int, n: int, total: U64) -> Call:
        """The u64 of a mapping, added up into ``total[0]`` by a loop."""
        return self._prepare("array_total", view, n, total)

    def array_copy(self, to: int | Array, source: int | Array, n: int) -> Call:
        """`n` u64 from a mapping or into one."""
        return self._prepare("array_copy", to, source, n)


def _row(values: Array) -> int:
    """The bytes of one entry's value, all CPUs of it."""
    return values.nbytes // len(values)


def _same(keys: Array, values: Array) -> int:
    """How many entries; C would run past the shorter of the two."""
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} keys, {len(values)} values")
    return len(keys)


@cache
def possible_cpus() -> int:
    """How many CPUs a per-CPU value has."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    ends = [part.split("-") for part in ranges]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
