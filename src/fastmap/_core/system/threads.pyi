"""Stubs of `fastmap._core.system.threads`."""

from collections.abc import Callable

from typing_extensions import disjoint_base

@disjoint_base
class Work:
    def __new__(cls, part: Callable[[int, int], int], count: int, parts: int) -> Work: ...
    def run(self) -> None: ...

def in_threads(part: Callable[[int, int], int], count: int, threads: int) -> int: ...
