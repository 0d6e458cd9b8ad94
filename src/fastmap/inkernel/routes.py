"""How a call's loop is done: by system calls or by programs in the kernel, behind one interface."""

from __future__ import annotations

import errno
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastmap._core.maps.map import MapCore
from fastmap._core.maps.runner import Runner
from fastmap._core.rows.columns import Columns
from fastmap._core.rows.rows import Rows
from fastmap.enums import Command, MapFlag, MapType, running_kernel
from fastmap.errors import NotSupported
from fastmap.inkernel import count
from fastmap.inkernel.operations import OPERATIONS
from fastmap.inkernel.policy import Policy
from fastmap.inkernel.pool import Pool
from fastmap.kernel.map_facts import FACTS

_Rows = npt.NDArray[Any]
_Errnos = npt.NDArray[np.int32]


class Route(Protocol):
    """The loops over given keys: the map itself is the route by system calls."""

    def lookup_rows(self, keys: Rows, rows: _Rows, found: npt.NDArray[np.bool_],
                    columns: Columns | None, command: int) -> int:
        """Look up each key; write rows and a flag each; return how many were found."""
        ...

    def apply_rows(self, command: int, keys: Rows, values: Rows | None, flags: int, mode: str,
                   errnos: _Errnos | None = None) -> int:
        """Apply an updating or deleting command to each key; return how many were applied."""
        ...


class QueueRoute(Protocol):
    """The loops over values without keys: the map itself is the route by system calls."""

    def push_rows(self, values: Rows, flags: int, errnos: _Errnos | None) -> int:
        """Push each value; return how many were. Without `errnos`, stop at the first failure."""
        ...

    def pop_rows(self, rows: _Rows, done: npt.NDArray[np.int64], stop: int) -> bool:
        """Pop into ``rows[done[0]:stop]``, counting ``done[0]`` up; whether it got there."""
        ...


class InKernel:
    """The in-kernel path to one map: the rule, and the programs that do the calls' loops.

    Parameters
    ----------
    core : MapCore
    flags : MapFlag
        The map's.
    entries : int
        How many the map can hold.
    fields : sequence of (int, int), optional
        Offset and bytes of what `increment` adds to.
    """

    def __init__(self, core: MapCore, flags: int, entries: int,
                 fields: tuple[tuple[int, int], ...] = ()) -> None:
        self.kind = MapType(core.kind)
        self.pool = Pool(core, entries, fields)
        self.policy = Policy(self.kind, MapFlag(flags), self.pool)
        self.counter = count.Counter() if FACTS[self.kind].counted else None
        self._closed = False

    def route(self, core: MapCore, work: str, via: str, count: int,
              flags: int = 0) -> ProgramRoute | None:
        """Return the route by programs where the rule takes it; None: by system calls."""
        if not self.policy.takes(core, work, via, count, flags):
            return None
        return ProgramRoute(self.pool, core, work, via == "kernel")

    def queue_route(self, queue: Any, work: str, via: str, count: int,
                    flags: int = 0) -> ProgramQueueRoute | None:
        """Return the route by programs where the rule takes it; None: by system calls."""
        if not self.policy.takes(queue, work, via, count, flags):
            return None
        return ProgramQueueRoute(self.pool, queue, work, via == "kernel")

    def count(self, core: MapCore, via: str, entries: int) -> int | None:
        """Return how many entries the map has now; None where a walk has to count them.

        `entries` is how many it can hold. Also where a program is asked for, a walk counts where
        there can be none: both say the same.
        """
        counter = self.counter
        if counter is None or via == "syscall" or running_kernel() < count.SINCE:
            return None
        if not (counter.loaded or via == "kernel" or counter.pays(entries)):
            return None
        if self.policy.restricted or not self.policy.allowed(core, "count"):
            return None
        found = counter.count(core)
        if self._closed:
            counter.close()
        return found

    def prepare(self, core: MapCore, threads: int = 1) -> tuple[str, ...]:
        """Load all that the map's calls may need, for so many threads; return for what."""
        works = tuple(name for name, operation in OPERATIONS.items()
                      if not operation.walks and not self.policy.why_not(core, name))
        if not works:
            raise NotSupported(errno.EOPNOTSUPP, self.policy.why_not(core, "lookup"))
        self.pool.prepare(core, works, threads)
        self.count(core, "kernel", 0)
        return works

    def close(self) -> None:
        """Give programs and buffers back; those in use, when their calls end."""
        self._closed = True
        self.pool.close()
        if self.counter is not None:
            self.counter.close()


class ProgramRoute:
    """The loops of one call, done by programs; by system calls where they cannot be loaded."""

    def __init__(self, pool: Pool, core: MapCore, work: str, asked: bool) -> None:
        self._pool = pool
        self._core = core
        self._work = work
        self._asked = asked

    def lookup_rows(self, keys: Rows, rows: _Rows, found: npt.NDArray[np.bool_],
                    columns: Columns | None, command: int) -> int:
        """Do what `MapCore.lookup_rows` does."""
        if (ready := self._pool.ready(self._work)) is not None:
            try:
                return ready.lookup_rows(
                    self._work, self._core, keys, rows, found, columns, command)
            finally:
                self._pool.give_back(ready)

        def by_program(runner: Runner) -> int:
            return runner.lookup_rows(self._work, self._core, keys, rows, found, columns, command)

        def by_call() -> int:
            return self._core.lookup_rows(keys, rows, found, columns, command)

        return self._pool.run(self._core, self._work, self._asked, by_program, by_call)

    def apply_rows(self, command: int, keys: Rows, values: Rows | None, flags: int, mode: str,
                   errnos: _Errnos | None = None) -> int:
        """Do what `MapCore.apply_rows` does."""
        if (ready := self._pool.ready(self._work)) is not None:
            try:
                return ready.apply_rows(
                    self._work, self._core, command, keys, values, flags, mode, errnos)
            finally:
                self._pool.give_back(ready)

        def by_program(runner: Runner) -> int:
            return runner.apply_rows(self._work, self._core, command, keys, values, flags, mode,
                                     errnos)

        def by_call() -> int:
            return self._core.apply_rows(command, keys, values, flags, mode, errnos)

        return self._pool.run(self._core, self._work, self._asked, by_program, by_call)

    def increment_rows(self, keys: Rows, deltas: Rows, found: npt.NDArray[np.bool_]) -> int:
        """Add to each key's value, and tell which were found."""
        def by_program(runner: Runner) -> int:
            return runner.apply_rows(self._work, self._core, Command.MAP_UPDATE_ELEM, keys, deltas,
                                     0, "return", found)

        def by_call() -> int:
            raise AssertionError("there is no system call that increments")

        return self._pool.run(self._core, self._work, True, by_program, by_call)


class ProgramQueueRoute:
    """Pushes or pops of one call, done by programs; by system calls where they cannot be loaded."""

    def __init__(self, pool: Pool, queue: Any, work: str, asked: bool) -> None:
        self._pool = pool
        self._queue = queue
        self._work = work
        self._asked = asked

    def push_rows(self, values: Rows, flags: int, errnos: _Errnos | None) -> int:
        """Push values; see `QueueRoute`."""
        def by_program(runner: Runner) -> int:
            return runner.apply_rows(self._work, self._queue, Command.MAP_UPDATE_ELEM, None,
                                     values, flags, "raise" if errnos is None else "return",
                                     errnos)

        def by_call() -> int:
            return int(self._queue.push_rows(values, flags, errnos))

        return self._pool.run(self._queue, self._work, self._asked, by_program, by_call)

    def pop_rows(self, rows: _Rows, done: npt.NDArray[np.int64], stop: int) -> bool:
        """Pop values; see `QueueRoute`."""
        def by_program(runner: Runner) -> int:
            return runner.pop_rows(self._work, self._queue, rows, done, stop)

        def by_call() -> int:
            return int(self._queue.pop_rows(rows, done, stop))

        return bool(self._pool.run(self._queue, self._work, self._asked, by_program, by_call))
