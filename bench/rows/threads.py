"""What a Python thread gets done beside fastmap, and fastmap beside a Python thread.

The GIL is what is measured, so each thread has a CPU of its own (CPUs of one virtual machine can
differ by a factor of two), and time that other processes take from it is taken off.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import numpy as np

import fastmap

from ..cside import Call, CSide, touched
from ..harness import CPUS, Result, quiet, result_of, until_decided, waited
from .cases import RECORD, SLACK, Size, records, scattered


class Counter(threading.Thread):
    """A thread that counts in pure Python while the `with` block lasts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count = 0
        self.running = True

    def run(self) -> None:
        os.sched_setaffinity(0, {min(CPUS)})  # of this thread; the other one has max
        while self.running:
            self.count += 1

    def sample(self) -> tuple[int, int]:
        """What it counted, and the time on a clock that stands while it waits for a CPU.

        The kernel tells of a wait when it is over, so the thread is first seen to run; a wait for
        the GIL is no wait for a CPU, and counts.
        """
        seen = self.count
        while self.count == seen:
            time.sleep(0.0002)
        return self.count, time.perf_counter_ns() - waited(self.native_id)

    def __enter__(self) -> Counter:
        self.start()
        self.sample()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.running = False
        self.join()


@dataclass(frozen=True)
class Bulk:
    """A bulk call of fastmap's and C's own, long enough to be seen beside a thread."""

    name: str
    entries: int
    ours: Callable[[], int]
    theirs: Call
    before: Call | None = None


@contextmanager
def bulk_calls(c: CSide, size: Size) -> Iterator[list[Bulk]]:
    """The calls that must give the GIL up, each some 20-40 ms long.

    Long enough to be seen beside the 5 ms a thread may keep the GIL; short, for many rounds.
    """
    n, keys = size.entries, scattered(size.entries)
    values = records(keys)
    some, more = n // 4, n // 2
    out_keys, out_values = touched(n + SLACK, "u8"), touched(n + SLACK, RECORD)
    with (
        fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as m,
        fastmap.create("hash", key="u8", value=RECORD, max_entries=size.room) as drained,
    ):
        fd = m.fileno()
        c.update_batch(fd, keys, values)()
        reader = m.reader(via="syscall")
        yield [
            Bulk(
                "lookup_many",
                some,
                lambda: int(np.count_nonzero(m.lookup_many(keys[:some], via="syscall")[1])),
                c.lookup_loop(fd, keys[:some], out_values[:some]),
            ),
            Bulk(
                "update_many",
                more,
                lambda: int(m.update_many(keys[:more], values[:more], via="syscall")),
                c.update_batch(fd, keys[:more], values[:more]),
            ),
            Bulk(
                "reader.read",
                n,
                lambda: len(reader.read()),
                c.lookup_batch(fd, out_keys, out_values, 4096),
            ),
            Bulk(
                "drain",
                n,
                lambda: len(drained.drain(via="syscall")),
                c.drain_batch(drained.fileno(), out_keys, out_values, 4096),
                before=c.update_batch(drained.fileno(), keys, values),
            ),
        ]


def rate_beside(counter: Counter, bulk: Bulk, call: Callable[[], int], seconds: float) -> float:
    """Counts a millisecond while the call runs; what prepares the call is not looked at."""
    counted = spent = 0
    while spent < seconds * 1e9:
        if bulk.before is not None:
            bulk.before()
        first, start = counter.sample()
        processed = call()
        last, stop = counter.sample()
        counted += last - first
        spent += stop - start
        assert processed == bulk.entries, processed
    return counted / spent * 1e6


def sleep_of(bulk: Bulk) -> Callable[[], int]:
    """A sleep as long as the call: the thread is alone then, and looked at just as often."""
    took = []
    for _ in range(3):
        if bulk.before is not None:
            bulk.before()
        start = time.perf_counter()
        bulk.ours()
        took.append(time.perf_counter() - start)

    def sleep() -> int:
        time.sleep(min(took))
        return bulk.entries

    return sleep


def progress(bulk: Bulk, *, rounds: int = 30, seconds: float = 0.02) -> Result:
    """How far another thread gets during the call, against how far it gets alone.

    The same beside C, called without the GIL, is named in `against`: on a machine whose CPUs slow
    each other down neither reaches 1.
    """
    alone: list[float] = []
    ours: list[float] = []
    beside_c: list[float] = []
    with quiet():
        sleep = sleep_of(bulk)
        with Counter() as counter:

            def more() -> Result:
                for turn in range(rounds):
                    alone.append(rate_beside(counter, bulk, sleep, seconds))
                    ours.append(rate_beside(counter, bulk, bulk.ours, seconds))
                    if turn % 3 == 0:  # only to compare by eye
                        c_rate = rate_beside(counter, bulk, bulk.theirs, seconds)
                        beside_c.append(c_rate / alone[-1])
                return result_of(
                    f"another thread's progress during `{bulk.name}`",
                    f"alone (beside C: {np.median(beside_c):.2f})",
                    ours,
                    alone,
                    entries=bulk.entries,
                    limit=0.9,
                    at_most=False,
                    unit="counts/ms",
                )

            return until_decided(more)


def lookup_rate(m: fastmap.Map, keys: list[int], seconds: float) -> float:
    """`m[k]` a millisecond, by this thread."""
    done, start = 0, time.perf_counter_ns()
    while (spent := time.perf_counter_ns() - start) < seconds * 1e9:
        for k in keys:
            m[k]
        done += len(keys)
    return done / spent * 1e6


def released_rate(m: fastmap.Map, keys: list[int], calls: int = 40) -> float:
    """Lookups a millisecond by calls that give the GIL up: bulk lookups of one key each."""
    start = time.perf_counter_ns()
    for k in keys[:calls]:
        m.lookup_many([k])
    return calls / (time.perf_counter_ns() - start) * 1e6


def element_rate(c: CSide, size: Size, *, rounds: int = 12, seconds: float = 0.2) -> Result:
    """`m[k]` a second beside a busy Python thread, against its rate alone.

    How many it would be if each call gave the GIL up is named in `against`.

    A thread that has the GIL and waits for a CPU stops the other one: rounds in which other work
    had a CPU for a tenth of the time say nothing, and are left out.
    """
    keys = scattered(size.entries)
    some = keys[:200].tolist()
    alone: list[float] = []
    beside: list[float] = []
    released: list[float] = []
    with (
        fastmap.create("hash", key="u8", value="u8", max_entries=size.room) as m,
        quiet(),
    ):
        c.update_batch(m.fileno(), keys, keys)()

        def more() -> Result:
            for _ in range(rounds):
                mine = waited()
                by_itself = lookup_rate(m, some, seconds)
                with Counter() as counter:
                    its = waited(counter.native_id)
                    together = lookup_rate(m, some, seconds)
                    its = waited(counter.native_id) - its
                    released.append(released_rate(m, some))
                if waited() - mine + its < 0.1 * 2 * seconds * 1e9:
                    alone.append(by_itself)
                    beside.append(together)
            return result_of(
                "`m[k]` a second beside a busy Python thread",
                f"alone (its share: half; the GIL given up: {np.median(released):.2f}/ms)",
                beside,
                alone,
                entries=len(some),
                limit=0.3,
                at_most=False,
                unit="lookups/ms",
            )

        return until_decided(more)
