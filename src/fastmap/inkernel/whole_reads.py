"""Whole reads of a map by a program that walks it."""

from __future__ import annotations

import errno

from fastmap._core.maps.map import MapCore
from fastmap._core.maps.runner import load
from fastmap._core.maps.walker import Walker
from fastmap._core.rows.codec import PerCpuCodec
from fastmap._core.rows.columns import Columns
from fastmap.enums import MapType, running_kernel, version_text
from fastmap.errors import NotSupported, is_shortage
from fastmap.inkernel import prefetch, scan_programs, self_check
from fastmap.inkernel.operations import HASHES
from fastmap.inkernel.policy import Policy
from fastmap.inkernel.pool import MAY_GOTO, Pool, explained

#: The bounds of a walk, which is one system call: entries of the map, bytes of the keys or values.
MOST_WALKED, MOST_KEPT = 1 << 21, 64 << 20
#: A hash of which less than this part is in use is walked slower, bucket by bucket, than batches
#: read it (measured: at 1/100 2.4 to 2.8 times as slow, at 1/33 as fast, at 1/20 1.2 times faster).
SPARSE = 1 / 25
#: Room for entries that a walk over a hash meets twice.
SLACK = 1024


class Walks:
    """Whole reads of a map by a program: its buffers are made at the first, and kept.

    Parameters
    ----------
    policy : Policy
    pool : Pool
    core : MapCore
    entries : int
        How many the map can hold.
    columns : Columns or None
        What to make of each entry.
    via : str
    exact : bool
    """

    def __init__(self, policy: Policy, pool: Pool, core: MapCore, entries: int,
                 columns: Columns | None, via: str, exact: bool) -> None:
        size = core.value.size
        self._policy = policy
        self._core = core
        self._entries = entries
        self._via = via
        self._array = policy.kind is MapType.ARRAY
        self._work = "exact walk" if exact else "walk"
        self._columns: tuple[scan_programs.Column, ...] = (
            ("copy", "bytes", False, 0, 0, size),) if columns is None else columns.given
        self._condition = None if columns is None else columns.condition
        self._out_size = size if columns is None else columns.out_size
        self._cpus = pool.layout.cpus
        self._inside: prefetch.Inside | None = None
        if columns is None and isinstance(core.value, PerCpuCodec):
            self._columns = self_check.wide(core.value)
        # Why not; None: that was not found out yet.
        self._reason: str | None = None
        self._walker: Walker | None = None
        #: How many entries the last read found; as many as there can be where that is not known.
        self.found = entries
        if via == "kernel":
            policy.takes(core, self._work, via, entries, reason=self._why_not())  # says why not

    def _why_not(self) -> str:
        """Return what is against it; an empty text where nothing is."""
        if self._reason is None:
            # What goes over buckets itself does it in short runs, and reads the values of all CPUs.
            self._inside = prefetch.inside() if (
                self._policy.kind in HASHES and running_kernel() >= MAY_GOTO
                and (self._cpus or self._entries >= prefetch.FEWEST_ENTRIES)) else None
            self._reason = (
                scan_programs.why_not(self._columns, self._condition, len(self._cpus))
                or self._too_large(self._first_capacity()) or self._for_want_of_buckets())
        return self._reason

    def _for_want_of_buckets(self) -> str:
        if self._inside or not self._cpus:
            return ""
        what = "a walk that reads the values of other CPUs needs"
        if running_kernel() < MAY_GOTO:
            return f"{what} Linux {version_text(MAY_GOTO)}"
        return f"{what} BTF of the kernel, and a hash in the layout that fastmap knows"

    def _too_large(self, capacity: int) -> str:
        each = max(self._core.key.size, self._out_size)
        if self._inside is None and self._entries > MOST_WALKED:
            return (f"a walk is one system call, which nothing interrupts: {self._entries} entries "
                    "are too many")
        if capacity * each > min(MOST_KEPT, scan_programs.MOST_OUTPUT):
            return f"{capacity} entries of {each} bytes are too many to be kept in the kernel"
        return ""

    def read(self) -> Walker | None:
        """Walk the map; return the buffers, or None where batches have to read it."""
        policy, core, asked = self._policy, self._core, self._via == "kernel"
        if not asked and not self._array and self.found < SPARSE * self._entries:
            return None
        reason = self._reason
        if reason is None:
            try:
                reason = self._why_not()
            except (OSError, MemoryError):
                if asked:
                    raise
                return None
        if not policy.takes(core, self._work, self._via, self._entries, reason=reason):
            return None
        try:
            if self._walker is None or self._walker.other_process:
                self._make(self._first_capacity())
            while self._walker is not None and not self._walker.fill(core):
                self._make(4 * self._walker.capacity)
        except (OSError, MemoryError) as error:
            self._walker = None
            if asked:
                raise explained(error) from error
            if not is_shortage(error):
                self._reason = str(error)
        return self._walker

    def _first_capacity(self) -> int:
        # Few entries pass a condition: a walk that finds more begins anew with more room.
        most = self._entries + (0 if self._array else SLACK)
        return most if self._condition is None else min(most, most // 8 + SLACK)

    def _make(self, capacity: int) -> None:
        self._walker = None
        if reason := self._too_large(capacity):
            raise NotSupported(errno.EOPNOTSUPP, reason)
        core = self._core
        walker = Walker(core.key.size, self._out_size, capacity, self._array)
        output = scan_programs.Output(
            walker.head_map, walker.keys_map, walker.values_map, core.key.size, self._out_size,
            capacity, self._columns, self._condition)
        if self._inside is not None:
            try:
                if not self_check.layout_is_known(bool(self._cpus)):
                    self._inside = None
                else:
                    walker.use(self_check.load_walk(core, output, self._inside, self._cpus))
            except OSError as error:  # it takes CAP_PERFMON
                if self._cpus or is_shortage(error):
                    raise
                self._inside = None
        if self._inside is None:
            if reason := self._too_large(capacity) or self._for_want_of_buckets():
                raise NotSupported(errno.EOPNOTSUPP, reason)
            walker.use(load(core, scan_programs.walk(core.fd, output), "fastmap_walk"))
        self._walker = walker
