"""The proof of the tools: what they say of work whose outcome is known."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from .cside import HASH, LRU_HASH, PERCPU_HASH, U64, CSide, possible_cpus, touched
from .harness import compare, result_of

Filled = tuple[int, U64, U64]


@pytest.fixture
def filled(c: CSide) -> Iterator[Filled]:
    """A hash of u64 to u64, its keys and its values."""
    keys = np.random.default_rng(1).permutation(20_000).astype("u8")
    fd = c.create_map(HASH, 8, 8, len(keys))
    try:
        c.update_batch(fd, keys, keys * 3)()
        yield fd, keys, keys * 3
    finally:
        os.close(fd)


def test_identical_loops_are_equal(c: CSide, filled: Filled, once: bool) -> None:
    """The yardstick of the yardstick: 140 blocks of 5,000, ratio 0.97 to 1.03."""
    fd, keys, _ = filled
    value = touched(1, "u8")
    starts = range(0, 15_001, 2500)
    blocks = [c.lookup_each(fd, keys[start : start + 5000], value) for start in starts]

    def side(number: int) -> int:
        return blocks[number % len(blocks)]()

    result = compare(
        "C against itself",
        side,
        side,
        against="the same",
        entries=5000,
        limit=1.05,
        rounds=3 if once else 140,
    )
    if not once:
        assert 0.97 <= result.ratio <= 1.03, result


def test_a_tenth_more_work_is_seen(c: CSide, filled: Filled, once: bool) -> None:
    """A side that does 10% more misses a limit of 1.05: the harness can say no."""
    fd, keys, _ = filled
    value = touched(1, "u8")
    work = c.lookup_each(fd, keys, value, 5000)
    more = c.lookup_each(fd, keys, value, 5500)

    result = compare(
        "10% more",
        lambda number: more() * 10 // 11,
        lambda number: work(),
        against="C",
        entries=5000,
        limit=1.05,
        rounds=3 if once else 140,
    )
    if not once:
        assert result.verdict == "missed", result


def test_no_verdict_within_the_spread() -> None:
    """A limit inside the spread leaves the question open; outside it is answered."""
    noisy = np.random.default_rng(3).normal(100, 10, 60).tolist()
    flat = [100.0] * 60
    assert result_of("", "", noisy, flat, entries=1, limit=1.0).verdict == "open"
    assert result_of("", "", noisy, flat, entries=1, limit=1.2).verdict == "met"
    assert result_of("", "", noisy, flat, entries=1, limit=0.8).verdict == "missed"
    floor = result_of("", "", noisy, flat, entries=1, limit=0.8, at_most=False)
    assert floor.verdict == "met"
    assert result_of("", "", flat, flat, entries=1, limit=1.0).verdict == "met"


def test_a_wrong_count_is_an_error() -> None:
    """Fast because it did nothing is not fast."""
    with pytest.raises(AssertionError, match="0 entries processed, not 7"):
        compare("", lambda n: 0, lambda n: 7, against="", entries=7, limit=1.0)


def test_baselines_do_what_they_say(c: CSide, filled: Filled) -> None:
    """Counts and values of every C function, chunks from 1 up."""
    fd, keys, values = filled
    n = len(keys)
    out_keys, out_values = touched(n + 64, "u8"), touched(n + 64, "u8")
    assert c.lookup_loop(fd, keys, out_values[:n])() == n
    assert np.array_equal(out_values[:n], values)
    assert c.lookup_loop(fd, keys + np.uint64(n), out_values[:n])() == 0
    assert c.lookup_each(fd, keys[:1], out_values[:1], 100)() == 100
    for chunk in (1, 3, 64, 4096, 1 << 20):
        assert c.lookup_batch(fd, out_keys, out_values, chunk)() == n
        order = np.argsort(out_keys[:n])
        assert np.array_equal(out_keys[:n][order], np.arange(n, dtype="u8"))
        assert np.array_equal(out_values[:n], out_keys[:n] * 3)
    with pytest.raises(OSError, match="No space left"):
        c.lookup_batch(fd, out_keys[: n // 2], out_values[: n // 2], 4096)()
    assert c.update_loop(fd, keys, values + np.uint64(1))() == n
    c.lookup_loop(fd, keys, out_values[:n])()
    assert np.array_equal(out_values[:n], values + np.uint64(1))
    assert c.delete_loop(fd, keys[:100])() == 100
    assert c.delete_batch(fd, keys[50:200], 7)() == 100
    assert c.delete_batch(fd, keys[50:200])() == 0
    assert c.lookup_batch(fd, out_keys, out_values, 256)() == n - 200


def test_drain_and_sum_baselines(c: CSide) -> None:
    """The drain leaves nothing, the sum adds what each CPU has."""
    cpus, n = possible_cpus(), 1000
    keys = np.arange(n, dtype="u8")
    out, sums = touched(2 * n, "u8"), touched(2 * n, "u8")
    per_cpu = c.create_map(PERCPU_HASH, 8, 8, n)
    lru = c.create_map(LRU_HASH, 8, 8, 8 * n)
    try:
        values = (keys[:, None] * 10 + np.arange(cpus, dtype="u8")).astype("u8")
        assert c.update_batch(per_cpu, keys, values, 64)() == n
        for chunk in (1, 100, 4096):
            assert c.percpu_sum(per_cpu, out, sums, cpus, chunk)() == n
            assert np.array_equal(sums[:n], values.sum(1)[out[:n].astype("i8")])
        for chunk in (1, 100, 4096):
            c.update_batch(lru, keys, keys * 3)()
            assert c.drain_batch(lru, out, sums, chunk)() == n
            assert np.array_equal(np.sort(out[:n]), keys)
            assert np.array_equal(sums[:n], out[:n] * 3)
            assert c.drain_batch(lru, out, sums, chunk)() == 0
    finally:
        os.close(per_cpu)
        os.close(lru)


def test_too_few_rounds_leave_it_open() -> None:
    """Where other work had the machine, nothing is said."""
    assert result_of("", "", [], [], entries=1, limit=1.0).verdict == "open"
    assert result_of("", "", [1.0], [9.0], entries=1, limit=1.0).verdict == "open"
