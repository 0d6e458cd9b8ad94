"""Maps whose values are things of the kernel: programs, sockets, devices, CPUs, cgroups, events."""

from __future__ import annotations

from typing import ClassVar

from fastmap.enums import MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import INDEX, Described, fixed


class References(Map):
    """Written by a descriptor or a number, and read by an id, a cookie or a record."""

    described: ClassVar[Described] = "never"


class ProgArray(References):
    """PROG_ARRAY: programs to tail-call, by index."""

    keys_are = INDEX
    values_are = fixed("u4")


class PerfEventArray(References):
    """PERF_EVENT_ARRAY: perf events, one for each CPU."""

    keys_are = INDEX
    values_are = fixed("u4")


class CgroupArray(References):
    """CGROUP_ARRAY: cgroups, by index."""

    keys_are = INDEX
    values_are = fixed("u4")


class DevMap(References):
    """DEVMAP: network devices to redirect to, by index."""

    keys_are = INDEX
    values_are = fixed([("ifindex", "u4"), ("prog", "u4")], "u4")


class DevMapHash(References):
    """DEVMAP_HASH: network devices to redirect to, under any u4."""

    keys_are = fixed("u4")
    values_are = DevMap.values_are


class CpuMap(References):
    """CPUMAP: queues of CPUs to redirect packets to, by CPU number."""

    keys_are = INDEX
    values_are = fixed([("qsize", "u4"), ("prog", "u4")], "u4")


class XskMap(References):
    """XSKMAP: AF_XDP sockets, by index."""

    keys_are = INDEX
    values_are = fixed("u4")


class SockMap(References):
    """SOCKMAP: sockets, by index."""

    keys_are = INDEX
    values_are = fixed("u8", "u4")


class SockHash(References):
    """SOCKHASH: sockets, under keys of any bytes."""

    values_are = fixed("u8", "u4")


class ReuseportSockArray(References):
    """REUSEPORT_SOCKARRAY: sockets of one SO_REUSEPORT group, by index."""

    keys_are = INDEX
    values_are = fixed("u8", "u4")
    described = "may"


CLASSES: dict[MapType, type[Map]] = {
    MapType.PROG_ARRAY: ProgArray,
    MapType.PERF_EVENT_ARRAY: PerfEventArray,
    MapType.CGROUP_ARRAY: CgroupArray,
    MapType.DEVMAP: DevMap,
    MapType.DEVMAP_HASH: DevMapHash,
    MapType.CPUMAP: CpuMap,
    MapType.XSKMAP: XskMap,
    MapType.SOCKMAP: SockMap,
    MapType.SOCKHASH: SockHash,
    MapType.REUSEPORT_SOCKARRAY: ReuseportSockArray,
}
