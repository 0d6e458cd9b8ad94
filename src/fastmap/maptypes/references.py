"""Maps whose values are things of the kernel: programs, sockets, devices, CPUs, cgroups, events."""

from __future__ import annotations

import errno
import operator
import os
from typing import Any, ClassVar

import numpy as np

from fastmap._core.maps.map import MapCore
from fastmap._core.rows.codec import codec_of
from fastmap._core.rows.rows import rows_of
from fastmap._core.system import syscall
from fastmap._core.system.program import Link, Program
from fastmap._core.system.syscall import Fd
from fastmap.enums import ANY, MapType
from fastmap.maptypes.batch import Array
from fastmap.maptypes.handle import Map
from fastmap.maptypes.kernel_values import (
    Indexed,
    Referring,
    Slots,
    descriptor,
)
from fastmap.maptypes.rules import fixed
from fastmap.maptypes.table import DictMap

_U4 = np.dtype("u4")


class ByDescriptor(Referring):
    """Written by a descriptor."""

    #: What a value is, for messages.
    what: ClassVar[str]
    #: fastmap's own objects that are none.
    unfit: ClassVar[tuple[type, ...]] = (MapCore, Program, Link)
    #: Whether an integer is a descriptor: only where the map gives back no other numbers.
    plain: ClassVar[bool] = False

    def _raw(self, value: Any, held: list[Fd]) -> int:
        if isinstance(value, self.unfit):
            raise TypeError(f"a value is {self.what}, not {value!r:.60}")
        return descriptor(value, self.what, held, plain=self.plain)


# ---- programs, events, cgroups -----------------------------------------------------------------


class ProgArray(ByDescriptor, Slots):
    """PROG_ARRAY: programs to tail-call, by index.

    A value is given as a `Program`, or any object with ``fileno()`` that is one; read are the ids
    of programs. All programs of a map are of one type: the first one's, or that of the program
    that uses the map. When the last handle and pin of the map are gone, the kernel empties it, also
    while programs that use it run on.
    """

    values_are = fixed("u4")
    unfit = (MapCore, Link)
    what = "a program"


class PerfEventArray(ByDescriptor, Indexed):
    """PERF_EVENT_ARRAY: perf events, by index: usually one for each CPU, under its number.

    A value is given as the descriptor that perf_event_open gave, an int or an object with
    ``fileno()``; it cannot be read. When the handle that an event was put in with is closed, the
    kernel takes the event out, unless the map has MapFlag.PRESERVE_ELEMS (Linux 5.10).
    """

    values_are = fixed("u4")
    what = "a perf event"
    plain = True


class CgroupArray(ByDescriptor, Indexed):
    """CGROUP_ARRAY: cgroups, by index.

    A value is given as the path of a cgroup2 folder, as a descriptor of one, or as an object with
    ``fileno()``; it cannot be read.
    """

    values_are = fixed("u4")
    what = "a cgroup2 folder"
    plain = True

    def _raw(self, value: Any, held: list[Fd]) -> int:
        if isinstance(value, (str, bytes, os.PathLike)):
            folder = os.open(value, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                held.append(syscall.duplicate(folder))  # closed when `held` goes
            finally:
                os.close(folder)
            return held[-1].fileno()
        return super()._raw(value, held)


# ---- devices and CPUs --------------------------------------------------------------------------


class ByNumber(Referring):
    """Written by a number, or by a record of a number and a program; read as records."""

    #: What the number is, and the largest.
    what: ClassVar[str]
    largest: ClassVar[int] = 0x7FFFFFFF

    def _raw(self, value: Any, held: list[Fd]) -> Any:
        record = self.value_dtype.names is not None
        prog = None
        if isinstance(value, np.void) and value.dtype.names is not None:
            if value.dtype.names != self.value_dtype.names:
                raise TypeError(f"a record of {self.value_dtype.names}, not {value.dtype.names}")
            if value["prog"]:
                raise TypeError("a record that was read names its program by id: give "
                                f"({self.what}, Program)")
            value = value[self.value_dtype.names[0]]
        elif isinstance(value, tuple):
            if not record:
                raise TypeError(f"values of this map are {self.what}s alone: it was created with "
                                f"value='u4'; given was {value!r:.60}")
            if len(value) != 2:
                raise ValueError(f"a value is ({self.what}, program), not {value!r:.60}")
            value, prog = value
        number = self._number(value)
        if prog is None:
            return (number, 0) if record else number
        if isinstance(prog, (MapCore, Link)):
            raise TypeError(f"a program, not {prog!r:.60}")
        return (number, descriptor(prog, "a program", held))

    def _number(self, value: Any) -> int:
        """Return the number of a value: what `value` is, or what it names."""
        if isinstance(value, (bool, np.bool_)):
            raise TypeError(f"a value is {self.what}, not {value!r}")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"a value is {self.what}, not {value!r:.60}") from None
        self._check(number, number)
        return number

    def _check(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest > self.largest:
            wrong = lowest if lowest < 0 else highest
            raise OverflowError(f"{self.what} {wrong}: 1 to {self.largest}")
        if lowest == 0:
            raise ValueError(f"0 is no {self.what}: the kernel takes it for a deletion; delete "
                             "the key")

    def _raw_array(self, values: Array) -> Any:
        if values.dtype.kind not in "iu":
            return super()._raw_array(values)
        if values.size:
            self._check(int(values.min()), int(values.max()))
        numbers = rows_of(values, codec_of(_U4, "value")).owner
        records = np.zeros(len(numbers), self.value_dtype)
        (records if self.value_dtype.names is None
         else records[self.value_dtype.names[0]])[:] = numbers
        return records


class Devices(ByNumber):
    """What DEVMAP and DEVMAP_HASH share."""

    values_are = fixed([("ifindex", "u4"), ("prog", "u4")], "u4")
    what = "an interface's index or name"

    def _number(self, value: Any) -> int:
        if isinstance(value, str):
            try:
                from socket import if_nametoindex  # importing it is dear, few need it
                return if_nametoindex(value)
            except OSError as error:
                raise ValueError(f"no network device is called {value!r} in this thread's network "
                                 "namespace") from error
        return super()._number(value)


class DevMap(Devices, Slots):
    """DEVMAP: network devices to redirect to, by index.

    A value is given as the index of an interface or its name, both in the network namespace of
    the calling thread; or as ``(interface, program)`` with a program that is run on what goes out
    there (XDP, of the attach type BPF_XDP_DEVMAP = 33; Linux 5.8). Read are records of index and
    id of the program, 0 without one; of a map created with ``value="u4"``, the indices alone.
    A device that is unregistered leaves the map. To delete an empty slot is no error.
    """

    nothing_there = frozenset({errno.E2BIG, errno.EINVAL})


class DevMapHash(Devices, DictMap):
    """DEVMAP_HASH: network devices to redirect to, under any u4. Values are those of `DevMap`."""

    keys_are = fixed("u4")



class CpuMap(ByNumber, Slots):
    """CPUMAP: CPUs to redirect packets to, by CPU number.

    A value is given as the length of the CPU's queue, 1 to 16384 packets, or as ``(length,
    program)`` with a program that the CPU runs on each packet (XDP, of the attach type
    BPF_XDP_CPUMAP = 35; Linux 5.9). Read are records of length and id of the program, 0 without
    one; of a map created with ``value="u4"``, the lengths alone. To delete an empty slot is no
    error.
    """

    values_are = fixed([("qsize", "u4"), ("prog", "u4")], "u4")
    what = "a queue's length"
    waits = True  # for a thread of the kernel's to start: 0.04 to 4 ms, more on a busy machine
    largest = 16384
    nothing_there = frozenset({errno.E2BIG, errno.EINVAL})


# ---- sockets -----------------------------------------------------------------------------------


class XskMap(ByDescriptor, Indexed):
    """XSKMAP: AF_XDP sockets, by index: usually the number of the queue that each is bound to.

    A value is given as a socket or its descriptor; it cannot be read. A socket that is closed
    leaves the map. To delete an empty slot is no error.
    """

    values_are = fixed("u4")
    what = "an AF_XDP socket"
    plain = True
    nothing_there = frozenset({errno.E2BIG, errno.EINVAL})


class Sockets(ByDescriptor):
    """Sockets, read as their cookies: what getsockopt gives for SO_COOKIE.

    A value is given as a socket, any object with ``fileno()``. Of a map created with
    ``value="u4"`` nothing can be read: a cookie has 8 bytes. A socket that is closed leaves the
    map.
    """

    values_are = fixed("u8", "u4")
    what = "a socket"


class SockMap(Sockets, Slots):
    """SOCKMAP: sockets, by index: TCP, established or listening, and bound UDP among others.

    See `Sockets` for values.
    """

    nothing_there = frozenset({errno.E2BIG, errno.EINVAL})


class SockHash(Sockets, DictMap):
    """SOCKHASH: sockets, under keys of 1 to 512 bytes; those that a `SockMap` takes.

    See `Sockets` for values.
    """

    def update(self, *given: Any, flags: int = ANY) -> None:
        """Put a socket under a key, ``update(key, socket)``, or many, ``update({key: socket})``."""
        DictMap.update(self, *given, flags=flags)



class ReuseportSockArray(Sockets, Slots):
    """REUSEPORT_SOCKARRAY: sockets of SO_REUSEPORT groups, by index.

    They are bound (TCP ones listening), with SO_REUSEPORT set before, and each is in one such map
    at most. See `Sockets` for values.
    """



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
