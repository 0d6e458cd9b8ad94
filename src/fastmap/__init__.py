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
)
from fastmap.features import Feature, Features, features
from fastmap.maps.base import Batch, Map, MapInfo
from fastmap.maps.reader import Reader
from fastmap.maps.tables import ArrayMap, HashMap, PerCpuArrayMap, PerCpuHashMap
from fastmap.objects import create, maps, open
from fastmap.types import btf_dtype, btf_layout, read_btf

__version__ = "0.1.0"

__all__ = [
    "ANY", "EXIST", "NOEXIST", "ArrayMap", "Batch", "BatchError", "BpfError", "Command",
    "Feature", "Features",
    "HashMap", "KeyExists", "KeyNotFound", "Link", "Map", "MapFlag", "MapFull", "MapInfo",
    "MapType", "NotSupported", "ObjectNotFound", "PerCpuArrayMap", "PerCpuHashMap",
    "PermissionDenied", "ProgType", "Program", "Reader", "UpdateFlag", "btf_dtype",
    "btf_layout", "create",
    "features", "maps", "open",
    "possible_cpus", "read_btf", "spin_lock",
]
