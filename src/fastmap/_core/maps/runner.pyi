"""Stubs of `fastmap._core.maps.runner`."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from fastmap._core.maps.map import MapCore
from fastmap._core.rows.columns import Columns
from fastmap._core.rows.rows import Rows
from fastmap._core.system.syscall import Fd
from fastmap.enums import MapFlag as MapFlag
from fastmap.enums import MapType as MapType
from fastmap.enums import ProgType as ProgType

__pyx_capi__: dict[str, object]

class _Code(Protocol):
    @property
    def insns(self) -> bytes: ...
    @property
    def btf(self) -> bytes: ...
    @property
    def func_info(self) -> bytes: ...
    @property
    def func_info_rec_size(self) -> int: ...

class _Layout(Protocol):
    @property
    def key_size(self) -> int: ...

def find_types(
    blob: bytes, wanted: tuple[tuple[bytes, int], ...]
) -> list[tuple[int, int]]: ...
def load(map: MapCore, code: _Code, name: str, sleepable: bool = True) -> Fd: ...
def returned(map: MapCore, program: Fd) -> int: ...

MODES: dict[str, int]

@disjoint_base
class Runner:
    def __new__(cls, layout: _Layout, large: bool = False, scratch: int = 0) -> Runner: ...
    @property
    def scratch(self) -> Fd | None: ...
    @property
    def buffer(self) -> Fd: ...
    @property
    def large(self) -> Fd | None: ...
    @property
    def other_process(self) -> bool: ...
    def has(self, work: str) -> bool: ...
    def add(self, work: str, program: Fd) -> None: ...
    def lookup_rows(
        self, work: str, map: MapCore, keys: Rows, rows: npt.NDArray[Any],
        found: npt.NDArray[np.bool_], columns: Columns | None, command: int,
    ) -> int: ...
    def apply_rows(
        self, work: str, map: MapCore, command: int, keys: Rows | None, values: Rows | None,
        flags: int,
        mode: str, codes: npt.NDArray[Any] | None = None,
    ) -> int: ...
    def pop_rows(
        self, work: str, map: MapCore, rows: npt.NDArray[Any], done: npt.NDArray[Any], stop: int,
    ) -> bool: ...
