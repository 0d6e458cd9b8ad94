"""Stubs of `fastmap._core.convert`."""

from typing import Any

import numpy as np
import numpy.typing as npt

__pyx_capi__: dict[str, object]

def padding_of(dtype: np.dtype[Any]) -> tuple[tuple[int, int], ...]: ...
def slot_dtype(dtype: np.dtype[Any], stride: int) -> np.dtype[np.void]: ...
def convert(array: npt.NDArray[Any], dtype: np.dtype[Any], what: str) -> npt.NDArray[Any]: ...
