"""Stubs of `fastmap._core.memory`."""

import sys

from typing_extensions import disjoint_base

from fastmap._core.syscall import Fd

@disjoint_base
class Owner:
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
        def __release_buffer__(self, buffer: memoryview, /) -> None: ...

    def __len__(self) -> int: ...
    @property
    def address(self) -> int: ...

class Block(Owner):
    def __new__(cls, size: int) -> Block: ...

@disjoint_base
class Mapping(Owner):
    def __new__(
        cls, size: int, fd: Fd | None = None, offset: int = 0, writable: bool = True
    ) -> Mapping: ...
    def _unmap(self) -> None: ...
    def close(self) -> None: ...

def live() -> tuple[int, int]: ...
