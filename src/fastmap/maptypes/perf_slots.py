"""Whether the events of a perf buffer are still where programs look for them.

Two things take them away, and programs are refused from then on without anything being counted: a
second reader on the same map, whose events replace these, and leave empty slots when it closes; and
a CPU that goes offline, whose event stays in the map, and dead when the CPU comes back.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastmap._core.streams.perf import PerfRings
from fastmap._core.system.program import Program
from fastmap.asm import FP, R0, R1, R2, R3, R4, Assembler, Helper

if TYPE_CHECKING:
    from fastmap.maptypes.references import PerfEventArray

RUN_ON_CPU = 1
_EMPTY, _UNKNOWN = 0, 2
_MASK = 0xFFFFFFFF


class PerfSlots:
    """Looks after the slots of a map that a perf buffer has its events in.

    Called with the rings, it puts back what was taken out, and opens anew what is dead.

    Attributes
    ----------
    gaps : dict
        How often that was so, by CPU.
    """

    def __init__(self, events: PerfEventArray, online: Callable[[], list[int]]) -> None:
        self.gaps: dict[int, int] = {}
        self._events = events
        self._online = online
        self._probe: Program | None = None
        self._probes = True
        self._strangers: set[int] = set()

    def __call__(self, core: PerfRings) -> None:
        if self._events.closed:
            return
        online = set(self._online())
        for i, cpu in enumerate(core.cpus):
            if cpu not in online:
                continue
            try:
                self._look(core, i, cpu)
            except OSError:
                continue  # for lack of descriptors, or a CPU that goes: there is a next time

    def _look(self, core: PerfRings, i: int, cpu: int) -> None:
        before = core.enabled(i)
        if core.enabled(i) == before:
            if core.reopen(i):
                self._put(core, i, cpu, "went away with its CPU")
            return
        found = self.holder(core, i, cpu)
        if found is None:
            self._put(core, i, cpu, "was taken out of the map, as by another reader's close()")
        elif found:
            self._strangers.discard(cpu)
        elif cpu not in self._strangers:
            self._strangers.add(cpu)
            warnings.warn(f"another reader has put its event into slot {cpu} of {self._events!r}: "
                          f"it gets the records of CPU {cpu}", RuntimeWarning, stacklevel=2)

    def _put(self, core: PerfRings, i: int, cpu: int, why: str) -> None:
        self._events.update(cpu, core.fds()[i])
        if core.closed:  # by another thread meanwhile, which took out what was there then
            self._events.delete_many([cpu])
            return
        self._strangers.discard(cpu)
        self.gaps[cpu] = self.gaps.get(cpu, 0) + 1
        warnings.warn(f"the event of CPU {cpu} {why}, and is there again: records written "
                      "meanwhile are lost, and the kernel counts none of them", RuntimeWarning,
                      stacklevel=2)

    def holder(self, core: PerfRings, i: int, cpu: int) -> bool | None:
        """Tell whether a slot holds the rings' own event; None where it is empty.

        True as well where that cannot be found out: the program is refused, or the CPU offline.
        """
        before = core.enabled(i)
        found = self._asked(cpu)
        after = core.enabled(i)
        if found == _EMPTY:
            return None
        if found == _UNKNOWN:
            return True
        # An event is known by the time since it was enabled; the lowest bit is always set.
        return (found - (before | 1)) & _MASK <= ((after | 1) - (before | 1)) & _MASK

    def _asked(self, cpu: int) -> int:
        if self._probe is None and self._probes:
            try:
                self._probe = Program("raw_tracepoint", _probe(self._events), name="fm_slot")
            except OSError as error:
                self._probes = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM,
                                               errno.EAGAIN)
        if self._probe is None:
            return _UNKNOWN
        try:
            return self._probe.run(cpu=cpu, flags=RUN_ON_CPU) & _MASK
        except OSError:
            return _UNKNOWN

    def own(self, core: PerfRings) -> list[int]:
        """Return the CPUs whose slots hold the rings' own events."""
        return [cpu for i, cpu in enumerate(core.cpus) if self.holder(core, i, cpu)]

    def close(self) -> None:
        """Let go of the program."""
        probe, self._probe, self._probes = self._probe, None, False
        if probe is not None:
            probe.close()


def _probe(events: PerfEventArray) -> bytes:
    """A program that returns for how long this CPU's event has been enabled, odd; or why not."""
    a = Assembler()
    a.ld_map(R1, events)
    a.mov(R2, -1)
    a.rsh(R2, 32)  # this CPU
    a.mov(R3, FP)
    a.add(R3, -24)
    a.mov(R4, 24)
    a.call(Helper.PERF_EVENT_READ_VALUE)
    a.jeq(R0, 0, "there")
    a.jeq(R0, -errno.ENOENT, "empty")
    a.mov(R0, _UNKNOWN)
    a.exit()
    a.label("empty")
    a.mov(R0, _EMPTY)
    a.exit()
    a.label("there")
    a.ldx(4, R0, FP, -16)
    a.or_(R0, 1)
    a.exit()
    return a.assemble().insns
