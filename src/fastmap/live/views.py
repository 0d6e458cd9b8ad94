"""Arrays on memory that the compiled core owns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def view(owner: Any, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """Return `count` elements at the start of a `Block` or `Mapping`."""
    array: npt.NDArray[Any] = np.frombuffer(owner, dtype, count)
    return array
