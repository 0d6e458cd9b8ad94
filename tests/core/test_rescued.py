"""A Ctrl-C at any point of a call that takes elements out of a map loses none of them."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

N = 3000
Make = Callable[..., Any]


#: Behind which instructions the interpreter looks for signals, and at which.
CALLS = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "CALL_METHOD", "CALL_FUNCTION"}
LOOKS = {"RESUME", "JUMP_BACKWARD"}


@cache
def points(code: CodeType) -> frozenset[int]:
    """Return the offsets of a function's code at which a signal's handler can run."""
    found, before = set(), ""
    for each in dis.get_instructions(code):
        if before in CALLS or each.opname in LOOKS:
            found.add(each.offset)
        if each.opname != "CACHE":
            before = each.opname
    return frozenset(found)


class Interrupts:
    """Raises KeyboardInterrupt at the n-th point of fastmap where one can come; then once more."""

    def __init__(self, at: int, again: int = 0) -> None:
        self.left, self.again = at, again
        self.raised = 0
        # Where a Python function has just returned to: nothing is looked for there.
        self.back: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if "/fastmap/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        back, self.back = self.back, frame.f_back if event == "return" else None
        if event != "opcode" or self.left < 0 or back is frame \
                or frame.f_lasti not in points(frame.f_code):
            return self
        if self.left == 0:
            self.left, self.again = self.again - 1 if self.again else -1, 0
            self.raised += 1
            raise KeyboardInterrupt
        self.left -= 1
        return self


def interrupted(call: Callable[[], Any], at: int, again: int = 0) -> tuple[Any, int]:
    """Call with an interrupt at a point; return what came out, by whatever way, and how many."""
    interrupts = Interrupts(at, again)
    before = sys.gettrace()
    result = None
    try:
        sys.settrace(interrupts)
        try:
            result = call()
        finally:
            sys.settrace(before)
    except KeyboardInterrupt as error:
        seen: BaseException | None = error
        while seen is not None and result is None:
            result = getattr(seen, "batch", None)
            seen = seen.__context__
    return result, interrupts.raised


@pytest.mark.parametrize("again", [0, 1, 7])
@pytest.mark.parametrize("via", ["syscall", "kernel"])
@pytest.mark.parametrize("call", ["drain", "pop_many"])
def test_pops(make: Make, call: str, via: str, again: int) -> None:
    """At each opcode of the package in turn; with `again`, a second one while the first unwinds."""
    q = make("queue", value="u8", max_entries=N)
    if via == "kernel":
        q.prepare()
    given = np.arange(N, dtype="u8")
    at, raised = 0, 1
    while raised:
        q.push_many(given)
        if call == "drain":
            taken, raised = interrupted(lambda: q.drain(via=via), at, again)
        else:
            taken, raised = interrupted(lambda: q.pop_many(N, via=via), at, again)
        left = q.drain(via="syscall")
        together = [] if taken is None else taken.tolist()
        assert together + left.tolist() == given.tolist(), at
        at += 1
    assert at > 2  # there were such points


@pytest.mark.parametrize("again", [0, 3])
@pytest.mark.parametrize("call", ["drain", "reader", "lookup_and_delete_many"])
def test_drains(make: Make, call: str, again: int) -> None:
    m = make("hash", key="u4", value="u8", max_entries=N)
    keys = np.arange(200, dtype="u4")
    reader = m.reader()
    calls = {"drain": m.drain, "reader": reader.drain,
             "lookup_and_delete_many": lambda: m.lookup_and_delete_many(keys)}
    at, raised = 0, 1
    while raised:
        m.update_many(keys, keys * 3)
        result, raised = interrupted(calls[call], at, again)
        if isinstance(result, tuple):  # values and found, of the call that was not interrupted
            taken = keys[result[1]].tolist()
        else:
            taken = [] if result is None else result.keys.tolist()
        left = m.snapshot().keys.tolist()
        assert sorted(taken + left) == keys.tolist(), at
        m.clear()
        at += 1
    assert at > 2  # there were such points
