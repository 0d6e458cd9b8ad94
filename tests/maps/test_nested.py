"""Maps whose values are maps: ARRAY_OF_MAPS and HASH_OF_MAPS."""

from __future__ import annotations

import errno
import gc
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import keep_only
from support import in_child

import fastmap
from fastmap import MapFlag, NotSupported, PermissionDenied, Program, ProgType
from fastmap.asm import FP, R0, R1, R2, R6, Assembler, Helper
from fastmap.errors import BatchError, BpfError, KeyExists, KeyNotFound, MapFull

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

RECORD = [("packets", "u8"), ("bytes", "u4")]
HASH = {"type": "hash", "key": "u4", "value": RECORD, "max_entries": 8}
ARRAY = {"type": "array", "value": "u8", "max_entries": 4}
OUTER = ("hash_of_maps", "array_of_maps")


def outer(make: Make, kind: str = "hash_of_maps", inner: Any = HASH, **options: Any) -> Any:
    key = {"key": "u4"} if kind == "hash_of_maps" else {}
    return make(kind, **{"max_entries": 16, "inner": inner, **key, **options})


# ---- create ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OUTER)
def test_inner_as_a_map_and_as_a_specification(make: Make, kind: str) -> None:
    like = make(**HASH, name="like")
    for inner in (like, HASH):
        m = outer(make, kind, inner, name="outer")
        assert m.type.name == kind.upper() and m.value_dtype == "u4" and m.key_dtype == "u4"
        assert m.inner.type == fastmap.MapType.HASH and m.inner.value == np.dtype(RECORD)
        m[3] = like
        assert m.lookup_id(3) == like.id
    assert not like.closed


def test_wrong_inner_is_refused(make: Make) -> None:
    nested = outer(make)
    wrong: list[tuple[Any, Any, str]] = [
        (None, TypeError, "inner="), ("hash", TypeError, "inner="), (7, TypeError, "inner="),
        ({"key": "u4"}, TypeError, "type"), ({"type": "hsh"}, ValueError, "hsh"),
        ({**HASH, "pin": "/x"}, ValueError, "pin"), ({**HASH, "inner": HASH}, ValueError, "inner"),
        ({**HASH, "max_entries": 0}, ValueError, "max_entries"),
        ({**HASH, "colour": 1}, TypeError, "colour"), (nested, ValueError, "HASH_OF_MAPS"),
        ({"type": "prog_array", "max_entries": 1}, ValueError, "PROG_ARRAY"),
        ({"type": "cgroup_storage", "key": "u8", "value": "u8"}, ValueError, "CGROUP_STORAGE"),
    ]
    for inner, error, words in wrong:
        with pytest.raises(error, match=words):
            outer(make, inner=inner)
    with pytest.raises(TypeError, match="inner= goes with"):
        make(**{**HASH, "inner": HASH})
    closed = fastmap.create(**HASH)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        outer(make, inner=closed)


@pytest.mark.parametrize("kind", ("array", "percpu_hash", "lru_hash", "lpm_trie", "queue", "stack",
                                  "bloom_filter", "ringbuf", "stack_trace", "perf_event_array",
                                  "sockhash", "devmap", "cpumap"))
def test_the_kernel_takes_these_as_inner(make: Make, kind: str) -> None:
    sides: dict[str, Any] = {"max_entries": 4096 if kind == "ringbuf" else 2}
    if kind in ("array", "percpu_hash", "lru_hash", "lpm_trie", "stack_trace", "queue", "stack",
                "bloom_filter"):
        sides["value"] = "u8"
    if kind in ("percpu_hash", "lru_hash", "lpm_trie", "sockhash"):
        sides["key"] = [("prefixlen", "u4"), ("addr", "u1", (4,))] if kind == "lpm_trie" else "u4"
    m = outer(make, inner={"type": kind, **sides})
    one = make(kind, **sides)
    m[1] = one
    with m[1] as read:
        assert type(read) is type(one) and read.id == one.id
        assert read.key_dtype == one.key_dtype and read.value_dtype == one.value_dtype
    for via in ("kernel", "syscall"):
        assert m.lookup_many([0, 1], via=via)[0].tolist() == [0, one.id]


# ---- elements ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OUTER)
def test_assign_a_map_and_read_a_map(make: Make, kind: str) -> None:
    m = outer(make, kind)
    one, other = make(**HASH), make(**{**HASH, "max_entries": 99})
    one[7] = (1, 2)
    m[3] = one
    with m[3] as read:
        assert type(read) is fastmap.HashMap and read.id == one.id and read is not one
        assert read[7]["bytes"] == 2 and read.dtype_source == "btf"
        read[8] = (3, 4)
    assert one[8]["packets"] == 3
    m.update(3, other)
    with m.lookup(3) as read:
        assert read.id == m.lookup_id(3) == other.id and read.max_entries == 99
    assert 3 in m and 4 not in m and len(m) == 1 and bool(m) and list(m) == [3]
    assert m.get(4) is None and m.get(4, 5) == 5
    for miss in (lambda: m[4], lambda: m.lookup(4), lambda: m.lookup_id(4)):
        with pytest.raises(KeyNotFound, match="key 4"):
            miss()
    with m.pop(3) as popped:
        assert popped.id == other.id
    assert m.pop(3, None) is None and not m and len(m) == 0
    with pytest.raises(KeyNotFound, match="key 3"):
        del m[3]
    with pytest.raises(KeyNotFound):
        m.pop(3)


@pytest.mark.parametrize("kind", OUTER)
def test_a_map_lives_in_another(make: Make, kind: str) -> None:
    m = outer(make, kind)
    with fastmap.create(**HASH) as one:
        one[7] = (5, 6)
        number = one.id
        m[0] = one
    with m[0] as read:
        assert read.id == number and read[7].tolist() == (5, 6)
    m.clear()
    assert len(m) == 0
    deadline = time.monotonic() + 10  # the kernel frees it behind a grace period or two
    while time.monotonic() < deadline:
        try:
            fastmap.open(id=number).close()
        except fastmap.ObjectNotFound:
            return
        time.sleep(0.01)
    pytest.fail("the map that was taken out is still there")


def test_dtypes_without_btf_are_those_of_the_inner_map(make: Make, bpffs: Path) -> None:
    plain = {**HASH, "btf": False}
    one = make(**plain)
    m = outer(make, inner=plain, pin=bpffs / "outer")
    m[1] = one
    one[7] = (1, 2)
    with m[1] as read:
        assert read.value_dtype == np.dtype(RECORD) and read[7].tolist() == (1, 2)
    with fastmap.open(bpffs / "outer", key="u4") as again:
        assert type(again) is fastmap.HashOfMaps and again.inner is None
        with again[1] as read:
            assert read.id == one.id and read.value_dtype == "V12" and read.dtype_source == "none"
        again[2] = one
        with pytest.raises(BpfError, match="not like the inner map") as caught:
            again[2] = make(**ARRAY)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(ValueError, match="HASH_OF_MAPS"):
            again[2] = m
    assert m.lookup_id(2) == one.id


DIFFERENT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (HASH, {"type": "lru_hash"}, "type is LRU_HASH, not HASH$"),
    (HASH, {"key": "u8"}, "key size is 8, not 4$"),
    (HASH, {"value": [("a", "u8")], "key": "u2"}, "key size is 2, not 4; value size is 8, not 12$"),
    (HASH, {"flags": MapFlag.NO_PREALLOC}, "flags is NO_PREALLOC, not 0$"),
    (ARRAY, {"max_entries": 5}, "max_entries is 5, not 4; .*INNER_MAP"),
    ({**ARRAY, "flags": MapFlag.INNER_MAP}, {"flags": 0}, "flags is 0, not INNER_MAP$"),
]


@pytest.mark.parametrize("kind", OUTER)
@pytest.mark.parametrize(("inner", "change", "words"), DIFFERENT, ids=lambda x: str(x)[:20])
def test_a_map_that_differs_is_refused_field_by_field(
        make: Make, kind: str, inner: Any, change: Any, words: str) -> None:
    m, one = outer(make, kind, inner), make(**{**inner, **change})
    with pytest.raises(ValueError, match=words):
        m[1] = one
    with pytest.raises(ValueError, match=words):
        m.update_many([1, 2], [make(**inner), one])
    assert len(m) == 0  # nothing was applied
    m.inner = None  # the kernel would have refused it as well
    with pytest.raises(BpfError, match="not like the inner map") as caught:
        m[1] = one
    assert caught.value.errno == errno.EINVAL and not isinstance(caught.value, BatchError)


@pytest.mark.parametrize(("inner", "change"), [
    (HASH, {"max_entries": 9}), (HASH, {"value": [("a", "i4", (3,))]}), (HASH, {"name": "other"}),
    ({**ARRAY, "flags": MapFlag.INNER_MAP}, {"max_entries": 5}),
    ({"type": "queue", "value": "u8", "max_entries": 1}, {"max_entries": 2}),
], ids=str)
def test_what_may_differ(make: Make, inner: Any, change: Any) -> None:
    m = outer(make, inner=inner)
    m[1] = one = make(**{**inner, **change})
    assert m.lookup_id(1) == one.id


def test_a_map_without_btf_among_others(make: Make) -> None:
    m, plain = outer(make), make(**HASH, btf=False)
    no_struct = make(**{**HASH, "value": ("i4", (3,))})
    outer(make, inner=plain)[1] = no_struct
    if fastmap.enums.running_kernel() >= (6, 2):
        m[1] = no_struct
        m[1] = plain
        with m[1] as read:
            assert read.id == plain.id and read.value_dtype == np.dtype(RECORD)
        return
    for other in (plain, no_struct):
        with pytest.raises(ValueError, match="struct as value is missing, not there$"):
            m[1] = other
        with pytest.raises(ValueError, match="struct as value is there, not missing$"):
            outer(make, inner=other)[1] = make(**HASH)
    m.inner = None
    for other in (plain, no_struct):  # the kernel would have refused it as well
        with pytest.raises(BpfError, match="calls the value a struct"):
            m[1] = other


@pytest.mark.parametrize("kind", OUTER)
def test_values_that_are_no_maps(make: Make, kind: str) -> None:
    m, one = outer(make, kind), make(**HASH)
    m[1] = one
    for wrong in (one.fileno(), one.id, None, "one", np.uint32(one.fileno())):
        with pytest.raises(TypeError, match="is a Map"):
            m[2] = wrong
    for many in ([one, 5], np.array([one.fileno()] * 2), np.array([None, None]), one.id):
        with pytest.raises(TypeError, match="is a Map"):
            m.update_many([2, 3], many)
    closed = fastmap.create(**HASH)
    closed.close()
    for put in (lambda: m.update(2, closed), lambda: m.update_many([2], closed)):
        with pytest.raises(ValueError, match="closed"):
            put()
    with pytest.raises(ValueError, match="2 keys, but 1"):
        m.update_many([2, 3], [one])
    for key in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            m[key] = one
    with pytest.raises(TypeError):
        m["x"] = one
    assert list(m) == [1]


def test_flags_and_limits(make: Make) -> None:
    one = make(**HASH)
    m = outer(make, max_entries=2)
    m.update(1, one, flags=fastmap.NOEXIST)
    with pytest.raises(KeyExists):
        m.update(1, one, flags=fastmap.NOEXIST)
    with pytest.raises(KeyNotFound):
        m.update(2, one, flags=fastmap.EXIST)
    m[2] = one
    with pytest.raises(MapFull):
        m[3] = one
    with pytest.raises(NotSupported):
        m.lookup_and_delete(1)
    a = outer(make, "array_of_maps", max_entries=2)
    for past in (lambda: a.update(2, one), lambda: a.delete(2), lambda: a[2],
                 lambda: a.lookup_id(2)):
        with pytest.raises(KeyNotFound, match="key 2"):
            past()
    assert 2 not in a
    with pytest.raises(BpfError) as caught:
        a.update(1, one, flags=fastmap.EXIST)
    assert caught.value.errno == errno.EINVAL and "flag" in str(caught.value)


def test_keys_of_other_dtypes(make: Make) -> None:
    one = make(**HASH)
    for dtype, key in (("S8", b"abc"), ([("a", "u1"), ("b", "u4")], (1, 2)), ("V3", b"\0\1\2"),
                       (("u2", (2,)), np.array([1, 2], "u2")), (">u4", 5)):
        m = outer(make, key=dtype)
        m[key] = one
        assert key in m and m.lookup_id(key) == one.id
        del m[key]
        assert len(m) == 0


# ---- many --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OUTER)
def test_many_at_once(make: Make, kind: str) -> None:
    m = outer(make, kind, max_entries=64)
    maps = [make(**HASH) for _ in range(40)]
    keys = np.arange(0, 60, 3)
    assert m.update_many(keys, maps[:20]) == 20 == len(m)
    ids, found = m.lookup_many(range(60))
    assert ids.dtype == "u4" and np.flatnonzero(found).tolist() == keys.tolist()
    assert ids[found].tolist() == [each.id for each in maps[:20]] and not ids[~found].any()
    batch = m.snapshot()
    assert batch.complete and dict(batch.items()) == {
        int(k): each.id for k, each in zip(keys, maps, strict=False)}
    assert sorted(m) == sorted(m.keys()) == keys.tolist()
    assert sorted(each.id for each in m.values()) == [each.id for each in maps[:20]]
    assert {k: each.id for k, each in m.items()} == dict(batch.items())
    small = [k for chunk in m.reader(chunk=4) for k in chunk.keys.tolist()]
    assert sorted(small) == keys.tolist()
    assert m.update_many(keys, maps[20]) == 20
    assert set(m.snapshot().values.tolist()) == {maps[20].id}
    assert m.delete_many(range(0, 64, 6)) == 10 == len(m)
    assert m.delete_many([0, 3, 3], errors="return").tolist() == [errno.ENOENT, 0, errno.ENOENT]
    with pytest.raises(KeyNotFound):
        m.delete_many([9, 0], errors="raise")
    m.clear()
    assert len(m) == 0 and not m and list(m.items()) == []


@pytest.mark.needs("in-kernel")
@pytest.mark.parametrize("kind", OUTER)
def test_ids_by_a_program(make: Make, kind: str) -> None:
    m = outer(make, kind, max_entries=64)
    maps = [make(**HASH) for _ in range(20)]
    m.update_many(np.arange(0, 60, 3), maps)
    asked = np.random.default_rng(3).integers(0, 70, 20_000)
    assert m.prepare() == ("lookup",)
    ids, found = m.lookup_many(asked, via="kernel")
    there = (asked % 3 == 0) & (asked < 60)
    assert np.array_equal(found, there) and not ids[~there].any()
    assert np.array_equal(ids[there], np.array([each.id for each in maps])[asked[there] // 3])
    for via in ("auto", "syscall"):
        again, once_more = m.lookup_many(asked, via=via)
        assert np.array_equal(again, ids) and np.array_equal(once_more, found)
    m[0] = maps[7]
    assert m.lookup_many([0, 3], via="kernel")[0].tolist() == [maps[7].id, maps[1].id]
    with pytest.raises(NotSupported, match="no program can delete"):
        m.delete_many([0], via="kernel")


def test_failures_of_many(make: Make) -> None:
    one = make(**HASH)
    m = outer(make, max_entries=2)
    with pytest.raises(MapFull) as caught:
        m.update_many(range(4), one)
    assert caught.value.applied == caught.value.index == 2
    assert m.update_many(range(4), one, errors="return").tolist() == [0, 0, errno.E2BIG,
                                                                      errno.E2BIG]
    a = outer(make, "array_of_maps", max_entries=2)
    with pytest.raises(KeyNotFound) as past:
        a.update_many([1, 2], [one, one])
    assert past.value.applied == 1
    assert a.delete_many([0, 1, 2, 99]) == 1
    with pytest.raises(NotSupported):
        a.reader().drain()


def test_habits_of_a_dict(make: Make) -> None:
    one, other = make(**HASH), make(**HASH)
    m = outer(make)
    assert isinstance(m, MutableMapping)
    m.update({1: one, 2: other})
    m.update([(3, other)])
    assert {k: v.id for k, v in m.items()} == {1: one.id, 2: other.id, 3: other.id}
    assert m.setdefault(1, other).id == one.id
    assert m.setdefault(4, other).id == other.id
    key, popped = m.popitem()
    assert key not in m and popped.id in (one.id, other.id)
    keys, ids = m.drain()
    assert len(keys) == len(ids) == 3 and len(m) == 0
    with pytest.raises(KeyError):
        m.popitem()


def test_one_command_writes_many(make: Make) -> None:
    m = outer(make, max_entries=64)
    assert m.update_many(range(64), [make(**HASH) for _ in range(64)]) == 64 == len(m)
    assert m.no_batch is False  # by elements it would wait for RCU 64 times


# ---- programs and other processes --------------------------------------------------------------


def test_a_program_writes_into_the_map_that_it_finds(make: Make) -> None:
    m = outer(make, "array_of_maps", ARRAY)
    maps = [make(**ARRAY) for _ in range(2)]
    m.update_many([0, 5], maps)
    which = make("array", value="u4", max_entries=1)
    a = Assembler()
    a.st(4, FP, -4, 0)
    a.ld_map(R1, which)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R2, R0)
    a.ld_map(R1, m)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "none")
    a.mov(R1, R0)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R6, 1)
    a.atomic_add(8, R0, 0, R6)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    a.label("none")
    a.mov(R0, 7)
    a.exit()
    with Program(ProgType.RAW_TRACEPOINT, a.assemble()) as prog:
        for index, result in ((0, 0), (5, 0), (5, 0), (1, 7)):
            which[0] = index
            assert prog.run() == result
        assert [each[0] for each in maps] == [1, 2]
        m[5] = maps[0]  # swapped under the program
        which[0] = 5
        assert prog.run() == 0 and [each[0] for each in maps] == [2, 2]


def test_reading_a_map_takes_cap_sys_admin(make: Make) -> None:
    m, one = outer(make), make(**HASH)
    m[1] = one

    def without_capabilities() -> None:
        keep_only()
        for read in (lambda: m[1], lambda: m.get(1), lambda: list(m.values()), lambda: m.pop(1)):
            with pytest.raises(PermissionDenied, match="CAP_SYS_ADMIN.*lookup_id"):
                read()
        assert m.lookup_id(1) == one.id and m.snapshot().values.tolist() == [one.id]
        assert m.lookup_many([1])[0].tolist() == [one.id] and 1 in m
        m.update_many([2, 3], one)
        m[4] = one
        assert len(m) == 4 and m.delete_many([2]) == 1

    in_child(without_capabilities)


def test_a_map_replaced_while_it_is_read(make: Make) -> None:
    m = outer(make)
    maps = [make(**HASH) for _ in range(2)]
    m[1] = maps[0]
    real, calls = m._opener, []

    def gone_at_first(number: int, *more: Any) -> Any:
        calls.append(number)
        if len(calls) == 1:
            m[1] = maps[1]
            raise fastmap.ObjectNotFound(2, "gone")
        return real(number, *more)

    m._opener = gone_at_first
    with m[1] as read:
        assert read.id == maps[1].id and calls == [maps[0].id, maps[1].id]


def test_a_closed_map_of_maps(make: Make) -> None:
    m, one = outer(make), make(**HASH)
    m.close()
    for use in (lambda: m[1], lambda: m.update(1, one), lambda: m.delete(1), lambda: len(m),
                lambda: m.update_many([1], one), lambda: m.lookup_id(1), lambda: m.snapshot()):
        with pytest.raises(ValueError, match="closed"):
            use()
    gc.collect()
