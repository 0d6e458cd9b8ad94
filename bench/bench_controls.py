"""Controls: the measures of memory and of the GIL notice what they are there to notice."""

from __future__ import annotations

import os
import sys

import pytest

from . import peers
from .allocations import growth
from .cside import HASH, CSide, touched
from .gate import differences
from .rows.cases import SLACK, Size, scattered
from .rows.threads import Bulk, progress


@pytest.mark.parametrize("work", ["numpy", "malloc"])
def test_memory_that_grows_is_seen(work: str) -> None:
    """Also memory that is given back before the call returns, and that Python never saw."""
    result = growth(work, few=1_000, many=20_000)
    assert result.verdict == "missed"
    assert 7.5 < result.ratio < 17, result  # numpy asks C, and both are counted


def test_a_held_gil_is_seen(c: CSide, once: bool) -> None:
    """A C loop that keeps the GIL stops the other thread; the same loop without it does not."""
    size = Size()
    keys, values = scattered(size.entries), touched(size.entries + SLACK, "u8")
    fd = c.create_map(HASH, 8, 8, size.entries)
    try:
        c.update_batch(fd, keys, keys)()
        held = CSide(hold_gil=True).lookup_loop(fd, keys, values[: size.entries])
        free = c.lookup_loop(fd, keys, values[: size.entries])
        bulk = Bulk("C with the GIL held", size.entries, held, free)
        result = progress(bulk, rounds=1 if once else 7)
        assert result.ratio < 0.5, result
    finally:
        os.close(fd)


def test_the_gate_sees_what_became_dearer() -> None:
    """A system call more, and instructions beyond the margin; not what two runs differ by."""
    then = {"system calls": {"a": {"bpf": 1.0}}, "instructions": {"a": {"instructions": 20_000}}}

    def seen(calls: float, instructions: float, work: str = "a") -> tuple[int, int]:
        now = {"system calls": {work: {"bpf": calls}},
               "instructions": {work: {"instructions": instructions}}}
        worse, better = differences(now, then)
        return len(worse), len(better)

    assert seen(1.0, 20_000) == seen(1.0, 20_900) == (0, 0)
    assert seen(2.0, 20_000) == seen(1.0, 21_200) == (1, 0)
    assert seen(1.0, 18_000) == (0, 1)
    assert seen(1.0, 20_000, "not in the file") == (2, 0)


def test_a_peer_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match="said nothing"):
        peers.Child([sys.executable, "-c", "import time; time.sleep(60)"])
