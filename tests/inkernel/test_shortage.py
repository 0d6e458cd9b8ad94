"""Without a free descriptor or with little address space, system calls do what they can do."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import address_space, in_child

import fastmap
from fastmap import probes
from fastmap._core.maps import trie_reader
from fastmap.enums import running_kernel
from fastmap.inkernel import count, prefetch, self_check
from fastmap.inkernel.pool import MAY_GOTO

pytestmark = [pytest.mark.needs("in-kernel"), pytest.mark.quick]

N = 5000
KEYS = np.arange(N, dtype="u4")


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Leave this process no free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


#: The batches of these tests need 2 MiB, the kernel's BTF has over 5.
SHORTAGES = {"descriptors": no_descriptors, "address space": lambda: address_space(4 << 20)}


def forget() -> None:
    """Let all that is asked once be asked anew."""
    probes.forget()
    for each in (prefetch.inside, prefetch.map_id_at, count.function, self_check.layout_is_known,
                 trie_reader._overhead):
        each.cache_clear()


def look(m: Any, via: str | None) -> Any:
    return m.lookup_many(KEYS, via=via)


def update(m: Any, via: str | None) -> Any:
    return m.update_many(KEYS, 7, via=via)


def snapshot(m: Any, via: str | None) -> Any:
    batch = m.snapshot(via=via, exact=False)
    return [each[np.argsort(batch.keys)] for each in batch]


def delete(m: Any, via: str | None) -> Any:
    return m.delete_many(KEYS[::2], via=via)


def drain(m: Any, via: str | None) -> Any:
    batch = m.drain() if via is None else m.drain(via=via)
    return [each[np.argsort(batch.keys)] for each in batch]


def threads(m: Any, via: str | None) -> Any:
    return m.lookup_many(KEYS, via=via, threads=2)


def counted(m: Any, via: str | None) -> Any:
    return len(m)


CALLS = [look, update, snapshot, threads, counted, delete, drain]


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, (tuple, list)):
        return all(alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(np.array_equal(one, other))


def made(kind: str, make: Callable[..., Any]) -> Any:
    key = None if kind.endswith("array") else "u4"
    m = make(kind, key=key, value="u8", max_entries=N if key is None else 2 * N)
    m.update_many(KEYS, 3, via="syscall")
    return m


@pytest.mark.parametrize("short", SHORTAGES)
@pytest.mark.parametrize("kind", ["hash", "lru_hash", "percpu_hash", "array", "percpu_array"])
def test_calls_do_it_by_system_calls(kind: str, short: str, make: Callable[..., Any]) -> None:
    calls = [each for each in CALLS if "array" not in kind or each not in (delete, drain)]

    def check() -> None:
        before, m = made(kind, make), made(kind, make)
        expected = [call(before, "syscall") for call in calls]
        reader = m.reader(exact=False)
        forget()
        with SHORTAGES[short]():
            assert len(reader.read()) == N
            for call, right in zip(calls, expected, strict=True):
                assert alike(call(m, None), right), call
        m.update_many(KEYS, 3, via="syscall")
        assert not m._in_kernel.pool.failures
        look(m, None)
        assert m._in_kernel.pool.has("lookup") == (kind != "lru_hash")
        update(m, None)
        assert m._in_kernel.pool.has("update") == (not m.per_cpu)
        if kind == "hash" and running_kernel() >= MAY_GOTO:
            assert m._in_kernel.pool.prefetches
            assert reader.read().complete is False, "a program walks it"

    in_child(check)


def test_what_is_asked_for_raises(make: Callable[..., Any]) -> None:
    def check() -> None:
        m = made("hash", make)
        forget()
        with no_descriptors():
            for call in (look, update, snapshot, delete, lambda m, _: m.prepare()):
                with pytest.raises(OSError) as caught:
                    call(m, "kernel")
                assert caught.value.errno == errno.EMFILE
        assert alike(look(m, "kernel"), look(m, "syscall"))
        assert m.prepare()

    in_child(check)


def test_a_trie_is_read_and_complete_the_next_time(make: Callable[..., Any]) -> None:
    def check() -> None:
        m = make("lpm_trie", key="ipv4", value="u4", max_entries=16)
        m["10.0.0.0/8"] = 1
        whole = m.snapshot().complete
        forget()
        with no_descriptors():
            batch = m.snapshot()
        assert len(batch) == 1 and not batch.complete
        assert m.snapshot().complete == whole

    in_child(check)


def test_queues(make: Callable[..., Any]) -> None:
    def check() -> None:
        q = make("queue", value="u8", max_entries=2 * N)
        forget()
        with no_descriptors():
            q.push_many(KEYS)
            assert np.array_equal(q.pop_many(N), KEYS)
        q.push_many(KEYS)
        assert q._in_kernel.pool.has("push")

    in_child(check)


def test_values_of_maps_with_btf(make: Callable[..., Any]) -> None:
    """Whether they hold a lock is asked of the map's BTF, which takes a descriptor."""
    def check() -> None:
        m = make("hash", key="u4", value=[("a", "u8"), ("b", "u8")], max_entries=2 * N)
        assert m.info().btf_id
        with no_descriptors():
            assert m.update_many(KEYS, (1, 2)) == N
            assert m.lookup_many(KEYS)[1].all()
        assert m.lookup_many(KEYS)[1].all() and m._in_kernel.pool.has("lookup")

    in_child(check)


@pytest.mark.parametrize("short", SHORTAGES)
def test_a_shortage_is_no_answer_of_the_kernel(short: str) -> None:
    def check() -> None:
        whole = {name: each.supported for name, each in fastmap.features().items()}
        forget()
        with SHORTAGES[short]():
            told = fastmap.features()
        assert all(each.supported in (None, whole[name]) for name, each in told.items())
        if short == "descriptors":
            assert told["HASH"].supported is None and not told["HASH"].lasting
        assert {name: each.supported for name, each in fastmap.features().items()} == whole
        assert fastmap.features() is fastmap.features()
        assert prefetch.inside() is not None or fastmap.enums.running_kernel() < (6, 2)

    in_child(check)
