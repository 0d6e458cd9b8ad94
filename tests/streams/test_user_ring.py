"""User ring buffers: a program drains them, and proves every record by its contents."""

from __future__ import annotations

import errno
import gc
import pickle
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from producers import SLEEPABLE
from support import examples, in_child

import fastmap
from fastmap import BpfError, Program, RingFull, UserRingBuffer
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, R7, Assembler, Code, Helper

pytestmark = pytest.mark.needs("USER_RINGBUF", "in-kernel")

RECORD = np.dtype([("n", "u8"), ("x", "u4"), ("y", "u4"), ("z", "u8"), ("w", "u8")])
NUMBER = np.dtype([("n", "u8")])
DYNPTR_READ = 201


def drainer(ring: Any, found: Any) -> Code:
    """Assemble a program that drains a ring.

    ``found[0]`` holds a sum of the first 8 bytes of the records, each times its place (1 for the
    first), then how many there were; the context is set to what the helper returned.
    """
    a = Assembler()
    a.mov(R6, R1)
    a.ld_map(R1, ring)
    a.ld_func(R2, "one")
    a.mov(R3, FP)
    a.mov(R4, 0)
    a.call(Helper.USER_RINGBUF_DRAIN)
    a.stx(8, R6, 0, R0)
    a.mov(R0, 0)
    a.exit()
    a.function("one")
    a.mov(R7, R1)
    a.st(8, FP, -16, 0)
    a.st(4, FP, -4, 0)
    a.ld_map(R1, found)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R6, R0)
    a.mov(R1, FP)
    a.add(R1, -16)
    a.mov(R2, 8)
    a.mov(R3, R7)
    a.mov(R4, 0)
    a.mov(R5, 0)
    a.call(DYNPTR_READ)
    a.ldx(8, R1, R6, 8)
    a.add(R1, 1)
    a.stx(8, R6, 8, R1)
    a.ldx(8, R2, FP, -16)
    a.mul(R2, R1)
    a.ldx(8, R1, R6, 0)
    a.add(R1, R2)
    a.stx(8, R6, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


class Drain:
    """A loaded `drainer`: call it, and see what it got."""

    def __init__(self, ring: Any) -> None:
        self.found = fastmap.create("array", value=[("sum", "u8"), ("count", "u8")], max_entries=1)
        self.program = Program("syscall", drainer(ring, self.found), flags=SLEEPABLE)

    def __call__(self) -> int:
        context = bytearray(8)
        self.program.run(context)
        return int(struct.unpack("=q", context)[0])

    def got(self) -> tuple[int, int]:
        """Return the sum and the count since the last time."""
        value = self.found[0]
        self.found[0] = (0, 0)
        return int(value["sum"]), int(value["count"])

    def close(self) -> None:
        self.program.close()
        self.found.close()


def expected(numbers: Any) -> tuple[int, int]:
    """Return what `Drain.got` gives for these records."""
    numbers = np.asarray(numbers, "u8")
    return int((numbers * np.arange(1, len(numbers) + 1, dtype="u8")).sum()), len(numbers)


@pytest.fixture
def ring(make: Callable[..., Any]) -> UserRingBuffer:
    made: UserRingBuffer = make("user_ringbuf", max_entries=4096, record=RECORD)
    return made


@pytest.fixture
def drain(ring: UserRingBuffer) -> Iterator[Drain]:
    made = Drain(ring)
    yield made
    made.close()


@pytest.mark.quick
def test_a_program_gets_what_was_submitted(ring: UserRingBuffer, drain: Drain) -> None:
    with ring.reserve() as slot:
        slot.record["n"], slot.record["w"] = 7, 9
        assert slot.data.nbytes == 32 and not slot.data.readonly
    second = ring.reserve(8)
    second.data[:] = (5).to_bytes(8, "little")
    second.submit()
    with pytest.raises(ZeroDivisionError), ring.reserve() as slot:
        slot.record["n"] = 1000 / 0  # type: ignore[index]
    with ring.reserve() as slot:
        slot.discard()
    assert ring.available == 40 + 16 + 40 + 40 and ring.fill == 136 / 4096
    assert drain() == 2 and drain.got() == expected([7, 5])
    assert ring.available == 0 and ring.consumed == ring.produced == 136


@pytest.mark.quick
def test_write_many(ring: UserRingBuffer, drain: Drain) -> None:
    records = np.zeros(100, RECORD)
    for first in range(0, 5000, 100):  # around the ring many times
        records["n"] = np.arange(first, first + 100)
        assert ring.write_many(records) == 100
        assert drain() == 100 and drain.got() == expected(records["n"])
    assert ring.write_many(records[:0]) == 0 and drain() == 0


@pytest.mark.parametrize("size", [8, 16, 24, 32, 48, 64, 9, 15, 17, 100, 504, 4088])
def test_records_of_all_sizes_at_all_offsets(make: Callable[..., Any], size: int) -> None:
    """Also behind records that leave the position at every multiple of 8."""
    ring = make("user_ringbuf", max_entries=4096)
    drain = Drain(ring)
    step = (size + 15) // 8 * 8
    count = 4096 // step
    rows = np.random.default_rng(size).integers(0, 256, (count, size), np.uint8)
    records = rows.view(f"V{size}").reshape(-1)
    numbers = np.ascontiguousarray(rows[:, :8]).view("<u8").reshape(-1)
    for _ in range(300):
        assert ring.write_many(records) == count
        assert drain() == count and drain.got() == expected(numbers)
        ring.reserve(1).submit()
        assert drain() == 1
        drain.got()
    drain.close()


def test_strides_padding_and_conversion(make: Callable[..., Any]) -> None:
    padded = np.dtype([("n", "u4"), ("x", "u8")], align=True)
    ring = make("user_ringbuf", max_entries=4096, record=padded)
    drain = Drain(ring)
    dirty = np.frombuffer(b"\xff" * 160, padded).copy()
    dirty["n"] = np.arange(10)
    ring.write_many(dirty[::2])
    assert drain() == 5 and drain.got() == expected([0, 2, 4, 6, 8])  # the padding is zero
    ring.write_many([(3, 1), (4, 1)])
    assert drain() == 2 and drain.got() == expected([3, 4])
    for wrong, error in (([(1.5, 1)], TypeError), ([(1 << 32, 1)], OverflowError), (5, TypeError),
                         (np.zeros((2, 2), padded), ValueError)):
        with pytest.raises(error):
            ring.write_many(wrong)
    assert ring.available == 0
    drain.close()


def test_a_full_ring(ring: UserRingBuffer, drain: Drain) -> None:
    records = np.zeros(150, RECORD)
    records["n"] = np.arange(150)
    with pytest.raises(BlockingIOError, match="102 of 150") as caught:
        ring.write_many(records)
    assert isinstance(caught.value, RingFull) and isinstance(caught.value, BpfError)
    assert caught.value.applied == 102 and caught.value.errno == errno.EAGAIN
    assert pickle.loads(pickle.dumps(caught.value)).applied == 102
    with pytest.raises(BlockingIOError, match="no room for 32"):
        ring.reserve()
    began = time.monotonic()
    with pytest.raises(RingFull):
        ring.reserve(timeout=0.12)
    assert time.monotonic() - began >= 0.12
    assert drain() == 102 and drain.got() == expected(records["n"][:102])


@pytest.mark.parametrize("timeout", [None, 30])
def test_waiting_for_room(ring: UserRingBuffer, drain: Drain, timeout: float | None) -> None:
    records = np.zeros(2000, RECORD)
    records["n"] = np.arange(2000)
    stop = threading.Event()

    def drains() -> None:
        while not stop.is_set():
            drain()
            time.sleep(0.002)

    thread = threading.Thread(target=drains)
    thread.start()
    cpu = time.thread_time()
    assert ring.write_many(records, timeout) == 2000
    ring.reserve(4000, timeout=timeout).discard()
    assert time.thread_time() - cpu < 1
    stop.set()
    thread.join()
    drain()
    assert drain.got() == expected(records["n"])


def test_order_is_that_of_reservation(ring: UserRingBuffer, drain: Drain) -> None:
    slots = [ring.reserve(8) for _ in range(4)]
    for n, slot in enumerate(slots):
        slot.data[:] = (n + 1).to_bytes(8, "little")
    slots[1].submit()
    slots[3].submit()
    assert drain() == 0  # the first is not done
    slots[0].submit()
    assert drain() == 2
    with pytest.raises(ValueError, match="already"):
        slots[0].submit()
    del slots[2:]  # forgotten: discarded
    gc.collect()
    del slot
    assert drain() == 1 and drain.got() == expected([1, 2, 4])


@pytest.mark.parametrize(("size", "error"), [
    (-1, ValueError), (4089, ValueError), (1 << 40, ValueError), (1.5, TypeError),
    (True, TypeError)])
def test_sizes_that_are_refused(ring: UserRingBuffer, size: Any, error: Any) -> None:
    with pytest.raises(error):
        ring.reserve(size)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        ring.reserve(8, timeout=-1)
    assert ring.available == 0


def test_without_a_dtype(make: Callable[..., Any]) -> None:
    ring = make("user_ringbuf", max_entries=4096)
    with pytest.raises(TypeError, match="size="):
        ring.reserve()
    with pytest.raises(TypeError, match="arrays"):
        ring.write_many([1, 2])
    with pytest.raises(TypeError, match="objects"):
        ring.write_many(np.array([None]))
    with ring.reserve(8) as slot, pytest.raises(ValueError, match="no record"):
        _ = slot.record
    with pytest.raises(ValueError, match="in a ring of"):
        ring.write_many(np.zeros(1, "V4096"))
    with pytest.raises(TypeError, match="one record"):
        make("user_ringbuf", max_entries=4096, record={1: RECORD}, tag="n")


def test_closing(ring: UserRingBuffer, drain: Drain) -> None:
    slot = ring.reserve(8)
    view = slot.data
    ring.close()
    view[:] = (9).to_bytes(8, "little")
    slot.submit()
    assert drain() == 1 and drain.got() == expected([9])
    with pytest.raises(ValueError, match="closed"):
        ring.reserve(8)


def test_closing_wakes_a_writer(ring: UserRingBuffer) -> None:
    ring.write_many(np.zeros(102, RECORD))
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            ring.reserve(timeout=None)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    ring.close()
    thread.join(60)
    assert not thread.is_alive() and time.monotonic() - began < 60
    assert "closed" in str(caught[0])


def test_a_forked_child_leaves_the_parent_s_records_alone(ring: UserRingBuffer,
                                                          drain: Drain) -> None:
    slot = ring.reserve(8)
    slot.data[:] = bytes(8)

    def child() -> None:
        with pytest.raises(RuntimeError, match="process"):
            ring.reserve(8)
        with pytest.raises(RuntimeError, match="process"):
            ring.write_many(np.zeros(1, RECORD))
        slot.discard()

    in_child(child)
    assert drain() == 0
    slot.submit()
    assert drain() == 1


@settings(max_examples=examples(100), deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.one_of(st.integers(0, 10000), st.integers(0, (1 << 64) - 1)),
       garbage=st.binary(min_size=64, max_size=64))
def test_forged_pages_never_crash(make: Callable[..., Any], position: int, garbage: bytes) -> None:
    """Whoever may open the map can write the producer's position and the data."""
    import mmap

    ring = make("user_ringbuf", max_entries=4096, record=NUMBER)
    drain = Drain(ring)
    ring.reserve().submit()
    with mmap.mmap(ring.fileno(), 3 * mmap.PAGESIZE, offset=mmap.PAGESIZE) as pages:
        pages[mmap.PAGESIZE:mmap.PAGESIZE + 64] = garbage
        pages[:8] = struct.pack("=Q", position)
        allowed = position % 8 == 0 and position <= 4096
        for write in (lambda: ring.write_many(np.zeros(3, NUMBER)), lambda: ring.reserve().submit(),
                      lambda: ring.reserve(timeout=0.001).submit()):
            pages[:8] = struct.pack("=Q", position)
            try:
                write()
                assert allowed
            except RingFull:
                assert allowed and position > 4096 - 48
            except BpfError as error:
                assert "overwritten" in str(error) and not allowed
        drain()
    drain.close()
    ring.close()
