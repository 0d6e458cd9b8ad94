"""Linux BPF maps as numpy arrays, at the speed of C.

A name's module is loaded when the name is first used (PEP 562): importing fastmap costs next to
nothing, and a program that never touches a ring never loads one.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers read; `_HOMES` says the same to Python
    from fastmap import asm as asm
    from fastmap import btf as btf
    from fastmap import collect as collect
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
    from fastmap.maps.base import Map
    from fastmap.maps.batch import Batch
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

#: The module of each public name.
_HOMES = {
    name: f"fastmap.{module}"
    for module, names in {
        "_core.program": "Link Program",
        "_core.syscall": "possible_cpus",
        "btf_special": "spin_lock",
        "enums": "ANY EXIST NOEXIST Command MapFlag MapType ProgType UpdateFlag",
        "errors": (
            "BatchError BpfError KeyExists KeyNotFound MapFull NotSupported ObjectNotFound "
            "PermissionDenied RingFull"
        ),
        "features": "Feature Features features",
        "inventory": "MapInfo ProgramInfo programs",
        "maps.arena": "Arena",
        "maps.arrays": "ArrayMap PerCpuArrayMap",
        "maps.base": "Map",
        "maps.batch": "Batch",
        "maps.code": "InsnArray StackTrace StructOps",
        "maps.consumer": "poll",
        "maps.nested": "ArrayOfMaps HashOfMaps",
        "maps.perf": "PerfBuffer",
        "maps.queues": "BloomFilter Queue Stack",
        "maps.reader": "Reader",
        "maps.records": "StreamBatch",
        "maps.references": (
            "CgroupArray CpuMap DevMap DevMapHash PerfEventArray ProgArray ReuseportSockArray "
            "SockHash SockMap XskMap"
        ),
        "maps.storage": (
            "CgroupStorage CgrpStorage InodeStorage PerCpuCgroupStorage PidFd SkStorage TaskStorage"
        ),
        "maps.streams": "Reservation RingBuffer UserRingBuffer",
        "maps.tables": "HashMap PerCpuHashMap ResizableHashMap",
        "maps.trie": "LpmTrie",
        "maps.variables": "Variables",
        "mounts": "Bpffs Pin bpffs pins",
        "objects": "create maps open",
        "token": "Token",
        "types": "btf_dtype btf_layout read_btf",
    }.items()
    for name in names.split()
}

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
    "programs",
]


def _lazy(name: str) -> Any:
    """Return a public name, or a module of the package, which is loaded now."""
    if name in _HOMES:
        globals()[name] = found = getattr(import_module(_HOMES[name]), name)
        return found
    if not name.startswith("_"):
        try:
            return import_module(f"fastmap.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"fastmap.{name}":
                raise
    raise AttributeError(f"module 'fastmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    """This module: `fastmap.maps` and `fastmap.features` are functions.

    There are modules of these names too, which importing them would put in the functions' place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


if not TYPE_CHECKING:  # for which any name would be one of the module's, otherwise
    __getattr__ = _lazy
sys.modules[__name__].__class__ = _Face
