"""The in-kernel way: programs made for a map, their buffers and their cache.

`InKernel.takes` is the rule by which a call takes this way. What a program does stands in
`fastmap.loops`, how it is run in `fastmap._core.run`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap import buckets, counting, loops, percpu, touching, walks
from fastmap._core import syscall
from fastmap._core.codec import PerCpuCodec
from fastmap._core.columns import Columns
from fastmap._core.map import MapCore
from fastmap._core.rows import Rows
from fastmap._core.run import Runner, load
from fastmap._core.syscall import Fd
from fastmap._core.walk import Walker
from fastmap.asm import Code
from fastmap.btf import Btf
from fastmap.btf_special import special_fields as marked_fields
from fastmap.enums import (
    Command,
    MapFlag,
    MapType,
    UpdateFlag,
    running_kernel,
    version_text,
)
from fastmap.errors import BpfError, NotSupported, PermissionDenied
from fastmap.features import missing_capabilities

#: The first Linux that has all that the programs need, for one value and for per-CPU values.
SINCE, SINCE_PERCPU = (5, 17), (5, 19)
#: The first Linux with `may_goto`.
_MAY_GOTO = (6, 9)

#: What a call does to many keys, and the smallest number of them that is faster in the kernel
#: once its program is loaded (measured).
FEWEST = {"lookup": 4, "update": 4, "delete": 4, "push": 4, "pop": 4, "walk": 64,
          "exact walk": 64}
#: Loading takes the time of so many keys by system calls: those a map has seen so far count.
LOAD_PAYS = 4096
#: A buffer's size is about this, and it holds no more elements: a run ends within some 5 ms.
BUFFER_BYTES, LONGEST_RUN = 1 << 20, 8192
#: Larger values are no faster (measured: 1.7 times at 8 KiB, 1.2 to 1.3 at 32, 1.1 at 64).
LARGEST = 32768
#: Where the values of other CPUs take a search each: 20 to 40 ns in an array, 100 in a hash, 350
#: for 512 bytes (measured with 2 CPUs; a system call takes 1,100 and 20 to 250 for each).
MOST_CPUS = 8
#: The bounds of a walk, which is one system call: entries of the map, bytes of the keys or values.
MOST_WALKED, MOST_KEPT = 1 << 21, 64 << 20
#: A hash of which less than this part is in use is walked slower, bucket by bucket, than batches
#: read it (measured: at 1/100 2.4 to 2.8 times as slow, at 1/33 as fast, at 1/20 1.2 times faster).
SPARSE = 1 / 25
#: Room for entries that a walk over a hash meets twice.
SLACK = 1024
#: Runners that are kept for later calls: one for each thread that is inside at once.
KEPT = 16

_HASHES = frozenset({MapType.HASH, MapType.LRU_HASH})
_PERCPU = frozenset({MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY})
_LRU = frozenset({MapType.LRU_HASH, MapType.LRU_PERCPU_HASH})
_ALL_HASHES = _HASHES | {MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH}
_OF_MAPS = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})
_TOUCHED = _HASHES | {MapType.PERCPU_HASH}
#: Which the kernel counts the entries of.
_COUNTED = _ALL_HASHES | {MapType.HASH_OF_MAPS}
_QUEUES = frozenset({MapType.QUEUE, MapType.STACK})
#: Types that sleepable programs may not use (LPM_TRIE before 7.2, queues before 6.2).
_DETOUR = _QUEUES | {MapType.LPM_TRIE}

#: Which map types have a program for what.
_HAVE: dict[str, frozenset[MapType]] = {
    "lookup": _ALL_HASHES | _OF_MAPS | {MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.LPM_TRIE},
    "update": _HASHES | {MapType.ARRAY},
    "delete": _ALL_HASHES,
    "take": _HASHES,
    "increment": _HASHES | {MapType.ARRAY},
    "push": _QUEUES,
    "pop": _QUEUES,
    "walk": _ALL_HASHES | {MapType.ARRAY},
    "exact walk": frozenset({MapType.ARRAY}),
}
#: Where a program does not mean the same as the system call: "auto" never takes it there. A
#: program's lookup refreshes an LRU entry; a program takes an entry in two steps, not in one.
_DIFFERENT: dict[str, frozenset[MapType]] = {"lookup": _LRU, "take": frozenset(MapType)}
_WALKS = ("walk", "exact walk")
_WRITES = frozenset({"update", "delete", "take", "increment", "push", "pop"})
_ONLY_WRITES = frozenset({"update", "delete", "push"})
_READ, _WRITE = int(Command.MAP_LOOKUP_BATCH), int(Command.MAP_UPDATE_BATCH)

_FOR_PROGRAMS = MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG

_Rows = npt.NDArray[Any]


class InKernel:
    """The in-kernel way to one map: which calls take it, and the programs that do them.

    It holds no reference to the map, which holds one to it; programs and buffers are this
    process's own, and given back by `close`.

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

    #: Whether the verifier had enough of a loop over all CPUs within one that may end anywhere, as
    #: 6.12 has of 64 CPUs. A function that bpf_loop calls is walked over once.
    _tired = False

    def __init__(self, core: MapCore, flags: int, entries: int,
                 fields: tuple[tuple[int, int], ...] = ()) -> None:
        row = core._value
        self.kind = MapType(core._kind)
        self._flags = MapFlag(flags)
        self._fields = fields
        cpus = syscall.possible_cpus() if isinstance(row, PerCpuCodec) else ()
        size = row.one.size if isinstance(row, PerCpuCodec) else row.size
        key_size = core._key.size if core._key is not None else 0
        each = key_size + row.size + 4
        chunk = max(1, min(LONGEST_RUN, BUFFER_BYTES // each))
        self.layout = loops.Layout(key_size, size, chunk, cpus)
        self._touches = (self.kind in _TOUCHED and key_size <= touching.LONGEST_KEY
                         and entries >= touching.FEWEST_ENTRIES
                         and running_kernel() >= _MAY_GOTO)
        self._counter = counting.Counter() if self.kind in _COUNTED else None
        self._idle: list[Runner] = []
        self._closed = False
        # Whether the handle may read: that never changes.
        self._reads: bool | None = None
        # What a process has loaded: a forked child has none of it.
        self._loaded: set[tuple[int, str]] = set()
        # Why a program could not be loaded, by what it would do: asked for once.
        self._failed: dict[str, str] = {}
        self._reasons: dict[tuple[str, int], str] = {}
        self._alike: dict[str, bool] = {}
        # Elements that went by system calls for want of a program.
        self._seen = 0

    # ---- the rule ------------------------------------------------------------------------------

    def takes(self, core: MapCore, work: str, via: str, count: int, flags: int = 0,
              reason: str = "") -> bool:
        """Whether a call goes this way.

        It does where it was asked to, and where that is faster and means the same: a program that
        does the same as the system call, loaded (or loaded now, once enough elements have come),
        for more than a few elements. `reason` is one against it that the caller knows.
        """
        if via == "syscall":
            return False
        if via == "kernel":
            if reason := reason or self.why_not(core, work, flags):
                raise NotSupported(errno.EOPNOTSUPP, f"via='kernel': {reason}")
            return self._allowed(core, work)
        return (not reason and count >= FEWEST.get(work, count + 1) and self._same(work)
                and (self.has(work) or self._pays(work, count))
                and not self.why_not(core, work, flags) and self._allowed(core, work))

    def _same(self, work: str) -> bool:
        same = self._alike.get(work)
        if same is None:
            same = self._alike[work] = self._is_same(work)
        return same

    def _is_same(self, work: str) -> bool:
        if work in _WALKS:
            return True
        return (self.kind not in _DIFFERENT.get(work, ())
                and self.layout.value_size <= LARGEST
                and (self._by_pointer() or len(self.layout.cpus) <= MOST_CPUS))

    def _by_pointer(self) -> bool:
        """Whether the values of all CPUs are had with one search."""
        cpus, size = len(self.layout.cpus), self.layout.value_size
        return (self._touches and self.layout.wordwise
                and cpus * (14 + size // 4) <= percpu.MOST_WORK)

    def _pays(self, work: str, count: int) -> bool:
        self._seen += count
        return self._seen >= LOAD_PAYS and work not in self._failed

    def _allowed(self, core: MapCore, work: str) -> bool:
        """Ask whether the handle may: a program would not. Where not, the system call refuses."""
        if work in _WRITES and not core._permits(_WRITE):  # the map may be frozen meanwhile
            return False
        if self._reads is None:
            self._reads = core._permits(_READ)
        return work in _ONLY_WRITES or self._reads

    def count(self, core: MapCore, via: str, entries: int) -> int | None:
        """Return how many entries the map has now; None where a walk has to count them.

        `entries` is how many it can hold. Also where a program is asked for, a walk counts where
        there can be none: both say the same.
        """
        counter = self._counter
        if counter is None or via == "syscall" or running_kernel() < counting.SINCE:
            return None
        if not (counter.loaded or via == "kernel" or counter.pays(entries)):
            return None
        if self._flags & _FOR_PROGRAMS or not self._allowed(core, "count"):
            return None
        found = counter.count(core)
        if self._closed:
            counter.close()
        return found

    def why_not(self, core: MapCore, work: str, flags: int = 0) -> str:
        """Return why this way cannot be had for `work`; an empty text where it can."""
        reason = self._reasons.get((work, flags))
        if reason is None:
            reason = self._reasons[work, flags] = self._why_not(core, work, flags)
        return reason

    def _why_not(self, core: MapCore, work: str, flags: int) -> str:
        kind = self.kind.name
        since = SINCE_PERCPU if self.layout.cpus and work == "lookup" else SINCE
        if self.kind not in _HAVE.get(work, ()):
            if work == "update" and self.kind in _PERCPU:
                return f"a program writes the value of its own CPU only ({kind})"
            if work == "exact walk" and self.kind in _ALL_HASHES:
                return ("a program's walk over a hash that changes may repeat or miss an entry: "
                        "it takes exact=False")
            return f"no program can {work} {kind} maps" if work else f"not for {kind} maps"
        if running_kernel() < since:
            return f"it needs Linux {version_text(since)} ({kind})"
        if self._flags & _FOR_PROGRAMS:
            return "the map's flags restrict what programs may do with it"
        if flags & ~(UpdateFlag.NOEXIST | UpdateFlag.EXIST):
            return f"flags={flags}: a program updates with ANY, NOEXIST or EXIST"
        if self.kind in _OF_MAPS and touching.map_id_at() is None:
            return "the kernel's BTF does not tell where a map has its id"
        if work == "increment" and not self._fields:
            return ("increments are for values that consist of aligned integers of 4 and 8 bytes")
        if there := marked_fields(core._value.dtype):
            return f"the map's values hold {', '.join(sorted({p.kind for p in there.values()}))}"
        return special_fields(core)

    # ---- runners -------------------------------------------------------------------------------

    def has(self, work: str) -> bool:
        """Whether a program for `work` is loaded, and idle."""
        for runner in self._idle.copy():  # noqa: SIM110, a call of few keys feels a generator
            if runner.has(work) and not runner.foreign:
                return True
        return False

    def _runner(self, core: MapCore, work: str) -> Runner:
        """Return a runner of the caller's own that has the program for `work`."""
        runner = self._idle_one(work)
        if runner is None:
            runner = Runner(self.layout, not self.layout.wordwise,
                            touching.SCRATCH + percpu.EACH * len(self.layout.cpus)
                            if self._touches else 0)
        try:
            if not runner.has(work):
                runner.add(work, self.load(core, work, runner))
                self._loaded.add((os.getpid(), work))
        except BaseException:
            self._give_back(runner)
            raise
        return runner

    def _idle_one(self, work: str) -> Runner | None:
        """Take an idle runner, one that has the program for `work` where there is one."""
        idle = self._idle.copy()
        for runner in idle:
            if runner.has(work) and self._took(runner):
                return runner
        for runner in idle:
            if not runner.has(work) and self._took(runner):
                return runner
        return None

    def _took(self, runner: Runner) -> bool:
        try:
            self._idle.remove(runner)
        except ValueError:  # another thread was faster
            return False
        return not runner.foreign

    def _give_back(self, runner: Runner) -> None:
        if len(self._idle) < KEPT:
            self._idle.append(runner)
        if self._closed:
            self._idle.clear()

    def close(self) -> None:
        """Give programs and buffers back; those in use, when their calls end."""
        self._closed = True
        self._idle.clear()
        if self._counter is not None:
            self._counter.close()

    def load(self, core: MapCore, work: str, runner: Runner) -> Fd:
        """Load the program for `work` over the runner's buffer."""
        makers: dict[str, Callable[..., Code]] = {
            "lookup": loops.lookup_percpu if self.layout.cpus else loops.lookup,
            "take": partial(loops.lookup, delete=True),
            "update": loops.update,
            "delete": loops.delete,
            "increment": partial(loops.increment, fields=self._fields),
            "push": loops.push,
            "pop": loops.pop,
        }
        make: Callable[..., Code] = partial(makers[work], core._fd, runner.buffer, self.layout,
                       may_goto=running_kernel() >= _MAY_GOTO)
        if work in ("lookup", "take"):
            make = partial(make, rows=runner.large)
        if work == "lookup" and self.kind is MapType.HASH and (
                self.layout.value_size <= touching.LONGEST_TAKEN):
            make = partial(make, take=True)
        if self.kind in _OF_MAPS:
            make = partial(make, id_at=touching.map_id_at())
        name, sleepable = f"fastmap_{work}"[:15], self.kind not in _DETOUR
        tired = InKernel._tired and bool(self.layout.cpus)
        if self._touches and runner.scratch is not None and work != "increment":
            try:
                if not tired and (code := self._touching(make, core, work, runner)) is not None:
                    return load(core, code, name, sleepable)
            except BpfError:  # it takes CAP_PERFMON; the plain one below tells if it fails, too
                pass
            self._touches = False
            self._alike.clear()
        if not tired:
            try:
                return load(core, make(), name, sleepable)
            except BpfError as error:
                if error.errno != errno.E2BIG or not self.layout.cpus:
                    raise
            InKernel._tired = True
        return load(core, make(may_goto=False), name, sleepable)

    def _touching(self, make: Callable[..., Code], core: MapCore, work: str,
                  runner: Runner) -> Code | None:
        """Make the program that touches memory ahead; None where the kernel is not as thought."""
        cpus, size = self.layout.cpus, self.layout.value_size
        what = touching.inside()
        assert runner.scratch is not None
        if what is None or not buckets.as_thought(bool(cpus)):
            return None
        toucher = touching.Toucher(core._fd, runner.scratch, what, self.layout.key_size,
                                   buckets.POINTER if cpus else size)
        if work == "lookup" and cpus and self._by_pointer():
            make = partial(make, values=percpu.Values(toucher, percpu.anchored(), cpus))
        return make(toucher=toucher)

    def run(self, core: MapCore, work: str, asked: bool,
            by_program: Callable[[Runner], int], by_call: Callable[[], int]) -> int:
        """Do a call's loop by a program, or, where that cannot be loaded, by system calls."""
        while True:
            try:
                runner = self._runner(core, work)
            except BpfError as error:
                if error.errno != errno.ENOMEM:
                    self._failed[work] = str(error)
                if not asked:
                    return by_call()
                if (os.getpid(), work) not in self._loaded:
                    raise _explained(error) from error
                sleep(0.0002)  # those that are loaded are in use by other threads
                continue
            try:
                return by_program(runner)
            finally:
                self._give_back(runner)

    def prepare(self, core: MapCore, threads: int = 1) -> tuple[str, ...]:
        """Load all that the map's calls may need, for so many threads; return for what."""
        works = tuple(work for work in _HAVE
                      if work not in _WALKS and not self.why_not(core, work))
        if not works:
            raise NotSupported(errno.EOPNOTSUPP, self.why_not(core, "lookup"))
        runners = []
        try:
            for _ in range(threads):
                runners.append(self._runner(core, works[0]))
                for work in works:
                    if not runners[-1].has(work):
                        runners[-1].add(work, self.load(core, work, runners[-1]))
                        self._loaded.add((os.getpid(), work))
        except BpfError as error:
            raise _explained(error) from error
        finally:
            for runner in runners:
                self._give_back(runner)
        self.count(core, "kernel", 0)
        return works


class Loops:
    """`MapCore`'s loops over given keys, done by programs."""

    def __init__(self, way: InKernel, core: MapCore, work: str, asked: bool) -> None:
        self._way = way
        self._core = core
        self._work = work
        self._asked = asked

    def _lookup_rows(self, keys: Rows, rows: _Rows, found: npt.NDArray[np.bool_],
                     columns: Columns | None, command: int) -> int:
        def by_program(runner: Runner) -> int:
            return runner.lookup_rows(self._work, self._core, keys, rows, found, columns, command)

        def by_call() -> int:
            return self._core._lookup_rows(keys, rows, found, columns, command)

        return self._way.run(self._core, self._work, self._asked, by_program, by_call)

    def _apply_rows(self, command: int, keys: Rows, values: Rows | None, flags: int, mode: str,
                    errnos: npt.NDArray[np.int32] | None = None) -> int:
        def by_program(runner: Runner) -> int:
            return runner.apply_rows(self._work, self._core, command, keys, values, flags, mode,
                                     errnos)

        def by_call() -> int:
            return self._core._apply_rows(command, keys, values, flags, mode, errnos)

        return self._way.run(self._core, self._work, self._asked, by_program, by_call)

    def increment_rows(self, keys: Rows, deltas: Rows, found: npt.NDArray[np.bool_]) -> int:
        """Add to each key's value, and tell which were found."""
        def by_program(runner: Runner) -> int:
            return runner.apply_rows(self._work, self._core, Command.MAP_UPDATE_ELEM, keys, deltas,
                                     0, "return", found)

        def by_call() -> int:
            raise AssertionError("there is no system call that increments")

        return self._way.run(self._core, self._work, True, by_program, by_call)

    def push_rows(self, values: Rows, flags: int, errnos: npt.NDArray[np.int32] | None,
                  by_call: Callable[[], int]) -> int:
        """Push values onto a queue or stack; return how many, as `MapCore._apply_rows` does."""
        def by_program(runner: Runner) -> int:
            return runner.apply_rows(self._work, self._core, Command.MAP_UPDATE_ELEM, None, values,
                                     flags, "raise" if errnos is None else "return", errnos)

        return self._way.run(self._core, self._work, self._asked, by_program, by_call)

    def pop_rows(self, rows: _Rows, by_call: Callable[[], int]) -> int:
        """Pop values off a queue or stack into `rows`; return how many there were."""
        def by_program(runner: Runner) -> int:
            return runner.pop_rows(self._work, self._core, rows)

        return self._way.run(self._core, self._work, self._asked, by_program, by_call)


class Walks:
    """Whole reads of a map by a program: its buffers are made at the first, and kept.

    Parameters
    ----------
    way : InKernel
    core : MapCore
    entries : int
        How many the map can hold.
    columns : Columns or None
        What to make of each entry.
    via : str
    exact : bool
    """

    def __init__(self, way: InKernel, core: MapCore, entries: int, columns: Columns | None,
                 via: str, exact: bool) -> None:
        size = core._value.size
        self._way = way
        self._core = core
        self._entries = entries
        self._via = via
        self._array = way.kind is MapType.ARRAY
        self._work = "exact walk" if exact else "walk"
        self._columns: tuple[walks.Column, ...] = (
            ("copy", "bytes", False, 0, 0, size),) if columns is None else columns.given
        self._condition = None if columns is None else columns.condition
        self._out_size = size if columns is None else columns.out_size
        self._cpus = way.layout.cpus
        # What goes over buckets itself does it in short runs, and reads the values of all CPUs.
        self._inside = touching.inside() if (
            way.kind in _ALL_HASHES and running_kernel() >= _MAY_GOTO
            and (self._cpus or entries >= touching.FEWEST_ENTRIES)) else None
        first = self._first_capacity()
        if columns is None and isinstance(core._value, PerCpuCodec):
            self._columns = buckets.wide(core._value)
        self._reason = (walks.why_not(self._columns, self._condition, len(self._cpus))
                        or self._too_large(first) or self._for_want_of_buckets())
        self._walker: Walker | None = None
        #: How many entries the last read found; as many as there can be where that is not known.
        self.found = entries
        if via == "kernel":
            way.takes(core, self._work, via, entries, reason=self._reason)  # says why not

    def _for_want_of_buckets(self) -> str:
        return "" if self._inside or not self._cpus else (
            "a walk that reads the values of other CPUs needs Linux 6.9, built as is thought")

    def _too_large(self, capacity: int) -> str:
        each = max(self._core._key.size, self._out_size)
        if self._inside is None and self._entries > MOST_WALKED:
            return (f"a walk is one system call, which nothing interrupts: {self._entries} entries "
                    "are too many")
        if capacity * each > min(MOST_KEPT, walks.MOST_OUTPUT):
            return f"{capacity} entries of {each} bytes are too many to be kept in the kernel"
        return ""

    def read(self) -> Walker | None:
        """Walk the map; return the buffers, or None where batches have to read it."""
        way, core, asked = self._way, self._core, self._via == "kernel"
        if not way.takes(core, self._work, self._via, self._entries, reason=self._reason):
            return None
        if not asked and not self._array and self.found < SPARSE * self._entries:
            return None
        try:
            if self._walker is None or self._walker.foreign:
                self._make(self._first_capacity())
            while self._walker is not None and not self._walker.fill(core):
                self._make(4 * self._walker.capacity)
        except BpfError as error:
            self._walker = None
            if asked:
                raise _explained(error) from error
            if error.errno != errno.ENOMEM:
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
        walker = Walker(core._key.size, self._out_size, capacity, self._array)
        output = walks.Output(walker.head_map, walker.keys_map, walker.values_map, core._key.size,
                              self._out_size, capacity, self._columns, self._condition)
        if self._inside is not None:
            try:
                if not buckets.as_thought(bool(self._cpus)):
                    self._inside = None
                else:
                    walker.use(buckets.load_walk(core, output, self._inside, self._cpus))
            except BpfError:  # it takes CAP_PERFMON
                if self._cpus:
                    raise
                self._inside = None
        if self._inside is None:
            if reason := self._too_large(capacity) or self._for_want_of_buckets():
                raise NotSupported(errno.EOPNOTSUPP, reason)
            walker.use(load(core, walks.walk(core._fd, output), "fastmap_walk"))
        self._walker = walker


def _explained(error: BpfError) -> BpfError:
    """Say which capability it is that a load failed for, if it is that."""
    missing = missing_capabilities("CAP_BPF", "CAP_PERFMON")
    if error.errno not in (errno.EPERM, errno.EACCES) or not missing:
        return error
    return PermissionDenied(error.errno, f"via='kernel': loading its program needs "
                            f"{' and '.join(missing)}; {error.strerror}")


def special_fields(core: MapCore) -> str:
    """Return what in the map's values a program must not copy, by its BTF; "" where nothing."""
    info = syscall.map_info(core._fd)
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
