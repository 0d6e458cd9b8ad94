"""Linux BPF maps as numpy arrays, at the speed of C."""

from fastmap._core.program import Link, Program
from fastmap._core.syscall import possible_cpus
from fastmap.btf_special import spin_lock
from fastmap.enums import ANY, EXIST, NOEXIST, Command, MapFlag, MapType, ProgType, UpdateFlag
from fastmap.errors import (
    BatchError,
    BpfError,
    KeyExists,
    KeyNotFound,
    MapFull,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    RingFull,
)
from fastmap.features import Feature, Features, features
from fastmap.inventory import MapInfo, ProgramInfo, programs
from fastmap.maps.arena import Arena
from fastmap.maps.arrays import ArrayMap, PerCpuArrayMap
from fastmap.maps.base import Batch, Map
from fastmap.maps.code import InsnArray, StackTrace, StructOps
from fastmap.maps.consumer import poll
from fastmap.maps.nested import ArrayOfMaps, HashOfMaps
from fastmap.maps.perf import PerfBuffer
from fastmap.maps.queues import BloomFilter, Queue, Stack
from fastmap.maps.reader import Reader
from fastmap.maps.records import StreamBatch
from fastmap.maps.references import (
    CgroupArray,
    CpuMap,
    DevMap,
    DevMapHash,
    PerfEventArray,
    ProgArray,
    ReuseportSockArray,
    SockHash,
    SockMap,
    XskMap,
)
from fastmap.maps.storage import (
    CgroupStorage,
    CgrpStorage,
    InodeStorage,
    PerCpuCgroupStorage,
    PidFd,
    SkStorage,
    TaskStorage,
)
from fastmap.maps.streams import Reservation, RingBuffer, UserRingBuffer
from fastmap.maps.tables import HashMap, PerCpuHashMap, ResizableHashMap
from fastmap.maps.trie import LpmTrie
from fastmap.maps.variables import Variables
from fastmap.mounts import Bpffs, Pin, bpffs, pins
from fastmap.objects import create, maps, open
from fastmap.token import Token
from fastmap.types import btf_dtype, btf_layout, read_btf

__version__ = "0.1.0"

__all__ = [
    "ANY",
    "EXIST",
    "NOEXIST",
    "Arena",
    "ArrayMap",
    "ArrayOfMaps",
    "Batch",
    "BatchError",
    "BloomFilter",
    "BpfError",
    "Bpffs",
    "CgroupArray",
    "CgroupStorage",
    "CgrpStorage",
    "Command",
    "CpuMap",
    "DevMap",
    "DevMapHash",
    "Feature",
    "Features",
    "HashMap",
    "HashOfMaps",
    "InodeStorage",
    "InsnArray",
    "KeyExists",
    "KeyNotFound",
    "Link",
    "LpmTrie",
    "Map",
    "MapFlag",
    "MapFull",
    "MapInfo",
    "MapType",
    "NotSupported",
    "ObjectNotFound",
    "PerCpuArrayMap",
    "PerCpuCgroupStorage",
    "PerCpuHashMap",
    "PerfBuffer",
    "PerfEventArray",
    "PermissionDenied",
    "Pin",
    "PidFd",
    "ProgArray",
    "ProgType",
    "Program",
    "ProgramInfo",
    "Queue",
    "Reader",
    "ResizableHashMap",
    "Reservation",
    "ReuseportSockArray",
    "RingBuffer",
    "RingFull",
    "SkStorage",
    "SockHash",
    "SockMap",
    "Stack",
    "StackTrace",
    "StreamBatch",
    "StructOps",
    "TaskStorage",
    "Token",
    "UpdateFlag",
    "UserRingBuffer",
    "Variables",
    "XskMap",
    "btf_dtype",
    "btf_layout",
    "bpffs",
    "create",
    "features",
    "maps",
    "open",
    "poll",
    "possible_cpus",
    "read_btf",
    "spin_lock",
    "pins",
    "possible_cpus",
    "programs",
]
