"""Stubs of `fastmap._core.keyhash`."""

from typing import Any

import numpy.typing as npt

from fastmap._core.memory import Block

def numbered(keys: npt.NDArray[Any]) -> tuple[Block, Block, int]: ...
