"""Stubs of `fastmap._core.delta.join`."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from typing_extensions import disjoint_base

from fastmap._core.rows.columns import Columns
from fastmap._core.system.memory import Block

KINDS: dict[str, int]

@disjoint_base
class Join:
    def __new__(
        cls, key_size: int, padding: Sequence[tuple[int, int]], value_size: int, cpus: int,
        runs: Sequence[tuple[str, bool, int, int]], columns: Columns | None, aligned: bool,
    ) -> Join: ...
    @property
    def out_size(self) -> int: ...
    @property
    def out(self) -> Block: ...
    @property
    def new(self) -> Block: ...
    @property
    def restarted(self) -> Block: ...
    @property
    def gone(self) -> Block: ...
    @property
    def gone_count(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def busy(self) -> bool: ...
    def tidy(
        self, keys: npt.NDArray[Any], values: npt.NDArray[Any], repeats: bool
    ) -> int: ...
    def differences(
        self, keys: npt.NDArray[Any], values: npt.NDArray[Any],
        last_keys: npt.NDArray[Any], last_values: npt.NDArray[Any],
    ) -> None: ...
