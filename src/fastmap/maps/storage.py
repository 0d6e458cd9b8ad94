"""Local storage: values that belong to a socket, an inode, a task or a cgroup, and go with it."""

from __future__ import annotations

from fastmap.enums import MapFlag, MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import fixed


class LocalStorage(Map):
    """A value for each owner; owners are told to the kernel by a descriptor."""

    keys_are = fixed("i4")
    entries_are = 0
    always = MapFlag.NO_PREALLOC
    described = "must"


class SkStorage(LocalStorage):
    """SK_STORAGE: values of sockets."""


class InodeStorage(LocalStorage):
    """INODE_STORAGE: values of files."""


class TaskStorage(LocalStorage):
    """TASK_STORAGE: values of tasks."""


class CgrpStorage(LocalStorage):
    """CGRP_STORAGE: values of cgroups."""


class CgroupStorage(Map):
    """CGROUP_STORAGE: a value for each cgroup that a program with this map is attached to."""

    keys_are = fixed([("cgroup_inode_id", "u8"), ("attach_type", "u4"), ("", "V4")], "u8")
    entries_are = 0


class PerCpuCgroupStorage(CgroupStorage):
    """PERCPU_CGROUP_STORAGE: a value of each CPU for each such cgroup."""

    per_cpu = True


CLASSES: dict[MapType, type[Map]] = {
    MapType.SK_STORAGE: SkStorage,
    MapType.INODE_STORAGE: InodeStorage,
    MapType.TASK_STORAGE: TaskStorage,
    MapType.CGRP_STORAGE: CgrpStorage,
    MapType.CGROUP_STORAGE: CgroupStorage,
    MapType.PERCPU_CGROUP_STORAGE: PerCpuCgroupStorage,
}
