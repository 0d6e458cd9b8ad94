"""Histograms, drawn: what programs count in slots, mostly of powers of two."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from fastmap.cli.shared.cells import cells
from fastmap.cli.shared.output import BOLD, GREEN, Failure, Misuse, styled, width
from fastmap.cli.shared.selection import column
from fastmap.maptypes.batch import Batch
from fastmap.text.visible import visible

Array = npt.NDArray[Any]

#: Names of the field of a key that is the slot, and of the field of a value that holds all slots.
SLOT, SLOTS = ("slot", "bucket"), ("slots", "buckets")
#: Names of the field of a value that counts, where it has several.
COUNTS = ("count", "value", "hits")
#: Histograms of one map that are drawn: those that count the most.
MOST = 20
#: Slots of powers of two that a number of 64 bits can have; more than so many lines, nobody reads.
POWERS, LINES = 65, 4096


def draw(chunks: Iterable[Batch], *, by: str | None = None, linear: bool = False,
         unit: str = "") -> None:
    """Draw what a map counts in slots, a histogram for each other part of its keys."""
    found: dict[str, dict[int, int]] = {}
    for batch in chunks:
        _gather(batch, by, found)
    full = {name: slots for name, slots in found.items() if any(slots.values())}
    if not full:
        print("nothing counted")
        return
    busiest = sorted(full, key=lambda name: sum(full[name].values()), reverse=True)
    for number, name in enumerate(busiest[:MOST]):
        if number:
            print()
        if name:
            print(styled(name, BOLD))
        print("\n".join(lines(full[name], linear, unit)))
    if len(busiest) > MOST:
        print(f"\nand {len(busiest) - MOST} more, with fewer counts")


def _gather(batch: Batch, by: str | None, found: dict[str, dict[int, int]]) -> None:
    """Add a batch's counts to `found`: for each histogram's name, its counts by slot."""
    keys, values = batch.keys, batch.values
    names = values.dtype.names or ()
    whole = next((values[name] for name in SLOTS if name in names), None)
    if whole is None and values.ndim == 2 and values.dtype.kind in "iu":
        whole = values
    if whole is not None and whole.ndim == 2:
        # A value holds the slots: one histogram for each key.
        rest = [name for name in names if name not in SLOTS and values.dtype[name].kind == "S"]
        for name, slots, label in zip(_labels(keys), whole.tolist(), _words(values, rest),
                                      strict=True):
            name = ", ".join(filter(None, [name, label]))
            found[name] = {slot: int(n) for slot, n in enumerate(slots)}
        return
    counts = column(batch, by or _counting(values))
    field = next((name for name in SLOT if name in (keys.dtype.names or ())), None)
    if keys.dtype.names is not None and field is None:
        raise Failure(f"no histogram: the key has no field {' or '.join(SLOT)} among "
                      f"{', '.join(keys.dtype.names)}, and the value no array of slots")
    slots = keys if field is None else keys[field]
    if slots.ndim != 1 or slots.dtype.kind not in "iu":
        raise Failure(f"no histogram: a slot is an integer, not {slots.dtype}")
    if field is None:
        labels = [""] * len(keys)
    else:
        others = [name for name in keys.dtype.names or () if name != field]
        labels = _words(keys, others, True)
    for label, slot, n in zip(labels, slots.tolist(), counts.tolist(), strict=True):
        of = found.setdefault(label, {})
        of[slot] = of.get(slot, 0) + n


def _counting(values: Array) -> str:
    if values.dtype.names is None:
        return "value"
    numbers = [name for name in values.dtype.names if values.dtype[name].kind in "iuf"]
    for name in (*COUNTS, *(numbers if len(numbers) == 1 else ())):
        if name in numbers:
            return f"value.{name}"
    raise Misuse(f"which field counts? --by value.FIELD, with one of {', '.join(numbers)}")


def _labels(keys: Array) -> list[str]:
    if keys.dtype.names is None:
        return [f"key {text}" for text in cells(keys)]
    return _words(keys, list(keys.dtype.names), True)


def _words(records: Array, names: list[str], named: bool = False) -> list[str]:
    parts = [[f"{name} {text}" if named else text for text in cells(records[name])]
             for name in names]
    return [", ".join(filter(None, row)) for row in zip(*parts, strict=True)] if parts else (
        [""] * len(records))


def bounds(slot: int, linear: bool) -> tuple[int, int]:
    """Return the smallest and the largest number that a slot counts.

    >>> bounds(0, False), bounds(1, False), bounds(10, False)
    ((0, 1), (2, 3), (1024, 2047))
    """
    if linear:
        return slot, slot
    return (0 if slot == 0 else 1 << slot), (1 << slot + 1) - 1


def lines(slots: dict[int, int], linear: bool, unit: str) -> list[str]:
    """Return a histogram as lines of text, from its first slot that counts to the last."""
    used = [slot for slot, n in slots.items() if n]
    first, last = min(used), max(used)
    if not linear and (first < 0 or last >= POWERS):
        raise Failure(f"slots from {first} to {last} are no powers of two: --linear")
    if last - first >= LINES:
        raise Failure(f"slots from {first} to {last} are too many for a drawing")
    most = max(slots.values())
    ranges = []
    for slot in range(first, last + 1):
        low, high = bounds(slot, linear)
        ranges.append(str(low) if linear else f"{low} -> {high}")
    counts = [f"{slots.get(slot, 0)}" for slot in range(first, last + 1)]
    heading = visible(unit) or ("slot" if linear else "range")
    left = max(len(heading), *map(len, ranges))
    right = max(len("count"), *map(len, counts))
    room = min(40, max(8, (width() or 80) - left - right - 6))
    text = [f"{heading:>{left}}  {'count':>{right}}  distribution"]
    for slot, said, n in zip(range(first, last + 1), ranges, counts, strict=True):
        stars = "*" * round(room * max(slots.get(slot, 0), 0) / most)
        if not stars and slots.get(slot, 0) > 0:
            stars = "."
        bar = styled(stars.ljust(room), GREEN, sys.stdout)
        text.append(f"{said:>{left}}  {n:>{right}}  |{bar}|")
    return text
