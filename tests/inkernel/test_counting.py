"""`len` of a hash by the kernel's own counter, against a walk."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmap
from fastmap import MapFlag, PermissionDenied
from fastmap.enums import running_kernel
from fastmap.inkernel import count

pytestmark = pytest.mark.needs("in-kernel")

Make = Callable[..., Any]

HASHES = ("hash", "percpu_hash", "lru_hash", "lru_percpu_hash")
KINDS = [(kind, 0) for kind in HASHES] + [(kind, MapFlag.NO_PREALLOC) for kind in HASHES[:2]] + [
    (kind, MapFlag.NO_COMMON_LRU) for kind in HASHES[2:]]
HAS = running_kernel() >= count.SINCE


def by_program(m: Any) -> bool:
    return m._in_kernel is not None and m._in_kernel.counter.loaded


def walked(m: Any) -> int:
    return len(m.snapshot(via="syscall", reduce="any" if m.per_cpu else None).keys)


@pytest.mark.quick
@pytest.mark.parametrize(("kind", "flags"), KINDS)
@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.tuples(
    st.sampled_from(("update", "delete", "take", "drain", "one", "clear")),
    st.lists(st.integers(0, 400), max_size=200)), max_size=12))
def test_it_says_what_a_walk_finds(kind: str, flags: int,
                                   steps: list[tuple[str, list[int]]]) -> None:
    with fastmap.create(kind, key="u4", value="u8", max_entries=300, flags=flags,
                        via="kernel") as m:
        for what, keys in steps:
            asked = np.array(keys, "u4")
            if what == "update":
                m.update_many(asked, 1, errors="return", via="syscall")
            elif what == "delete":
                m.delete_many(asked, via="syscall")
            elif what == "take" and running_kernel() >= (5, 14):
                m.lookup_and_delete_many(asked, via="syscall")
            elif what == "drain":
                m.drain(via="syscall")
            elif what == "one" and keys:
                if keys[0] in m:
                    del m[keys[0]]
                elif len(m) < 200:
                    m[keys[0]] = 5
            elif what == "clear" and len(keys) > 150:
                m.clear()
            assert len(m) == walked(m)
        len(m)
        assert by_program(m) == HAS


@pytest.mark.parametrize(("kind", "flags"), KINDS)
def test_after_writers_have_stopped(make: Make, kind: str, flags: int) -> None:
    m = make(kind, key="u4", value="u8", max_entries=2000, flags=flags, via="kernel")
    assert len(m) == 0

    def churn(seed: int) -> None:
        some = np.random.default_rng(seed)
        for _ in range(40):
            m.update_many(some.integers(0, 4000, 500, "u4"), 1, errors="return", via="syscall")
            m.delete_many(some.integers(0, 4000, 300, "u4"), via="syscall")

    threads = [Thread(target=churn, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert 0 <= len(m) <= 2 * m.max_entries
    for thread in threads:
        thread.join()
    assert len(m) == walked(m) > 0


@pytest.mark.quick
def test_when_it_is_loaded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    few = make("hash", key="u4", value="u4", max_entries=100)
    few.update_many(range(7), 1)
    assert len(few) == 7 and not by_program(few)
    for _ in range(count.PAYS // 100 + 1):
        assert len(few) == 7
    assert by_program(few) == HAS
    many = make("hash", key="u4", value="u4", max_entries=count.PAYS)
    assert len(many) == 0 and by_program(many) == HAS
    other = make("hash", key="u4", value="u4", max_entries=count.PAYS, via="syscall")
    assert len(other) == 0 and not by_program(other)
    monkeypatch.setenv("FASTMAP_VIA", "syscall")
    third = make("hash", key="u4", value="u4", max_entries=count.PAYS)
    assert len(third) == 0 and not by_program(third)
    monkeypatch.delenv("FASTMAP_VIA")
    ready = make("hash", key="u4", value="u4", max_entries=9)
    ready.prepare()
    assert by_program(ready) == HAS and len(ready) == 0
    many.close()
    with pytest.raises(ValueError, match="closed"):
        len(many)


@pytest.mark.quick
def test_what_a_handle_may_not_read_is_not_counted(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=8, via="kernel")
    m.update_many([1, 2], 5)
    with (fastmap.open(id=m.id, writeonly=True, key="u4", value="u4", via="kernel") as writing,
          fastmap.open(id=m.id, readonly=True, key="u4", value="u4", via="kernel") as reading):
        with pytest.raises(PermissionDenied):
            len(writing)
        assert len(reading) == 2 and by_program(reading) == HAS
    m.freeze()
    assert len(m) == 2


def test_in_a_forked_child(make: Make) -> None:
    m = make("hash", key="u4", value="u4", max_entries=50, via="kernel")
    m.update_many(range(11), 1)
    assert len(m) == 11
    child = os.fork()
    if not child:
        os._exit(len(m))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11


@pytest.mark.parametrize("kind", ("lpm_trie", "hash"))
def test_where_no_program_can_count_a_walk_does(make: Make, kind: str) -> None:
    m = (make(kind, key="ipv4", value="u4", max_entries=8, via="kernel") if kind == "lpm_trie" else
         make(kind, key="u4", value="u4", max_entries=8, via="kernel", flags=MapFlag.RDONLY_PROG))
    assert len(m) == 0
    m["10.0.0.0/8" if kind == "lpm_trie" else 1] = 1
    assert len(m) == 1


def test_a_hash_of_maps(make: Make) -> None:
    m = make("hash_of_maps", key="u4", max_entries=64,
             inner={"type": "hash", "key": "u4", "value": "u8", "max_entries": 2})
    one, other = (make("hash", key="u4", value="u8", max_entries=2) for _ in range(2))
    with fastmap.open(id=m.id, via="kernel") as counted:
        assert len(counted) == 0
        m.update_many(np.arange(40), one)
        assert len(counted) == 40 and by_program(counted) == HAS
        m.update_many(np.arange(20, 50), other)  # some are replaced
        m[3] = other
        del m[4]
        assert m.delete_many(np.arange(30, 60)) == 20
        assert len(counted) == 29 == len(list(m))
        m.clear()
        assert len(counted) == 0
