"""Ring buffers whose programs overwrite the oldest records (Linux 6.19)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from producers import Producer, beside

import fastmap
from fastmap import MapFlag, NotSupported, RingBuffer
from fastmap.enums import running_kernel

EVENT = np.dtype([("n", "u8"), ("size", "u8")])
newer = pytest.mark.needs("RB_OVERWRITE", "in-kernel")


@pytest.fixture
def ring(make: Callable[..., Any]) -> RingBuffer:
    rb: RingBuffer = make("ringbuf", max_entries=4096, record=EVENT, flags=MapFlag.RB_OVERWRITE)
    return rb


def numbers(batch: Any) -> list[int]:
    return [int.from_bytes(bytes(batch[i])[:8], "little") for i in range(len(batch))]


def test_elsewhere_it_is_refused_by_name() -> None:
    if running_kernel() >= MapFlag.RB_OVERWRITE.since:
        fastmap.create("ringbuf", max_entries=4096, flags=MapFlag.RB_OVERWRITE).close()
        return
    with pytest.raises(NotSupported, match=r"RB_OVERWRITE.*6\.19"):
        fastmap.create("ringbuf", max_entries=4096, flags=MapFlag.RB_OVERWRITE)


@newer
@pytest.mark.quick
@pytest.mark.parametrize("way", ("read", "lease", "out"))
def test_the_newest_are_read(ring: RingBuffer, way: str) -> None:
    def read() -> list[int]:
        if way == "lease":
            with ring.lease(timeout=0) as batch:
                return list(batch.records["n"])
        out = np.zeros(1000, EVENT) if way == "out" else None
        batch = ring.read(timeout=0, out=out)
        assert out is None or out["n"][: len(batch)].tolist() == numbers(batch)
        assert (batch.records["size"] == 16).all()
        return list(batch.records["n"])

    with Producer(ring, 16) as produce:
        assert produce(0, 100) == 0
        assert read() == list(range(100)) and ring.overwritten == 0 == ring.available
        assert produce(100, 1000) == 0  # none found no room
        assert 0 < ring.available <= 4096 and ring.overwritten > ring.consumed
        got = read()
        assert got == list(range(1100 - len(got), 1100)) and 150 < len(got) <= 170
        assert ring.available == 0 and read() == []
        for first in range(1100, 9000, 7):  # at all offsets of the wrap
            produce(first, 7)
            assert read() == list(range(first, first + 7))


@newer
@pytest.mark.quick
def test_what_is_read_is_kept(ring: RingBuffer) -> None:
    with Producer(ring, 16) as produce:
        produce(0, 50)
        with ring.lease(timeout=0) as batch:
            produce(50, 1000)
            assert numbers(batch) == list(range(50))
        assert numbers(batch) == list(range(50))
        assert numbers(ring.read(3, timeout=0)) == [880 + i for i in range(3)]
        with ring.lease(max=2, timeout=0) as batch:
            assert numbers(batch) == [883, 884]
    ring.close()
    assert numbers(batch) == [883, 884]


@newer
def test_sizes_and_discards(make: Callable[..., Any]) -> None:
    rb = make("ringbuf", max_entries=1 << 17, flags=MapFlag.RB_OVERWRITE)
    with Producer(rb, 16, 40, 1, discard_every=5) as produce:
        for first in range(0, 60_000, 20_000):
            produce(first, 20_000)
            got: list[int] = []
            while len(batch := rb.read(500, timeout=0)):
                assert len(batch) <= 500
                for i, length in enumerate(batch.lengths.tolist()):
                    n = int.from_bytes(bytes(batch[i])[:8], "little")
                    got.append(n if length > 1 else -1)
            assert got[-2] == first + 19_998 or got[-1] == first + 19_999
            told = np.array([n for n in got if n >= 0])
            assert (np.diff(told) > 0).all() and len(told) > 1500 and (told % 5 != 0).all()
        produce(0, 2)
        with pytest.raises(ValueError, match="has 40 bytes, out has 16"):
            rb.read(timeout=0, out=np.zeros(4, EVENT))
        assert len(rb.read(timeout=0)) == 1  # nothing of it was lost by that


@newer
@pytest.mark.parametrize("way", ("read", "lease"))
def test_beside_producers_each_record_is_whole(make: Callable[..., Any], way: str) -> None:
    rb = make("ringbuf", max_entries=4096, record=EVENT, flags=MapFlag.RB_OVERWRITE)
    each = 100_000

    def produce(which: int) -> None:
        with Producer(rb, 16) as run:
            for first in range(0, each, 200):
                # None finds room while the other's oldest is not submitted, and in the way.
                run(which * each + first, 200)

    done = beside(produce, 2)
    got: list[Any] = []
    while True:
        ended = done.is_set()
        time.sleep(0.001)  # the ring is full then: what is read first is overwritten next
        if way == "read":
            got.append(rb.read(timeout=0.01).records.copy())
        else:
            with rb.lease(timeout=0.01) as batch:
                got.append(batch.records.copy())
        if ended and not len(got[-1]):
            break
    seen = np.concatenate(got)
    assert (seen["size"] == 16).all() and len(np.unique(seen["n"])) == len(seen)
    for which in range(2):
        own = seen["n"][seen["n"] // each == which].astype("i8")
        assert (np.diff(own) > 0).all()
    assert len(seen) > 100


@newer
def test_asyncio(ring: RingBuffer) -> None:
    async def main() -> list[int]:
        got: list[int] = []
        async for batch in ring.batches(max=100):
            got += numbers(batch)
            if got[-1] == 999:
                return got
        return []

    with Producer(ring, 16) as produce:
        produce(0, 1000)
        got = asyncio.run(asyncio.wait_for(main(), 5))
        assert got == list(range(1000 - len(got), 1000))
