"""Perf buffers: every sample once and whole, by CPU, and every one that was dropped counted."""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import EMULATED, in_child

import fastmap
from fastmap import PerfBuffer, Program
from fastmap._core.system.syscall import cpu_list
from fastmap.asm import FP, R0, R1, R2, R3, R4, R5, R6, R7, R8, Assembler, Code, Helper

pytestmark = pytest.mark.needs("PERF_EVENT_ARRAY", "in-kernel")

EVENT = np.dtype([("n", "u8"), ("size", "u4")])  # 12 bytes: no padding of the kernel's
LARGE = 32768
RUN_ON_CPU = 1


def online() -> tuple[int, ...]:
    return cpu_list(Path("/sys/devices/system/cpu/online").read_text())


def writer(events: Any, room: Any, sizes: Sequence[int]) -> Code:
    """Assemble a program that writes ``ctx[1]`` samples, numbered from ``ctx[0]`` on.

    Sample n has ``sizes[n % len(sizes)]`` bytes: n as a u8 and the size as a u4, as far as they
    go. It returns how many were dropped.
    """
    a = Assembler()
    a.stx(8, FP, -8, R1)
    a.ldx(8, R2, R1, 0)
    a.stx(8, FP, -16, R2)  # the next number
    a.st(8, FP, -24, 0)  # how many were dropped
    a.ldx(8, R1, R1, 8)
    a.ld_func(R2, "one")
    a.mov(R3, FP)
    a.add(R3, -24)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    a.ldx(8, R0, FP, -24)
    a.exit()
    a.function("one")
    a.mov(R6, R2)
    a.st(4, FP, -4, 0)
    a.ld_map(R1, room)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R7, R0)
    a.ldx(8, R8, R6, 8)
    a.stx(8, R7, 0, R8)
    a.mov(R1, R8)
    a.add(R1, 1)
    a.stx(8, R6, 8, R1)
    a.mod(R8, len(sizes))
    for turn, size in enumerate(sizes):
        a.jne(R8, turn, f"not{turn}")
        a.st(4, R7, 8, size)
        a.mov(R5, size)
        a.ja("write")
        a.label(f"not{turn}")
    a.mov(R5, 8)
    a.label("write")
    a.ldx(8, R1, R6, 16)
    a.ld_map(R2, events)
    a.mov(R3, -1)
    a.rsh(R3, 32)  # this CPU
    a.mov(R4, R7)
    a.call(Helper.PERF_EVENT_OUTPUT)
    a.jeq(R0, 0, "out")
    a.ldx(8, R1, R6, 0)
    a.add(R1, 1)
    a.stx(8, R6, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


class Producer:
    """A loaded `writer`; ``produce(first, count, cpu)`` returns how many were dropped."""

    def __init__(self, events: Any, *sizes: int) -> None:
        self.room = fastmap.create("array", value=f"V{LARGE}", max_entries=1)
        self.program = Program("raw_tracepoint", writer(events, self.room, sizes))

    def __call__(self, first: int, count: int, cpu: int = 0) -> int:
        return self.program.run(struct.pack("=QQ", first, count), flags=RUN_ON_CPU, cpu=cpu)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.close()
        self.room.close()


@pytest.fixture
def events(make: Callable[..., Any]) -> Any:
    return make("perf_event_array", max_entries=max(fastmap.possible_cpus()) + 1)


@pytest.fixture
def perf(events: Any) -> Iterator[PerfBuffer]:
    with PerfBuffer(events, pages=1, record=EVENT) as made:
        yield made


@pytest.mark.quick
@pytest.mark.parametrize("way", ["read", "lease"])
def test_each_sample_comes_once_with_its_cpu(events: Any, perf: PerfBuffer, way: str) -> None:
    assert perf.cpus == online()
    with Producer(events, 12) as produce:
        for first in range(0, 3000, 50):  # the rings wrap many times
            for cpu in online():
                assert produce(first + cpu * 10000, 50, cpu) == 0
            if way == "read":
                batch = perf.read(timeout=0)
            else:
                with perf.lease(timeout=0) as lent:
                    batch = lent.copy()
            assert len(batch) == 50 * len(online()) and batch.lost == 0
            assert (batch.records["n"] // 10000 == batch.cpu).all()
            assert (batch.records["size"] == 12).all()
            for cpu in online():
                own = batch.records["n"][batch.cpu == cpu]
                assert (own == cpu * 10000 + np.arange(first, first + 50)).all()
    empty = perf.read(timeout=0)
    assert len(empty) == 0 and empty.cpu.dtype == "i4" and empty.records.dtype == EVENT
    assert perf.lost.tolist() == [0] * len(online())


@pytest.mark.quick
def test_one_cpu_s_samples_are_a_strided_view(events: Any, perf: PerfBuffer) -> None:
    cpu = online()[-1]
    with Producer(events, 12) as produce:
        produce(0, 20, cpu)
        with perf.lease(timeout=0) as batch:
            records = batch.records
            assert records.strides == (24,) and not records.flags.owndata
            assert not records.flags.writeable
            assert records["n"].tolist() == list(range(20)) and set(batch.cpu.tolist()) == {cpu}
        assert records["n"].sum() >= 0  # it stays readable


@pytest.mark.parametrize("sizes", [(1,), (5,), (8,), (12, 20, 100), (1, 2, 3, 4, 5, 6, 7, 8, 9)])
@pytest.mark.parametrize("way", ["read", "lease", "ones"])
def test_sizes_at_all_offsets(events: Any, sizes: tuple[int, ...], way: str) -> None:
    with PerfBuffer(events, pages=1) as perf, Producer(events, *sizes) as produce:
        cpu = online()[-1]
        for first in range(0, 600, 20):
            assert produce(first, 20, cpu) == 0
            got: list[bytes] = []
            while True:
                if way == "lease":
                    with perf.lease(timeout=0) as batch:
                        some = [bytes(batch[i]) for i in range(len(batch))]
                else:
                    batch = perf.read(1 if way == "ones" else None, timeout=0)
                    some = [bytes(batch[i]) for i in range(len(batch))]
                if not some:
                    break
                got += some
            assert len(got) == 20
            for n, raw in enumerate(got, first):
                size = sizes[n % len(sizes)]
                assert len(raw) == (size + 4 + 7) // 8 * 8 - 4
                assert raw[:min(size, 8)] == n.to_bytes(8, "little")[:size]


def test_large_samples_wrap(events: Any) -> None:
    with PerfBuffer(events, pages=16) as perf, Producer(events, LARGE, 12, 20004) as produce:
        for n in range(60):
            assert produce(n, 1, online()[0]) == 0
            batch = perf.read(timeout=0)
            assert len(batch) == 1 and bytes(batch[0])[:8] == n.to_bytes(8, "little")
            assert bytes(batch[0])[8:12] == (LARGE, 12, 20004)[n % 3].to_bytes(4, "little")
            assert not any(bytes(batch[0])[12:])


def test_padding_is_left_out(events: Any) -> None:
    event = np.dtype([("n", "u8"), ("size", "u4"), ("x", "u2")])
    out = np.zeros(10 * len(online()), event)
    with PerfBuffer(events, pages=1, record=event) as perf, Producer(events, 14) as produce, \
            Producer(events, 40) as other:
        for cpu in online():
            produce(0, 10, cpu)
        batch = perf.read(5, timeout=0)
        assert batch.records.dtype == event and batch.records.tolist() == [
            (n, 14, 0) for n in range(5)]
        batch = perf.read(timeout=0, out=out)
        assert np.shares_memory(batch.records, out)
        assert len(batch) == 10 * len(online()) - 5 and (out["size"][:len(batch)] == 14).all()
        other(7, 1, online()[0])
        with pytest.raises(ValueError, match="44 bytes"):
            perf.read(timeout=0, out=out)
        assert len(perf.read(timeout=0)) == 1  # it is still there


def test_kinds(events: Any) -> None:
    wide = np.dtype([("n", "u8"), ("size", "u4"), ("x", "u8")])
    with PerfBuffer(events, record={12: EVENT, 20: wide}, tag="size") as perf, \
            Producer(events, 12, 20) as produce:
        produce(0, 11, online()[0])
        parts = perf.read(timeout=0).split()
        assert parts[12]["n"].tolist() == [0, 2, 4, 6, 8, 10]
        assert parts[20]["n"].tolist() == [1, 3, 5, 7, 9]


def test_losses_are_counted_by_cpu(events: Any, perf: PerfBuffer) -> None:
    cpu = online()[-1]
    with Producer(events, 12) as produce:
        dropped = produce(0, 500, cpu)
        assert dropped > 300
        assert perf.lost.tolist() == [dropped if c == cpu else 0 for c in perf.cpus]
        kept = perf.read(timeout=0)
        assert len(kept) == 500 - dropped and kept.lost == 0
        assert produce(500, 3, cpu) == 0
        batch = perf.read(timeout=0)
        assert batch.records["n"].tolist() == [500, 501, 502] and batch.lost == dropped
        assert perf.lost.sum() == dropped


def test_pause_and_resume(events: Any, perf: PerfBuffer) -> None:
    cpu = online()[0]
    with Producer(events, 12) as produce:
        produce(0, 5, cpu)
        perf.pause()
        assert perf.paused and produce(5, 7, cpu) == 7
        assert perf.read(timeout=0).records["n"].tolist() == list(range(5))
        perf.resume()
        assert not perf.paused and produce(12, 2, cpu) == 0
        batch = perf.read(timeout=0)
        assert batch.records["n"].tolist() == [12, 13] and batch.lost == 7
        assert perf.lost.sum() == 7


@pytest.mark.parametrize("sizes", [(12,), (12, 28, 100), (52,)])
def test_overwrite_keeps_the_newest(events: Any, sizes: tuple[int, ...]) -> None:
    with PerfBuffer(events, pages=1, overwrite=True) as perf, Producer(events, *sizes) as produce:
        cpu = online()[-1]
        for n in (0, 5, 1000, 3, 77, 500):
            assert produce(1000, n, cpu) == 0
            batch = perf.read(timeout=0)
            got = [int.from_bytes(bytes(batch[i])[:8], "little") for i in range(len(batch))]
            assert got == list(range(1000 + n - len(got), 1000 + n))
            assert len(got) == n or batch.nbytes + 12 * len(got) > 4096 - max(sizes) - 16
            assert not perf.paused
        produce(0, 10, cpu)
        first, second = perf.read(4, timeout=0), perf.read(4, timeout=0)
        with perf.lease(timeout=0) as third:
            assert produce(10, 1, cpu) == 1  # it is paused meanwhile
            assert [bytes(batch[i])[0] for batch in (first, second, third)
                    for i in range(len(batch))] == list(range(10))
        assert produce(11, 1, cpu) == 0 and perf.lost.sum() == 1
        assert bytes(perf.read(timeout=0)[0])[0] == 11
        perf.pause()
        with perf.lease(timeout=0):
            pass
        assert perf.paused and produce(12, 1, cpu) == 1


@pytest.mark.parametrize("producers", [1, 4])
@pytest.mark.parametrize("way", ["read", "lease"])
def test_every_number_is_received_or_counted(events: Any, producers: int, way: str) -> None:
    each, done, dropped = 20_000, threading.Event(), [0] * producers
    cpus = online()

    def produce(which: int) -> None:
        with Producer(events, 12) as run:
            for first in range(0, each, 100):
                cpu = cpus[(which + first // 100) % len(cpus)]
                dropped[which] += run(which * each + first, 100, cpu)

    with PerfBuffer(events, pages=2, record=EVENT) as perf:
        threads = [threading.Thread(target=produce, args=(i,)) for i in range(producers)]
        for thread in threads:
            thread.start()
        joiner = threading.Thread(target=lambda: [[t.join() for t in threads], done.set()])
        joiner.start()
        got: list[Any] = []
        told = 0
        while True:
            ended = done.is_set()
            if way == "read":
                batch = perf.read(timeout=0.01)
                got.append(batch.records["n"])
            else:
                with perf.lease(timeout=0.01) as batch:
                    got.append(batch.records["n"].copy())
            told += batch.lost
            if ended and not len(batch):
                break
        joiner.join()
        seen = np.concatenate(got)
        assert len(np.unique(seen)) == len(seen)
        assert len(seen) + sum(dropped) == producers * each
        assert perf.lost.sum() == sum(dropped) and told <= sum(dropped)


def test_waiting(events: Any, perf: PerfBuffer) -> None:
    for timeout in (0, 0.12):
        began = time.monotonic()
        assert len(perf.read(timeout=timeout)) == 0
        assert timeout <= time.monotonic() - began
    with Producer(events, 12) as produce:
        for wait in (perf.read, lambda: asyncio.run(perf.aread()),
                     lambda: (fastmap.poll([perf], 5), perf.read(timeout=0))[1]):
            timer = threading.Timer(0.1, produce, (7, 1, online()[-1]))
            timer.start()
            began = time.monotonic()
            assert wait().records["n"].tolist() == [7]
            assert time.monotonic() - began < 60
            timer.join()
    cpu = time.process_time()
    assert len(asyncio.run(perf.aread(timeout=0.5))) == 0 and len(perf.read(timeout=0.5)) == 0
    assert time.process_time() - cpu < 0.3


@pytest.mark.parametrize("wake", [{"watermark": 2048}, {"wakeup": 1000}])
def test_what_stays_below_the_watermark_comes_too(events: Any, wake: dict[str, int]) -> None:
    with PerfBuffer(events, pages=1, record=EVENT, **wake) as perf, \
            Producer(events, 12) as produce:
        timer = threading.Timer(0.05, produce, (7, 1, online()[0]))
        timer.start()
        assert perf.read(timeout=5).records["n"].tolist() == [7]
        timer.join()


def test_async_for(events: Any, perf: PerfBuffer) -> None:
    async def main(produce: Producer) -> list[int]:
        got: list[int] = []
        thread = threading.Thread(target=lambda: [
            (produce(n, 10, online()[n // 10 % len(online())]), time.sleep(0.005))
            for n in range(0, 300, 10)])
        thread.start()
        async for batch in perf:
            got += batch.records["n"].tolist()
            if len(got) == 300:
                break
        thread.join()
        return sorted(got)

    with Producer(events, 12) as produce:
        assert asyncio.run(asyncio.wait_for(main(produce), 30)) == list(range(300))


def test_closing(events: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    perf = PerfBuffer(events, pages=1, record=EVENT)
    with Producer(events, 12) as produce:
        produce(0, 5, online()[0])
        with perf.lease(timeout=0) as batch:
            view = batch.records["n"]
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                perf.read()
            except BaseException as error:
                caught.append(error)

        reader = threading.Thread(target=wait)
        reader.start()
        time.sleep(0.1)
        began = time.monotonic()
        perf.close()
        perf.close()
        reader.join(60)
        assert time.monotonic() - began < 60 and "closed" in str(caught[0])
        assert produce(5, 1, online()[0]) == 1  # the slot is empty
        assert view.tolist() == list(range(5))
    with pytest.raises(ValueError, match="closed"):
        perf.read(timeout=0)
    assert set(os.listdir("/proc/self/fd")) == before
    del view, batch
    gc.collect()
    forgotten = PerfBuffer(events, pages=1)
    del forgotten
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def read_until(perf: PerfBuffer, done: Callable[[], bool]) -> None:
    """Read on, as a collector does, until the events were looked after."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        assert len(perf.read(timeout=0.05)) == 0


def on_each(produce: Producer) -> int:
    """Write a sample on each CPU; return how many were refused."""
    return sum(produce(0, 1, cpu) for cpu in online())


def test_a_second_reader_takes_the_events_and_they_come_back(events: Any, perf: PerfBuffer) -> None:
    count = len(online())
    with Producer(events, 12) as produce:
        assert on_each(produce) == 0 and len(perf.read(timeout=0)) == count
        with PerfBuffer(events) as second:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                read_until(perf, lambda: len(told) == count)
            assert all("another reader has put its event" in str(each.message) for each in told)
            assert on_each(produce) == 0 and len(second.read(timeout=0)) == count
            assert not perf.gaps.any()
        assert on_each(produce) == count and not perf.lost.any()  # refused: the slots are empty
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            read_until(perf, lambda: bool(perf.gaps.all()))
        assert all("was taken out of the map" in str(each.message) for each in told)
        assert perf.gaps.tolist() == [1] * count
        assert on_each(produce) == 0
        assert sorted(perf.read(timeout=0).cpu.tolist()) == sorted(online())


def test_closing_takes_out_ones_own_events_alone(events: Any) -> None:
    with Producer(events, 12) as produce:
        first = PerfBuffer(events)
        with PerfBuffer(events) as second:
            first.close()
            assert on_each(produce) == 0 and len(second.read(timeout=0)) == len(online())
        assert on_each(produce) == len(online())


if EMULATED and len(online()) > 1:  # where nobody else's work is on the CPU
    @pytest.mark.quick
    def test_a_cpu_that_was_offline_is_heard_again(events: Any, perf: PerfBuffer) -> None:
        cpu = online()[-1]
        switch = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
        with Producer(events, 12) as produce:
            assert produce(0, 3, cpu) == 0
            switch.write_text("0")
            try:
                # What was written before is there, and a read meanwhile is none of its business.
                assert len(perf.read(timeout=0)) == 3 and len(perf.read(timeout=1.5)) == 0
            finally:
                switch.write_text("1")
            assert produce(0, 5, cpu) == 5 and not perf.lost.any()
            with pytest.warns(RuntimeWarning, match=f"of CPU {cpu} went away with its CPU"):
                read_until(perf, lambda: bool(perf.gaps.any()))
            assert dict(zip(perf.cpus, perf.gaps.tolist(), strict=True))[cpu] == 1
            assert produce(0, 5, cpu) == 0 and len(perf.read(timeout=0)) == 5


def test_a_forked_child_is_refused(events: Any, perf: PerfBuffer) -> None:
    def child() -> None:
        for use in (lambda: perf.read(timeout=0), perf.ready, lambda: perf.lost, perf.pause,
                    lambda: perf.lease(timeout=0).__enter__()):
            with pytest.raises(RuntimeError, match="process"):
                use()
        perf.close()

    in_child(child)
    with Producer(events, 12) as produce:
        assert produce(0, 1, online()[0]) == 0  # the parent's slots are as they were
    assert len(perf.read(timeout=0)) == 1


def test_one_reader_at_a_time(events: Any, perf: PerfBuffer) -> None:
    with Producer(events, 12) as produce:
        produce(0, 3, online()[0])
        with perf.lease(1, timeout=0), pytest.raises(RuntimeError, match="in use"):
            perf.read(timeout=0)
        assert len(perf.read(timeout=0)) == 2


@pytest.mark.parametrize(("wrong", "error"), [
    ({"pages": 0}, ValueError), ({"pages": 3}, ValueError), ({"pages": True}, TypeError),
    ({"pages": 1.5}, TypeError), ({"wakeup": 0}, ValueError), ({"watermark": 0}, ValueError),
    ({"watermark": 4097, "pages": 1}, ValueError), ({"cpus": []}, ValueError),
    ({"cpus": [0, 0]}, ValueError), ({"cpus": [-1]}, ValueError), ({"cpus": [9999]}, ValueError),
    ({"tag": "n"}, ValueError),
])
def test_arguments_that_are_refused(events: Any, wrong: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        PerfBuffer(events, **wrong)


def test_maps_that_are_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="PerfEventArray"):
        PerfBuffer(make("array", value="u4", max_entries=9))  # type: ignore[arg-type]
    absent = set(range(16)) - set(online())
    events = make("perf_event_array", max_entries=16)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(fastmap.BpfError, match="perf event of CPU"):
        PerfBuffer(events, cpus=[online()[0], max(absent)])
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
    with PerfBuffer(events, cpus=online()[-1:]) as perf:
        assert perf.cpus == online()[-1:]
