"""Maps as arguments of processes that multiprocessing spawns."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.quick

Make = Callable[..., Any]
FLOW = [("addr", ">u4"), ("port", "u2")]


def count(m: Any, ring: Any) -> None:
    """Add to a map, in another process; end in failure where it is not what was handed over."""
    m[(1, 2)] = m[(1, 2)] + 5
    assert m.key_dtype.names == ("addr", "port") and m.default_via == "syscall"
    assert len(ring.read(timeout=0)) == 0 and ring.read(timeout=0).records.dtype.names == ("n",)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_process_gets_the_map_itself(make: Make, method: Any) -> None:
    m = make("hash", key=FLOW, value="u8", max_entries=4, via="syscall", btf=False)
    ring = make("ringbuf", max_entries=4096, record=[("n", "u8")])
    m[(1, 2)] = 7
    process = multiprocessing.get_context(method).Process(target=count, args=(m, ring))
    process.start()
    process.join()
    assert process.exitcode == 0 and m[(1, 2)] == 12


def test_a_pickle_says_what_to_hand_over(make: Make) -> None:
    m = make("hash", key="u4", value="u8", max_entries=4)
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="give its pin or id"):
            call(m)
