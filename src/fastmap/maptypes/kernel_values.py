"""What maps of maps and maps of references share: values that are things of the kernel.

Such a map is written with a descriptor (of a map, a program, a socket) or a number (of a device),
and gives back another number: an id, a cookie, a record.
"""

from __future__ import annotations

import errno
import operator
from typing import Any, ClassVar

import numpy as np

from fastmap._core.maps.map import MapCore
from fastmap._core.rows.rows import rows_of
from fastmap._core.system.program import Link, Program
from fastmap._core.system.syscall import Fd, Held
from fastmap.enums import ANY, Command
from fastmap.errors import from_errno
from fastmap.maptypes.batch import Array
from fastmap.maptypes.keyed import KeyedMap, Keys
from fastmap.maptypes.reader import count
from fastmap.maptypes.rules import INDEX
from fastmap.maptypes.table import MISSING, Table, pop

#: The default of a `pop` that has none.


def descriptor(value: Any, what: str, held: list[Fd], *, plain: bool = False) -> int:
    """Return the descriptor of `value`, which is `what`; fastmap's own go to `held`.

    With `plain`, an integer is taken for a descriptor.
    """
    if isinstance(value, (MapCore, Program, Link)):
        held.append(value.fd)
        return value.fd.fileno()
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not plain:
            raise TypeError(f"a value is {what}: an object with fileno(), not {value!r}; a number "
                            "could be a descriptor, or what the map gives back for one")
        number = int(value)
    else:
        fileno = getattr(value, "fileno", None)
        if not callable(fileno):
            raise TypeError(f"a value is {what}: an object with fileno()"
                            f"{' or a descriptor' if plain else ''}, not {value!r:.60}")
        number = operator.index(fileno())
    if number < 0:
        raise ValueError(f"{value!r:.60} is closed, or no descriptor ({number})")
    if number > 0x7FFFFFFF:
        raise OverflowError(f"{number} is no descriptor")
    return number


class Referring(KeyedMap):
    """Maps whose values are written as things of the kernel."""

    #: Whether a write waits, for milliseconds: then it gives up the GIL.
    waits: ClassVar[bool] = False

    def _raw(self, value: Any, held: list[Fd]) -> Any:
        """Return what stands for `value` in the map's value dtype.

        Descriptors that must stay open until the kernel has them go to `held`.
        """
        raise NotImplementedError

    def _raw_array(self, values: Array) -> Any:
        """Return rows for an array of numbers; refused where numbers are no values."""
        return [self._raw(value, []) for value in values]

    def _raws(self, values: Any, held: list[Fd]) -> Any:
        """Return `values`, many or one for all keys, as `rows_of` takes them."""
        if isinstance(values, np.ndarray) and values.dtype != object:
            return self._raw_array(values)
        # As in all other maps: a tuple is one record where values are records.
        if isinstance(values, (list, range, np.ndarray)) or (
                isinstance(values, tuple) and self.value_dtype.names is None):
            return [self._raw(value, held) for value in values]
        return self._raw(values, held)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        self.update_elem(key, value, ANY)

    def update_elem(self, key: Any, value: Any, flags: int) -> None:
        held: list[Fd] = []
        raw = self._raw(value, held)
        with Held(held):
            if self.waits:
                self.apply_one(Command.MAP_UPDATE_BATCH, Command.MAP_UPDATE_ELEM, key, raw, flags)
            else:
                super().update_elem(key, raw, flags)

    def apply_one(self, many: Command, one: Command, key: Any, raw: Any, flags: int) -> None:
        """Apply a command to `one` key, by the loop over `many`: that one gives up the GIL."""
        errnos = np.zeros(1, np.int32)
        keys = self.key_rows([key])
        values = None if raw is None else rows_of([raw], self.value)
        self.apply_rows(many, keys, values, flags, "return", errnos)
        if errnos[0]:
            raise from_errno(int(errnos[0]), one, self.kind, f"key {key!r:.60}")

    def update_many(self, keys: Keys, values: Any, *, flags: int = ANY, errors: str = "raise",
                    via: str | None = None, threads: int = 1) -> Any:
        """Set many values; see `Map.update_many`.

        Parameters
        ----------
        keys : array_like
        values : sequence
            One for each key, given as for `update`; or one for all.
        flags, errors, via, threads
            As for `Map.update_many`.
        """
        route = self.route(via)
        rows = self.key_rows(keys)
        held: list[Fd] = []
        raws = self._raws(values, held)
        with Held(held):
            return self.apply_many(
                Command.MAP_UPDATE_BATCH, rows, rows_of(raws, self.value, rows.count), flags,
                errors, ("raise", "return"), threads, route)


class Indexed(Referring):
    """Numbered slots, each of which may be empty."""

    keys_are = INDEX
    nothing_there = frozenset({errno.E2BIG})


class Slots(Indexed, Table):
    """Slots that can be read: iteration, ``len()`` and whole reads are about those that are full.

    Whole reads go from slot to slot: one or two system calls each, where the type has no batch
    commands.
    """

    indexed = True

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Return what `key` holds and empty it; `default` where it is empty. Two steps."""
        return pop(self, key, default)

    def clear(self) -> None:
        """Empty the slots that are full, in one bounded walk."""
        for batch in self.reader():
            self.delete_many(batch.keys)

    def __len__(self) -> int:
        return count(self)

    def __bool__(self) -> bool:
        return any(True for _ in self.reader(chunk=256))

