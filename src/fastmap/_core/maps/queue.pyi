"""Stubs of `fastmap._core.maps.queue`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap._core.maps.map import MapCore
from fastmap._core.rows.rows import Rows

def contains(map: MapCore, value: Any) -> bool: ...
def contains_rows(map: MapCore, values: Rows, found: npt.NDArray[np.bool_]) -> None: ...
def push_rows(
    map: MapCore, values: Rows, flags: int, errnos: npt.NDArray[np.int32] | None = None
) -> int: ...
def pop_rows(
    map: MapCore, rows: npt.NDArray[np.uint8], done: npt.NDArray[np.int64], stop: int
) -> bool: ...
