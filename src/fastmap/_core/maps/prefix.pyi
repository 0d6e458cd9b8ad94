"""Stubs of `fastmap._core.maps.prefix`."""

from typing import Any

import numpy.typing as npt
from typing_extensions import disjoint_base

from fastmap._core.rows.codec import Codec
from fastmap._core.rows.rows import Rows

__pyx_capi__: dict[str, object]

@disjoint_base
class PrefixCodec(Codec):
    def __init__(self, inner: Codec, version: int) -> None: ...
    @property
    def version(self) -> int: ...

def prefixes(rows: Rows) -> npt.NDArray[Any]: ...
