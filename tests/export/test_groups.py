"""Groups, the largest rows, histograms and their quantiles, and how full a map is."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

import fastmap
from fastmap.collect import Delta, column, group_by, histogram, pressure, top
from fastmap.maptypes.batch import Batch

pytestmark = pytest.mark.quick

Make = Callable[..., Any]
KEY = np.dtype([("pid", "u4"), ("cpu", "u1")], align=True)
VALUE = np.dtype([("n", "u4"), ("size", ">i2"), ("part", "f4")])


def batch_of(keys: np.ndarray, values: np.ndarray) -> Batch:
    return Batch(keys, values, complete=True, started_ns=1, ended_ns=2)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2**32 - 1),
                          st.integers(-9, 9))))
def test_groups_are_those_of_a_dict(rows: list[tuple[int, int, int, int]]) -> None:
    keys = np.zeros(len(rows), KEY)
    # Each with a padding of its own.
    keys.view("u1").reshape(len(rows), KEY.itemsize)[:] = np.arange(len(rows))[:, None]
    values = np.zeros(len(rows), VALUE)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for i, (pid, cpu, n, size) in enumerate(rows):
        keys[i], values[i] = (pid, cpu), (n, size, n)
        groups[pid, cpu].append((n, size))
    grouped = group_by(batch_of(keys, values), ["key.pid", "key.cpu"], sum="value.n",
                       max=["value.size"], min="value.size", count=True)
    assert [key.item() for key in grouped.keys] == list(groups)  # in the order they first come
    assert grouped.values.dtype == [
        ("n", "u8"), ("size_max", "i2"), ("size_min", "i2"), ("count", "u8")]
    assert [value.item() for value in grouped.values] == [
        (sum(n for n, _ in each), max(s for _, s in each), min(s for _, s in each), len(each))
        for each in groups.values()]
    pids = group_by(grouped, "key.pid", sum="value.count")
    assert pids.keys.dtype == "u4" and pids.values["count"].sum() == len(rows)


def test_group_by_what_is_asked(filled: Make) -> None:
    keys = np.array([(1, 0), (2, 0), (1, 1)], KEY)
    values = np.array([(1, 5, 0.5), (2, 6, 1), (3, 7, 2)], VALUE)
    batch = batch_of(keys, values)
    counted = group_by(batch, "key.cpu")
    assert (counted.keys.tolist(), counted.values["count"].tolist()) == ([0, 1], [2, 1])
    assert group_by(batch, "value.size", sum="value.part").values["part"].dtype == "f8"
    whole = group_by(batch_of(np.array([7, 7, 8], "u8"), np.array([[1, 2], [3, 4], [5, 6]], "u4")),
                     "key", sum="value")
    assert whole.values["value"].tolist() == [[4, 6], [5, 6]]
    with pytest.raises(TypeError, match="no number"):
        group_by(batch, "key.pid", sum="value")
    with pytest.raises(ValueError, match="no field 'x'"):
        group_by(batch, "key.x")
    with pytest.raises(ValueError, match="not 'pid'"):
        group_by(batch, "pid")
    with pytest.raises(ValueError, match="one name"):
        group_by(batch_of(keys, keys), ["key.pid", "value.pid"])
    with pytest.raises(ValueError, match="at least one"):
        group_by(batch, [])


def test_columns_by_dotted_names(make: Make) -> None:
    m = make("hash", key="u4", value=[("a", [("b", "u2"), ("c", "u2")])], max_entries=4)
    m[1] = ((2, 3),)
    assert column(m.snapshot(), "value.a.c").tolist() == [3]
    assert column(m.snapshot(fields=["value.a.c"]), "value.a.c").tolist() == [3]
    assert column(m.snapshot(), "key").tolist() == [1]


def test_the_top_of_a_delta(make: Make) -> None:
    m = make("hash", key="u4", value="u8", max_entries=64)
    m.update_many(range(20), range(20))
    delta = Delta(m)
    m.update_many(range(25), [i * i for i in range(25)])
    largest = top(delta.read(), 3, "value")
    assert largest.keys.tolist() == [24, 23, 22] and largest.new.all()
    assert largest.values.tolist() == [576, 529, 484] and largest.seconds > 0
    assert len(top(m.snapshot(), 99, "key")) == 25 and len(top(m.snapshot(), 0, "key")) == 0


def test_top_of_equals_nans_and_bad_words() -> None:
    keys = np.arange(6, dtype="u4")
    batch = batch_of(keys, np.array([1.0, np.nan, 3, 3, -np.inf, 2]))
    assert top(batch, 4, "value").keys.tolist() == [2, 3, 5, 0]
    for n in range(7):  # exactly n, whatever is equal to what
        assert len(top(batch_of(keys, np.ones(6)), n, "value")) == n
    with pytest.raises(ValueError, match="at least 0"):
        top(batch, -1, "value")
    with pytest.raises(TypeError):
        top(batch, 2.5, "value")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduce="):
        top(batch_of(keys, np.ones((6, 2))), 1, "value")


# ---- histograms --------------------------------------------------------------------------------


def test_a_histogram_by_the_last_key_field(make: Make) -> None:
    """The words, and the numbers, of ebpf_exporter's own example: bio latency by device."""
    m = make("hash", key=[("device", "S4"), ("op", "u1"), ("slot", "u8")], value="u8",
             max_entries=64)
    for device, op, slot, n in [(b"sda", 1, 0, 10), (b"sda", 1, 2, 25), (b"sda", 1, 3, 51),
                                (b"sda", 2, 1, 7), (b"sda", 2, 27, 900), (b"sda", 2, 40, 3)]:
        m[device, op, slot] = n
    found = histogram(m.snapshot(), bucket_max=4, bucket_multiplier=0.000001, sum_slot=27)
    rows = {row.item(): i for i, row in enumerate(found.labels)}
    assert set(rows) == {(b"sda", 1), (b"sda", 2)}
    read, write = rows[b"sda", 1], rows[b"sda", 2]
    assert found.bounds.tolist() == [1e-6, 2e-6, 4e-6, 8e-6, 16e-6]
    assert found.cumulative[read].tolist() == [10, 10, 35, 86, 86]
    assert found.counts[write].tolist() == [0, 7, 0, 0, 0] and found.beyond[write] == 3
    assert found.total[write] == 10 and found.sums is not None
    assert found.sums.tolist() == [pytest.approx(9e-4 if i == write else 0) for i in range(2)]
    whole = histogram(m.snapshot(), labels="key.device", bucket_min=1, bucket_max=2)
    assert whole.counts.tolist() == [[17, 25]] and whole.beyond.tolist() == [954]
    assert found.merged().total.tolist() == [96] and len(found.merged()) == 1


def test_types_of_slots(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8)
    m.update({0: 5, 1: 1, 2: 2})
    batch = m.snapshot()
    assert histogram(batch).bounds.tolist() == [1, 2, 4]
    zero = histogram(batch, bucket_type="exp2zero", bucket_multiplier=10)
    assert (zero.bounds.tolist(), zero.counts.tolist()) == ([0, 10, 20], [[5, 1, 2]])
    linear = histogram(batch, bucket_type="linear", bucket_multiplier=0.5, bucket_max=3)
    assert (linear.bounds.tolist(), linear.counts.tolist()) == ([0, 0.5, 1, 1.5], [[5, 1, 2, 0]])
    zero = histogram(batch, bucket_type="exp2zero", bucket_min=1, bucket_max=2)
    assert (zero.bounds.tolist(), zero.counts.tolist()) == ([0, 2, 4], [[5, 3, 0]])


def test_a_histogram_of_arrays_and_of_a_delta(make: Make) -> None:
    m = make("hash", key="u4", value=[("slots", "u4", (4,)), ("all", "u4")], max_entries=8)
    m[7] = ([1, 2, 3, 4], 10)
    delta = Delta(m)
    m[7] = ([1, 2, 8, 5], 16)
    found = histogram(delta.read(), "index", value="value.slots", sum_slot=3)
    assert found.labels["key"].tolist() == [7] and found.counts.tolist() == [[0, 0, 5]]
    assert found.sums is not None and found.sums.tolist() == [1]
    slots = make("percpu_array", value="u8", max_entries=6)
    slots.update_many([1, 2], np.ones((2, 1), "u8"))
    with pytest.raises(ValueError, match="reduce="):
        histogram(slots.snapshot())
    summed = histogram(slots.snapshot(reduce="sum"))
    cpus = len(fastmap.possible_cpus())
    assert summed.counts.tolist() == [[0, cpus, cpus, 0, 0, 0]] and not summed.labels.dtype.names


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_are_right_within_a_bucket(values: list[int], q: float) -> None:
    """Against the values themselves: in the bucket where the one of that rank lies."""
    slots = np.array([max(value - 1, 0).bit_length() for value in values], "u4")
    found = histogram(batch_of(slots, np.ones(len(values), "u4")))
    ordered = sorted(values)
    there = ordered[max(int(np.ceil(q * len(values))) - 1, 0)]
    upper = 2 ** max(there - 1, 0).bit_length()
    assert (upper / 2 if upper > 1 else 0) <= found.quantile(q)[0] * (1 + 1e-9)
    assert found.quantile(q)[0] <= upper * (1 + 1e-9)


def test_quantiles_between_the_bounds() -> None:
    keys = np.array([(1, 0), (1, 1), (1, 2), (2, 5), (3, 1)], [("who", "u1"), ("slot", "u1")])
    found = histogram(batch_of(keys, np.array([2, 0, 4, 8, 0], "u4")), bucket_max=2)
    # 6 values of the first: 2 up to 1, 4 from 2 to 4. Of the second all are beyond 4.
    assert found.quantile([0, 1 / 6, 0.5, 1])[0].tolist() == pytest.approx([0, 0.5, 2.5, 4])
    assert found.quantile(0.5)[1] == 4 and np.isnan(found.quantile(0.5)[2])
    for bad in (1.5, -0.1, np.nan, [[0.5]]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            found.quantile(bad)


def test_histograms_refuse(make: Make) -> None:
    keys = np.array([1 << 40, 1], "u8")
    with pytest.raises(ValueError, match="at most 65536"):
        histogram(batch_of(keys, np.ones(2, "u4")))
    assert histogram(batch_of(keys, np.ones(2, "u4")), bucket_max=3).beyond.tolist() == [1]
    with pytest.raises(ValueError, match="bucket_type"):
        histogram(batch_of(keys, np.ones(2, "u4")), bucket_type="log")
    with pytest.raises(TypeError, match="no count"):
        histogram(batch_of(keys, np.ones(2)))
    with pytest.raises(ValueError, match="index"):
        histogram(batch_of(keys, np.ones(2, "u4")), "index")
    assert len(histogram(make("hash", key="u4", value="u4", max_entries=1).snapshot())) == 0


# ---- pressure ----------------------------------------------------------------------------------


def fill(m: Any, entries: int) -> None:
    """Add keys, from one CPU alone."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        m.update_many(np.arange(entries, dtype="u4"), np.zeros(entries, "u4"), via="syscall")
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("entries", [100, 1000, 20_000])
def test_an_lru_keeps_what_is_said(make: Make, entries: int) -> None:
    """On this kernel: up to the capacity nothing is evicted; where more is added, it is full."""
    m = make("lru_hash", key="u4", value="u4", max_entries=entries)
    there = pressure(m).capacity
    assert entries / 2 <= there <= entries
    fill(m, there)
    assert len(m) == there  # nothing was evicted
    fill(m, 3 * entries)
    found = pressure(m)
    assert there <= found.entries <= entries and found.evicts and found.used >= 1
    assert "is full" in found.warning and "evicts another entry" in found.warning


def test_an_lru_that_evicts_nothing_yet(make: Make) -> None:
    """Above what is kept for sure, and below where evictions are likely, there is no alarm."""
    m = make("lru_hash", key="u4", value="u4", max_entries=1 << 20)
    there = pressure(m).capacity
    fill(m, there + (m.max_entries - there) // 8)
    found = pressure(m)
    assert found.capacity < found.entries < found.max_entries and found.warning == ""


def test_an_lru_of_parts(make: Make) -> None:
    cpus = len(fastmap.possible_cpus())
    m = make("lru_hash", key="u4", value="u4", max_entries=1000 * cpus,
             flags=fastmap.MapFlag.NO_COMMON_LRU)
    assert pressure(m).capacity == m.max_entries // cpus
    fill(m, 3 * m.max_entries)
    found = pressure(m)
    assert found.entries == found.capacity and "NO_COMMON_LRU" in found.warning


def test_a_hash_that_fills(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=100, name="flows")
    fill(m, 89)
    assert pressure(m) == (89, 100, 100, False, "")
    fill(m, 90)
    assert "flows" in pressure(m).warning and "nearly full, 90 of 100" in pressure(m).warning
    assert pressure(m, near=0.95).warning == ""
    fill(m, 100)
    found = pressure(m)
    assert found.used == 1 and "is full" in found.warning and "MapFull" in found.warning
    with pytest.raises(fastmap.MapFull):
        m[1000] = 1
    with pytest.raises(TypeError, match="ArrayMap"):
        pressure(make("array", value="u4", max_entries=3))
    with pytest.raises(ValueError, match="near"):
        pressure(m, near=2)


def test_the_sum_of_a_histogram_has_a_multiplier_of_its_own(make: Callable[..., Any]) -> None:
    """``floor(log2(us))`` slots take twice the multiplier, the sum of the microseconds once."""
    m = make("hash", key="u4", value="u8", max_entries=8)
    m[2], m[27] = 4, 20  # four values of 5 us
    batch = m.snapshot()
    words = {"bucket_max": 4, "bucket_multiplier": 2e-6, "sum_slot": 27}
    found = histogram(batch, **words, sum_multiplier=1e-6)
    assert found.sums == pytest.approx([20e-6]) and found.bounds[2] == pytest.approx(8e-6)
    assert histogram(batch, **words).sums == pytest.approx([40e-6])
