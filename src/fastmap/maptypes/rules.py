"""What a map type fixes about its keys, its values, and how many entries it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap.dtypes import fitting, parse
from fastmap.enums import MapFlag, MapType


@dataclass(frozen=True)
class Side:
    """The keys, or the values, of a map type.

    Attributes
    ----------
    allowed : tuple of dtype, or None
        The dtypes there are, the usual one first; empty where maps of the type have no such side,
        None where users choose.
    usual : dtype, optional
        What they need not say, where they choose.
    """

    allowed: tuple[np.dtype[Any], ...] | None
    usual: np.dtype[Any] | None = None

    def settle(self, spec: npt.DTypeLike | None, what: str, kind: MapType) -> np.dtype[Any] | None:
        """Return the dtype for a new map, of which `spec` is what the user said."""
        if self.allowed is None:
            return self.usual if spec is None and self.usual is not None else parse(spec, what)
        if not self.allowed:
            if spec is not None:
                raise TypeError(f"a map of type {kind.name} has no {what}; {what}={spec!r} "
                                "was given")
            return None
        if spec is None:
            return self.allowed[0]
        return self._one_of(parse(spec, what), what, kind)

    def of_size(self, spec: npt.DTypeLike | None, size: int, what: str,
                kind: MapType) -> np.dtype[Any] | None:
        """Return the dtype for a map that is there, if the type or the user tells it.

        None also where there is no such side: `size` is 0 then.
        """
        if size == 0:
            if spec is not None:
                raise ValueError(f"map has no {what}; {what}={spec!r} was given")
            return None
        if spec is not None:
            dtype = fitting(spec, size, what)
            return dtype if self.allowed is None else self._one_of(dtype, what, kind)
        return next((d for d in self.allowed or () if d.itemsize == size), None)

    def _one_of(self, dtype: np.dtype[Any], what: str, kind: MapType) -> np.dtype[Any]:
        assert self.allowed is not None
        if dtype not in self.allowed:
            names = " or ".join(str(each) for each in self.allowed)
            raise ValueError(f"the {what} of a map of type {kind.name} is {names}, not {dtype}")
        return dtype


#: Users choose the dtype.
GIVEN = Side(None)
#: There is none.
ABSENT = Side(())


def fixed(*specs: npt.DTypeLike) -> Side:
    """Return a side of which the kernel fixes the dtype, the usual one first."""
    return Side(tuple(np.dtype(spec) for spec in specs))


#: The number of an element.
INDEX = fixed("u4")



@dataclass
class Shape:
    """What a map is created with, once its class has settled what its type fixes."""

    kind: MapType
    key: np.dtype[Any] | None
    value: np.dtype[Any] | None
    max_entries: int
    flags: MapFlag
    map_extra: int = 0

    @property
    def key_size(self) -> int:
        """Bytes of a key; 0 where there is none."""
        return 0 if self.key is None else self.key.itemsize

    @property
    def value_size(self) -> int:
        """Bytes of a value; 0 where there is none."""
        return 0 if self.value is None else self.value.itemsize
