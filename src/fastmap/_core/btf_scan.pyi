"""Stubs of `fastmap._core.btf_scan`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__pyx_capi__: dict[str, object]

def record_starts(words: npt.NDArray[np.uint32], once: Sequence[int],
                  each: Sequence[int]) -> tuple[npt.NDArray[np.uint32], bool]: ...
