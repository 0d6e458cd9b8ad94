"""Which class `create` and `open` return for a type's name: what type checkers read.

The registry says the same to Python; `tests/repo/test_typing.py` holds the two against each other.
"""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias, TypedDict

import numpy.typing as npt

from fastmap.enums import MapType
from fastmap.kernel.token import Token
from fastmap.maptypes.handle import Map
from fastmap.maptypes.stream_batch import Record


class CreateOptions(TypedDict, total=False):
    """The keywords of `create`."""

    key: npt.DTypeLike | None
    value: npt.DTypeLike | None
    record: Record
    tag: str | None
    max_entries: int | None
    flags: int
    name: str
    inner: Map | dict[str, Any] | None
    map_extra: int
    numa_node: int | None
    pin: str | os.PathLike[str] | None
    exist_ok: bool
    replace: bool
    btf: bool | str
    token: Token | None
    via: str


class OpenOptions(TypedDict, total=False):
    """The keywords of `open` but `type`."""

    id: int | None
    name: str | None
    fd: int | None
    key: npt.DTypeLike | None
    value: npt.DTypeLike | None
    record: Record
    tag: str | None
    readonly: bool
    writeonly: bool
    btf: str
    via: str


HashMapType: TypeAlias = Literal["hash", "lru_hash", MapType.HASH, MapType.LRU_HASH]
ArrayMapType: TypeAlias = Literal["array", MapType.ARRAY]
ProgArrayType: TypeAlias = Literal["prog_array", MapType.PROG_ARRAY]
PerfEventArrayType: TypeAlias = Literal["perf_event_array", MapType.PERF_EVENT_ARRAY]
PerCpuHashMapType: TypeAlias = Literal[
    "percpu_hash", "lru_percpu_hash", MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH]
PerCpuArrayMapType: TypeAlias = Literal["percpu_array", MapType.PERCPU_ARRAY]
StackTraceType: TypeAlias = Literal["stack_trace", MapType.STACK_TRACE]
CgroupArrayType: TypeAlias = Literal["cgroup_array", MapType.CGROUP_ARRAY]
LpmTrieType: TypeAlias = Literal["lpm_trie", MapType.LPM_TRIE]
ArrayOfMapsType: TypeAlias = Literal["array_of_maps", MapType.ARRAY_OF_MAPS]
HashOfMapsType: TypeAlias = Literal["hash_of_maps", MapType.HASH_OF_MAPS]
DevMapType: TypeAlias = Literal["devmap", MapType.DEVMAP]
SockMapType: TypeAlias = Literal["sockmap", MapType.SOCKMAP]
CpuMapType: TypeAlias = Literal["cpumap", MapType.CPUMAP]
XskMapType: TypeAlias = Literal["xskmap", MapType.XSKMAP]
SockHashType: TypeAlias = Literal["sockhash", MapType.SOCKHASH]
CgroupStorageType: TypeAlias = Literal["cgroup_storage", MapType.CGROUP_STORAGE]
ReuseportSockArrayType: TypeAlias = Literal["reuseport_sockarray", MapType.REUSEPORT_SOCKARRAY]
PerCpuCgroupStorageType: TypeAlias = Literal["percpu_cgroup_storage", MapType.PERCPU_CGROUP_STORAGE]
QueueType: TypeAlias = Literal["queue", MapType.QUEUE]
StackType: TypeAlias = Literal["stack", MapType.STACK]
SkStorageType: TypeAlias = Literal["sk_storage", MapType.SK_STORAGE]
DevMapHashType: TypeAlias = Literal["devmap_hash", MapType.DEVMAP_HASH]
StructOpsType: TypeAlias = Literal["struct_ops", MapType.STRUCT_OPS]
RingBufferType: TypeAlias = Literal["ringbuf", MapType.RINGBUF]
InodeStorageType: TypeAlias = Literal["inode_storage", MapType.INODE_STORAGE]
TaskStorageType: TypeAlias = Literal["task_storage", MapType.TASK_STORAGE]
BloomFilterType: TypeAlias = Literal["bloom_filter", MapType.BLOOM_FILTER]
UserRingBufferType: TypeAlias = Literal["user_ringbuf", MapType.USER_RINGBUF]
CgrpStorageType: TypeAlias = Literal["cgrp_storage", MapType.CGRP_STORAGE]
ArenaType: TypeAlias = Literal["arena", MapType.ARENA]
InsnArrayType: TypeAlias = Literal["insn_array", MapType.INSN_ARRAY]
ResizableHashMapType: TypeAlias = Literal["rhash", MapType.RHASH]
