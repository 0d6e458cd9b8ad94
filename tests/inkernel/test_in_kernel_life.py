"""The in-kernel path's programs and buffers: who has them, when they are made, when they go."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from privileges import keep_only
from support import in_child

import fastmap
from fastmap import NotSupported, PermissionDenied, probes
from fastmap._core.system import memory
from fastmap.btf import Builder
from fastmap.inkernel import policy, pool

pytestmark = pytest.mark.needs("in-kernel")

Make = Callable[..., Any]
Filled = Callable[..., Any]

CAP_SYS_ADMIN, CAP_BPF, CAP_PERFMON = 21, 39, 38



# ---- when a call takes it ----------------------------------------------------------------------


@pytest.mark.quick
def test_auto_loads_a_program_once_enough_keys_have_come(filled: Filled) -> None:
    m = filled(1000, via="syscall")
    few, many = np.arange(1000, dtype="u8"), np.arange(policy.LOAD_PAYS, dtype="u8")
    for _ in range(policy.LOAD_PAYS // 1000):
        m.lookup_many(few, via="auto")
        assert not m._in_kernel.pool.has("lookup")
    m.lookup_many(few, via="auto")
    assert m._in_kernel.pool.has("lookup") and not m._in_kernel.pool.has("update")
    m.update_many(many[:1000], 1, via="auto")
    assert m._in_kernel.pool.has("update")
    lone = filled(10, via="syscall")
    lone.lookup_many(many)
    assert lone._in_kernel is None
    lone.lookup_many(many, via="auto")
    assert lone._in_kernel.pool.has("lookup")


@pytest.mark.quick
def test_auto_keeps_off_where_a_program_means_something_else(make: Make) -> None:
    keys = np.arange(3 * policy.LOAD_PAYS)
    for kind in ("lru_hash", "lru_percpu_hash"):
        m = make(kind, key="u4", value="u4", max_entries=100)
        m.lookup_many(keys)
        assert not m._in_kernel.pool.has("lookup")
        m.lookup_many([1], via="kernel")
        assert m._in_kernel.pool.has("lookup")
    m = make("hash", key="u4", value="u4", max_entries=100)
    m.lookup_and_delete_many(keys)
    assert not m._in_kernel.pool.has("take")


def test_a_lookup_refreshes_an_lru_entry_only_where_asked(make: Make) -> None:
    def survivors(via: str) -> int:
        m = make("lru_hash", key="u4", value="u4", max_entries=4096)
        old = np.arange(1000)
        m.update_many(old, 1)
        for start in range(10_000, 60_000, 500):
            m.lookup_many(old, via=via)
            m.update_many(np.arange(start, start + 500), 1)
        return int(m.lookup_many(old, via="syscall")[1].sum())

    assert survivors("kernel") > 900 > survivors("auto")


def test_the_environment_says_the_way(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMAP_VIA", "kernel")
    m = make("hash", key="u4", value="u4", max_entries=8)
    m.update_many([1], 5)
    assert m._in_kernel.pool.has("update") and m.lookup_many([1], via="syscall")[0].tolist() == [5]
    p = make("percpu_hash", key="u4", value="u4", max_entries=8)
    with pytest.raises(NotSupported, match="its own CPU only"):
        p.update_many([1], 5)
    monkeypatch.setenv("FASTMAP_VIA", "syscall")
    n = make("hash", key="u4", value="u4", max_entries=8)
    n.update_many(np.arange(policy.LOAD_PAYS), 5, errors="return")
    assert n._in_kernel is None


# ---- what the verifier refuses ------------------------------------------------------------------


def with_a_lock() -> Any:
    """Create a hash whose values hold a `bpf_spin_lock`, from u4 to 8 bytes."""
    types = Builder()
    number = types.add_int("int", 4, encoding=types.SIGNED)
    lock = types.add_struct("bpf_spin_lock", 4, [("val", number, 0)])
    value = types.add_struct("guarded", 8, [("lock", lock, 0), ("n", number, 4)])
    fd = fastmap._core.system.syscall.btf_load(types.build())
    try:
        made = fastmap._core.system.syscall.map_create(
            1, 4, 8, 9000, btf_fd=fd.fileno(), btf_key_type_id=number, btf_value_type_id=value)
        return fastmap.open(fd=made.fileno(), key="u4", value="V8")
    finally:
        fd.close()


def test_values_with_a_lock_go_by_system_calls() -> None:
    with with_a_lock() as m:
        keys, values = np.arange(9000), np.full(9000, b"\0\0\0\0abcd", "V8")
        m.update_many(keys, values)
        assert m.lookup_many(keys)[0].tobytes() == values.tobytes()
        assert not m._in_kernel.pool.has("lookup") and not m._in_kernel.pool.has("update")
        with pytest.raises(NotSupported, match="hold bpf_spin_lock"):
            m.lookup_many([1], via="kernel")


def test_what_the_verifier_says_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    with with_a_lock() as m:
        monkeypatch.setattr(policy, "special_fields", lambda core: "")
        with pytest.raises(PermissionDenied, match="bpf_spin_lock"):
            m.lookup_many([1], via="kernel")
        keys = np.arange(9000)
        assert not m.lookup_many(keys)[1].any()  # by system calls, then
        assert "bpf_spin_lock" in m._in_kernel.pool.failures["lookup"]


# ---- capabilities -------------------------------------------------------------------------------


def test_prepared_maps_need_no_capability(filled: Filled) -> None:
    m = filled(5000)
    assert m.prepare(threads=2) == ("lookup", "update", "delete", "take", "increment")
    keys = np.arange(5000, dtype="u8")

    def collect() -> None:
        keep_only()
        for threads in (1, 2, 3):
            assert m.lookup_many(keys, via="kernel", threads=threads)[0].tolist() == (
                3 * keys).tolist()
        assert m.update_many(keys, 8, via="kernel") == 5000
        assert m.increment_many(keys, 1).all() and m.delete_many(keys, via="kernel") == 5000

    in_thread = []

    def run() -> None:  # capabilities belong to a thread: only this one drops them
        try:
            collect()
        except BaseException as error:
            in_thread.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not in_thread and not m


@pytest.mark.quick
def test_without_capabilities_system_calls_do_it(filled: Filled) -> None:
    m = filled(5000, via="syscall")
    keys = np.arange(5000, dtype="u8")

    def task(kept: tuple[int, ...], missing: str) -> Callable[[], None]:
        def run() -> None:
            keep_only(*kept)
            assert m.lookup_many(keys, via="auto")[0].tolist() == (3 * keys).tolist()
            assert m.update_many(keys, 3 * keys, via="auto") == 5000 and len(m) == 5000
            way = fastmap.features()["in-kernel"]
            if not way:  # which programs CAP_BPF alone may load is the kernel's affair
                assert way.supported is None and missing in way.reason
                with pytest.raises(PermissionDenied, match=f"needs .*{missing}"):
                    m.lookup_many(keys, via="kernel")
                with pytest.raises(PermissionDenied, match=f"needs .*{missing}"):
                    m.prepare()
            else:
                assert CAP_BPF in kept
                assert m.lookup_many(keys, via="kernel")[0].tolist() == (3 * keys).tolist()
        return run

    probes.forget()
    in_child(task((CAP_BPF,), "CAP_PERFMON"))
    in_child(task((), "CAP_BPF"))


# ---- processes and threads ----------------------------------------------------------------------


@pytest.mark.quick
def test_a_forked_child_makes_its_own(filled: Filled) -> None:
    n = 20_000
    m = filled(n)
    keys = np.arange(n, dtype="u8")
    m.lookup_many(keys, via="kernel")
    ready, go = os.pipe(), os.pipe()

    def same(times: int) -> None:
        for _ in range(times):
            values, found = m.lookup_many(keys, via="kernel")
            assert found.all() and np.array_equal(values, 3 * keys)

    def in_the_child() -> None:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        same(50)
        m.close()

    in_child(lambda: same(2))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            in_the_child()
            status = 0
        finally:
            os._exit(status)
    os.read(ready[0], 1)
    os.write(go[1], b"x")
    same(50)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (*ready, *go):
        os.close(fd)


def test_threads_have_buffers_of_their_own(filled: Filled) -> None:
    n, wrong = 30_000, []
    m = filled(n)

    def look(seed: int) -> None:
        for i in range(20):
            keys = np.random.default_rng((seed, i)).integers(0, n, 9000).astype("u8")
            values, found = m.lookup_many(keys, via="kernel")
            wrong.append(not found.all() or not np.array_equal(values, 3 * keys))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(wrong) == 120 and not any(wrong)
    assert 1 <= len(m._in_kernel.pool.idle) <= 6


def test_a_close_inside_a_call(filled: Filled) -> None:
    n = 100_000
    for call in ("lookup_many", "update_many"):
        m = filled(n)
        keys, told = np.arange(n, dtype="u8"), []
        m.prepare()

        def work(m: Any = m, call: str = call, keys: Any = keys, told: Any = told) -> None:
            try:
                more = {"values": 7} if call == "update_many" else {}
                told.append(getattr(m, call)(keys, via="kernel", **more))
            except ValueError:
                told.append(None)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.002)
        m.close()
        other = fastmap.create("hash", key="u8", value="u8", max_entries=n)
        thread.join()
        assert len(told) == 1 and not other, "another map was reached"
        if call == "lookup_many" and told[0]:
            assert np.array_equal(told[0][0], 3 * keys)
        other.close()
        with pytest.raises(ValueError, match="closed"):
            m.lookup_many(keys, via="kernel")
        assert not m._in_kernel.pool.idle


@pytest.mark.parametrize("call", ("lookup_many", "update_many", "delete_many"))
def test_ctrl_c(call: str, filled: Filled) -> None:
    n = 1_000_000
    m = filled(n)
    keys = np.random.default_rng(1).permutation(n).astype("u8")
    more = {"values": 7} if call == "update_many" else {}
    m.prepare()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    applied, delay = 0, 0.02
    try:
        while not 0 < applied < n:  # until one comes in the middle: sooner, or later
            applied = 0
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                getattr(m, call)(keys, via="kernel", **more)
                signal.setitimer(signal.ITIMER_REAL, 0)
                delay /= 2
            except KeyboardInterrupt as error:
                applied = getattr(error, "applied", 0)
                delay *= 1.5
            if not 0 < applied < n:
                m.update_many(np.arange(n, dtype="u8"), 3 * np.arange(n, dtype="u8"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if call == "delete_many":
        assert len(m) == n - applied and not m.lookup_many(keys[:applied], via="syscall")[1].any()
    if call == "update_many":
        values = m.lookup_many(keys, via="syscall")[0]
        assert (values[:applied] == 7).all() and values[applied:].tolist() == (
            3 * keys[applied:]).tolist()


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("value", (8, 600, 20_000, 1 << 20))
def test_memory_is_bounded_and_given_back(make: Make, value: int) -> None:
    m = make("hash", key="u4", value=f"V{value}", max_entries=16)
    m.update_many(np.arange(16), np.zeros(16, f"V{value}"))
    gc.collect()
    before = memory.live()
    keys = np.arange(32).repeat(3)
    assert m.lookup_many(keys, via="kernel")[1].sum() == 48
    m.update_many(keys[:48], np.zeros(48, f"V{value}"), via="kernel")
    held = memory.live()[1] - before[1]
    assert 0 < held <= 3 * max(pool.BUFFER_BYTES, value + 4096)
    m.close()
    gc.collect()
    assert memory.live() == before


def test_no_memory_for_a_buffer_is_no_failure(filled: Filled, monkeypatch: Any) -> None:
    m = filled(6000, via="syscall")

    def full(*_: Any) -> Any:
        raise fastmap.BpfError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(pool, "Runner", full)
    keys = np.arange(6000, dtype="u8")
    assert m.lookup_many(keys, via="auto")[1].all()
    with pytest.raises(fastmap.BpfError):
        m.lookup_many(keys, via="kernel")
    monkeypatch.undo()
    m.lookup_many(keys, via="auto")
    assert m._in_kernel.pool.has("lookup")
