"""The programs loaded for one map and their buffers, kept for later calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from time import sleep

from fastmap._core.maps.map import MapCore
from fastmap._core.maps.runner import Runner, load
from fastmap._core.rows.codec import PerCpuCodec
from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.enums import MapType, running_kernel
from fastmap.errors import BpfError, PermissionDenied, is_shortage
from fastmap.inkernel import key_programs, percpu_values, prefetch, self_check
from fastmap.inkernel.operations import OPERATIONS, Operation, Target
from fastmap.kernel.capabilities import missing_capabilities
from fastmap.kernel.map_facts import FACTS, types_where

#: The first Linux with `may_goto`.
MAY_GOTO = (6, 9)
#: A buffer's size is about this, and it holds no more elements: a run ends within some 5 ms.
BUFFER_BYTES, LONGEST_RUN = 1 << 20, 8192
#: Runners that are kept for later calls: one for each thread that is inside at once.
KEPT = 16

_PREFETCHED = types_where(lambda f: f.family == "hash" and not f.resizes and not (
    f.lru and f.per_cpu))


class Pool:
    """Runners of one map: a buffer each, and the programs over it.

    It holds no reference to the map, which holds one to it; programs and buffers are this
    process's own, and given back by `close`.

    Parameters
    ----------
    core : MapCore
    entries : int
        How many the map can hold.
    fields : sequence of (int, int), optional
        Offset and bytes of what `increment` adds to.
    """

    #: Whether the verifier rejected (E2BIG: too complex) a loop over all CPUs within one that may
    #: end anywhere, as 6.12 does for 64 CPUs. It walks once over a function that bpf_loop calls.
    too_complex = False

    def __init__(self, core: MapCore, entries: int,
                 fields: tuple[tuple[int, int], ...] = ()) -> None:
        row = core.value
        self.kind = MapType(core.kind)
        self.fields = fields
        cpus = syscall.possible_cpus() if isinstance(row, PerCpuCodec) else ()
        size = row.one.size if isinstance(row, PerCpuCodec) else row.size
        key_size = core.key.size if core.key is not None else 0
        each = key_size + row.size + 4
        chunk = max(1, min(LONGEST_RUN, BUFFER_BYTES // each))
        self.layout = key_programs.Layout(key_size, size, chunk, cpus)
        self.prefetches = (self.kind in _PREFETCHED and key_size <= prefetch.LONGEST_KEY
                           and entries >= prefetch.FEWEST_ENTRIES
                           and running_kernel() >= MAY_GOTO)
        self.idle: list[Runner] = []
        self._closed = False
        # What a process has loaded: a forked child has none of it.
        self._loaded: set[tuple[int, str]] = set()
        # Why a program could not be loaded, by what it would do: asked for once.
        self.failures: dict[str, str] = {}

    @property
    def by_pointer(self) -> bool:
        """Whether the values of all CPUs are had with one search."""
        cpus, size = len(self.layout.cpus), self.layout.value_size
        return (self.prefetches and self.layout.wordwise
                and cpus * (14 + size // 4) <= percpu_values.MOST_WORK)

    def failed(self, work: str) -> bool:
        """Whether the program for `work` could not be loaded, for a reason that lasts."""
        return work in self.failures

    def has(self, work: str) -> bool:
        """Whether a program for `work` is loaded, and idle."""
        for runner in self.idle.copy():  # noqa: SIM110, a call of few keys feels a generator
            if runner.has(work) and not runner.other_process:
                return True
        return False

    def ready(self, work: str) -> Runner | None:
        """Take an idle runner that has the program for `work`, if the next one is such."""
        try:
            runner = self.idle.pop()
        except IndexError:
            return None
        if runner.has(work) and not runner.other_process:
            return runner
        self.idle.append(runner)
        return None

    def runner(self, core: MapCore, work: str) -> Runner:
        """Return a runner of the caller's own that has the program for `work`."""
        runner = self._idle_one(work)
        if runner is None:
            runner = Runner(self.layout, not self.layout.wordwise,
                            prefetch.SCRATCH + percpu_values.EACH * len(self.layout.cpus)
                            if self.prefetches else 0)
        try:
            if not runner.has(work):
                runner.add(work, self.load(core, work, runner))
                self._loaded.add((os.getpid(), work))
        except BaseException:
            self.give_back(runner)
            raise
        return runner

    def _idle_one(self, work: str) -> Runner | None:
        """Take an idle runner, one that has the program for `work` where there is one."""
        idle = self.idle.copy()
        for runner in idle:
            if runner.has(work) and self._took(runner):
                return runner
        for runner in idle:
            if not runner.has(work) and self._took(runner):
                return runner
        return None

    def _took(self, runner: Runner) -> bool:
        try:
            self.idle.remove(runner)
        except ValueError:  # another thread was faster
            return False
        return not runner.other_process

    def give_back(self, runner: Runner) -> None:
        """Keep a runner for the next call."""
        if len(self.idle) < KEPT:
            self.idle.append(runner)
        if self._closed:
            self.idle.clear()

    def close(self) -> None:
        """Give programs and buffers back; those in use, when their calls end."""
        self._closed = True
        self.idle.clear()

    def load(self, core: MapCore, work: str, runner: Runner) -> Fd:
        """Load the program for `work` over the runner's buffer."""
        operation, facts = OPERATIONS[work], FACTS[self.kind]
        target = Target(self.kind, core.fd, runner.buffer, self.layout, runner.large,
                        running_kernel() >= MAY_GOTO, self.fields)
        name = f"fastmap_{work}"[:15]
        too_complex = Pool.too_complex and bool(self.layout.cpus)

        def loaded(target: Target) -> Fd:
            assert operation.make is not None
            return load(core, operation.make(target), name, facts.sleepable)

        if self.prefetches and runner.scratch is not None and operation.prefetches:
            try:
                if not too_complex and (ahead := self._ahead(core, operation, target,
                                                             runner.scratch)) is not None:
                    return loaded(ahead)
            except OSError as error:  # it takes CAP_PERFMON; the plain one below fails alike
                if is_shortage(error):
                    raise
            self.prefetches = False
        if not too_complex:
            try:
                return loaded(target)
            except BpfError as error:
                if error.errno != errno.E2BIG or not self.layout.cpus:
                    raise
            Pool.too_complex = True
        return loaded(replace(target, may_goto=False))

    def _ahead(self, core: MapCore, operation: Operation, target: Target,
               scratch: Fd) -> Target | None:
        """Return the target with prefetching; None where the kernel's layout is not known."""
        cpus, size = self.layout.cpus, self.layout.value_size
        what = prefetch.inside()
        if what is None or not self_check.layout_is_known(bool(cpus)):
            return None
        toucher = prefetch.Toucher(core.fd, scratch, what, self.layout.key_size,
                                   self_check.POINTER if cpus else size)
        values = None
        if operation.name == "lookup" and cpus and self.by_pointer:
            values = percpu_values.Values(toucher, percpu_values.anchored(), cpus)
        return replace(target, toucher=toucher, values=values)

    def run(self, core: MapCore, work: str, asked: bool,
            by_program: Callable[[Runner], int], by_call: Callable[[], int]) -> int:
        """Do a call's loop by a program, or, where that cannot be loaded, by system calls."""
        while True:
            try:
                runner = self.runner(core, work)
            except (OSError, MemoryError) as error:
                if not is_shortage(error):
                    self.failures[work] = str(error)
                if asked and (os.getpid(), work) not in self._loaded:
                    raise explained(error) from error
            else:
                try:
                    return by_program(runner)
                finally:
                    self.give_back(runner)
            if not asked:
                return by_call()
            sleep(0.0002)  # those that are loaded are in use by other threads

    def prepare(self, core: MapCore, works: tuple[str, ...], threads: int) -> None:
        """Load the programs for `works`, for so many threads."""
        runners = []
        try:
            for _ in range(threads):
                runners.append(self.runner(core, works[0]))
                for work in works:
                    if not runners[-1].has(work):
                        runners[-1].add(work, self.load(core, work, runners[-1]))
                        self._loaded.add((os.getpid(), work))
        except OSError as error:
            raise explained(error) from error
        finally:
            for runner in runners:
                self.give_back(runner)


def explained(error: OSError | MemoryError) -> OSError | MemoryError:
    """Say which capability it is that a load failed for, if it is that."""
    if not isinstance(error, BpfError) or error.errno not in (errno.EPERM, errno.EACCES):
        return error
    missing = missing_capabilities("CAP_BPF", "CAP_PERFMON")
    if not missing:
        return error
    return PermissionDenied(error.errno, f"via='kernel': loading its program needs "
                            f"{' and '.join(missing)}; {error.strerror}")
