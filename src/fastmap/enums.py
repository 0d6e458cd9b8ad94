"""The kernel's numbers under the kernel's names, each with the smallest kernel that has it.

Values and names are those of ``enum bpf_map_type`` and its kin in the kernel's ``uapi/linux/bpf.h``
without their common prefix: ``BPF_MAP_TYPE_LPM_TRIE`` is ``MapType.LPM_TRIE``.
"""

from __future__ import annotations

import os
from enum import IntEnum, IntFlag
from typing import Self

Version = tuple[int, int]


class _Since(IntEnum):
    """An integer that knows the first Linux release that has it (``.since``, a tuple)."""

    since: Version

    def __new__(cls, value: int, since: Version = (3, 18)) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.since = since
        return member


class _FlagSince(IntFlag):
    """A flag that knows the first Linux release that has it (``.since``, a tuple)."""

    since: Version

    def __new__(cls, value: int, since: Version = (3, 18)) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.since = since
        return member


class MapType(_Since):
    """``enum bpf_map_type``."""

    UNSPEC = 0, (3, 18)
    HASH = 1, (3, 19)
    ARRAY = 2, (3, 19)
    PROG_ARRAY = 3, (4, 2)
    PERF_EVENT_ARRAY = 4, (4, 3)
    PERCPU_HASH = 5, (4, 6)
    PERCPU_ARRAY = 6, (4, 6)
    STACK_TRACE = 7, (4, 6)
    CGROUP_ARRAY = 8, (4, 8)
    LRU_HASH = 9, (4, 10)
    LRU_PERCPU_HASH = 10, (4, 10)
    LPM_TRIE = 11, (4, 11)
    ARRAY_OF_MAPS = 12, (4, 12)
    HASH_OF_MAPS = 13, (4, 12)
    DEVMAP = 14, (4, 14)
    SOCKMAP = 15, (4, 14)
    CPUMAP = 16, (4, 15)
    XSKMAP = 17, (4, 18)
    SOCKHASH = 18, (4, 18)
    CGROUP_STORAGE = 19, (4, 19)
    REUSEPORT_SOCKARRAY = 20, (4, 19)
    PERCPU_CGROUP_STORAGE = 21, (4, 20)
    QUEUE = 22, (4, 20)
    STACK = 23, (4, 20)
    SK_STORAGE = 24, (5, 2)
    DEVMAP_HASH = 25, (5, 4)
    STRUCT_OPS = 26, (5, 6)
    RINGBUF = 27, (5, 8)
    INODE_STORAGE = 28, (5, 10)
    TASK_STORAGE = 29, (5, 11)
    BLOOM_FILTER = 30, (5, 16)
    USER_RINGBUF = 31, (6, 1)
    CGRP_STORAGE = 32, (6, 2)
    ARENA = 33, (6, 9)
    INSN_ARRAY = 34, (6, 19)
    RHASH = 35, (7, 2)


class Command(_Since):
    """``enum bpf_cmd``, the first argument of bpf(2)."""

    MAP_CREATE = 0, (3, 18)
    MAP_LOOKUP_ELEM = 1, (3, 19)
    MAP_UPDATE_ELEM = 2, (3, 19)
    MAP_DELETE_ELEM = 3, (3, 19)
    MAP_GET_NEXT_KEY = 4, (3, 19)
    PROG_LOAD = 5, (3, 18)
    OBJ_PIN = 6, (4, 4)
    OBJ_GET = 7, (4, 4)
    PROG_TEST_RUN = 10, (4, 12)
    PROG_GET_NEXT_ID = 11, (4, 13)
    MAP_GET_NEXT_ID = 12, (4, 13)
    PROG_GET_FD_BY_ID = 13, (4, 13)
    MAP_GET_FD_BY_ID = 14, (4, 13)
    OBJ_GET_INFO_BY_FD = 15, (4, 13)
    RAW_TRACEPOINT_OPEN = 17, (4, 17)
    BTF_LOAD = 18, (4, 18)
    BTF_GET_FD_BY_ID = 19, (4, 18)
    MAP_LOOKUP_AND_DELETE_ELEM = 21, (4, 20)
    MAP_FREEZE = 22, (5, 2)
    BTF_GET_NEXT_ID = 23, (5, 4)
    MAP_LOOKUP_BATCH = 24, (5, 6)
    MAP_LOOKUP_AND_DELETE_BATCH = 25, (5, 6)
    MAP_UPDATE_BATCH = 26, (5, 6)
    MAP_DELETE_BATCH = 27, (5, 6)
    LINK_CREATE = 28, (5, 7)
    ITER_CREATE = 33, (5, 8)
    PROG_BIND_MAP = 35, (5, 10)
    TOKEN_CREATE = 36, (6, 9)


class ProgType(_Since):
    """``enum bpf_prog_type``: what a program may be attached to, and do with a map."""

    UNSPEC = 0, (3, 18)
    SOCKET_FILTER = 1, (3, 19)
    KPROBE = 2, (4, 1)
    SCHED_CLS = 3, (4, 1)
    SCHED_ACT = 4, (4, 1)
    TRACEPOINT = 5, (4, 7)
    XDP = 6, (4, 8)
    PERF_EVENT = 7, (4, 9)
    CGROUP_SKB = 8, (4, 10)
    CGROUP_SOCK = 9, (4, 10)
    LWT_IN = 10, (4, 10)
    LWT_OUT = 11, (4, 10)
    LWT_XMIT = 12, (4, 10)
    SOCK_OPS = 13, (4, 13)
    SK_SKB = 14, (4, 14)
    CGROUP_DEVICE = 15, (4, 15)
    SK_MSG = 16, (4, 17)
    RAW_TRACEPOINT = 17, (4, 17)
    CGROUP_SOCK_ADDR = 18, (4, 17)
    LWT_SEG6LOCAL = 19, (4, 18)
    LIRC_MODE2 = 20, (4, 18)
    SK_REUSEPORT = 21, (4, 19)
    FLOW_DISSECTOR = 22, (4, 20)
    CGROUP_SYSCTL = 23, (5, 2)
    RAW_TRACEPOINT_WRITABLE = 24, (5, 2)
    CGROUP_SOCKOPT = 25, (5, 3)
    TRACING = 26, (5, 5)
    STRUCT_OPS = 27, (5, 6)
    EXT = 28, (5, 6)
    LSM = 29, (5, 7)
    SK_LOOKUP = 30, (5, 9)
    SYSCALL = 31, (5, 14)
    NETFILTER = 32, (6, 4)


class MapFlag(_FlagSince):
    """Flags of BPF_MAP_CREATE (``BPF_F_…``)."""

    NO_PREALLOC = 1 << 0, (4, 6)
    NO_COMMON_LRU = 1 << 1, (4, 10)
    NUMA_NODE = 1 << 2, (4, 14)
    RDONLY = 1 << 3, (4, 15)
    WRONLY = 1 << 4, (4, 15)
    STACK_BUILD_ID = 1 << 5, (4, 17)
    ZERO_SEED = 1 << 6, (5, 0)
    RDONLY_PROG = 1 << 7, (5, 2)
    WRONLY_PROG = 1 << 8, (5, 2)
    CLONE = 1 << 9, (5, 4)
    MMAPABLE = 1 << 10, (5, 5)
    PRESERVE_ELEMS = 1 << 11, (5, 10)
    INNER_MAP = 1 << 12, (5, 10)
    LINK = 1 << 13, (6, 4)
    PATH_FD = 1 << 14, (6, 5)
    VTYPE_BTF_OBJ_FD = 1 << 15, (6, 9)
    TOKEN_FD = 1 << 16, (6, 9)
    SEGV_ON_FAULT = 1 << 17, (6, 9)
    NO_USER_CONV = 1 << 18, (6, 9)
    RB_OVERWRITE = 1 << 19, (6, 19)


class UpdateFlag(_FlagSince):
    """Flags of the element and batch commands."""

    ANY = 0, (3, 19)
    NOEXIST = 1, (3, 19)
    EXIST = 2, (3, 19)
    LOCK = 4, (5, 1)
    CPU = 8, (7, 0)
    ALL_CPUS = 16, (7, 0)


class Helper(IntEnum):
    """Numbers of the helpers (`enum bpf_func_id`) that programs around maps call."""

    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    KTIME_GET_NS = 5
    TRACE_PRINTK = 6
    GET_PRANDOM_U32 = 7
    GET_SMP_PROCESSOR_ID = 8
    TAIL_CALL = 12
    GET_CURRENT_PID_TGID = 14
    GET_CURRENT_UID_GID = 15
    GET_CURRENT_COMM = 16
    PERF_EVENT_OUTPUT = 25
    GET_STACKID = 27
    SKB_UNDER_CGROUP = 33
    GET_CURRENT_TASK = 35
    CURRENT_TASK_UNDER_CGROUP = 37
    GET_NUMA_NODE_ID = 42
    REDIRECT_MAP = 51
    SK_REDIRECT_MAP = 52
    SOCK_MAP_UPDATE = 53
    PERF_EVENT_READ_VALUE = 55
    MSG_REDIRECT_MAP = 60
    GET_STACK = 67
    SOCK_HASH_UPDATE = 70
    MSG_REDIRECT_HASH = 71
    SK_REDIRECT_HASH = 72
    GET_CURRENT_CGROUP_ID = 80
    SK_SELECT_REUSEPORT = 82
    MAP_PUSH_ELEM = 87
    MAP_POP_ELEM = 88
    MAP_PEEK_ELEM = 89
    SPIN_LOCK = 93
    SPIN_UNLOCK = 94
    SK_STORAGE_GET = 107
    SK_STORAGE_DELETE = 108
    PROBE_READ_USER = 112
    PROBE_READ_KERNEL = 113
    PROBE_READ_USER_STR = 114
    PROBE_READ_KERNEL_STR = 115
    JIFFIES64 = 118
    KTIME_GET_BOOT_NS = 125
    SEQ_PRINTF = 126
    SEQ_WRITE = 127
    RINGBUF_OUTPUT = 130
    RINGBUF_RESERVE = 131
    RINGBUF_SUBMIT = 132
    RINGBUF_DISCARD = 133
    RINGBUF_QUERY = 134
    INODE_STORAGE_GET = 145
    INODE_STORAGE_DELETE = 146
    COPY_FROM_USER = 148
    TASK_STORAGE_GET = 156
    TASK_STORAGE_DELETE = 157
    GET_CURRENT_TASK_BTF = 158
    KTIME_GET_COARSE_NS = 160
    FOR_EACH_MAP_ELEM = 164
    SYS_BPF = 166
    LOOP = 181
    MAP_LOOKUP_PERCPU_ELEM = 195
    KTIME_GET_TAI_NS = 208
    USER_RINGBUF_DRAIN = 209
    CGRP_STORAGE_GET = 210
    CGRP_STORAGE_DELETE = 211


#: Update flags under the names the kernel's manual pages use them by.
ANY = UpdateFlag.ANY
NOEXIST = UpdateFlag.NOEXIST
EXIST = UpdateFlag.EXIST

#: The longest name the kernel keeps for a map or a program, in bytes.
NAME_BYTES = 15


#: What programs and BTF may contain, and how the kernel treats them, by the names of `features`.
PROGRAM_FEATURES: dict[str, Version] = {
    "BTF FLOAT": (5, 13),
    "BTF DECL_TAG": (5, 16),
    "BTF TYPE_TAG": (5, 17),
    "BTF ENUM64": (6, 0),
    "bpf_rcu_read_lock": (6, 2),
    "instructions v4": (6, 6),
}
#: Since when freezing is refused to a handle that may not write.
FREEZE_BY_WRITERS: Version = (6, 5)


def running_kernel() -> Version:
    """Return the release of the running kernel, as a tuple of two."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def version_text(version: Version) -> str:
    """Return ``(5, 13)`` as ``"5.13"``."""
    return f"{version[0]}.{version[1]}"


def map_type(what: MapType | int | str) -> MapType:
    """Return the `MapType` that `what` names: itself, its number, or its name in any case."""
    if isinstance(what, str):
        try:
            return MapType[what.upper()]
        except KeyError:
            names = ", ".join(t.name.lower() for t in MapType if t)
            raise ValueError(f"no map type is called {what!r}; there are: {names}") from None
    if isinstance(what, bool) or not isinstance(what, int):
        raise TypeError(f"a map type is a MapType or its name, not {type(what).__name__}")
    try:
        return MapType(what)
    except ValueError:
        raise ValueError(f"no map type has the number {what}") from None
