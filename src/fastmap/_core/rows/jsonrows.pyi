"""Stubs of `fastmap._core.rows.jsonrows`."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy.typing as npt
from typing_extensions import disjoint_base

#: before, kind, on_value, swapped, src, size, count, step
_Piece: TypeAlias = tuple[bytes, str, bool, bool, int, int, int, int]

KINDS: dict[str, int]

@disjoint_base
class JsonRows:
    def __init__(self, pieces: Sequence[_Piece], last: bytes, key_size: int,
                 value_size: int) -> None: ...
    @property
    def largest(self) -> int: ...
    def write(self, keys: npt.NDArray[Any], values: npt.NDArray[Any],
              start: int) -> tuple[int, memoryview]: ...
