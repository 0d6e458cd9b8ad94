"""Which calls take the in-kernel path: the one rule, `Policy.takes`."""

from __future__ import annotations

import errno

from fastmap._core.maps.map import MapCore
from fastmap._core.system import syscall
from fastmap.btf.layout import Btf
from fastmap.btf.special import special_fields as marked_fields
from fastmap.enums import (
    Command,
    MapFlag,
    MapType,
    UpdateFlag,
    running_kernel,
    version_text,
)
from fastmap.errors import NotSupported, PermissionDenied
from fastmap.inkernel import prefetch
from fastmap.inkernel.operations import HASHES, OPERATIONS
from fastmap.inkernel.pool import Pool
from fastmap.kernel.map_facts import FACTS

#: The first Linux that has all that the programs need, for one value and for per-CPU values.
SINCE, SINCE_PERCPU = (5, 17), (5, 19)
#: Loading takes the time of so many keys by system calls: those a map has seen so far count.
LOAD_PAYS = 4096
#: Larger values are no faster (measured: 1.7 times at 8 KiB, 1.2 to 1.3 at 32, 1.1 at 64).
LARGEST = 32768
#: Where the values of other CPUs take a search each: 20 to 40 ns in an array, 100 in a hash, 350
#: for 512 bytes (measured with 2 CPUs; a system call takes 1,100 and 20 to 250 for each).
MOST_CPUS = 8

FOR_PROGRAMS = MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG
_READ, _WRITE = int(Command.MAP_LOOKUP_BATCH), int(Command.MAP_UPDATE_BATCH)


class Policy:
    """Whether a call on one map goes in-kernel.

    Parameters
    ----------
    kind : MapType
    flags : MapFlag
        The map's.
    pool : Pool
    """

    def __init__(self, kind: MapType, flags: MapFlag, pool: Pool) -> None:
        self.kind = kind
        self._flags = flags
        self._pool = pool
        # Whether the handle may read: that never changes.
        self._reads: bool | None = None
        self._reasons: dict[tuple[str, int], str] = {}
        self._same: dict[tuple[str, bool], bool] = {}
        # Elements that went by system calls for want of a program.
        self._seen = 0

    def takes(self, core: MapCore, work: str, via: str, count: int, flags: int = 0,
              reason: str = "") -> bool:
        """Whether a call goes in-kernel.

        It does where it was asked to, and where that is faster and means the same: a program that
        does the same as the system call, loaded (or loaded now, once enough elements have come),
        for more than a few elements. `reason` is one against it that the caller knows.
        """
        if via == "syscall":
            return False
        if via == "kernel":
            known = self._reasons.get((work, flags))  # calls of few keys feel each step
            if reason := reason or (self.why_not(core, work, flags) if known is None else known):
                raise NotSupported(errno.EOPNOTSUPP, f"via='kernel': {reason}")
            return self.allowed(core, work)
        operation = OPERATIONS.get(work)
        try:
            return (not reason and operation is not None and operation.fewest is not None
                    and count >= operation.fewest and self._means_the_same(work)
                    and (self._pool.has(work) or self._pays(work, count))
                    and not self.why_not(core, work, flags) and self.allowed(core, work))
        except (OSError, MemoryError):  # no descriptor or memory to find out: the next call asks
            return False

    def _means_the_same(self, work: str) -> bool:
        by_pointer = self._pool.by_pointer
        same = self._same.get((work, by_pointer))
        if same is None:
            operation, layout = OPERATIONS[work], self._pool.layout
            same = self._same[work, by_pointer] = operation.walks or (
                self.kind in operation.same_meaning
                and layout.value_size <= LARGEST
                and (by_pointer or len(layout.cpus) <= MOST_CPUS))
        return same

    def _pays(self, work: str, count: int) -> bool:
        self._seen += count
        return self._seen >= LOAD_PAYS and not self._pool.failed(work)

    def allowed(self, core: MapCore, work: str) -> bool:
        """Ask whether the handle may: a program would not. Where not, the system call refuses."""
        operation = OPERATIONS.get(work)
        writes, reads = (False, True) if operation is None else (operation.writes, operation.reads)
        if writes and not core.permits(_WRITE):  # the map may be frozen meanwhile
            return False
        if self._reads is None:
            self._reads = core.permits(_READ)
        return self._reads or not reads

    @property
    def restricted(self) -> bool:
        """Whether the map's flags restrict what programs may do with it."""
        return bool(self._flags & FOR_PROGRAMS)

    def why_not(self, core: MapCore, work: str, flags: int = 0) -> str:
        """Return why `work` cannot be done in-kernel; an empty text where it can.

        What is raised on the way, for want of descriptors or memory, is not kept.
        """
        reason = self._reasons.get((work, flags))
        if reason is None:
            reason = self._reasons[work, flags] = self._why_not(core, work, flags)
        return reason

    def _why_not(self, core: MapCore, work: str, flags: int) -> str:
        kind, operation, layout = self.kind.name, OPERATIONS.get(work), self._pool.layout
        since = SINCE_PERCPU if layout.cpus and work == "lookup" else SINCE
        if operation is None or self.kind not in operation.types:
            if work == "update" and FACTS[self.kind].per_cpu:
                return f"a program writes the value of its own CPU only ({kind})"
            if work == "exact walk" and self.kind in HASHES:
                return ("a program's walk over a hash that changes may repeat or miss an entry: "
                        "it takes exact=False")
            return f"no program can {work} {kind} maps" if work else f"not for {kind} maps"
        if running_kernel() < since:
            return f"it needs Linux {version_text(since)} ({kind})"
        if self.restricted:
            return "the map's flags restrict what programs may do with it"
        if flags & ~(UpdateFlag.NOEXIST | UpdateFlag.EXIST):
            return f"flags={flags}: a program updates with ANY, NOEXIST or EXIST"
        if FACTS[self.kind].family == "maps" and prefetch.map_id_at() is None:
            return "the kernel's BTF does not tell where a map has its id"
        if work == "increment" and not self._pool.fields:
            return ("increments are for values that consist of aligned integers of 4 and 8 bytes")
        if there := marked_fields(core.value.dtype):
            return f"the map's values hold {', '.join(sorted({p.kind for p in there.values()}))}"
        return special_fields(core)


def special_fields(core: MapCore) -> str:
    """Return what in the map's values a program must not copy, by its BTF; "" where nothing."""
    info = syscall.map_info(core.fd)
    if not info["btf_value_type_id"]:
        return ""
    try:
        fd = syscall.btf_get_fd_by_id(info["btf_id"])
    except PermissionDenied:
        return ""  # the verifier has read it, and refuses then
    try:
        blob = syscall.btf_bytes(fd)
    finally:
        fd.close()
    try:
        there = set(Btf(blob).layout(info["btf_value_type_id"]).special.values())
    except ValueError:
        return ""  # as above
    return f"the map's values hold {', '.join(sorted(there))}" if there else ""
