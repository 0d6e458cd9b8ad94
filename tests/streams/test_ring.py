"""Ring buffers: every record once and whole, also across the wrap and beside several producers."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from producers import NO_WAKEUP, SLEEPABLE, Producer, beside
from support import EMULATED, in_child

import fastmap
from fastmap import BpfError, Program, RingBuffer
from fastmap.asm import R0, R1, R2, R3, R4, R6, Assembler, Helper

pytestmark = pytest.mark.needs("RINGBUF", "in-kernel")

EVENT = np.dtype([("n", "u8"), ("size", "u8")])
WIDE = np.dtype([("n", "u8"), ("size", "u8"), ("x", "u8"), ("y", "u8")])


@pytest.fixture
def ring(make: Callable[..., Any]) -> RingBuffer:
    rb: RingBuffer = make("ringbuf", max_entries=4096, record=EVENT)
    return rb


def numbers(batch: Any) -> list[int]:
    return [int.from_bytes(bytes(batch[i])[:8], "little") for i in range(len(batch))]


@pytest.mark.quick
def test_read_returns_each_record_once(ring: RingBuffer) -> None:
    with Producer(ring, 16) as produce:
        for first in range(0, 3000, 100):  # the ring wraps many times
            assert produce(first, 100) == 0
            batch = ring.read(timeout=0)
            assert batch.records.dtype == EVENT and len(batch) == 100
            assert (batch.records["n"] == np.arange(first, first + 100)).all()
            assert (batch.records["size"] == 16).all()
    empty = ring.read(timeout=0)
    assert len(empty) == 0 and empty.records.dtype == EVENT


@pytest.mark.quick
def test_lease_shows_the_ring_itself(ring: RingBuffer) -> None:
    with Producer(ring, 16) as produce:
        produce(0, 50)
        with ring.lease(max=20, timeout=0) as batch:
            assert batch.records["n"].tolist() == list(range(20))
            assert not batch.records.flags.writeable and not batch.records.flags.owndata
            assert batch.records.strides == (24,)
            assert ring.available == 50 * 24
        assert ring.available == 30 * 24
        with ring.lease(timeout=0) as batch:
            assert batch.records["n"].tolist() == list(range(20, 50))
        with ring.lease(timeout=0) as batch:
            assert len(batch) == 0


def test_views_outlive_lease_map_and_collection(ring: RingBuffer) -> None:
    with Producer(ring, 16) as produce:
        produce(0, 100)
        with ring.lease(timeout=0) as batch:
            view, copy = batch.records["n"], batch.copy()
        produce(1000, 100)
        ring.read(timeout=0)
        ring.close()
        del ring, batch
        gc.collect()
        assert view.tolist() != list(range(100))  # what the kernel wrote there since
        assert copy.records["n"].tolist() == list(range(100))


@pytest.mark.parametrize("sizes", [(1,), (7,), (8, 24, 100), (1, 2, 3, 4, 5, 6, 7, 8, 9)])
@pytest.mark.parametrize("discard_every", [0, 1, 2, 7])
@pytest.mark.parametrize("way", ["read", "lease", "ones"])
def test_sizes_and_discards(ring: RingBuffer, sizes: tuple[int, ...], discard_every: int,
                            way: str) -> None:
    ring._kinds.one = None
    with Producer(ring, *sizes, discard_every=discard_every) as produce:
        for first in range(0, 400, 20):
            assert produce(first, 20) == 0
            wanted = [n for n in range(first, first + 20)
                      if not discard_every or n % discard_every]
            got: list[bytes] = []
            while True:
                if way == "lease":
                    with ring.lease(timeout=0) as batch:
                        some = [bytes(batch[i]) for i in range(len(batch))]
                else:
                    batch = ring.read(1 if way == "ones" else None, timeout=0)
                    some = [bytes(batch[i]) for i in range(len(batch))]
                if not some:
                    break
                got += some
            assert [len(raw) for raw in got] == [sizes[n % len(sizes)] for n in wanted]
            for raw, n in zip(got, wanted, strict=True):
                width = next(w for w in (8, 4, 2, 1) if w <= len(raw))
                assert int.from_bytes(raw[:width], "little") == n % (1 << 8 * width)
    assert ring.available == 0


def test_the_largest_record(make: Callable[..., Any]) -> None:
    rb = make("ringbuf", max_entries=8192)
    with Producer(rb, 8192 - 16) as produce, Producer(rb, 8192 - 8) as too_large:
        for n in range(5):
            assert produce(n, 1) == 0
            assert produce(n, 1) == 1  # full
            batch = rb.read(timeout=0)
            assert len(batch) == 1 and batch.nbytes == 8176 and batch.records.dtype == "V8176"
            assert numbers(batch) == [n]
        assert too_large(0, 1) == 1


def test_records_of_several_sizes_have_no_one_array(ring: RingBuffer) -> None:
    with Producer(ring, 16, 24) as produce:
        produce(0, 4)
        with ring.lease(timeout=0) as batch:
            assert batch.lengths.tolist() == [16, 24, 16, 24] and batch.nbytes == 80
            with pytest.raises(ValueError, match="16 to 24 bytes"):
                _ = batch.records
        produce(1, 1)
        with pytest.raises(ValueError, match="24 bytes, the dtype 16"):
            _ = ring.read(timeout=0).records


def test_kinds(make: Callable[..., Any]) -> None:
    kinds = {16: EVENT, 32: WIDE}
    rb = make("ringbuf", max_entries=65536, record=kinds, tag="size")
    with Producer(rb, 16, 32, 24) as produce:
        produce(0, 99)
        with rb.lease(timeout=0) as batch:
            parts = batch.split()
            with pytest.raises(ValueError, match="split"):
                _ = batch.records
        assert parts[16].dtype == EVENT and parts[32].dtype == WIDE
        assert parts[16]["n"].tolist() == list(range(0, 99, 3))
        assert parts[32]["n"].tolist() == list(range(1, 99, 3))
        assert [int.from_bytes(raw[:8], "little") for raw in parts[24]] == list(range(2, 99, 3))
        assert {k: len(v) for k, v in rb.read(timeout=0).split().items()} == {16: 0, 32: 0}


@pytest.mark.parametrize(("record", "tag", "error", "match"), [
    ({1: EVENT}, None, ValueError, "tag="), (EVENT, "n", ValueError, "dict"),
    ({1: EVENT, 2: [("x", "u4"), ("n", "u8")]}, "n", ValueError, "not the same field"),
    ({1: [("n", "f8")]}, "n", TypeError, "no integer"), ({}, "n", ValueError, "tag="),
    ({1: EVENT}, "zz", ValueError, "no field"), ("O", None, TypeError, "objects"),
])
def test_kinds_that_are_refused(record: Any, tag: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        fastmap.create("ringbuf", max_entries=4096, record=record, tag=tag)
    with pytest.raises(TypeError, match="ring buffers"):
        fastmap.create("array", value="u8", max_entries=1, record=EVENT)


def test_out(ring: RingBuffer) -> None:
    out = np.zeros(10, EVENT)
    with Producer(ring, 16) as produce, Producer(ring, 24) as other:
        produce(0, 15)
        batch = ring.read(timeout=0, out=out)
        assert len(batch) == 10 and np.shares_memory(batch.records, out)
        assert out["n"].tolist() == list(range(10))
        other(15, 1)
        assert len(ring.read(timeout=0, out=out)) == 5
        with pytest.raises(ValueError, match="24 bytes, out has 16"):
            ring.read(timeout=0, out=out)
        assert numbers(ring.read(timeout=0)) == [15]  # it is still there
    for wrong, error in ((out.tolist(), TypeError), (np.zeros(4, WIDE), TypeError),
                         (out[::2], ValueError), (out.reshape(2, 5), ValueError)):
        with pytest.raises(error, match="out"):
            ring.read(timeout=0, out=wrong)


@pytest.mark.parametrize("wrong", [{"max": -1}, {"max": 1.5}, {"timeout": -1},
                                   {"timeout": float("nan")}, {"max": True}])
def test_arguments_that_are_refused(ring: RingBuffer, wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="max|timeout"):
        ring.read(**wrong)
    with pytest.raises((TypeError, ValueError), match="max|timeout"), ring.lease(**wrong):
        pass


@pytest.mark.parametrize("size", [0, 1000, 4097, 3 * 4096, 12288])
def test_sizes_that_are_no_ring(size: int) -> None:
    with pytest.raises(ValueError, match="max_entries"):
        fastmap.create("ringbuf", max_entries=size)


def test_opening_maps_and_consumes_nothing(ring: RingBuffer) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as file:
            return sum("bpf-map" in line for line in file)
    before = mapped()
    with Producer(ring, 16) as produce:
        produce(0, 3)
        with fastmap.open(fd=ring.fileno(), record=EVENT) as other:
            assert other.size == 4096 and other.info().max_entries == 4096
            assert mapped() == before
            assert other.available == 72 and other.consumed == 0 and other.produced == 72
            assert other.fill == 72 / 4096 and len(other.read(timeout=0)) == 3
        assert ring.available == 0


def test_a_reader_goes_on_where_one_was_killed(ring: RingBuffer) -> None:
    with Producer(ring, 16) as produce:
        produce(0, 10)

        def reads_some_and_dies() -> None:
            with fastmap.open(fd=ring.fileno(), record=EVENT) as mine:
                mine.read(4, timeout=0)
                with mine.lease(3, timeout=0) as batch:
                    assert len(batch) == 3
                    os._exit(0)  # in the middle of a lease: its records stay

        in_child(reads_some_and_dies)
        assert ring.read(timeout=0).records["n"].tolist() == list(range(4, 10))


def test_a_forked_child_is_refused(ring: RingBuffer) -> None:
    ring.read(timeout=0)

    def child() -> None:
        for use in (lambda: ring.read(timeout=0), ring.ready, lambda: ring.lease(timeout=0)):
            with pytest.raises(RuntimeError, match="process"):
                result = use()
                if hasattr(result, "__enter__"):
                    result.__enter__()

    in_child(child)


def test_one_reader_at_a_time(ring: RingBuffer) -> None:
    with Producer(ring, 16) as produce:
        produce(0, 3)
        with ring.lease(1, timeout=0):
            for use in (lambda: ring.read(timeout=0), lambda: ring.lease(timeout=0).__enter__()):
                with pytest.raises(RuntimeError, match="in use"):
                    use()
        assert len(ring.read(timeout=0)) == 2


# ---- waiting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, NO_WAKEUP], ids=["wakeup", "no_wakeup"])
def test_a_record_wakes_the_reader(ring: RingBuffer, flags: int) -> None:
    with Producer(ring, 16) as produce:
        timer = threading.Timer(0.1, produce, (7, 1, flags))
        timer.start()
        began = time.monotonic()
        batch = ring.read()
        assert batch.records["n"].tolist() == [7]
        assert time.monotonic() - began < 60
        timer.join()


def test_deadlines(ring: RingBuffer) -> None:
    for timeout in (0, 0.12):
        began = time.monotonic()
        assert len(ring.read(timeout=timeout)) == 0
        assert timeout <= time.monotonic() - began


def test_a_record_that_is_not_submitted_does_not_spin(ring: RingBuffer) -> None:
    """While a program holds a record back, poll(2) says ready; the reader sleeps all the same."""
    a = Assembler()
    a.ld_map(R1, ring)
    a.mov(R2, 16)
    a.mov(R3, 0)
    a.call(Helper.RINGBUF_RESERVE)
    a.jeq(R0, 0, "out")
    a.mov(R6, R0)
    a.st(8, R6, 0, 77)
    a.st(8, R6, 8, 16)
    for _ in range(12):
        a.mov(R1, 1 << 23)
        a.ld_func(R2, "nothing")
        a.mov(R3, 0)
        a.mov(R4, 0)
        a.call(Helper.LOOP)
    a.mov(R1, R6)
    a.mov(R2, 0)
    a.call(Helper.RINGBUF_SUBMIT)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    a.function("nothing")
    a.mov(R0, 0)
    a.exit()
    with Program("syscall", a.assemble(), flags=SLEEPABLE) as program:
        for wait in (ring.read, lambda: asyncio.run(ring.aread())):
            took = 0.0
            while took < 0.05:  # until the record is held back while this thread looks
                holder = threading.Thread(target=program.run, args=(bytearray(8),))
                holder.start()
                while ring.available == 0:
                    time.sleep(0.001)
                began, cpu = time.monotonic(), time.thread_time()
                batch = wait()
                took, used = time.monotonic() - began, time.thread_time() - cpu
                assert batch.records["n"].tolist() == [77]
                holder.join()
            assert used < (0.5 if EMULATED else 0.2) * took


def test_closing_wakes_the_reader(ring: RingBuffer) -> None:
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            ring.read()
        except BaseException as error:
            caught.append(error)

    reader = threading.Thread(target=wait)
    reader.start()
    time.sleep(0.1)
    began = time.monotonic()
    ring.close()
    reader.join(60)
    assert not reader.is_alive() and time.monotonic() - began < 60
    assert isinstance(caught[0], ValueError) and "closed" in str(caught[0])
    with pytest.raises(ValueError, match="closed"):
        ring.read(timeout=0)


def test_ctrl_c_while_waiting(ring: RingBuffer) -> None:
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ring.read()
        assert time.monotonic() - began < 60
        assert len(ring.read(timeout=0)) == 0  # and it is not left in use
    finally:
        signal.signal(signal.SIGALRM, old)


def test_poll_over_several(make: Callable[..., Any]) -> None:
    rings = [make("ringbuf", max_entries=4096, record=EVENT) for _ in range(3)]
    assert fastmap.poll(rings, timeout=0) == []
    began = time.monotonic()
    assert fastmap.poll(rings, timeout=0.1) == [] and time.monotonic() - began >= 0.1
    with Producer(rings[1], 16) as produce:
        for flags in (0, NO_WAKEUP):
            timer = threading.Timer(0.05, produce, (1, 1, flags))
            timer.start()
            assert fastmap.poll(rings, timeout=5) == [rings[1]]
            rings[1].read(timeout=0)
            timer.join()


# ---- asyncio -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, NO_WAKEUP], ids=["wakeup", "no_wakeup"])
@pytest.mark.parametrize("interval", [None, 0.02])
def test_async_for(ring: RingBuffer, flags: int, interval: float | None) -> None:
    async def main(produce: Producer) -> list[int]:
        got: list[int] = []
        thread = threading.Thread(target=lambda: [
            (produce(n, 10, flags), time.sleep(0.005)) for n in range(0, 300, 10)])
        thread.start()
        async for batch in ring.batches(max=25, interval=interval):
            assert 0 < len(batch) <= 25
            got += batch.records["n"].tolist()
            if len(got) == 300:
                break
        thread.join()
        return got

    with Producer(ring, 16) as produce:
        assert asyncio.run(asyncio.wait_for(main(produce), 30)) == list(range(300))


def test_aread_and_wait(ring: RingBuffer) -> None:
    async def main(produce: Producer) -> None:
        assert len(await ring.aread(timeout=0.05)) == 0
        asyncio.get_running_loop().call_later(0.05, produce, 5, 2)
        await asyncio.wait_for(ring.wait(), 5)
        assert (await ring.aread(1)).records["n"].tolist() == [5]
        assert (await ring.aread(timeout=0)).records["n"].tolist() == [6]

    with Producer(ring, 16) as produce:
        asyncio.run(main(produce))


def test_async_for_ends_when_the_ring_is_closed(ring: RingBuffer) -> None:
    async def main() -> int:
        asyncio.get_running_loop().call_later(0.1, ring.close)
        return len([batch async for batch in ring])

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 0


def test_a_stream_that_never_pauses_lets_other_tasks_run(ring: RingBuffer) -> None:
    """Records are there at each turn: nothing in the loop would ever wait."""
    turns = 0

    async def main(produce: Producer) -> None:
        nonlocal turns
        produce(0, 1)
        async for _ in ring:
            turns += 1
            produce(turns, 1)

    with Producer(ring, 16) as produce, pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(main(produce), 0.3))
    assert turns > 100
    ring.read(timeout=0)


def test_async_out(ring: RingBuffer) -> None:
    out = np.zeros(8, EVENT)

    async def main(produce: Producer) -> None:
        produce(0, 20)
        assert (await ring.aread(out=out)).records["n"].tolist() == list(range(8))
        async for batch in ring.batches(out=out):
            assert np.shares_memory(batch.records, out)
            if batch.records["n"][-1] == 19:
                break

    with Producer(ring, 16) as produce:
        asyncio.run(asyncio.wait_for(main(produce), 5))


def test_a_deadline_holds_while_nothing_but_discards_come(ring: RingBuffer) -> None:
    stop = threading.Event()

    def discards() -> None:
        with Producer(ring, 16, discard_every=1) as produce:
            while not stop.is_set():
                produce(0, 50)

    thread = threading.Thread(target=discards)
    thread.start()
    began = time.monotonic()
    assert len(ring.read(timeout=0.2)) == 0
    assert time.monotonic() - began >= 0.2
    stop.set()
    thread.join()


@pytest.mark.parametrize("timeout", [1e12, float("inf")])
def test_a_timeout_beyond_all_bounds(ring: RingBuffer, timeout: float) -> None:
    with Producer(ring, 16) as produce:
        timer = threading.Timer(0.05, produce, (0, 1))
        timer.start()
        assert len(ring.read(timeout=timeout)) == 1
        timer.join()


def test_an_idle_async_reader_uses_no_cpu(ring: RingBuffer) -> None:
    async def main() -> None:
        assert len(await ring.aread(timeout=1)) == 0

    cpu = time.process_time()
    asyncio.run(main())
    assert time.process_time() - cpu < 0.2


# ---- accounting --------------------------------------------------------------------------------


def test_drops_are_shown_beside(ring: RingBuffer, make: Callable[..., Any]) -> None:
    assert ring.dropped is None
    drops = make("percpu_array", value="u8", max_entries=2)
    ring.count_drops(drops, 1)
    drops[1] = 3
    assert ring.dropped == 3 * len(fastmap.possible_cpus())
    with pytest.raises(fastmap.KeyNotFound):
        ring.count_drops(drops, 2)


@pytest.mark.parametrize("producers", [1, 4])
@pytest.mark.parametrize("way", ["read", "lease"])
def test_every_number_is_received_or_counted(make: Callable[..., Any], producers: int,
                                             way: str) -> None:
    rb = make("ringbuf", max_entries=1 << 14, record=EVENT)
    each, dropped = 30_000, [0] * producers

    def produce(which: int) -> None:
        with Producer(rb, 16) as run:
            for first in range(0, each, 100):
                dropped[which] += run(which * each + first, 100)

    done = beside(produce, producers)
    got: list[Any] = []
    while True:
        ended = done.is_set()
        if way == "read":
            got.append(rb.read(timeout=0.01).records["n"].copy())
        else:
            with rb.lease(timeout=0.01) as batch:
                assert (batch.records["size"] == 16).all()
                got.append(batch.records["n"].copy())
        if ended and not len(got[-1]):
            break
    seen = np.concatenate(got)
    assert len(np.unique(seen)) == len(seen)
    assert len(seen) + sum(dropped) == producers * each
    for which in range(producers):  # each producer's own come in their order
        own = seen[seen // each == which].astype("i8")
        assert (np.diff(own) > 0).all()


# ---- hostile pages -----------------------------------------------------------------------------


def forge(rb: RingBuffer, position: int) -> None:
    """Write the consumer's position, as any process that may open the map can."""
    import mmap

    with mmap.mmap(rb.fileno(), mmap.PAGESIZE) as page:
        page[:8] = struct.pack("=Q", position % (1 << 64))


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.integers(0, 5000), st.integers(0, (1 << 64) - 1)),
       st.sampled_from([(16,), (1, 40, 7)]))
def test_forged_positions_never_crash(make: Callable[..., Any], position: int,
                                      sizes: tuple[int, ...]) -> None:
    rb = make("ringbuf", max_entries=4096)
    with Producer(rb, *sizes) as produce:
        produce(0, 80)
        for way in ("read", "lease", "ones"):
            forge(rb, position)
            try:
                if way == "lease":
                    with rb.lease(timeout=0) as batch:
                        sum(sum(batch[i]) for i in range(len(batch)))
                else:
                    batch = rb.read(1 if way == "ones" else None, timeout=0)
                    sum(sum(batch[i]) for i in range(len(batch)))
            except BpfError as error:
                assert "overwritten" in str(error)
    rb.close()


@pytest.mark.quick
@pytest.mark.parametrize("first, then", [(1000, 8), (8, 1000), (24, 16)])
def test_a_read_returns_all_sizes(make: Callable[..., Any], first: int, then: int) -> None:
    """A long record in front of short ones: their number is not told by the first one's size."""
    rb = make("ringbuf", max_entries=8192)
    with Producer(rb, first) as long, Producer(rb, then) as short:
        for count in (1, 5):
            assert long(0, 1) == 0 and short(1, count) == 0
            batch = rb.read(timeout=0)
            assert numbers(batch) == list(range(count + 1)) and rb.available == 0
            assert long(0, 1) == 0 and short(1, count) == 0
            assert len(rb.read(max=1, timeout=0)) == 1
            assert len(rb.read(timeout=0)) == count and not rb.ready()
