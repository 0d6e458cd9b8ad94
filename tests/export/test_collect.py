"""`fastmap.collect.Delta` on real maps: what grew, came, went, wrapped and began anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

import fastmap
from fastmap._core.maps.trie_reader import COUNTS_SINCE
from fastmap._core.system import memory
from fastmap.asm import FP, R0, R1, R2, R3, R6, Assembler, Code, Helper
from fastmap.collect import Delta, DeltaBatch
from fastmap.enums import running_kernel

pytestmark = pytest.mark.quick

Make = Callable[..., Any]
VALUE = [("packets", "u8"), ("errors", "u4"), ("name", "S4")]


def told(batch: DeltaBatch) -> dict[Any, Any]:
    return dict(batch.items())


@pytest.mark.parametrize("kind", ["hash", "lru_hash", "lpm_trie"])
def test_what_grew_came_and_went(make: Make, kind: str) -> None:
    key: Any = "ipv4" if kind == "lpm_trie" else "u4"
    m = make(kind, key=key, value=VALUE, max_entries=64)

    def at(n: int) -> Any:
        return f"10.0.0.{n}/32" if key == "ipv4" else n

    for n in range(5):
        m[at(n)] = (100 * n, n, b"old")
    delta = Delta(m)
    m[at(1)] = (107, 1, b"new")
    m[at(9)] = (9, 1, b"came")
    del m[at(4)]
    batch = delta.read().copy()
    index = {str(key): i for i, key in enumerate(dict(batch.items()))}
    if key == "u4":
        assert set(index) == {"0", "1", "2", "3", "9"}
        assert batch.values[index["1"]].item() == (7, 0, b"new")
        assert batch.values[index["2"]].item() == (0, 0, b"old")
        assert batch.values[index["9"]].item() == (9, 1, b"came")
        assert batch.new.tolist() == [key == 9 for key in batch.keys]
        assert batch.gone.tolist() == [4]
    else:
        assert batch.gone["addr"].tolist() == [[10, 0, 0, 4]]
        assert sorted(batch.values["packets"].tolist()) == [0, 0, 0, 7, 9]
        assert batch.keys["addr"][batch.new].tolist() == [[10, 0, 0, 9]]
    assert 0 < batch.seconds < 60 and not batch.resets
    assert batch.complete or kind == "lpm_trie" and running_kernel() < COUNTS_SINCE
    again = delta.read()
    assert not again.new.any() and not len(again.gone) and not again.values["packets"].any()
    assert batch.values["packets"].any()  # a copy is not overwritten


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">u4", ">i8"])
def test_every_width(make: Make, kind: str) -> None:
    dtype = np.dtype(kind)
    most = int(np.iinfo(dtype).max)
    m = make("hash", key="u4", value=[("n", dtype)], max_entries=8, btf=False)
    for key, value in enumerate([most - 1, most // 2, 0]):
        m[key] = (value,)
    delta = Delta(m)
    for key, value in enumerate([int(np.iinfo(dtype).min) + 3, most // 4, most // 3]):
        m[key] = (value,)
    batch = delta.read()
    assert batch.values.dtype == m.value_dtype
    grown = {int(k): int(n) for k, n in zip(batch.keys, batch.values["n"], strict=True)}
    assert grown == {0: 5, 1: most // 4, 2: most // 3}
    assert batch.keys[batch.reset].tolist() == [1] and delta.resets == batch.resets == 1


def test_plain_values_and_floats(make: Make) -> None:
    m = make("hash", key="u4", value="f8", max_entries=8)
    m[1], m[2] = 1.25, 8.0
    delta = Delta(m)
    m[1], m[2] = 1.5, 2.0
    batch = delta.read()
    assert told(batch) == {1: 0.25, 2: 2.0} and batch.keys[batch.reset].tolist() == [2]


def test_a_cpu_that_wraps_is_no_reset(make: Make) -> None:
    """CPU by CPU, at the field's own width, before the CPUs are summed to 64 bits."""
    cpus = len(fastmap.possible_cpus())
    m = make("percpu_hash", key="u4", value=[("n", "u4"), ("who", "S8")], max_entries=8)
    row = np.zeros(cpus, m.value_dtype)
    row["n"], row["who"] = 1000, b"them"
    row["n"][0] = 2**32 - 1
    m.update_many([7], row[None])
    summed = Delta(m, reduce={"n": "sum", "who": "any"})
    wide = Delta(m, fields=["value.n"])
    row["n"] += np.arange(1, cpus + 1, dtype="u4")  # the first CPU's wraps, to 0
    m.update_many([7], row[None])
    batch = summed.read()
    assert batch.values["n"].dtype == np.dtype("u8") and batch.values["who"].tolist() == [b"them"]
    assert batch.values["n"].tolist() == [cpus * (cpus + 1) // 2] and not batch.resets
    batch = wide.read()
    assert batch.values.dtype.names == ("n",) and batch.values.shape == (1, cpus)
    assert batch.values["n"].tolist() == [list(range(1, cpus + 1))]


def test_a_key_made_again_is_no_wrap(make: Make) -> None:
    """Its counters of 32 bits look wrapped, another cannot have: they all began anew."""
    m = make("hash", key="u4", value=[("calls", "u4"), ("bytes", "u8")], max_entries=8)
    m[1] = m[2] = (3_000_000_000, 10**12)
    delta = Delta(m)
    del m[1]
    m[1] = (5, 700)
    m[2] = (4, 10**12 + 9)  # that one wrapped
    batch = delta.read()
    assert {k: tuple(v.item()) for k, v in batch.items()} == {
        1: (5, 700), 2: (2**32 - 3_000_000_000 + 4, 9)}
    assert batch.keys[batch.reset].tolist() == [1]


def test_fields_and_gauges_decide_what_is_a_counter(make: Make) -> None:
    value = [("n", "u8"), ("seen", "u8"), ("inner", [("a", "u2"), ("b", "u2", (2,))])]
    m = make("hash", key="u4", value=value, max_entries=4)
    m[1] = (10, 500, (3, [4, 5]))
    plain = Delta(m, gauges=["value.seen", "value.inner.a"])
    some = Delta(m, fields=["value.inner.b", "value.seen"], gauges=["value.seen"])
    m[1] = (12, 400, (2, [5, 7]))
    batch = plain.read()
    assert batch.values[0].item()[:2] == (2, 400) and not batch.resets
    assert batch.values["inner"]["a"][0] == 2 and batch.values["inner"]["b"][0].tolist() == [1, 2]
    batch = some.read()
    assert batch.values.dtype.names == ("inner.b", "seen")
    assert batch.values["inner.b"].tolist() == [[1, 2]] and batch.values["seen"].tolist() == [400]


@pytest.mark.parametrize("kind", ["array", "percpu_array"])
def test_arrays_need_no_join(make: Make, kind: str) -> None:
    m = make(kind, value="u4", max_entries=300)
    delta = Delta(m, reduce="sum" if m.per_cpu else None)
    numbers = np.arange(300)
    m.update_many(numbers, numbers[:, None] if m.per_cpu else numbers)
    batch = delta.read()
    scale = len(fastmap.possible_cpus()) if m.per_cpu else 1
    assert np.array_equal(batch.keys, numbers) and not batch.new.any() and not len(batch.gone)
    assert np.array_equal(batch.values, scale * numbers)


def test_padding_never_splits_a_key(make: Make) -> None:
    """Two entries of the kernel that differ in the padding of their keys alone are one key."""
    m = make("hash", key="V8", value="u8", max_entries=8)
    padded = np.dtype([("cpu", "u1"), ("pid", "u4")], align=True)
    other = fastmap.open(fd=m.fileno(), key=padded)
    with other:
        m[b"\1\0\0\0\5\0\0\0"], m[b"\1abc\5\0\0\0"] = 10, 20
        delta = Delta(other)
        m[b"\1\0\0\0\5\0\0\0"], m[b"\1abc\5\0\0\0"] = 13, 24
        batch = delta.read()
        assert batch.keys.tolist() == [(1, 5)] and batch.values.tolist() == [7]
        del m[b"\1\0\0\0\5\0\0\0"], m[b"\1abc\5\0\0\0"]
        m[b"\1xyz\5\0\0\0"] = 2  # the same key, made again
        batch = delta.read()
        assert batch.values.tolist() == [2] and batch.reset.all()
        assert not batch.new.any() and not len(batch.gone)
        assert batch.keys.tobytes() == b"\1\0\0\0\5\0\0\0"


def test_a_reader_says_how_to_read(filled: Make) -> None:
    m = filled(1000, max_entries=2000)
    reader = m.reader(where=("key", "<", 10), chunk=16)
    kept = reader.read()
    before = kept.copy()
    delta = Delta(reader)
    m.update_many(np.arange(20, dtype="u8"), np.arange(20, dtype="u8") * np.uint64(3) + 1)
    batch = delta.read()
    assert sorted(batch.keys.tolist()) == list(range(10)) and (batch.values == 1).all()
    assert np.array_equal(kept.values, before.values)  # the reader's arrays are its own


@pytest.mark.needs("in-kernel")
def test_walks_in_the_kernel(filled: Make) -> None:
    """Reads that a program does, which may repeat entries: each of the two has its own buffers."""
    m = filled(5000, max_entries=8192)
    delta = Delta(m.reader(via="kernel", exact=False))
    keys = np.arange(5000, dtype="u8")
    for turn in range(1, 4):
        m.update_many(keys, 3 * keys + np.uint64(7 * turn))
        batch = delta.read()
        assert len(batch) == 5000 and (batch.values == 7).all() and not batch.complete


def test_array_with_where_is_joined(make: Make) -> None:
    m = make("array", value="u4", max_entries=10)
    m.update_many([3, 4], [5, 5])
    delta = Delta(m.reader(where=("value", ">", 0)))
    m.update_many([4, 6], [6, 1])
    m[3] = 0
    batch = delta.read()
    assert told(batch) == {4: 1, 6: 1} and batch.gone.tolist() == [3]


def test_memory_is_used_again(filled: Make) -> None:
    m = filled(5000, max_entries=10_000)
    delta = Delta(m)
    for _ in range(3):
        delta.read()
        m.update_many(np.arange(4000, 5000, dtype="u8"), np.arange(1000, dtype="u8"))
        m.delete_many(np.arange(100, dtype="u8"))
        m.update_many(np.arange(100, dtype="u8"), np.arange(100, dtype="u8"))
    live = memory.live()
    batch = delta.read()
    address = batch.values.ctypes.data
    for _ in range(4):
        batch = delta.read()
        assert memory.live() == live and batch.values.ctypes.data == address


def test_an_empty_map_and_one_that_empties(make: Make) -> None:
    m = make("hash", key="u4", value="u8", max_entries=8)
    delta = Delta(m)
    batch = delta.read()
    assert len(batch) == len(batch.gone) == 0
    m[1] = 2
    assert told(delta.read()) == {1: 2}
    del m[1]
    batch = delta.read()
    assert len(batch) == 0 and batch.gone.tolist() == [1] and "0 new, 1 gone" in repr(batch)


def test_refusals(make: Make) -> None:
    m = make("hash", key="u4", value=VALUE, max_entries=8)
    with pytest.raises(TypeError, match="Queue"):
        Delta(make("queue", value="u8", max_entries=2))
    with pytest.raises(ValueError, match="value="):
        Delta(make("hash", key="u4", value="V8", max_entries=2))
    with pytest.raises(ValueError, match="no counters"):
        Delta(m, fields=["value.name"])
    with pytest.raises(ValueError, match="no field 'x'"):
        Delta(m, gauges=["value.x"])
    with pytest.raises(TypeError, match="list of columns"):
        Delta(m, gauges="value.errors")
    with pytest.raises(ValueError, match="per-CPU"):
        Delta(m, reduce="sum")
    percpu = make("percpu_hash", key="u4", value="u8", max_entries=8)
    with pytest.raises(ValueError, match="reduce= to Delta"):
        Delta(percpu.reader(reduce="sum"))


def test_one_thread_at_a_time(filled: Make) -> None:
    m = filled(200_000)
    delta = Delta(m)
    raised: list[BaseException] = []
    inside = threading.Barrier(2)

    def read() -> None:
        inside.wait()
        for _ in range(5):
            try:
                delta.read()
            except RuntimeError as error:
                raised.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised and "another thread" in str(raised[0])
    assert not delta.read().values.any()


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 99)), max_size=12),
                min_size=1, max_size=5))
def test_deltas_against_plain_python(rounds: list[list[tuple[int, int]]]) -> None:
    """Additions and (-1) deletions of a map; what `Delta` says, and what a dict knows."""
    with fastmap.create("hash", key="u4", value="u8", max_entries=16) as m:
        delta = Delta(m)
        last: dict[int, int] = {}
        now: dict[int, int] = {}
        for changes in rounds:
            for key, more in changes:
                if more < 0:
                    now.pop(key, None)
                    m.delete_many([key])
                else:
                    now[key] = m[key] = now.get(key, 0) + more
            batch = delta.read()
            assert told(batch) == {
                key: n - last[key] if n >= last.get(key, n + 1) else n for key, n in now.items()}
            assert set(batch.keys[batch.new].tolist()) == set(now) - set(last)
            assert set(batch.gone.tolist()) == set(last) - set(now)
            assert set(batch.keys[batch.reset].tolist()) == {
                key for key, n in now.items() if n < last.get(key, 0)}
            last = dict(now)


def counting(counts: Any) -> Code:
    """Assemble a program that counts up ``counts[0]`` of the CPU it runs on, by 3."""
    a = Assembler()
    a.st(4, FP, -4, 0)
    a.ld_map(R1, counts)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R6, R0)
    a.ldx(4, R3, R6, 0)
    a.add(R3, 3)
    a.stx(4, R6, 0, R3)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


def test_a_program_counts_across_the_end_of_its_range(make: Make) -> None:
    """A real program, whose counters of 32 bits wrap on whatever CPU it runs."""
    m = make("percpu_hash", key="u4", value="u4", max_entries=4)
    m.update_many([0], np.full((1, len(fastmap.possible_cpus())), 2**32 - 100, "u4"))
    delta = Delta(m, reduce="sum")
    with fastmap.Program(fastmap.ProgType.SOCKET_FILTER, counting(m)) as program:
        program.run(data=bytes(64), repeat=50)
        batch = delta.read()
        assert told(batch) == {0: 150} and not batch.resets
        program.run(data=bytes(64), repeat=7)
        assert told(delta.read()) == {0: 21}


def test_seconds_are_those_between_the_middles_of_two_reads(make: Any) -> None:
    m = make("hash", key="u4", value="u8", max_entries=4)
    m[1] = 1
    delta = Delta(m)
    first = delta.read().copy()
    time.sleep(0.1)
    m[1] = 11
    second = delta.read()
    between = (second.started_ns + second.ended_ns - first.started_ns - first.ended_ns) / 2e9
    assert second.seconds == pytest.approx(between, abs=1e-9) and 0.1 <= second.seconds < 10
    assert second.values.tolist() == [10]
