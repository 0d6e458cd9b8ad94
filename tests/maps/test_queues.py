"""QUEUE, STACK and BLOOM_FILTER: against deque, list and set; filled and read by programs."""

from __future__ import annotations

import errno
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import fastmap
from fastmap import (
    EXIST,
    NOEXIST,
    BatchError,
    KeyNotFound,
    MapFlag,
    MapFull,
    PermissionDenied,
    Program,
)
from fastmap.asm import FP, R0, R1, R2, R3, Assembler, Code, Helper

Make = Callable[..., Any]

QUEUES = ("queue", "stack")
RECORD = [("a", "u1"), ("b", "u4"), ("c", "u2", (3,))]


def order(kind: str, pushed: list[Any]) -> list[Any]:
    return pushed if kind == "queue" else pushed[::-1]


@pytest.mark.quick
@pytest.mark.parametrize("kind", QUEUES)
def test_round(make: Make, kind: str) -> None:
    q = make(kind, value="u8", max_entries=5)
    assert type(q) is (fastmap.Queue if kind == "queue" else fastmap.Stack)
    assert q.key_dtype is None and not q
    q.push(2**64 - 1)
    assert q.push_many([7, 8]) == 2 and q
    pushed = order(kind, [2**64 - 1, 7, 8])
    assert q.peek() == pushed[0] and q.pop() == pushed[0]
    popped = q.pop_many(100)
    assert popped.dtype == "u8" and popped.tolist() == pushed[1:] and not q
    assert q.pop_many(3).shape == (0,)
    for call in (q.pop, q.peek):
        with pytest.raises(KeyNotFound, match="empty"):
            call()


@pytest.mark.parametrize("kind", QUEUES)
@pytest.mark.parametrize("value", ["u1", ">u4", "S5", "V3", RECORD, ("u2", (3,)), "V5000"],
                         ids=lambda value: str(value)[:9])
def test_values_of_every_kind(make: Make, kind: str, value: Any) -> None:
    dtype = np.dtype(value)
    raw = np.arange(7 * dtype.itemsize, dtype="u4").astype("u1") | 1
    values = raw.view(dtype.base).reshape(7, *dtype.shape)
    q = make(kind, value=value, max_entries=7)
    assert q.push_many(values[::-1]) == 7
    popped = q.pop_many(7)
    assert popped.dtype == dtype.base and popped.shape == values.shape
    assert popped.tobytes() == (values[::-1] if kind == "queue" else values).tobytes()
    q.push(values[3])
    assert np.array(q.peek(), dtype.base).tobytes() == values[3:4].tobytes()


def test_padding_is_not_pushed(make: Make) -> None:
    padded = np.dtype([("a", "u1"), ("b", "u4")], align=True)
    values = np.full(2 * padded.itemsize, 0xEE, "u1").view(padded)
    q = make("queue", value=padded, max_entries=4)
    q.push_many(values)
    q.push(values[0])
    assert q.pop_many(3).tobytes() == b"\xee\0\0\0\xee\xee\xee\xee" * 3


@pytest.mark.parametrize("kind", QUEUES)
def test_full(make: Make, kind: str) -> None:
    q = make(kind, value="u4", max_entries=3)
    with pytest.raises(MapFull, match="element 3") as caught:
        q.push_many(np.arange(10))
    assert isinstance(caught.value, BatchError)
    assert caught.value.applied == caught.value.index == 3 and caught.value.errno == errno.E2BIG
    with pytest.raises(MapFull, match="full"):
        q.push(5)
    assert q.push_many([5, 6], errors="return").tolist() == [errno.E2BIG] * 2
    q.push(7, flags=EXIST)  # of both, the oldest goes
    assert q.push_many([8], flags=EXIST) == 1
    assert q.pop_many(9).tolist() == order(kind, [2, 7, 8])
    assert q.push_many([1, 2], errors="return").tolist() == [0, 0]


def test_flags_that_are_refused(make: Make) -> None:
    q = make("queue", value="u4", max_entries=3)
    for flags in (NOEXIST, 3, 4, -1, 2**40):
        with pytest.raises(ValueError, match="EXIST"):
            q.push(1, flags=flags)
        with pytest.raises(ValueError, match="EXIST"):
            q.push_many([1], flags=flags)
    assert not q


@pytest.mark.parametrize(("values", "error"), [
    (5, TypeError), ("ab", TypeError), ([1.5], TypeError), ([-1], OverflowError),
    (np.zeros((2, 2), "u4"), ValueError), (np.array([2**32]), OverflowError), (None, TypeError),
], ids=repr)
def test_values_that_are_refused(make: Make, values: Any, error: type[Exception]) -> None:
    b = make("bloom_filter", value="u4", max_entries=3)
    q = make("queue", value="u4", max_entries=3)
    for call in (q.push_many, b.add_many, b.contains_many):
        with pytest.raises(error):
            call(values)
    assert not q


@pytest.mark.parametrize(("n", "error"), [
    (-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError), ("1", TypeError)])
def test_counts_that_are_refused(make: Make, n: Any, error: type[Exception]) -> None:
    q = make("queue", value="u4", max_entries=3)
    q.push(1)
    with pytest.raises(error):
        q.pop_many(n)
    assert q.drain().tolist() == [1]


def test_nothing(make: Make) -> None:
    q = make("queue", value=RECORD, max_entries=3)
    assert q.push_many([]) == 0 and q.push_many(np.zeros(0, RECORD), errors="return").shape == (0,)
    q.push((1, 2, (3, 4, 5)))
    assert q.pop_many(0).shape == (0,) and q
    q.clear()
    assert not q and q.drain().dtype == RECORD


@pytest.mark.parametrize("kind", ("queue", "stack", "bloom_filter"))
def test_nothing_takes_a_key(make: Make, kind: str) -> None:
    m = make(kind, value="u4", max_entries=3)
    for name in ("lookup", "update", "delete", "lookup_and_delete", "get", "update_many",
                 "delete_many", "lookup_many"):
        assert not hasattr(m, name)

    def assign() -> None:
        m[1] = 1

    def delete() -> None:
        del m[1]

    for refused in (assign, delete, lambda: m[1], lambda: len(m), lambda: iter(m), lambda: list(m)):
        with pytest.raises(TypeError):
            refused()
    if kind != "bloom_filter":
        with pytest.raises(TypeError):
            1 in m  # noqa: B015
    assert not hasattr(m, "keys") and not hasattr(m, "snapshot")


def test_creation_is_checked() -> None:
    for kind in QUEUES:
        # The kernel counts the bytes in 32 bits: 6.18 takes this, and overflows.
        for value, entries in (("u8", 2**29 - 1), ("V65536", 2**16 - 1), ("u1", 2**32 - 1)):
            with pytest.raises(ValueError, match="4 GiB"):
                fastmap.create(kind, value=value, max_entries=entries)
        with pytest.raises(ValueError, match="map_extra"):
            fastmap.create(kind, value="u4", max_entries=1, map_extra=3)
        with pytest.raises(TypeError, match="no key"):
            fastmap.create(kind, key="u4", value="u4", max_entries=1)
    with pytest.raises(ValueError, match="hashes"):
        fastmap.create("bloom_filter", value="u4", max_entries=1, map_extra=16)


def test_handles_that_may_not(make: Make) -> None:
    q = make("queue", value="u4", max_entries=3)
    q.push(1)
    with (fastmap.open(id=q.id, readonly=True, value="u4") as deaf,
          fastmap.open(id=q.id, writeonly=True, value="u4") as mute):
        assert deaf.peek() == 1
        for call in (lambda: deaf.push(1), lambda: deaf.push_many([1]), deaf.pop, mute.peek,
                     mute.pop, lambda: deaf.pop_many(2), mute.drain):
            with pytest.raises(PermissionDenied):
                call()
        mute.push(2)
    assert q.drain().tolist() == [1, 2]


def test_many(make: Make) -> None:
    q = make("queue", value="u8", max_entries=400_000)
    values = np.arange(400_000, dtype="u8")
    assert q.push_many(values) == 400_000
    some = q.pop_many(10)
    assert some.base is None or some.base.nbytes <= 160
    assert np.array_equal(np.concatenate([some, q.pop_many(1 << 40)]), values)
    assert q.push_many(values[:1000:2]) == 500 and len(q.drain()) == 500


def test_drain_ends_though_others_push(make: Make) -> None:
    q = make("queue", value="u8", max_entries=3)
    q.push_many([1, 2, 3])
    assert q.drain().tolist() == [1, 2, 3]


class Alarm(Exception):
    pass


def test_what_was_popped_is_never_lost(make: Make) -> None:
    q = make("queue", value="u8", max_entries=1_000_000)
    values = np.arange(1_000_000, dtype="u8")
    q.prepare()  # the first alarm shall come into the popping
    q.push_many(values)

    def ring(*_: Any) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    within, delay = 0, 0.02
    try:
        while not within:  # until one comes in the middle of a pop: sooner, or later
            taken: list[Any] = []
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                taken.append(q.pop_many(1_000_000))
                signal.setitimer(signal.ITIMER_REAL, 0)
                delay /= 2
            except Alarm as alarm:
                if not taken and hasattr(alarm, "batch"):
                    taken.append(alarm.batch)
                    within = len(alarm.batch)
                delay *= 1.5
            together = np.concatenate([*taken, q.drain()])
            assert np.array_equal(together, values)
            q.push_many(values)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < within <= len(values)


class Model(RuleBasedStateMachine):
    """A queue or stack, and a deque of the same bound."""

    kind = "queue"
    size = 7

    @initialize()
    def create(self) -> None:
        self.map = fastmap.create(self.kind, value="u4", max_entries=self.size)
        self.model: deque[int] = deque(maxlen=self.size)

    def teardown(self) -> None:
        if hasattr(self, "map"):
            self.map.close()

    def next(self) -> int:
        return self.model.popleft() if self.kind == "queue" else self.model.pop()

    @rule(values=st.lists(st.integers(0, 2**32 - 1), max_size=10), overwrite=st.booleans(),
          mode=st.sampled_from(["raise", "return"]), as_array=st.booleans())
    def push_many(self, values: list[int], overwrite: bool, mode: str, as_array: bool) -> None:
        fit = len(values) if overwrite else min(len(values), self.size - len(self.model))
        self.model.extend(values[:fit])
        given: Any = np.array(values, "u4") if as_array else values
        flags = EXIST if overwrite else fastmap.ANY
        if mode == "return":
            codes = self.map.push_many(given, flags=flags, errors="return")
            assert codes.tolist() == [0] * fit + [errno.E2BIG] * (len(values) - fit)
        elif fit == len(values):
            assert self.map.push_many(given, flags=flags) == fit
        else:
            with pytest.raises(MapFull) as caught:
                self.map.push_many(given, flags=flags)
            assert caught.value.applied == fit  # type: ignore[attr-defined]

    @rule(n=st.integers(0, 10))
    def pop_many(self, n: int) -> None:
        expected = [self.next() for _ in range(min(n, len(self.model)))]
        assert self.map.pop_many(n).tolist() == expected

    @rule()
    def pop(self) -> None:
        if self.model:
            assert self.map.peek() == self.model[0 if self.kind == "queue" else -1]
            assert self.map.pop() == self.next()
        else:
            with pytest.raises(KeyNotFound):
                self.map.pop()

    @rule()
    def drain(self) -> None:
        assert self.map.drain().tolist() == order(self.kind, list(self.model))
        self.model.clear()

    @invariant()
    def equal(self) -> None:
        if hasattr(self, "map"):
            assert bool(self.map) == bool(self.model)


@pytest.mark.parametrize("kind", QUEUES)
def test_model(kind: str) -> None:
    machine = type("Machine", (Model,), {"kind": kind})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


# ---- programs ----------------------------------------------------------------------------------


def worker(source: Any, target: Any) -> Code:
    """Assemble a program that takes a u8 of `source` and puts its triple into `target`.

    It looks at the value before: returns 1 where there is none, 2 where both differ.
    """
    a = Assembler()
    for helper, at in ((Helper.MAP_PEEK_ELEM, -8), (Helper.MAP_POP_ELEM, -16)):
        a.ld_map(R1, source)
        a.mov(R2, FP)
        a.add(R2, at)
        a.call(helper)
        a.jne(R0, 0, "empty")
    a.ldx(8, R1, FP, -8)
    a.ldx(8, R2, FP, -16)
    a.jne(R1, R2, "differs")
    a.mul(R1, 3)
    a.stx(8, FP, -8, R1)
    a.ld_map(R1, target)
    a.mov(R2, FP)
    a.add(R2, -8)
    a.mov(R3, 0)
    a.call(Helper.MAP_PUSH_ELEM)
    a.exit()
    a.label("empty")
    a.mov(R0, 1)
    a.exit()
    a.label("differs")
    a.mov(R0, 2)
    a.exit()
    return a.assemble()


@pytest.mark.quick
@pytest.mark.parametrize("kind", QUEUES)
def test_a_program_works_through_a_queue(make: Make, kind: str) -> None:
    jobs = make(kind, value="u8", max_entries=8)
    results = make("queue", value="u8", max_entries=3)
    assert jobs.push_many([5, 6, 7, 8]) == 4
    with Program("raw_tracepoint", worker(jobs, results)) as program:
        assert [program.run() for _ in range(3)] == [0, 0, 0]
        assert program.run() == 2**32 - errno.E2BIG  # no room for the result
        assert program.run() == 1
    assert results.pop_many(9).tolist() == [3 * n for n in order(kind, [5, 6, 7, 8])[:3]]


def seen(bloom: Any) -> Code:
    """Assemble a program that returns 1 where `bloom` may have the u8 of its context."""
    a = Assembler()
    a.ldx(8, R1, R1, 0)
    a.stx(8, FP, -8, R1)
    a.ld_map(R1, bloom)
    a.mov(R2, FP)
    a.add(R2, -8)
    a.call(Helper.MAP_PEEK_ELEM)
    a.mov(R1, R0)
    a.mov(R0, 1)
    a.jeq(R1, 0, "out")
    a.mov(R0, 0)
    a.label("out")
    a.exit()
    return a.assemble()


@pytest.mark.quick
def test_a_program_asks_a_bloom_filter(make: Make) -> None:
    bloom = make("bloom_filter", value="u8", max_entries=1000, map_extra=4)
    bloom.add_many(np.arange(0, 100, 2))
    asked = np.arange(100, dtype="u8")
    with Program("raw_tracepoint", seen(bloom)) as program:
        said = [program.run(asked[i:i + 1].copy()) for i in range(100)]
    assert said == bloom.contains_many(asked).tolist()
    assert all(said[::2]) and sum(said[1::2]) < 10


# ---- Bloom filters -----------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(("extra", "hashes"), [(0, 5), (1, 1), (3, 3), (15, 15)])
def test_bloom(make: Make, extra: int, hashes: int) -> None:
    b = make("bloom_filter", value="u8", max_entries=10_000, map_extra=extra)
    assert b.hashes == hashes and type(b) is fastmap.BloomFilter
    values = np.random.default_rng(1).permutation(40_000).astype("u8")
    b.add(values[0])
    assert b.add_many(values[1:10_000]) == 9_999
    assert int(values[0]) in b and b.contains_many(values[:10_000]).all()
    wrong = b.contains_many(values[10_000:])
    assert wrong.dtype == bool and wrong.shape == (30_000,)
    assert wrong.mean() < (0.55 if hashes in (1, 15) else 0.1)
    assert (int(values[-1]) in b) == wrong[-1]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 15),
       st.sampled_from(["u8", ">u8", "V8", [("a", "u4"), ("b", "u4")]]))
def test_bloom_never_misses(numbers: set[int], extra: int, value: Any) -> None:
    values = np.array(sorted(numbers), "u8").view(value)
    with fastmap.create("bloom_filter", value=value, max_entries=50, map_extra=extra) as b:
        half = len(values) // 2
        for one in values[:half]:
            b.add(one)
        assert b.add_many(values[half:]) == len(values) - half
        assert b.contains_many(values).all() and b.contains_many(values[::-1]).all()
        assert all(one in b for one in values)
        given_back = values.copy()
        b.contains_many(given_back)
        assert (given_back == values).all()  # the kernel writes into copies


def test_bloom_padding_and_btf(make: Make) -> None:
    padded = np.dtype([("a", "u1"), ("b", "u4")], align=True)
    values = np.full(2 * padded.itemsize, 0xEE, "u1").view(padded)
    b = make("bloom_filter", value=padded, max_entries=100)
    b.add(values[0])
    assert b.contains_many(values).all() and (0xEE, 0xEEEEEEEE) in b
    with fastmap.open(id=b.id) as other:
        assert other.value_dtype == padded and other.dtype_source == "btf"
        assert other.key_dtype is None and (0xEE, 0xEEEEEEEE) in other


def test_bloom_handles(make: Make) -> None:
    b = make("bloom_filter", value="u4", max_entries=100)
    b.add(1)
    with (fastmap.open(id=b.id, readonly=True, value="u4") as deaf,
          fastmap.open(id=b.id, writeonly=True, value="u4") as mute):
        assert 1 in deaf and mute.add_many([2]) == 1
        for call in (lambda: deaf.add(1), lambda: deaf.add_many([1]), lambda: 1 in mute,
                     lambda: mute.contains_many([1])):
            with pytest.raises(PermissionDenied):
                call()
        assert deaf.add_many([3, 4], errors="return").tolist() == [errno.EPERM] * 2
    assert 2 in b and b.flags == MapFlag(0)
    with pytest.raises(TypeError):
        "x" in b  # noqa: B015
    assert b.contains_many([]).shape == (0,)
