"""The exceptions, from one table of errnos.

Every failure of bpf(2) is a `BpfError`, an `OSError` that keeps the errno. Its subclasses are also
the built-in class that fits, so that ``except KeyError`` and ``except PermissionError`` do what
they do everywhere else.
"""

from __future__ import annotations

import errno as _errno
import os
from functools import cache
from typing import Any, NamedTuple

from fastmap.enums import Command, MapType, running_kernel, version_text
from fastmap.kernel.map_facts import of_family, smallest_kernel, types_where

#: The kernel's own ENOTSUPP: it reaches user space, but has no name in ``errno``.
ENOTSUPP = 524


class BpfError(OSError):
    """A bpf(2) command failed.

    Attributes
    ----------
    errno : int
        The kernel's error number.
    command : Command or None
        The command that failed.
    """

    command: Command | None = None


class KeyNotFound(BpfError, KeyError):
    """The map has no such key, or is empty."""


class KeyExists(BpfError, FileExistsError):
    """The key is in the map already, and the update said NOEXIST."""


class MapFull(BpfError):
    """The map has no room for a further entry."""


class RingFull(BpfError, BlockingIOError):
    """A user ring buffer has no room, and the time to wait for some is over.

    Attributes
    ----------
    applied : int
        How many records were submitted: exactly the first ones.
    """

    applied: int

    def __init__(self, message: str, applied: int) -> None:
        super().__init__(_errno.EAGAIN, message)
        self.applied = applied

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.strerror, self.applied)


class NotSupported(BpfError, NotImplementedError):
    """This map type, or this kernel, does not have the operation."""


class PermissionDenied(BpfError, PermissionError):
    """A capability is missing, or the map or its handle does not allow the operation."""


class ObjectNotFound(BpfError, FileNotFoundError):
    """No map or program stands under that path, id or name."""


class Difference(NamedTuple):
    """In what a map differs from the one that was asked for.

    Attributes
    ----------
    field : str
        Such as "type", "key_size", "max_entries", "value.bytes".
    there, asked : str
        What it is, and what was asked for; empty where one side does not have the field.
    told : str
        The difference as a sentence, where it is not "is there, not asked".
    """

    field: str
    there: str
    asked: str
    told: str = ""

    def __str__(self) -> str:
        return f"{self.field} {self.told or f'is {self.there}, not {self.asked}'}"


class MapMismatch(BpfError, ValueError):
    """A pin, name or id holds another sort of map than the one asked for.

    Attributes
    ----------
    differences : list of Difference
    """

    differences: list[Difference]

    def __init__(self, message: str, differences: list[Difference]) -> None:
        super().__init__(_errno.EINVAL, f"{message}: {'; '.join(map(str, differences))}")
        self.differences = differences
        self._message = message

    def __str__(self) -> str:
        return str(self.strerror)  # no errno: the kernel has not refused anything

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._message, self.differences)


class BatchError(BpfError):
    """A call over many elements failed at one of them.

    What is raised is both a `BatchError` and the class of the one failure, so that
    ``except MapFull`` works as well.

    Attributes
    ----------
    applied : int
        How many elements were applied. Where the call works through its elements in order,
        these are exactly the first ones.
    index : int
        The index of the element that failed.
    """

    applied: int = 0
    index: int = 0

    def __str__(self) -> str:
        # Only now: a call in several threads adds up what they applied.
        return (f"[Errno {self.errno}] element {self.index}: {self.strerror} "
                f"[{self.applied} applied]")

    def __reduce__(self) -> tuple[Any, ...]:
        # The class of both is made as needed: another process may not have it yet.
        one = next((c for c in type(self).__mro__ if not issubclass(c, BatchError)), BpfError)
        return _batch_error_again, (one, self.args, self.__dict__)


_ARRAYS = of_family("array")
_MAPS_OF_MAPS = of_family("maps")
_DEVICES = of_family("devices")
_CPUS = of_family("cpus")
_SOCKETS = of_family("sockets")
_REUSEPORT = of_family("reuseport")
_XSKS = of_family("xsks")
_PROGRAMS = of_family("programs")
#: Numbered slots that may be empty.
_SLOTS = types_where(lambda facts: facts.slots)
_WRITTEN_ONLY = types_where(lambda facts: "u" in facts.commands and "l" not in facts.commands)
_STORAGES = of_family("storage")
_ALL_TYPES = frozenset(MapType)

_LOOKUPS = frozenset(
    {Command.MAP_LOOKUP_ELEM, Command.MAP_LOOKUP_AND_DELETE_ELEM, Command.MAP_LOOKUP_BATCH,
     Command.MAP_LOOKUP_AND_DELETE_BATCH}
)
_UPDATES = frozenset({Command.MAP_UPDATE_ELEM, Command.MAP_UPDATE_BATCH})
_DELETES = frozenset({Command.MAP_DELETE_ELEM, Command.MAP_DELETE_BATCH})
_ELEMENTS = _LOOKUPS | _UPDATES | _DELETES | {Command.MAP_GET_NEXT_KEY}
_BY_ID = frozenset(
    {Command.MAP_GET_FD_BY_ID, Command.PROG_GET_FD_BY_ID, Command.BTF_GET_FD_BY_ID,
     Command.MAP_GET_NEXT_ID, Command.PROG_GET_NEXT_ID, Command.BTF_GET_NEXT_ID}
)
_PATHS = frozenset({Command.OBJ_GET, Command.OBJ_PIN})
_CREATES = frozenset({Command.MAP_CREATE, Command.BTF_LOAD, Command.PROG_LOAD})
_ALL_COMMANDS = frozenset(Command)

_SINCE = "{command} on {type} needs Linux {since}; this is {release}"

# errno, commands, map types, class, what it means. The first row that fits is taken.
_Row = tuple[int, frozenset[Command], frozenset[MapType], type[BpfError], str]
# What the kernel says about values that are things of its own, and about empty slots.
_REFERENCES: tuple[_Row, ...] = (
    (_errno.EINVAL, _DELETES, frozenset({MapType.SOCKMAP}), KeyNotFound,
     "the slot is empty, or the index past the end of the map"),
    (_errno.EINVAL, _DELETES, _SLOTS, KeyNotFound, "the index is past the end of the map"),
    (ENOTSUPP, _LOOKUPS, _WRITTEN_ONLY, NotSupported,
     "the kernel does not tell what an element of this type holds"),
    (_errno.EOPNOTSUPP, _LOOKUPS, _WRITTEN_ONLY, NotSupported,
     "the kernel does not tell what an element of this type holds"),
    (_errno.ENOSPC, _LOOKUPS | {Command.MAP_GET_NEXT_KEY}, _SOCKETS | _REUSEPORT, NotSupported,
     "a socket's cookie has 8 bytes: only of a map created with value='u8' can it be read"),
    (_errno.EINVAL, _UPDATES, _MAPS_OF_MAPS, BpfError,
     "the map is not like the inner map that this one was created with: its type, sizes of key and "
     "value, flags, spin locks and timers, for arrays without INNER_MAP max_entries, and before "
     "Linux 6.2 whether BTF calls the value a struct; or a flag that the type does not take"),
    (_errno.EINVAL, _UPDATES, _PROGRAMS, BpfError,
     "not a program, or not of the type and attributes of those that this map holds or is used "
     "by; or a flag other than ANY"),
    (_errno.EINVAL, _UPDATES, _DEVICES, BpfError,
     "no network device has that index in this thread's network namespace, or the program is not "
     "XDP of the attach type BPF_XDP_DEVMAP"),
    (_errno.ENODEV, _UPDATES, _DEVICES, BpfError,
     "no network device has that index in this thread's network namespace"),
    (_errno.ENODEV, _UPDATES, _CPUS, BpfError, "there is no CPU of that number"),
    (_errno.EOVERFLOW, _UPDATES, _CPUS, BpfError, "a queue takes at most 16384 packets"),
    (_errno.EINVAL, _UPDATES, _CPUS, BpfError,
     "the program is not XDP of the attach type BPF_XDP_CPUMAP"),
    (_errno.ENOMEM, _UPDATES, _CPUS, BpfError,  # the kernel has one answer for both
     "the program is not XDP of the attach type BPF_XDP_CPUMAP, or there is no memory"),
    (_errno.EOPNOTSUPP, _UPDATES, _XSKS, BpfError,
     "the value is not an AF_XDP socket"),
    (_errno.ENOBUFS, _UPDATES, _XSKS, BpfError, "the AF_XDP socket has no receive ring yet"),
    (_errno.EOPNOTSUPP, _UPDATES, _SOCKETS, BpfError,
     "the socket is not of a kind or in a state that the map takes: TCP established or listening, "
     "UDP bound"),
    (_errno.EINVAL, _UPDATES, _REUSEPORT, BpfError,
     "the socket is not in an SO_REUSEPORT group: set it before bind, and let TCP listen"),
    (_errno.EBUSY, _UPDATES, _REUSEPORT, BpfError,
     "the socket is in a REUSEPORT_SOCKARRAY already (here or in another): each may be in one"),
    (ENOTSUPP, _UPDATES, _REUSEPORT, BpfError, "a socket of UDP or TCP, no other, may be in it"),
    (_errno.ENOTSOCK, _UPDATES, _SOCKETS | _REUSEPORT | _XSKS, BpfError,
     "the value is not a socket"),
    (_errno.EBADF, _UPDATES, of_family("cgroups"), BpfError,
     "the value is not a folder of cgroup2 (or this map is closed)"),
    (_errno.EBADF, _UPDATES, of_family("events"), BpfError,
     "the value is not a perf event (or this map is closed)"),
)

# Values that belong to something else, which comes and goes.
_OF_STORAGES: tuple[_Row, ...] = (
    (_errno.ENOENT, _UPDATES, _STORAGES, KeyNotFound,
     "its owner is gone, or has no value here and the update said EXIST"),
    (_errno.ENOENT, _ELEMENTS, _STORAGES, KeyNotFound, "the owner has no value here, or is gone"),
    (_errno.ENOTSOCK, _ELEMENTS, _STORAGES, BpfError, "the descriptor is not a socket's"),
    (_errno.EBADF, _ELEMENTS, frozenset({MapType.TASK_STORAGE}), BpfError,
     "the descriptor is closed, or not a pidfd"),
    (_errno.EBADF, _ELEMENTS, frozenset({MapType.CGRP_STORAGE}), BpfError,
     "the descriptor is closed, or not of a cgroup's folder"),
    (_errno.EBADF, _ELEMENTS, _STORAGES, BpfError, "the descriptor is closed"),
    (_errno.ENOENT, _UPDATES,
     of_family("cgroup_storage"), KeyNotFound,
     "no program with this map is attached to that cgroup (by that attach type)"),
    (_errno.EINVAL, _DELETES, of_family("cgroup_storage"), NotSupported,
     "entries come with the attachment of a program and go with their cgroup: they cannot be "
     "deleted"),
    (_errno.EINVAL, _UPDATES, of_family("stacks"), NotSupported,
     "only programs write stacks"),
    (ENOTSUPP, frozenset({Command.MAP_FREEZE}), frozenset(MapType), NotSupported,
     "a map whose values hold a spin lock, a timer or the like, or STRUCT_OPS, cannot be frozen"),
)
_TABLE: tuple[_Row, ...] = (
    *_OF_STORAGES,
    (_errno.ENOENT, _UPDATES, _ALL_TYPES, KeyNotFound, "no such key, and the update said EXIST"),
    (_errno.ENOENT, _ELEMENTS, _ARRAYS, KeyNotFound, "the index is past the end of the array"),
    (_errno.ENOENT, _LOOKUPS, of_family("queue"), KeyNotFound,
     "it is empty"),
    (_errno.ENOENT, _ELEMENTS, _ALL_TYPES, KeyNotFound, "no such key"),
    (_errno.ENOENT, _BY_ID, _ALL_TYPES, ObjectNotFound, "no object has that id"),
    (_errno.ENOENT, frozenset({Command.OBJ_GET}), _ALL_TYPES, ObjectNotFound,
     "nothing is pinned there"),
    (_errno.ENOENT, frozenset({Command.OBJ_PIN}), _ALL_TYPES, ObjectNotFound,
     "the folder does not exist, or no bpffs is mounted where it should be (fastmap doctor)"),
    (_errno.EEXIST, frozenset({Command.OBJ_PIN}), _ALL_TYPES, KeyExists,
     "something is pinned there already"),
    (_errno.EEXIST, _UPDATES, _ARRAYS, KeyExists,
     "an array's elements always exist, and the update said NOEXIST"),
    (_errno.EEXIST, _UPDATES, _ALL_TYPES, KeyExists,
     "the key exists, and the update said NOEXIST"),
    (_errno.E2BIG, _UPDATES | _DELETES, _ARRAYS | _SLOTS, KeyNotFound,
     "the index is past the end of the array"),
    (_errno.E2BIG, _UPDATES, _ALL_TYPES, MapFull, "map is full"),
    (_errno.ENOSPC, _UPDATES, of_family("trie"), MapFull, "map is full"),
    *_REFERENCES,
    (_errno.E2BIG, frozenset({Command.MAP_CREATE}), _ALL_TYPES, BpfError,
     "the map is larger than this kernel allows (key, value, or max_entries)"),
    (_errno.EINVAL, frozenset({Command.MAP_CREATE}), _ALL_TYPES, BpfError,
     "a size, a flag, or their combination is not allowed for this type, or this kernel lacks it"),
    (_errno.ENOMEM, frozenset({Command.MAP_CREATE}), _ALL_TYPES, BpfError,
     "no memory for the map (or its cgroup's limit is reached)"),
    (_errno.EINVAL, _DELETES, _ARRAYS, NotSupported,
     "an array's elements cannot be deleted: write zeros instead"),
    (_errno.EPERM, _CREATES, _ALL_TYPES, PermissionDenied,
     "needs CAP_BPF (CAP_NET_ADMIN as well for devices and sockets, CAP_PERFMON for tracing; "
     "before Linux 5.8 CAP_SYS_ADMIN); see also sysctl kernel.unprivileged_bpf_disabled"),
    (_errno.EACCES, frozenset({Command.PROG_LOAD}), _ALL_TYPES, PermissionDenied,
     "the verifier rejects the program, or CAP_PERFMON is missing"),
    (_errno.EPERM, _BY_ID, _ALL_TYPES, PermissionDenied, "needs CAP_SYS_ADMIN"),
    (_errno.EPERM, _PATHS, _ALL_TYPES, PermissionDenied,
     "the path is not on a mounted bpffs, its name holds a dot, or CAP_BPF is missing"),
    (_errno.EACCES, _PATHS, _ALL_TYPES, PermissionDenied,
     "the file's mode does not allow it, or it is not a BPF object"),
    (_errno.EPERM, frozenset({Command.MAP_FREEZE}), _ALL_TYPES, PermissionDenied,
     "the map is frozen already, or this handle is read-only"),
    (_errno.EBUSY, frozenset({Command.MAP_FREEZE}), _ALL_TYPES, BpfError,
     "a writable mapping of the map is alive, or (on older kernels) it is frozen already"),
    (_errno.EPERM, _UPDATES | _DELETES, _ALL_TYPES, PermissionDenied,
     "the map is frozen, or this handle is read-only"),
    (_errno.EPERM, _ELEMENTS, _ALL_TYPES, PermissionDenied,
     "this handle is write-only (or read-only, for a delete), or the map is frozen"),
    (_errno.EPERM, frozenset({Command.TOKEN_CREATE}), _ALL_TYPES, PermissionDenied,
     "needs CAP_BPF in the user namespace that mounted the bpffs, and to be in it"),
    (_errno.EPERM, _ALL_COMMANDS, _ALL_TYPES, PermissionDenied, "not permitted"),
    (_errno.EACCES, _ALL_COMMANDS, _ALL_TYPES, PermissionDenied, "not permitted"),
    (_errno.EOPNOTSUPP, frozenset({Command.TOKEN_CREATE}), _ALL_TYPES, NotSupported,
     "a token is for processes in a user namespace; this one is in none"),
    (_errno.ENOENT, frozenset({Command.TOKEN_CREATE}), _ALL_TYPES, PermissionDenied,
     "this bpffs delegates nothing: whoever made it set no delegate_* option"),
    (ENOTSUPP, frozenset({Command.MAP_CREATE}), _ALL_TYPES, NotSupported,
     "this type does not have one of the flags (an LRU is always preallocated)"),
    (ENOTSUPP, _ALL_COMMANDS, _ALL_TYPES, NotSupported, "{unsupported}"),
    (_errno.EOPNOTSUPP, _ALL_COMMANDS, _ALL_TYPES, NotSupported, "{unsupported}"),
)


def _unsupported(command: Command, map_type: MapType) -> str:
    name = f"BPF_{command.name}"
    since = smallest_kernel(command, map_type)
    if map_type and since and running_kernel() < since:
        return _SINCE.format(command=name, type=map_type.name, since=version_text(since),
                             release=os.uname().release)
    return (f"{map_type.name} maps do not support {name}" if map_type
            else f"the kernel does not support {name}")


def _strerror(number: int) -> str:
    return "operation not supported" if number == ENOTSUPP else os.strerror(number)


def from_errno(number: int, command: int, map_type: int = 0, detail: str = "") -> BpfError:
    """Return the exception for a failed command.

    Parameters
    ----------
    number : int
        The errno, positive.
    command : int
        The bpf(2) command.
    map_type : int
        The type of the map it worked on; 0 where there is none.
    detail : str
        What was asked for, to stand in front of the reason: a path, an id, a key.
    """
    cmd, kind = Command(command), MapType(map_type)
    cls, meaning = BpfError, _strerror(number)
    for errno, commands, types, row_class, text in _TABLE:
        if errno == number and cmd in commands and kind in types:
            cls, meaning = row_class, text.format(unsupported=_unsupported(cmd, kind))
            break
    where = f"{detail}: " if detail else ""
    name = f"BPF_{cmd.name}"
    error = cls(number, where + (meaning if name in meaning else f"{meaning} ({name})"))
    error.command = cmd
    return error


#: What says nothing of the kernel: that it, or this process, has none left, or was disturbed.
SHORTAGES = frozenset({_errno.EMFILE, _errno.ENFILE, _errno.ENOMEM, _errno.EAGAIN, _errno.EINTR})


def is_shortage(error: BaseException) -> bool:
    """Tell whether a failure is for want of descriptors or memory: it may be gone the next time."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in SHORTAGES)


@cache
def _batch_class(cls: type[BpfError]) -> type[BatchError]:
    if cls is BpfError:
        return BatchError
    return type(f"Batch{cls.__name__}", (BatchError, cls), {"__doc__": cls.__doc__})


def _batch_error_again(
    cls: type[BpfError], args: tuple[Any, ...], state: dict[str, Any]
) -> BatchError:
    error = _batch_class(cls)(*args)  # type: ignore[arg-type]
    error.__dict__.update(state)
    return error


def batch_error(
    number: int, command: int, map_type: int, applied: int, index: int
) -> BatchError:
    """Return the exception for a call over many elements that failed at one of them."""
    one = from_errno(number, command, map_type)
    kind = _batch_class(type(one))  # type: ignore[arg-type]  # takes the hash of an instance
    error = kind(number, one.strerror)
    error.command, error.applied, error.index = one.command, applied, index
    return error
