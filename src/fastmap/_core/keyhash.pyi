"""Stubs of `fastmap._core.keyhash`."""

from typing import Any

import numpy.typing as npt

from fastmap._core.memory import Block

__pyx_capi__: dict[str, object]

def numbered(keys: npt.NDArray[Any]) -> tuple[Block, Block, int]: ...
