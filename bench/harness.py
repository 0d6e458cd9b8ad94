"""The measuring tool: two sides run in turn over many short blocks.

On a shared machine two identical C loops differ by more than 5% in a third of the trials when whole
rounds are compared. Over many short interleaved blocks a ratio of medians agrees within 2%, and the
median of the ratios of neighbours, which is used here, within 0.7% (12 trials of 140 blocks of
5,000 keys, beside two busy processes): what disturbs a block disturbs its neighbour alike. Rounds
in which other work had the CPU, as the kernel tells, are left out. (Taking that time off instead
went wrong beside an emulator: it was up to half of the time of a block that took no longer.)
"""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: The CPUs of this process, before anything is pinned.
CPUS = os.sched_getaffinity(0)

#: Rounds that it takes to say anything.
FEWEST = 5

#: What other work may have of a block's time.
CALM = 0.01

#: Runs block `number` of the work and returns how many entries it processed.
Side = Callable[[int], int]


@dataclass(frozen=True)
class Result:
    """What was measured, and whether the limit is met.

    `ours` and `theirs` are medians, in `unit`; `ratio` is the median of the rounds' ratios, and
    `spread` its 95% interval.
    """

    name: str
    against: str
    ours: float
    theirs: float
    ratio: float
    spread: tuple[float, float]
    entries: int
    rounds: int
    limit: float
    at_most: bool = True
    unit: str = "ns"

    @property
    def verdict(self) -> str:
        """`met` or `missed`; `open` when the spread crosses the limit: then nobody may say."""
        low, high = self.spread
        if low <= self.limit <= high and low != high:
            return "open"
        return "met" if (self.ratio <= self.limit) == self.at_most else "missed"

    @property
    def target(self) -> str:
        """The limit as the table writes it."""
        return f"{'<=' if self.at_most else '>='} {self.limit:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """For `benchmark.extra_info`: plain values only."""
        return {**asdict(self), "verdict": self.verdict}

    def __str__(self) -> str:
        low, high = self.spread
        return (
            f"{self.name}: {self.ratio:.3f} ({low:.3f}-{high:.3f}, {self.ours:,.1f} against "
            f"{self.theirs:,.1f} {self.unit}), target {self.target}: {self.verdict}"
        )


def spread_of_ratio(
    ours: Sequence[float], theirs: Sequence[float], draws: int = 1000, seed: int = 2
) -> tuple[float, float]:
    """The 95% interval of the median of ours / theirs, by a bootstrap over the rounds.

    Whole runs of neighbouring rounds are drawn: a disturbance lasts longer than one round, and
    counting its rounds as independent would flatter the interval.
    """
    ratios = np.divide(ours, theirs)
    rounds = len(ratios)
    if rounds < FEWEST:
        return 0.0, math.inf
    length = max(1, round(rounds ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(0, rounds, (draws, -(-rounds // length)))
    picked = (starts[:, :, None] + np.arange(length)).reshape(draws, -1)[:, :rounds] % rounds
    low, high = np.percentile(np.median(ratios[picked], axis=1), [2.5, 97.5])
    return float(low), float(high)


def result_of(
    name: str,
    against: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    entries: int,
    limit: float,
    at_most: bool = True,
    unit: str = "ns",
) -> Result:
    """The result of samples taken in pairs; too few of them leave the question open."""
    pairs = (ours, theirs) if len(ours) else ((math.nan,), (math.nan,))
    return Result(
        name=name,
        against=against,
        ours=float(np.median(pairs[0])),
        theirs=float(np.median(pairs[1])),
        ratio=float(np.median(np.divide(*pairs))),
        spread=spread_of_ratio(ours, theirs),
        entries=entries,
        rounds=len(ours),
        limit=limit,
        at_most=at_most,
        unit=unit,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collector, and one CPU for this thread: neither belongs to a side."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    os.sched_setaffinity(0, {max(CPUS)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CPUS)
        if collecting:
            gc.enable()


def waited(thread: int | None = None) -> int:
    """Nanoseconds this thread (or `thread`) was ready to run, and other work had its CPU.

    Waiting for the GIL is sleep, and does not count.
    """
    thread = thread or threading.get_native_id()
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_bytes().split()[1])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO
        return 0


def timed(
    side: Side, number: int, entries: int, before: Callable[[], None] | None
) -> tuple[int, bool]:
    """Nanoseconds of one block, which must have processed exactly `entries`; was it undisturbed?

    A side in another process has `told`: its own time of the block, and its own waits.
    """
    if before is not None:
        before()
    waits = waited()
    start = time.perf_counter_ns()
    processed = side(number)
    took = time.perf_counter_ns() - start
    told = getattr(side, "told", None)
    took, waits = (took, waited() - waits) if told is None else told()
    calm = waits <= CALM * took
    if processed != entries:
        raise AssertionError(f"{processed} entries processed, not {entries}")
    return took, calm


def until_decided(more: Callable[[], Result], tries: int = 3) -> Result:
    """Call `more`, which adds samples, until its result has a verdict, but not for ever."""
    result = more()
    for _ in range(tries - 1):
        if result.verdict != "open":
            break
        result = more()
    return result


def compare(
    name: str,
    ours: Side,
    theirs: Side,
    *,
    against: str,
    entries: int,
    limit: float,
    rounds: int = 140,
    warmup: int = 6,
    tries: int = 3,
    before: Callable[[], None] | None = None,
) -> Result:
    """Run both sides in turn and compare neighbours.

    `before` runs untimed ahead of every block (a drain's refill). Every block has a number of its
    own, so that neither side finds the other's keys warm in the cache; the order is swapped each
    round. While the limit lies within the spread (or too few rounds were calm), up to `tries`
    times as many rounds are taken.
    """
    sides = (ours, theirs)
    samples: tuple[list[float], list[float]] = ([], [])
    number = 0
    with quiet():
        for _ in range(warmup):
            for side in sides:
                timed(side, number, entries, before)
                number += 1

        def more() -> Result:
            nonlocal number
            for turn in range(rounds):
                pair = [(0, False), (0, False)]
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    pair[which] = timed(sides[which], number, entries, before)
                    number += 1
                if all(calm for _, calm in pair):
                    for which, (took, _) in enumerate(pair):
                        samples[which].append(took / entries)
            return result_of(name, against, *samples, entries=entries, limit=limit)

        return until_decided(more, tries)


def taken(sides: dict[str, Side], entries: int, rounds: int) -> dict[str, list[float]]:
    """Nanoseconds an entry, the sides in turn."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter_ns()
            assert side(number) == entries, name
            if number:
                took[name].append((time.perf_counter_ns() - start) / entries)
    return took


def fastest(
    sides: dict[int, Side],
    entries: int,
    before: Callable[[], None] | None = None,
    rounds: int = 7,
) -> int:
    """The key of the side with the least median: C gets to choose its best chunk.

    Close seconds do not matter: they are as fast.
    """
    took: dict[int, list[int]] = {key: [] for key in sides}
    with quiet():
        for number in range(rounds + 1):
            for key, side in sides.items():
                took[key].append(timed(side, number, entries, before)[0])
    return min(took, key=lambda key: float(np.median(took[key][1:])))
