"""A bound of work that no clock takes part in: the calls that Python makes, counted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def steps(limit: int) -> Iterator[list[int]]:
    """Fail where what is done meanwhile takes over `limit` calls, of C functions too.

    Yields a list, whose one element is how many there were once it is over. What goes beyond the
    limit is stopped there and then: a test of something that would take for ever fails at once.
    """
    count = 0
    result: list[int] = []

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1
            if count > limit:
                sys.setprofile(None)
                raise AssertionError(f"over {limit} calls")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield result
    finally:
        sys.setprofile(before)
        result.append(count)
