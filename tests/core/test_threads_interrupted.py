"""What interrupts a call with ``threads=``: no thread is left, and what was done is told."""

from __future__ import annotations

import _thread
import random
import signal
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap._core.system import threads
from fastmap._core.system.threads import in_threads

pytestmark = pytest.mark.quick


class Alarm(BaseException):
    """What the handler of these tests raises."""


class Rung:
    """Whether the alarm was heard. No lock: the handler may interrupt who holds it."""

    heard = False

    def wait(self) -> None:
        """Return once it was."""
        while not self.heard:
            time.sleep(0.001)


@pytest.fixture
def rung() -> Iterator[Rung]:
    """Raise `Alarm` at the first SIGALRM, and note it."""
    alarm = Rung()

    def ring(number: int, frame: object) -> None:
        first, alarm.heard = not alarm.heard, True
        if first:
            raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Parts:
    """Work whose slices tell when they begin and end."""

    def __init__(self, inside: Callable[[int], None]) -> None:
        self.inside, self.begun, self.ended = inside, 0, 0

    def __call__(self, start: int, stop: int) -> int:
        self.begun += stop - start
        self.inside(start)
        self.ended += stop - start
        return stop - start


# ---- the threads themselves ----------------------------------------------------------------------


def test_the_parts_are_all_and_each_once() -> None:
    for count in (0, 1, 2, 5, 40_000, 100_001):
        for number in (1, 2, 3, 7):
            seen = np.zeros(count, "u1")

            def part(start: int, stop: int, seen: Any = seen) -> int:
                seen[start:stop] += 1
                return stop - start

            assert in_threads(part, count, number) == count
            assert (seen == 1).all()


def test_a_signal_waits_for_slices_that_have_begun(rung: Rung) -> None:
    def inside(start: int) -> None:
        signal.raise_signal(signal.SIGALRM)  # in this thread; its handler runs in the main one
        rung.wait()
        for _ in range(20):
            time.sleep(0.001)  # the main thread may run on

    parts = Parts(inside)
    with pytest.raises(Alarm) as caught:
        in_threads(parts, 1_000_000, 2)
    assert caught.value.applied == parts.ended == parts.begun  # type: ignore[attr-defined]
    assert 0 < parts.ended < 1_000_000


def test_further_signals_are_not_heard_before_the_end(rung: Rung) -> None:
    def inside(start: int) -> None:
        signal.raise_signal(signal.SIGALRM)
        rung.wait()
        rung.heard = False  # so that the next one would raise
        signal.raise_signal(signal.SIGALRM)
        for _ in range(20):
            time.sleep(0.001)
        rung.heard = True

    parts = Parts(inside)
    with pytest.raises(Alarm) as caught:
        in_threads(parts, 1_000_000, 1)
    assert caught.value.applied == parts.ended == parts.begun > 0  # type: ignore[attr-defined]


def test_the_first_failure_in_the_order_of_the_elements() -> None:
    both = threading.Barrier(2)

    def part(start: int, stop: int) -> int:
        both.wait(60)
        error = fastmap.errors.batch_error(7, fastmap.Command.MAP_UPDATE_BATCH, 1, 3, 3)
        error.args = (start,)
        raise error

    with pytest.raises(fastmap.MapFull) as caught:
        in_threads(part, 1000, 2)
    assert caught.value.args == (0,)
    assert (caught.value.applied, caught.value.index) == (6, 3)  # type: ignore[attr-defined]


Patch = pytest.MonkeyPatch


def before_start(monkeypatch: Patch, which: int, do: Callable[[], None]) -> None:
    """Do something just before the thread of that number starts, and each later one."""
    number = iter(range(100))

    def start(run: Callable[[], None], arguments: tuple[()]) -> int:
        if next(number) >= which:
            do()
        return _thread.start_new_thread(run, arguments)

    monkeypatch.setattr(threads, "start_new_thread", start)


@pytest.mark.parametrize("which", range(3))
def test_a_signal_while_the_threads_start(which: int, rung: Rung,
                                          monkeypatch: Patch) -> None:
    before_start(monkeypatch, which, lambda: signal.raise_signal(signal.SIGALRM))
    parts = Parts(lambda start: None)
    with pytest.raises(Alarm) as caught:
        in_threads(parts, 300_000, 3)
    assert caught.value.applied == parts.ended == parts.begun  # type: ignore[attr-defined]
    assert which or not parts.begun


@pytest.mark.parametrize("had", range(3))
def test_threads_that_cannot_be_had(had: int, make: Callable[..., Any],
                                    monkeypatch: Patch) -> None:
    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    before_start(monkeypatch, had, refuse)
    m, keys = make("hash", key="u8", value="u8", max_entries=50_000), np.arange(50_000, dtype="u8")
    assert m.update_many(keys, keys, threads=3) == len(m) == 50_000
    before_start(monkeypatch, had, refuse)
    assert m.lookup_many(keys, threads=3)[1].all()


# ---- calls ---------------------------------------------------------------------------------------

KEYS = np.arange(64, dtype="u8")


def update(m: Any, keys: Any) -> None:
    m.update_many(keys, keys, threads=2)


def delete(m: Any, keys: Any) -> None:
    m.delete_many(keys, threads=2)


def look(m: Any, keys: Any) -> None:
    m.lookup_many(keys, out=np.empty(len(keys), "u8"), threads=2)


def at_step(which: int) -> Callable[[FrameType, str, object], Any]:
    """Return a trace function that sends SIGALRM at the step of that number."""
    left = iter(range(which, -1, -1))

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if "/fastmap/" not in frame.f_code.co_filename:
            return None
        if next(left, -1) == 0:
            signal.raise_signal(signal.SIGALRM)
        return trace

    return trace


def exact(m: Any, call: Any, error: BaseException, n: int) -> bool:
    """Check what an interrupted call says of itself; return whether it says how much was done."""
    applied = getattr(error, "applied", None)
    there = len(m)
    changed = there if call is update else n - there
    if call is not look:
        assert applied in (None, changed), "applied is exact, where it is"
        assert applied is not None or changed in (0, n), "and it is where it is needed"
    assert len(m) == there, "nobody writes any more"
    return applied is not None


@pytest.mark.parametrize("via", ["syscall", "auto"])
@pytest.mark.parametrize("call", [update, delete, look])
def test_a_signal_at_every_step(call: Callable[[Any, Any], None], via: str,
                                rung: Rung, make: Callable[..., Any]) -> None:
    m = make("hash", key="u8", value="u8", max_entries=100, via=via)
    if via == "auto":
        m.prepare(threads=2)
    which = 0
    while True:
        m.clear()
        if call is not update:
            m.update_many(KEYS, KEYS)
        rung.heard = False
        before = sys.gettrace()
        try:
            sys.settrace(at_step(which))
            try:
                call(m, KEYS)
            finally:
                sys.settrace(before)
        except Alarm as error:
            exact(m, call, error, len(KEYS))
        else:
            if not rung.heard:
                break
        which += 1
    assert which > 10


@pytest.mark.parametrize("call", [update, delete, look])
def test_signals_at_any_time(call: Callable[[Any, Any], None], rung: Rung,
                             make: Callable[..., Any]) -> None:
    n = 20_000
    m, keys = make("hash", key="u8", value="u8", max_entries=n), np.arange(n, dtype="u8")
    usual = min(timeit.repeat(lambda: call(m, keys), number=1, repeat=3))
    for _ in range(60):
        m.clear()
        if call is not update:
            m.update_many(keys, keys)
        rung.heard = False
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1.3 * usual))
            call(m, keys)
            rung.wait()
        except Alarm as error:
            exact(m, call, error, n)


def test_out_is_left_alone_afterwards(rung: Rung, make: Callable[..., Any]) -> None:
    n = 50_000
    m, keys = make("hash", key="u8", value="u8", max_entries=n), np.arange(n, dtype="u8")
    m.update_many(keys, 7)
    out = np.empty(n, "u8")
    usual = min(timeit.repeat(lambda: m.lookup_many(keys, out=out, threads=2), number=1))
    for _ in range(60):
        rung.heard = False
        out[:] = 0
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1.3 * usual))
            m.lookup_many(keys, out=out, threads=2)
            rung.wait()
        except Alarm:
            out[:] = 1
            m.lookup_many(keys[:2000])  # time in which a thread would write on
            assert (out == 1).all()
