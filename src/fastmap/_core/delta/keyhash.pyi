"""Stubs of `fastmap._core.delta.keyhash`."""

from typing import Any

import numpy.typing as npt

from fastmap._core.system.memory import Block

__pyx_capi__: dict[str, object]

def numbered(keys: npt.NDArray[Any]) -> tuple[Block, Block, int]: ...
