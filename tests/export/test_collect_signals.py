"""What a `Delta` and its join do when a signal comes, and other threads meanwhile: by the clock."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmap._core.delta.join import Join
from fastmap.collect import Delta

pytestmark = pytest.mark.native("signals are timed by how long a read takes")

Make = Callable[..., Any]


def test_others_run_and_signals_come_meanwhile() -> None:
    """The pass holds no GIL, and a Ctrl-C ends it."""
    count = 3_000_000
    numbers = np.random.default_rng(1).permutation(count).astype("u4")
    shifted = np.roll(numbers, count // 2)
    join = Join(4, (), 4, 1, [("u4", False, 0, 1)], None, False)
    ticks, over = [], threading.Event()

    def tick() -> None:
        while not over.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    thread = threading.Thread(target=tick)
    thread.start()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        within = False
        while not within:  # what a held GIL would never let through; a busy CPU may not, at first
            began = time.monotonic()
            join.differences(numbers, numbers, shifted, shifted)
            took = time.monotonic() - began
            within = any(began + took / 4 < at < began + 3 * took / 4 for at in ticks)
        delay, ended = took / 8, False
        while not ended:  # until one comes within the pass, not behind it
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                join.differences(numbers, numbers, shifted, shifted)
                signal.setitimer(signal.ITIMER_REAL, 0)
                delay /= 2
            except KeyboardInterrupt:
                ended = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        over.set()
        thread.join()
    assert join.differences(numbers, numbers, shifted, shifted) is None
    assert (np.frombuffer(join.out, "u4", count) == 0).all() and not join.gone_count


def test_an_interrupted_read_loses_nothing(filled: Make) -> None:
    """Whenever a signal ends a read: what grew is told by the next one, or by the exception."""
    m = filled(20_000)
    keys = np.arange(20_000, dtype="u8")
    values = 3 * keys

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        delta = Delta(m)
        delta.read()
        began = time.monotonic()
        delta.read()
        took = time.monotonic() - began
        told = interrupted = 0
        for turn in range(1, 61):
            values += np.uint64(1)
            m.update_many(keys, values)
            try:
                signal.setitimer(signal.ITIMER_REAL, turn * took / 40)
                batch = delta.read()
                signal.setitimer(signal.ITIMER_REAL, 0)
                told += int(batch.values.sum())
            except KeyboardInterrupt as error:
                interrupted += 1
                batch = getattr(error, "batch", None)
                told += 0 if batch is None else int(batch.values.sum())
        signal.setitimer(signal.ITIMER_REAL, 0)
        told += int(delta.read().values.sum())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 0
    # Where the alarm came between the return and the next line, the test has lost it, not the read.
    assert 60 - told / len(keys) in (0, 1)


def test_a_signal_handler_may_not_enter_what_it_interrupted() -> None:
    """It would exchange the memory under the pass below: it is refused, and that goes on."""
    count = 3_000_000
    numbers = np.random.default_rng(1).permutation(count).astype("u4")
    shifted = np.roll(numbers, count // 2)
    join = Join(4, (), 4, 1, [("u4", False, 0, 1)], None, False)
    refused = []

    def enter(*_: object) -> None:
        try:
            join.differences(shifted, shifted, numbers[:9], numbers[:9])
        except RuntimeError:
            refused.append(join.busy)

    before = signal.signal(signal.SIGALRM, enter)
    try:
        delay = 0.02
        while not refused:  # until it comes within the pass
            signal.setitimer(signal.ITIMER_REAL, delay)
            join.differences(numbers, numbers, shifted, shifted)
            signal.setitimer(signal.ITIMER_REAL, 0)
            delay /= 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert refused == [True] and not join.busy
    assert (np.frombuffer(join.out, "u4", count) == 0).all() and not join.gone_count
