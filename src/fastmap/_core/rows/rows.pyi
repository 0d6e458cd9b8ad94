"""Stubs of `fastmap._core.rows.rows`."""

from typing import Any

import numpy.typing as npt
from typing_extensions import disjoint_base

from fastmap._core.rows.codec import Codec

@disjoint_base
class Rows:
    def __init__(
        self, array: npt.NDArray[Any], codec: Codec, as_it_is: bool = False
    ) -> None: ...
    def part(self, start: int, stop: int) -> Rows: ...
    @property
    def owner(self) -> npt.NDArray[Any]: ...
    @property
    def count(self) -> int: ...
    @property
    def size(self) -> int: ...

def keys_of(given: Any, codec: Codec) -> tuple[Rows, npt.NDArray[Any] | None]: ...
def rows_of(given: Any, codec: Codec, count: int = -1) -> Rows: ...
