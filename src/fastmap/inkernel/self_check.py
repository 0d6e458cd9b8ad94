"""Walks over a hash's buckets: loaded, and tried once in a process.

Where things are in a hash is told by the kernel's BTF in part: that a value, or the pointer to the
values of all CPUs, lies behind its key, at the next multiple of 8, is not. A map of three entries
tells whether it is so, before anything is believed that was read from elements themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from fastmap._core.maps.map import KeyedCore, MapCore
from fastmap._core.maps.runner import load
from fastmap._core.maps.walker import Walker
from fastmap._core.rows.codec import PerCpuCodec, codec_of
from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.dtypes import slots
from fastmap.enums import MapType
from fastmap.inkernel import percpu_values, prefetch, scan_programs

#: Bytes of what an element holds for all CPUs.
POINTER = 8


def load_walk(core: MapCore, output: scan_programs.Output, what: prefetch.Inside,
              cpus: Sequence[int]) -> Fd:
    """Load a walk over the buckets of a hash; `cpus` is empty where it is not per-CPU."""
    # Not mapped, and of this walk alone: kernel pointers stand in it.
    size = prefetch.SCRATCH + percpu_values.EACH * len(cpus)
    scratch = syscall.map_create(MapType.ARRAY, 4, size, 1, 0, b"fastmap_scratch")
    toucher = prefetch.Toucher(core.fd, scratch, what, core.key.size,
                               POINTER if cpus else core.value.size)
    row = core.value
    if isinstance(row, PerCpuCodec):
        values = percpu_values.Values(toucher, percpu_values.anchored(), cpus)
        output = replace(output, values=values, slot=row.stride)
    return load(core, scan_programs.walk_buckets(toucher, output), "fastmap_walk")


def wide(row: PerCpuCodec) -> tuple[scan_programs.Column, ...]:
    """Return the columns that are the values of all CPUs as they are."""
    return tuple(("copy", "bytes", False, i * row.stride, i * row.stride, row.one.size)
                 for i in range(row.cpus))


@cache
def layout_is_known(per_cpu: bool) -> bool:
    """Tell whether the running kernel keeps a hash as the programs think.

    Raises
    ------
    BpfError
        It could not be tried, for want of a capability above all.
    """
    what = prefetch.inside()
    if what is None:
        return False
    cpus = syscall.possible_cpus() if per_cpu else ()
    kind = MapType.PERCPU_HASH if per_cpu else MapType.HASH
    value = np.dtype("V12")
    one = codec_of(value, "value")
    row = PerCpuCodec(one, len(cpus)) if per_cpu else one
    core = KeyedCore(syscall.map_create(kind, 5, value.itemsize, 8, 0, b"fastmap_trial"), kind,
                     codec_of(np.dtype("V5"), "key"), row)
    written = {}
    for i in range(1, 4):
        values = np.arange(12 * max(len(cpus), 1), dtype="u1") + np.uint8(i * 16)
        core[bytes([i] * 5)] = values.view(value) if per_cpu else values.tobytes()
        written[bytes([i] * 5)] = values.tobytes()
    columns: tuple[scan_programs.Column, ...] = (
        wide(row) if isinstance(row, PerCpuCodec) else (("copy", "bytes", False, 0, 0, row.size),))
    walker = Walker(5, row.size, 8, False)
    walker.use(load_walk(core, scan_programs.Output(
        walker.head_map, walker.keys_map, walker.values_map, 5, row.size, 8, columns, None), what,
        cpus))
    if not walker.fill(core) or walker.filled != len(written):
        return False
    keys, rows = (slots(owner, np.dtype("u1"), 1, 8 * size).tobytes()
                  for owner, size in ((walker.keys, 5), (walker.values, row.size)))
    read = {}
    for i in range(len(written)):
        own = rows[i * row.size:(i + 1) * row.size]
        read[keys[5 * i:5 * i + 5]] = b"".join(
            own[dst:dst + count] for _, _, _, _, dst, count in columns)
    return read == written
