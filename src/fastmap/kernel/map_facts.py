"""What is true of a map type, on every kernel that has it: one row a type, the one place.

Names, numbers and the first kernel of a type stand in `fastmap.enums`; the class that serves it in
`fastmap.maptypes.registry`. All that lists map types elsewhere asks these rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fastmap.enums import Command, MapFlag, MapType, Version

#: Whether a map may be described by BTF: the kernel refuses it for some types, others demand it.
Described: TypeAlias = Literal["may", "never", "must"]
#: What a type's keys and values are to the kernel.
Family: TypeAlias = Literal[
    "hash", "array", "trie", "queue", "bloom", "ring", "maps", "programs", "events", "cgroups",
    "devices", "cpus", "sockets", "reuseport", "xsks", "storage", "cgroup_storage", "stacks",
    "struct_ops", "arena", "instructions",
]

#: The commands on elements and batches, by the letters of the rows below.
_COMMANDS = {
    "l": Command.MAP_LOOKUP_ELEM, "u": Command.MAP_UPDATE_ELEM, "d": Command.MAP_DELETE_ELEM,
    "n": Command.MAP_GET_NEXT_KEY, "t": Command.MAP_LOOKUP_AND_DELETE_ELEM,
    "L": Command.MAP_LOOKUP_BATCH, "U": Command.MAP_UPDATE_BATCH, "D": Command.MAP_DELETE_BATCH,
    "T": Command.MAP_LOOKUP_AND_DELETE_BATCH,
}
BATCHES = tuple(command for letter, command in _COMMANDS.items() if letter.isupper())


@dataclass(frozen=True)
class Facts:
    """One map type.

    Attributes
    ----------
    family : str
    commands : str
        Letters: l(ookup) u(pdate) d(elete) n(ext key) t(ake: lookup and delete), capitals for the
        batch commands.
    key, value, entries : int
        What the smallest map is created with: bytes, bytes, `max_entries`.
    later : dict of str to Version
        Commands that came to the type later than both did alone, by their letters.
    per_cpu : bool
        A value is one for every possible CPU.
    lru : bool
        A full map makes room for a new key by evicting another entry.
    slots : bool
        Keys are indexes of slots that may be empty.
    always : MapFlag
        Flags without which the kernel refuses the type (no-prealloc rules): they need not be said.
    added : MapFlag
        Flags that the kernel adds by itself.
    fixed_entries : int or None
        The `max_entries` that the kernel demands.
    described : {"may", "never", "must"}
        Whether BTF may describe the map.
    lockable : bool
        Values may hold a `bpf_spin_lock`.
    may_be_inner : bool
        Maps of maps take maps of the type (bpf_map_meta_alloc: it has a map_meta_equal).
    fixed_length : bool
        Those in one map of maps have one `max_entries`: a lookup becomes instructions with the
        length in them. MapFlag.INNER_MAP lifts it for ARRAY.
    mapped_since : Version or None
        The first Linux that maps its memory into a process.
    counted : bool
        The kernel keeps the number of entries, and a program can ask for it.
    sleepable : bool
        Sleepable programs may use it, on all kernels that have them.
    resizes : bool
        A walk beside a writer may repeat or miss entries, and EAGAIN says to begin anew.
    capability : str
        What creating it takes.
    """

    family: Family
    commands: str
    key: int = 4
    value: int = 8
    entries: int = 1
    later: dict[str, Version] = field(default_factory=dict)
    per_cpu: bool = False
    lru: bool = False
    slots: bool = False
    always: MapFlag = MapFlag(0)
    added: MapFlag = MapFlag(0)
    fixed_entries: int | None = None
    described: Described = "may"
    lockable: bool = False
    may_be_inner: bool = True
    fixed_length: bool = False
    mapped_since: Version | None = None
    counted: bool = False
    sleepable: bool = True
    resizes: bool = False
    capability: str = "CAP_BPF"


_NO_PREALLOC = MapFlag.NO_PREALLOC
_PAGE = os.sysconf("SC_PAGESIZE")
_HASH = "ludntLUDT"
_TAKEN = {"t": (5, 14)}
_BATCHED_MAPS = {"l": (4, 13), **dict.fromkeys("LUDT", (5, 19))}

FACTS: dict[MapType, Facts] = {
    MapType.HASH: Facts("hash", _HASH, later=_TAKEN, lockable=True, counted=True),
    MapType.ARRAY: Facts(
        "array", "lunLU", lockable=True, fixed_length=True, mapped_since=MapFlag.MMAPABLE.since),
    MapType.PROG_ARRAY: Facts(
        "programs", "ludn", value=4, later={"l": (4, 13)}, slots=True, described="never",
        may_be_inner=False),
    MapType.PERF_EVENT_ARRAY: Facts("events", "udn", value=4, slots=True, described="never"),
    MapType.PERCPU_HASH: Facts("hash", _HASH, later=_TAKEN, per_cpu=True, counted=True),
    MapType.PERCPU_ARRAY: Facts(
        "array", "lunLU", later=dict.fromkeys("LU", (5, 13)), per_cpu=True),
    MapType.STACK_TRACE: Facts("stacks", "ldnt", later={"t": (6, 18)}, described="never"),
    MapType.CGROUP_ARRAY: Facts("cgroups", "udn", value=4, slots=True, described="never"),
    MapType.LRU_HASH: Facts("hash", _HASH, later=_TAKEN, lru=True, counted=True),
    MapType.LRU_PERCPU_HASH: Facts(
        "hash", _HASH, later=_TAKEN, per_cpu=True, lru=True, counted=True),
    MapType.LPM_TRIE: Facts(
        "trie", "ludnLUD", key=8, later=dict.fromkeys("LUD", (5, 13)), always=_NO_PREALLOC,
        sleepable=False),  # before 7.2
    MapType.ARRAY_OF_MAPS: Facts(
        "maps", "ludnLU", value=4, later=_BATCHED_MAPS, slots=True, described="never",
        may_be_inner=False),
    MapType.HASH_OF_MAPS: Facts(
        "maps", "ludnLUDT", value=4, later=_BATCHED_MAPS, described="never", may_be_inner=False,
        counted=True),
    MapType.DEVMAP: Facts(
        "devices", "ludn", value=4, slots=True, added=MapFlag.RDONLY_PROG, described="never",
        capability="CAP_NET_ADMIN"),
    MapType.SOCKMAP: Facts(
        "sockets", "ludn", value=4, later={"l": (5, 7)}, slots=True, described="never",
        capability="CAP_NET_ADMIN"),
    MapType.CPUMAP: Facts("cpus", "ludn", value=4, slots=True, described="never"),
    MapType.XSKMAP: Facts(
        "xsks", "udn", value=4, slots=True, described="never", fixed_length=True,
        capability="CAP_NET_ADMIN"),
    MapType.SOCKHASH: Facts(
        "sockets", "ludn", value=4, later={"l": (5, 7)}, described="never",
        capability="CAP_NET_ADMIN"),
    MapType.CGROUP_STORAGE: Facts(
        "cgroup_storage", "lun", key=8, entries=0, fixed_entries=0, lockable=True,
        may_be_inner=False),
    MapType.REUSEPORT_SOCKARRAY: Facts("reuseport", "ludn", value=4, slots=True),
    MapType.PERCPU_CGROUP_STORAGE: Facts(
        "cgroup_storage", "lun", key=8, entries=0, per_cpu=True, fixed_entries=0,
        may_be_inner=False),
    MapType.QUEUE: Facts("queue", "lut", key=0, described="never", sleepable=False),  # before 6.2
    MapType.STACK: Facts("queue", "lut", key=0, described="never", sleepable=False),
    MapType.SK_STORAGE: Facts(
        "storage", "lud", entries=0, always=_NO_PREALLOC, fixed_entries=0, described="must",
        lockable=True),
    MapType.DEVMAP_HASH: Facts(
        "devices", "ludn", value=4, added=MapFlag.RDONLY_PROG, described="never",
        capability="CAP_NET_ADMIN"),
    MapType.STRUCT_OPS: Facts("struct_ops", "ludn", fixed_entries=1, may_be_inner=False),
    MapType.RINGBUF: Facts(
        "ring", "", key=0, value=0, entries=_PAGE, described="never",
        mapped_since=MapType.RINGBUF.since),
    MapType.INODE_STORAGE: Facts(
        "storage", "lud", entries=0, always=_NO_PREALLOC, fixed_entries=0, described="must",
        lockable=True),
    MapType.TASK_STORAGE: Facts(
        "storage", "lud", entries=0, always=_NO_PREALLOC, fixed_entries=0, described="must",
        lockable=True),
    MapType.BLOOM_FILTER: Facts("bloom", "lu", key=0),
    MapType.USER_RINGBUF: Facts(
        "ring", "", key=0, value=0, entries=_PAGE, described="never",
        mapped_since=MapType.USER_RINGBUF.since),
    MapType.CGRP_STORAGE: Facts(
        "storage", "lud", entries=0, always=_NO_PREALLOC, fixed_entries=0, described="must",
        lockable=True),
    MapType.ARENA: Facts(
        "arena", "", key=0, value=0, always=MapFlag.MMAPABLE, described="never",
        mapped_since=MapType.ARENA.since),
    MapType.INSN_ARRAY: Facts(
        "instructions", "lun", value=16, added=MapFlag.RDONLY_PROG, described="never"),
    MapType.RHASH: Facts("hash", _HASH, always=_NO_PREALLOC, resizes=True),
}


def types_where(holds: Callable[[Facts], bool]) -> frozenset[MapType]:
    """Return the map types of whose rows something holds."""
    return frozenset(kind for kind, facts in FACTS.items() if holds(facts))


def of_family(*families: Family) -> frozenset[MapType]:
    """Return the map types of some families."""
    return types_where(lambda facts: facts.family in families)


def smallest_kernel(command: Command, map_type: MapType) -> Version | None:
    """Return the first Linux with `command` on `map_type`, or None where none has it."""
    facts = FACTS.get(map_type)
    letter = next((letter for letter, each in _COMMANDS.items() if each is command), "")
    if facts is None or not letter:
        return max(command.since, map_type.since)
    if letter not in facts.commands:
        return None
    return facts.later.get(letter, max(command.since, map_type.since))


def mappable(map_type: MapType) -> Version | None:
    """Return the first Linux that maps the memory of a `map_type` into a process; None: none."""
    return FACTS[map_type].mapped_since
