"""How full a map is, and what comes of it: evictions, or updates that fail. See `collect`."""

from __future__ import annotations

from typing import NamedTuple

from fastmap._core.system.syscall import possible_cpus
from fastmap.enums import MapFlag
from fastmap.kernel.map_facts import FACTS
from fastmap.maptypes.handle import Map
from fastmap.maptypes.table import DictMap

#: From this part of the capacity on there is a warning.
NEAR = 0.9
#: Of an LRU: from this part of the way from the capacity to `max_entries` on.
LIKELY = 0.375

# Free elements that the kernel sets aside for a CPU at most: LOCAL_FREE_TARGET of
# kernel/bpf/bpf_lru_list.c. Since Linux 6.16 also no more than half of the CPU's part of the map.
_SET_ASIDE = 128


class Pressure(NamedTuple):
    """How full a map is.

    Attributes
    ----------
    entries : int
        How many there are now.
    capacity : int
        Up to so many the map keeps for sure: of an LRU it is less than `max_entries`.
    max_entries : int
    evicts : bool
        Whether a full map makes room for a new key, by the loss of another one.
    warning : str
        What there is to say, in one line; empty where there is room.
    """

    entries: int
    capacity: int
    max_entries: int
    evicts: bool
    warning: str

    @property
    def used(self) -> float:
        """The part of the capacity that is used; over 1 in an LRU that is full."""
        return self.entries / self.capacity


def capacity(m: Map) -> int:
    """Return how many entries a map keeps for sure.

    An LRU sets up to 128 free elements aside for each CPU that adds to it, and evicts others
    while these are free. Measured on Linux 6.18 with 2 CPUs: 856 of 1,000 entries, 9,840 of 10,000
    (98%), 99,936 of 100,000. With NO_COMMON_LRU each CPU has its own part and evicts from it
    alone: one CPU that adds all keys fills only that, 50% with 2 CPUs.
    """
    cpus = len(possible_cpus())
    if not FACTS[m.type].lru:
        return m.max_entries
    if m.flags & MapFlag.NO_COMMON_LRU:
        return max(m.max_entries // cpus, 1)
    return max(m.max_entries - min(_SET_ASIDE * cpus, m.max_entries // 2), 1)


def pressure(m: Map, *, near: float = NEAR) -> Pressure:
    """Tell how full a map is, and warn where it is nearly full.

    Parameters
    ----------
    m : Map
        A hash, an LRU, an LPM trie: a map to which keys are added.
    near : float
        From which part of the capacity on there is a warning.

    Returns
    -------
    Pressure

    Raises
    ------
    TypeError
        The map has no keys that come and go: an array is always full.
    ValueError
        `near` is not within 0 and 1.

    Notes
    -----
    The entries are counted as ``len(m)`` does: a few microseconds where the kernel keeps their
    number, a walk elsewhere. Of a full LRU they go up and down between the capacity and
    ``max_entries``, and the kernel tells nobody of evictions: there is a warning where the number
    says that they are likely (measured on Linux 6.18: 856 of 1,000, where the capacity is 744).
    `near` is for maps that refuse.
    """
    if not isinstance(m, DictMap):
        raise TypeError(f"{type(m).__name__} has no keys that are added: nothing fills it")
    if not 0 <= near <= 1:
        raise ValueError(f"near={near}: from 0 to 1")
    entries, most, evicts = len(m), capacity(m), FACTS[m.type].lru
    warning = ""
    from_on = near * most if not evicts else most if m.flags & MapFlag.NO_COMMON_LRU else (
        # In between: above `most` the first eviction may come, at `max_entries` it must have.
        most + LIKELY * (m.max_entries - most))
    if entries >= from_on:
        state = "full" if evicts or entries >= most else "nearly full"
        share = (f"{entries} entries, of {most} to {m.max_entries} that it keeps" if evicts
                 else f"{entries} of {most} entries")
        if evicts and m.flags & MapFlag.NO_COMMON_LRU:
            comes = (f"each CPU has room for {most} entries of its own, and evicts one for each "
                     "new key beyond; without NO_COMMON_LRU they share")
        elif evicts:
            comes = "each new key evicts another entry, whose counters are lost"
        else:
            comes = "updates with new keys fail (MapFull)"
        warning = (f"{m.name or 'map'} {m.id} is {state}, {share}: "
                   f"{comes if state == 'full' else 'soon ' + comes}; raise max_entries "
                   f"(now {m.max_entries})")
    return Pressure(entries, most, m.max_entries, evicts, warning)
