"""The in-kernel operations, a row each: for which map types, from when on, by what program.

A new operation is a row here and the generator of its program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmap._core.system.syscall import Fd
from fastmap.asm import Code
from fastmap.enums import MapType
from fastmap.inkernel import key_programs, prefetch
from fastmap.inkernel.key_programs import Layout
from fastmap.inkernel.percpu_values import Values
from fastmap.inkernel.prefetch import Toucher
from fastmap.kernel.map_facts import FACTS, of_family, types_where


@dataclass(frozen=True)
class Target:
    """What a program is made for: one map, one buffer, and what this kernel has.

    Attributes
    ----------
    kind : MapType
    map, buffer : Fd
    layout : Layout
    rows : Fd or None
        The array that large values are copied to.
    may_goto : bool
    fields : tuple of (int, int)
        Offset and bytes of what an increment adds to.
    toucher : Toucher or None
        What prefetches.
    values : Values or None
        What copies the values of all CPUs from where a prefetched element has them.
    """

    kind: MapType
    map: Fd
    buffer: Fd
    layout: Layout
    rows: Fd | None
    may_goto: bool
    fields: tuple[tuple[int, int], ...] = ()
    toucher: Toucher | None = None
    values: Values | None = None


@dataclass(frozen=True)
class Operation:
    """What a call does to many elements, or to all of a map.

    Attributes
    ----------
    name : str
    types : frozenset of MapType
        For which there is a program.
    make : callable or None
        Makes the program for a `Target`; None for what `whole_reads` walks.
    fewest : int or None
        The smallest number of elements that is faster in the kernel, once the program is loaded
        (measured). None: only where it is asked for.
    writes, reads : bool
        What the handle must be allowed to do.
    same_meaning : frozenset of MapType
        Where the program means what the system call means; "auto" takes it nowhere else.
    prefetches : bool
        Whether the program gains by a `Toucher`.
    """

    name: str
    types: frozenset[MapType]
    make: Callable[[Target], Code] | None
    fewest: int | None
    writes: bool
    reads: bool
    same_meaning: frozenset[MapType]
    prefetches: bool = False

    @property
    def walks(self) -> bool:
        """Whether it is about the whole map."""
        return self.make is None


def _lookup(t: Target) -> Code:
    if t.layout.cpus:
        return key_programs.lookup_percpu(
            t.map, t.buffer, t.layout, may_goto=t.may_goto, rows=t.rows, toucher=t.toucher,
            values=t.values)
    facts = FACTS[t.kind]
    return key_programs.lookup(
        t.map, t.buffer, t.layout, may_goto=t.may_goto, rows=t.rows, toucher=t.toucher,
        take=t.kind is MapType.HASH and t.layout.value_size <= prefetch.LONGEST_TAKEN,
        id_at=prefetch.map_id_at() if facts.family == "maps" else None)


def _take(t: Target) -> Code:
    return key_programs.lookup(
        t.map, t.buffer, t.layout, may_goto=t.may_goto, rows=t.rows, toucher=t.toucher,
        delete=True)


def _update(t: Target) -> Code:
    return key_programs.update(
        t.map, t.buffer, t.layout, may_goto=t.may_goto, toucher=t.toucher)


def _delete(t: Target) -> Code:
    return key_programs.delete(
        t.map, t.buffer, t.layout, may_goto=t.may_goto, toucher=t.toucher)


def _increment(t: Target) -> Code:
    return key_programs.increment(t.map, t.buffer, t.layout, t.fields, may_goto=t.may_goto)


def _push(t: Target) -> Code:
    return key_programs.push(t.map, t.buffer, t.layout, may_goto=t.may_goto)


def _pop(t: Target) -> Code:
    return key_programs.pop(t.map, t.buffer, t.layout, may_goto=t.may_goto)


#: Hashes of a fixed layout: all that a program can walk, and delete from.
HASHES = types_where(lambda facts: facts.family == "hash" and not facts.resizes)
_ONE_VALUE = types_where(lambda f: f.family in ("hash", "array") and not (f.per_cpu or f.resizes))
_ARRAYS = _ONE_VALUE - HASHES
_LRU = types_where(lambda facts: facts.lru)
_QUEUES = of_family("queue")
_LOOKUPS = HASHES | of_family("array", "maps", "trie")
_NONE: frozenset[MapType] = frozenset()

OPERATIONS = {row.name: row for row in (
    # A program's lookup refreshes an LRU entry, a system call's does not.
    Operation("lookup", _LOOKUPS, _lookup, 4, False, True, _LOOKUPS - _LRU, True),
    Operation("update", _ONE_VALUE, _update, 4, True, False, _ONE_VALUE, True),
    Operation("delete", HASHES, _delete, 4, True, False, HASHES, True),
    # A program takes an entry in two steps, not in one.
    Operation("take", _ONE_VALUE - _ARRAYS, _take, None, True, True, _NONE, True),
    # No system call does this: it is always asked for.
    Operation("increment", _ONE_VALUE, _increment, None, True, True, _ONE_VALUE),
    Operation("push", _QUEUES, _push, 4, True, False, _QUEUES),
    Operation("pop", _QUEUES, _pop, 4, True, True, _QUEUES),
    Operation("walk", HASHES | _ARRAYS, None, 64, False, True, HASHES | _ARRAYS),
    Operation("exact walk", _ARRAYS, None, 64, False, True, _ARRAYS),
)}


def counters(dtype: np.dtype[Any] | None) -> tuple[tuple[int, int], ...]:
    """Return offset and bytes of each integer of a value that can be incremented in place.

    Empty where the value has anything else than integers of 4 and 8 bytes, each at a multiple of
    its size.
    """
    found: list[tuple[int, int]] = []
    todo = [] if dtype is None else [(dtype, 0)]
    while todo:
        each, at = todo.pop()
        base, shape = each.subdtype or (each, ())
        if shape:
            todo += [(base, at + i * base.itemsize) for i in range(each.itemsize // base.itemsize)]
        elif each.names is not None and each.fields is not None:
            todo += [(field[0], at + field[1]) for field in each.fields.values()]
        elif each.kind in "iu" and each.itemsize in (4, 8) and each.isnative \
                and at % each.itemsize == 0:
            found.append((at, each.itemsize))
        else:
            return ()
    return tuple(sorted(found))
