"""Threads, processes and programs at the same maps: nothing is mixed up, missed or lost."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import child, inserter

import fastmap
from fastmap import MapFlag, Program

CHUNKS = [1, 3, 64, None]


@contextlib.contextmanager
def thread(*tasks: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """Run each of `tasks` in a thread meanwhile; what they raise is in the list at the end."""
    raised: list[BaseException] = []

    def run(task: Callable[[], Any]) -> None:
        try:
            task()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for each in threads:
        each.start()
    try:
        yield raised
    finally:
        for each in threads:
            each.join()


# ---- closing beside calls ------------------------------------------------------------------------


def close_inside(call: str, m: Any, n: int) -> None:
    """Close `m` while a thread is inside `call`, and make others take its number."""
    keys, number, reader, results = np.arange(n, dtype="u8"), m.fileno(), m.reader(chunk=16), []
    tasks: dict[str, Callable[[], Any]] = {
        "lookup_many": lambda: results.append(m.lookup_many(keys)[0].sum()),
        "read": lambda: results.append(reader.read().values.sum()),
        "update_many": lambda: results.append(m.update_many(keys, 7)),
        "drain": lambda: results.append(reader.drain().values.sum()),
    }
    with thread(tasks[call]) as raised:
        time.sleep(0.004)
        m.close()
        # Whatever gets the number next has the same sizes, and takes what it is given.
        victims = [fastmap.create("hash", key="u8", value="u8", max_entries=n) for _ in range(3)]
        for victim in victims:
            victim[n + 1] = 5
    assert results or isinstance(raised[0], ValueError)
    assert set(results) <= {n if call == "update_many" else 3 * keys.sum()}
    for victim in victims:
        assert dict(victim.items()) == {n + 1: 5}, "another map was reached"
        victim.close()
    with pytest.raises(OSError):
        os.fstat(number)  # the deferred close came
    with pytest.raises(ValueError):
        tasks[call]()


@pytest.mark.parametrize("call", ["lookup_many", "read", "update_many", "drain"])
def test_a_close_never_reaches_another_map(call: str, filled: Callable[..., Any]) -> None:
    for _ in range(5):
        close_inside(call, filled(100_000), 100_000)


def test_close_waits_for_the_last_of_many_calls(filled: Callable[..., Any]) -> None:
    m = filled(200_000)
    keys, number, sizes = np.arange(200_000, dtype="u8"), m.fileno(), []
    started = threading.Barrier(4)

    def look() -> None:
        started.wait()
        sizes.append(m.lookup_many(keys)[1].sum())

    with thread(look, look, look) as raised:
        started.wait()
        time.sleep(0.02)
        m.close()
    assert sizes == [200_000] * 3 and not raised
    with pytest.raises(OSError):
        os.fstat(number)


# ---- one reader, two threads ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["read", "drain", "chunks"])
def test_a_reader_of_two_threads(way: str, filled: Callable[..., Any]) -> None:
    n = 100_000
    m = filled(n)
    reader, refused, sums, stop = m.reader(), [], [], threading.Event()

    def intrude() -> None:
        while not stop.is_set():
            try:
                batch = getattr(reader, way)() if way != "chunks" else next(iter(reader))
            except RuntimeError as error:
                refused.append(getattr(error, "batch", None))
            else:
                m.update_many(batch.keys.copy(), batch.values.copy())

    with thread(intrude) as raised:
        until = time.monotonic() + 10
        while (len(refused) < 20 or len(sums) < 5) and time.monotonic() < until:
            with contextlib.suppress(RuntimeError):
                sums.append(len(reader.read()))
        stop.set()
    assert not raised and len(refused) >= 20
    if way != "drain":
        assert set(sums) == {n}, "a read that was not refused is whole"
    assert all(batch is None for batch in refused), "who was refused has drained nothing"
    assert len(reader.read()) == n


@pytest.mark.parametrize("way", ["__iter__", "drain_chunks"])
def test_a_reader_has_one_walk_at_a_time(way: str, filled: Callable[..., Any]) -> None:
    m = filled(500)
    reader = m.reader(chunk=50)
    chunks = getattr(reader, way)()
    taken = len(next(chunks))
    rest = len(reader.read())
    with pytest.raises(RuntimeError, match="another read") as caught:
        next(chunks)  # not the end: that would hide what it has not seen
    assert not hasattr(caught.value, "batch")
    assert rest == len(m) == (500 if way == "__iter__" else 500 - taken)


def test_a_drain_takes_no_condition(filled: Callable[..., Any]) -> None:
    m = filled(500)
    reader = m.reader(where=("value", "<", 100))
    for drain in (reader.drain, lambda: next(reader.drain_chunks())):
        with pytest.raises(ValueError, match="where"):
            drain()  # it would delete what it does not return
    assert len(m) == 500


# ---- reads beside writers ------------------------------------------------------------------------


def churn(m: Any, stable: int, space: int, seconds: float) -> None:
    """Insert and delete keys of [stable, stable + space), and rewrite those below, for a while."""
    rng = np.random.default_rng(os.getpid())
    value = 1 if m.per_cpu else None
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        moving = rng.integers(stable, stable + space, 300, dtype="u8")
        fixed = rng.integers(0, stable, 300, dtype="u8")
        m.update_many(moving, value or moving, errors="return")
        m.update_many(fixed, value or fixed, errors="return")
        m.delete_many(moving[:250])
        m[int(fixed[0])] = 1


def assert_stable_keys_once(keys: Any, stable: int) -> None:
    counts = np.bincount(keys[keys < stable].astype("i8"), minlength=stable)
    assert (counts == 1).all(), f"{(counts == 0).sum()} missed, {(counts > 1).sum()} repeated"


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("type", "flags"), [("hash", 0), ("hash", MapFlag.NO_PREALLOC),
                                             ("percpu_hash", 0)])
def test_stable_keys_come_once_beside_writers(chunk: int | None, type: str, flags: int,
                                              filled: Callable[..., Any]) -> None:
    stable, space = 3000, 3000
    m = filled(stable, type=type, max_entries=stable + space, flags=flags)
    reader, sweeps, seen = m.reader(chunk=chunk), 0, 0
    with child(lambda: churn(m, stable, space, 30)), thread(lambda: churn(m, stable, space, 0.5)):
        until = time.monotonic() + 0.5
        while time.monotonic() < until or sweeps < 6:
            batch = reader.read()
            assert_stable_keys_once(batch.keys, stable)
            parts = [part.keys.copy() for part in reader]
            assert_stable_keys_once(np.concatenate(parts), stable)
            sweeps, seen = sweeps + 2, seen + len(batch) - stable
    assert seen > 0


def counters(make: Callable[..., Any]) -> Any:
    return make("array", value="u8", max_entries=2)


@contextlib.contextmanager
def writing(m: Any, numbers: Any) -> Iterator[None]:
    """Let a program write to `m` meanwhile, at each system call of this process and its threads."""
    stop = threading.Event()

    def enter() -> None:
        while not stop.is_set():
            os.getppid()

    with (Program("raw_tracepoint", inserter(m, numbers, pid=os.getpid())) as program,
          program.attach_raw_tracepoint("sys_enter"), thread(enter) as raised):
        try:
            yield
        finally:
            stop.set()
    assert not raised


@pytest.mark.parametrize("chunk", CHUNKS)
def test_stable_keys_come_once_beside_a_program(chunk: int | None, filled: Callable[..., Any],
                                                make: Callable[..., Any]) -> None:
    stable, numbers = 3000, counters(make)
    m = filled(stable, max_entries=5 * stable)
    reader = m.reader(chunk=chunk)
    for _ in range(4):
        numbers[0] = stable  # the program's keys begin here
        with writing(m, numbers):
            for _ in range(3):
                assert_stable_keys_once(reader.read().keys, stable)
        assert numbers[0] > stable
        batch = reader.read()
        m.delete_many(batch.keys[batch.keys >= stable])


def test_a_walk_ends_while_a_program_inserts(filled: Callable[..., Any],
                                             make: Callable[..., Any]) -> None:
    # Each command of the walk itself enters a system call, which inserts a further entry.
    m, numbers = filled(2000, max_entries=400_000), counters(make)
    numbers[0] = 2000
    with Program("raw_tracepoint", inserter(m, numbers, pid=os.getpid())) as program:
        for walk in (m.reader(chunk=1).read, m.reader(chunk=1).drain, m.clear,
                     lambda: list(m.keys()), lambda: len(m)):
            before, began = numbers[0], time.monotonic()
            with program.attach_raw_tracepoint("sys_enter"):
                walk()
            assert numbers[0] > before
            assert time.monotonic() - began < 60


# ---- drains beside producers ---------------------------------------------------------------------


def produce(m: Any, n: int) -> None:
    """Insert 1..n, in pieces, single ones among them, waiting where the map is full."""
    at, piece = 1, 1
    while at <= n:
        keys = np.arange(at, min(at + piece, n + 1), dtype="u8")
        try:
            m.update_many(keys, 3 * keys)
            at += len(keys)
        except fastmap.MapFull as full:
            at += full.applied  # type: ignore[attr-defined]
        piece = piece % 700 + 13


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("chunks", [False, True], ids=["drain", "drain_chunks"])
def test_drains_lose_nothing(chunk: int | None, chunks: bool, make: Callable[..., Any]) -> None:
    n = 60_000
    m = make("hash", key="u8", value="u8", max_entries=5000)
    reader, batches, total = m.reader(chunk=chunk), [], 0
    with child(lambda: produce(m, n)):
        until = time.monotonic() + 30
        while total < n and time.monotonic() < until:
            for batch in reader.drain_chunks() if chunks else [reader.drain()]:
                batches.append(batch.copy())
                total += len(batch)
    keys = np.concatenate([batch.keys for batch in batches])
    assert np.array_equal(np.sort(keys), np.arange(1, n + 1))
    assert np.array_equal(np.concatenate([batch.values for batch in batches]), 3 * keys)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_drains_of_what_a_program_writes(chunk: int | None, make: Callable[..., Any]) -> None:
    m, numbers = make("hash", key="u8", value="u8", max_entries=1 << 16), counters(make)
    reader, batches = m.reader(chunk=chunk), []
    with writing(m, numbers):
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            batches.append(reader.drain().copy())
    batches.append(reader.drain().copy())
    written, full = numbers[0], numbers[1]  # an update fails where the map is full
    keys = np.sort(np.concatenate([batch.keys for batch in batches]))
    assert len(keys) == written - full > 1000
    assert (np.diff(keys) > 0).all() and keys[-1] < written
    assert all(np.array_equal(batch.values, 3 * batch.keys) for batch in batches)


# ---- element commands ----------------------------------------------------------------------------


class Slow:
    """An integer whose `__index__` lets other threads run."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        time.sleep(0)
        return self.number


@pytest.mark.parametrize("type", ["hash", "percpu_hash"])
def test_elements_of_many_threads_are_not_mixed_up(type: str, make: Callable[..., Any]) -> None:
    record = np.dtype([("a", "u8"), ("b", "u8")])
    m = make(type, key="u8", value=record, max_entries=4000)

    def write(base: int) -> None:
        for i in range(base, base + 500):
            m[Slow(i)] = (Slow(i), Slow(2 * i))
            assert np.all(m[Slow(i)]["b"] == 2 * i)
            if i % 5 == 0:
                del m[Slow(i)]

    with thread(*[lambda base=base: write(base) for base in range(0, 4000, 500)]) as raised:
        pass
    assert not raised
    batch = m.snapshot()
    assert sorted(batch.keys.tolist()) == [i for i in range(4000) if i % 5]
    for field, factor in (("a", 1), ("b", 2)):
        column = batch.values[field].reshape(len(batch), -1)
        assert (column == factor * batch.keys[:, None]).all()


@pytest.mark.parametrize("call", [
    lambda m, given: m.update(1, given),
    lambda m, given: m.update_many([1], [given]),
    lambda m, given: m.update_many([1, 2, 3], [given, given, given]),
])
def test_a_list_that_shrinks_while_it_is_read(call: Callable[[Any, Any], None],
                                              make: Callable[..., Any]) -> None:
    class Clears:
        def __index__(self) -> int:
            given.clear()
            return 1

    m = make("percpu_hash", key="u4", value="u4", max_entries=4)
    given: list[Any] = [Clears(), *[2] * (len(fastmap.possible_cpus()) - 1)]
    with contextlib.suppress(ValueError, IndexError):
        call(m, given)
        assert m[1].tolist()[:2] in ([1, 2], [1])


def test_keys_that_shrink_while_they_are_read(make: Callable[..., Any]) -> None:
    class Clears:
        def __index__(self) -> int:
            del given[1:]
            return 1

    m = make("hash", key="u4", value="u4", max_entries=100)
    given: list[Any] = [Clears(), *range(2, 90)]
    with contextlib.suppress(ValueError, IndexError):
        m.update_many(given, 5)
        assert sorted(m) == list(range(1, 90))


def test_a_map_that_closes_while_a_key_is_encoded(make: Callable[..., Any]) -> None:
    class Closes:
        def __index__(self) -> int:
            m.close()
            return 1

    for call in (lambda m: m[Closes()], lambda m: m.update(1, Closes()),
                 lambda m: m.lookup_many([Closes()])):
        m = make("hash", key="u4", value="u4", max_entries=4)
        with pytest.raises(ValueError, match="closed"):
            call(m)
