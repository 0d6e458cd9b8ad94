"""How many entries a hash has, as the kernel counts them itself: by a program that asks for it.

bpf_map_sum_elem_count (Linux 6.6) adds up a counter of each CPU, whatever the map's size. Once
writers have stopped it says what a walk finds; while they go on, neither is of one moment.
"""

from __future__ import annotations

from functools import cache

from fastmap._core.maps.map import MapCore
from fastmap._core.maps.runner import find_types, load, returned
from fastmap._core.system.syscall import Fd
from fastmap.asm import R0, R1, Assembler, Code, HasFileno
from fastmap.btf.encoder import Kind
from fastmap.errors import is_shortage
from fastmap.inkernel.prefetch import kernel_btf

#: The first Linux whose hashes all count, and let a program ask.
SINCE = (6, 6)
#: Loading takes the time of a walk over so many entries, looking up the function in the kernel's
#: BTF included (measured): the room of the maps that walks were over counts.
PAYS = 1 << 16


@cache
def function() -> int | None:
    """Return the BTF id of the kernel's function, or None where it has none."""
    try:
        return int(find_types(kernel_btf(), ((b"bpf_map_sum_elem_count", Kind.FUNC),))[0][0])
    except (KeyError, ValueError):
        return None


def program(map: int | HasFileno, asked: int) -> Code:
    """Make a program that returns how many entries a map has, which fits a result's 32 bits."""
    a = Assembler()
    a.ld_map(R1, map)
    a.call_kfunc(asked)
    a.jsge(R0, 0, "whole")  # CPUs are added one after the other, while others count
    a.mov(R0, 0)
    a.label("whole")
    a.exit()
    return a.assemble()


class Counter:
    """The program for one map; loaded once it pays, given back by `close`."""

    def __init__(self) -> None:
        self._program: Fd | None = None
        self._failed = False
        self._walked = 0

    @property
    def loaded(self) -> bool:
        """Whether the program is there."""
        return self._program is not None

    def pays(self, entries: int) -> bool:
        """Note a walk over a map of so many entries; tell whether to load instead."""
        self._walked += entries
        return self._walked >= PAYS and not self._failed

    def count(self, core: MapCore) -> int | None:
        """Return how many entries there are; None where a program cannot be had."""
        mine = self._program
        if mine is None:
            if self._failed:
                return None
            try:
                if (asked := function()) is None:
                    return None
                mine = self._program = load(core, program(core.fd, asked), "fastmap_count")
            except (OSError, MemoryError) as error:  # for want of a capability: a walk counts
                self._failed = not is_shortage(error)
                return None
        return returned(core, mine)

    def close(self) -> None:
        """Give the program back; one in use, when its call ends."""
        self._program = None
