"""The join of two reads, against a dict; differences, against plain Python arithmetic."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from fastmap._core.delta.join import KINDS, Join

pytestmark = pytest.mark.quick

Entries = dict[bytes, list[int]]


def sides(entries: Entries, key_size: int, dtype: Any, cpus: int,
          spare: int) -> tuple[np.ndarray, np.ndarray]:
    """Return keys, and values of `cpus` CPUs, each in a slot with `spare` bytes behind it."""
    keys = np.frombuffer(bytearray(b"".join(entries)), f"V{key_size}")
    slot = np.dtype({"names": ["value"], "formats": [dtype], "offsets": [0],
                     "itemsize": np.dtype(dtype).itemsize + spare})
    rows = np.zeros((len(entries), cpus), slot)
    for row, values in zip(rows, entries.values(), strict=True):
        row["value"] = values
    return keys, rows["value"]


def result(join: Join, keys: np.ndarray, dtype: Any, cpus: int) -> tuple[Any, ...]:
    out = np.frombuffer(join.out, dtype, len(keys) * cpus).reshape(len(keys), cpus)
    new = np.frombuffer(join.new, np.bool_, len(keys))
    restarted = np.frombuffer(join.restarted, np.bool_, len(keys))
    size = keys.dtype.itemsize
    gone = np.frombuffer(join.gone, f"V{size}", join.gone_count)
    return out, new, restarted, {each.tobytes() for each in gone}


def expected(now: list[int], last: list[int], bits: int, signed: bool) -> tuple[list[int], bool]:
    """Say by the words of `Delta` what grew by how much, and whether one began anew."""
    whole, half = 1 << bits, 1 << bits - 1
    judged = []
    for a, b in zip(now, last, strict=True):
        way = (a - b) % whole
        if a >= b and not (signed and way >= half):
            judged.append(("rose", way))
        elif way < half and not (a == 0 and way > whole // 256):
            judged.append(("wrapped", way))
        else:
            judged.append(("anew", a))
    anew = any(what == "anew" for what, _ in judged)
    return [a if anew and what == "wrapped" else way
            for a, (what, way) in zip(now, judged, strict=True)], anew


@st.composite
def two_reads(draw: st.DrawFn) -> tuple[int, str, int, Entries, Entries]:
    """Draw a key size, a kind, CPUs, and two reads that have some keys in common."""
    key_size = draw(st.sampled_from([1, 3, 4, 8, 12, 16, 21]))
    kind = draw(st.sampled_from(["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]))
    cpus = draw(st.integers(1, 3))
    bits = 8 * int(kind[1])
    low = -(1 << bits - 1) if kind[0] == "i" else 0
    high = low + (1 << bits) - 1
    number = st.integers(low, high) | st.sampled_from([0, 1, high, high - 1, high // 2, low])
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    keys = sorted({rng.randbytes(key_size) for _ in range(draw(st.integers(0, 60)))})
    rows = {key: draw(st.lists(number, min_size=cpus, max_size=cpus)) for key in keys}
    last = {key: rows[key] for key in keys if rng.random() < 0.8}
    order = [key for key in keys if rng.random() < 0.8]
    if draw(st.booleans()):
        rng.shuffle(order)
    now = {key: draw(st.lists(number, min_size=cpus, max_size=cpus)) for key in order}
    return key_size, kind, cpus, now, last


@settings(max_examples=examples(300), deadline=None)
@given(two_reads(), st.booleans(), st.sampled_from([0, 5]))
def test_as_a_dict_would(reads: tuple[int, str, int, Entries, Entries], swapped: bool,
                         spare: int) -> None:
    key_size, kind, cpus, now, last = reads
    dtype = np.dtype(">" + kind if swapped else kind)
    join = Join(key_size, (), dtype.itemsize, cpus, [(kind, not dtype.isnative, 0, 1)], None, False)
    keys, values = sides(now, key_size, dtype, cpus, spare)
    join.differences(keys, values, *sides(last, key_size, dtype, cpus, spare))
    out, new, restarted, gone = result(join, keys, dtype, cpus)
    assert gone == set(last) - set(now)
    assert join.restarts == np.count_nonzero(restarted)
    for i, (key, counters) in enumerate(now.items()):
        assert new[i] == (key not in last)
        want, anew = (counters, False) if key not in last else expected(
            counters, last[key], 8 * dtype.itemsize, kind[0] == "i")
        assert (out[i].tolist(), bool(restarted[i])) == (want, anew)


def test_what_is_not_finite_has_not_grown() -> None:
    inf, nan = np.inf, np.nan
    for kind in ("f4", "f8", ">f4", ">f8"):
        swapped = kind[0] == ">"
        for now, last, difference, anew in (
                (nan, 1, 0, False), (inf, 1, 0, False), (-inf, 1, 0, False), (nan, nan, 0, False),
                (inf, inf, 0, False), (inf, -inf, 0, False), (3, nan, 3, True), (3, inf, 3, True),
                (3, -inf, 3, True), (3, 1, 2, False)):
            join = Join(1, [], 2 * int(kind[-1]), 1, [(kind.lstrip(">"), swapped, 0, 2)], None,
                        False)
            dtype = np.dtype((kind, (2,)))
            keys = np.array([b"a", b"b"], "V1")
            values = np.zeros((2, 1), dtype)
            values[:, 0] = [[now, 7], [now, 7]]
            before = np.zeros((1, 1), dtype)
            before[0, 0] = [last, 5]
            join.differences(keys, values, keys[:1].copy(), before)
            out = np.frombuffer(join.out, kind, 4).tolist()
            assert out == [difference, 2, now if np.isfinite(now) else 0, 7], (kind, now, last)
            assert np.frombuffer(join.restarted, "?", 2).tolist() == [anew, False]
            assert np.frombuffer(join.new, "?", 2).tolist() == [False, True]


def test_floats_fall_to_begin_anew() -> None:
    for kind in ("f4", "f8"):
        join = Join(1, (), int(kind[1]), 1, [(kind, False, 0, 1)], None, False)
        last = {b"a": [2.5], b"b": [4.0], b"c": [np.nan]}
        keys, values = sides({b"a": [4.0], b"b": [1.5], b"c": [1.0]}, 1, kind, 1, 0)
        join.differences(keys, values, *sides(last, 1, kind, 1, 0))
        out, _, restarted, _ = result(join, keys, kind, 1)
        assert out[:, 0].tolist() == [1.5, 1.5, 1.0]
        assert restarted.tolist() == [False, True, True]


def test_what_is_no_counter_stays() -> None:
    value = np.dtype([("a", "u1"), ("name", "S3"), ("b", "u4")])  # packed: "b" lies anywhere
    join = Join(2, (), value.itemsize, 1, [("u1", False, 0, 1), ("u4", False, 4, 1)], None, False)
    now, last = np.array([(7, b"now", 70)], value), np.array([(5, b"old", 20)], value)
    key = np.frombuffer(bytearray(b"kk"), "V2")
    join.differences(key, now, key, last)
    assert np.frombuffer(join.out, value, 1)[0].item() == (2, b"now", 50)


@pytest.mark.parametrize("order", ["same", "shuffled", "half", "other"])
def test_many_entries_in_any_order(order: str) -> None:
    """What the hash is for: tens of thousands of entries that are not where they were."""
    count, rng = 40_000, np.random.default_rng(3)
    last_keys = rng.permutation(np.arange(count, dtype="u8") * np.uint64(0x9e3779b97f4a7c15))
    last = np.arange(count, dtype="u8")
    picked = {"same": np.arange(count), "shuffled": rng.permutation(count),
              "half": np.sort(rng.permutation(count)[:count // 2]),
              "other": np.arange(count)}[order]
    keys = last_keys[picked] + np.uint64(order == "other")
    now = last[picked] + np.uint64(17)
    join = Join(8, (), 8, 1, [("u8", False, 0, 1)], None, False)
    join.differences(keys, now, last_keys, last)
    out = np.frombuffer(join.out, "u8", len(keys))
    new = np.frombuffer(join.new, np.bool_, len(keys))
    if order == "other":
        assert new.all() and np.array_equal(out, now) and join.gone_count == count
    else:
        assert not new.any() and (out == 17).all() and join.gone_count == count - len(keys)
        left = np.setdiff1d(last_keys, keys)
        assert np.array_equal(np.sort(np.frombuffer(join.gone, "u8", join.gone_count)), left)


def test_one_of_many_in_order_steps_back() -> None:
    """Entries in order are subtracted many at once: one that wraps or restarts is found there."""
    count = 1000
    keys = np.arange(count, dtype="u8")
    last = np.full((count, 2), 2**32 - 10, "u4")
    now = last + np.uint32(5)
    now[500], now[700, 1] = (3, 4), 2**31  # those wrap, this begins anew
    join = Join(8, (), 8, 1, [("u4", False, 0, 2)], None, False)
    join.differences(keys, now.view("V8").ravel(), keys, last.view("V8").ravel())
    want = np.full((count, 2), 5)
    want[500], want[700, 1] = (13, 14), 2**31
    assert np.array_equal(np.frombuffer(join.out, "u4", 2 * count).reshape(-1, 2), want)
    assert np.flatnonzero(np.frombuffer(join.restarted, np.bool_, count)).tolist() == [700]


@pytest.mark.parametrize("apart", [1, 3, 7, 20])
def test_neighbours_that_changed_places(apart: int) -> None:
    """As updates leave a bucket: found without a hash where they are near, with it elsewhere."""
    count = 960
    last = np.arange(count, dtype="u8")
    keys = last.reshape(-1, 2, apart)[:, ::-1].ravel() if count % (2 * apart) == 0 else last[::-1]
    keys = np.concatenate((keys, [np.uint64(5000)]))
    join = Join(8, (), 8, 1, [("u8", False, 0, 1)], None, False)
    join.differences(keys, keys * 3, last[5:], last[5:])
    out = np.frombuffer(join.out, "u8", count + 1)
    new = np.frombuffer(join.new, np.bool_, count + 1)
    assert np.array_equal(new, (keys < 5) | (keys == 5000)) and not join.gone_count
    assert np.array_equal(out, np.where(new, 3 * keys, 2 * keys))


def test_repeated_keys_and_padding() -> None:
    """Of a key that is repeated the first counts; entries that differ in padding are added up."""
    join = Join(4, [(1, 2)], 8, 1, [("u4", True, 0, 1)], None, False)
    value = np.dtype([("n", ">u4"), ("rest", "V4")])
    raw = [b"a\1\0x", b"b\0\0x", b"a\0\2x", b"b\0\0x", b"c\7\7y", b"a\1\0x"]
    keys = np.frombuffer(bytearray(b"".join(raw)), "V4")
    values = np.zeros(6, value)
    values["n"] = [1, 20, 300, 4000, 50000, 600000]
    assert join.tidy(keys, values, True) == 3
    assert keys[:3].tobytes() == b"a\0\0xb\0\0xc\0\0y"
    assert values["n"][:3].tolist() == [301, 20, 50000]
    assert join.tidy(keys[:3], values[:3], True) == 3  # nothing is left to do


def test_an_array_is_not_searched() -> None:
    join = Join(4, (), 2, 1, [("u2", False, 0, 1)], None, True)
    numbers = np.arange(5, dtype="u4")
    join.differences(numbers, numbers.astype("u2") * 3, numbers, numbers.astype("u2"))
    assert np.frombuffer(join.out, "u2", 5).tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("bad", ["short", "apart"])
def test_refuses_what_it_could_not_read(bad: str) -> None:
    join = Join(4, (), 4, 1, [("u4", False, 0, 1)], None, False)
    numbers = np.arange(8, dtype="u4")
    keys = numbers[:7] if bad == "short" else np.repeat(numbers, 2)[::2]
    with pytest.raises(ValueError, match="keys"):
        join.differences(keys, numbers, numbers, numbers)


def test_kinds_are_numpys() -> None:
    for kind in KINDS:
        assert np.dtype(kind).str[1:] == kind
