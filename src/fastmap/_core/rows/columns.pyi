"""Stubs of `fastmap._core.rows.columns`."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

#: op, kind, swapped, src, dst, count
_Column: TypeAlias = tuple[str, str, bool, int, int, int]

OPS: dict[str, int]
KINDS: dict[str, int]
COMPARISONS: dict[str, int]

@disjoint_base
class Columns:
    def __new__(
        cls, columns: Sequence[_Column], cpus: int, slot: int, value_size: int, out_size: int
    ) -> Columns: ...
    @property
    def given(self) -> tuple[_Column, ...]: ...
    @property
    def condition(self) -> tuple[_Column, str, bool, Any] | None: ...
    @property
    def out_size(self) -> int: ...
    def keep(self, column: _Column, compare: str, on_key: bool, bound: Any) -> None: ...

def copy_columns(
    sources: Sequence[npt.NDArray[Any]], outs: Sequence[npt.NDArray[Any]]
) -> None: ...
def cut(
    source: npt.NDArray[Any], ends: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]
) -> bool: ...
