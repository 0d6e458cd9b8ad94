"""Values with a spin lock: read and written whole, under the lock that programs take."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from raw import peek, put

import fastmap
from fastmap import MapFlag, NotSupported, Program, UpdateFlag
from fastmap.asm import FP, R0, R1, R2, R3, R6, Assembler, Helper
from fastmap.enums import running_kernel
from fastmap.inkernel import policy

pytestmark = pytest.mark.quick

WORDS = 64
VALUE = np.dtype([("lock", fastmap.spin_lock), ("words", "u8", (WORDS,))], align=True)
PAIR = np.dtype([("lock", fastmap.spin_lock), ("a", "u8"), ("b", "u8")], align=True)
KINDS = pytest.mark.parametrize("kind", ["hash", "array"])
LOCK = UpdateFlag.LOCK


@pytest.fixture
def pairs(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a maker of maps of pairs under a lock."""
    def create(kind: str, **options: Any) -> Any:
        return make(kind, key="u4", value=PAIR, **{"max_entries": 1000, **options})

    return create


def stepper(m: Any) -> Any:
    """Assemble a program that takes the lock of entry 0 and adds 1 to each of its words."""
    a = Assembler()
    a.st(4, FP, -4, 0)
    a.ld_map(R1, m)
    a.mov(R2, FP)
    a.add(R2, -4)
    a.call(Helper.MAP_LOOKUP_ELEM)
    a.jeq(R0, 0, "out")
    a.mov(R6, R0)
    a.mov(R1, R6)
    a.call(Helper.SPIN_LOCK)
    a.ldx(8, R3, R6, 8)
    a.add(R3, 1)
    for i in range(WORDS):
        a.stx(8, R6, 8 + 8 * i, R3)
    a.mov(R1, R6)
    a.call(Helper.SPIN_UNLOCK)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


def whole(values: Any) -> bool:
    words = np.atleast_1d(values["words"])
    return bool((words == words[..., :1]).all())


@KINDS
def test_values_are_never_torn(make: Callable[..., Any], kind: str) -> None:
    m = make(kind, key="u4", value=VALUE, max_entries=1)
    blank = np.zeros((), VALUE)
    m[0] = blank
    stop = threading.Event()
    failures: list[str] = []

    def write(mark: int) -> None:
        value = np.zeros((), VALUE)
        for n in range(100000):
            if stop.is_set():
                return
            value["words"] = mark + n
            m[0] = value
            m.update_many([0], np.full(1, value))

    def read() -> None:
        while not stop.is_set():
            if not (whole(m[0]) and whole(m.lookup_many([0])[0]) and whole(m.snapshot().values)):
                failures.append("torn")
                return

    threads = [threading.Thread(target=write, args=(1 << 32,)), threading.Thread(target=read)]
    with Program("sched_cls", stepper(m)) as program:
        for thread in threads:
            thread.start()
        try:
            until = time.monotonic() + 1.5
            while time.monotonic() < until and not failures:
                program.run(data=bytes(64), repeat=2000)
                assert whole(m[0])
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not failures
    assert int(m[0]["words"][0]) > 2000


@KINDS
def test_the_lock_never_shows_and_is_never_written(pairs: Callable[..., Any], kind: str) -> None:
    m = pairs(kind)
    assert m.lock_flag == LOCK
    m[1] = (None, 2, 3)
    dirty = np.zeros(2, PAIR)
    dirty["lock"]["val"] = 0xffffffff
    dirty["a"] = 7
    m[2] = dirty[0]
    assert m.update_many([3, 4], dirty) == 2
    m.update_many([5, 6], [(0, 1, 2), (None, 3, 4)])
    m.update(7, dirty[1].tobytes())
    assert dirty["lock"]["val"].all()  # a private copy was cleaned
    expected = {1: (2, 3), 2: (7, 0), 3: (7, 0), 4: (7, 0), 5: (1, 2), 6: (3, 4), 7: (7, 0)}
    for key, pair in expected.items():
        value = m[key]
        assert value["lock"]["val"] == 0 and (value["a"], value["b"]) == pair
        assert peek(m, key.to_bytes(4, "little"), PAIR.itemsize)[:8] == bytes(8)
    put(m, (1).to_bytes(4, "little"), b"\xff" * PAIR.itemsize)
    assert m[1]["lock"]["val"] == 0 and m[1]["a"] == (1 << 64) - 1
    assert peek(m, (1).to_bytes(4, "little"), PAIR.itemsize)[:4] == bytes(4)
    assert not m.snapshot().values["lock"]["val"].any()
    assert not m.lookup_many([1, 2, 3])[0]["lock"]["val"].any()
    for wrong in ("x", 1.5, 5, [1]):
        with pytest.raises(TypeError, match="kernel's own"):
            m[1] = (wrong, 1, 2)


@KINDS
def test_every_call_takes_the_lock(pairs: Callable[..., Any], kind: str) -> None:
    m = pairs(kind)
    keys = np.arange(500, dtype="u4")
    values = np.zeros(500, PAIR)
    values["a"] = keys
    assert m.update_many(keys, values) == 500
    assert m.update_many(keys, values, flags=LOCK) == 500
    assert m.update_many(keys, values, flags=LOCK | fastmap.EXIST) == 500
    assert m.lookup(7, flags=LOCK)["a"] == 7
    m.update(7, (0, 70, 70), flags=LOCK)
    found, there = m.lookup_many(keys)
    assert there.all() and found["a"].tolist() == [70 if k == 7 else k for k in range(500)]
    assert dict(zip(*(each.tolist() for each in (m.snapshot().keys, m.snapshot().values["a"])),
                    strict=True))[7] == 70
    if kind == "hash":
        assert m.lookup_and_delete(7)["a"] == 70
        assert m.delete_many([8, 9]) == 2
        assert len(m.lookup_and_delete_many([10, 11])[0]) == 2
        m.update(600, (0, 1, 2), flags=LOCK | fastmap.NOEXIST)
        with pytest.raises(fastmap.KeyExists):
            m.update(600, (0, 1, 2), flags=fastmap.NOEXIST)
        assert m.popitem()
        assert len(m.drain()) == 500 - 5
        m[1] = (0, 1, 1)
        m.clear()
        assert not m


def test_lock_where_there_is_none(make: Callable[..., Any]) -> None:
    for kind in ("hash", "array", "percpu_hash"):
        m = make(kind, key="u4", value=[("a", "u8"), ("b", "u8")], max_entries=4)
        for call in (lambda m=m: m.lookup(0, flags=LOCK),
                     lambda m=m: m.update(0, (1, 2), flags=LOCK),
                     lambda m=m: m.update_many([0], [[(1, 2)]] if m.per_cpu else [(1, 2)],
                                               flags=LOCK)):
            with pytest.raises(ValueError, match="no bpf_spin_lock") as caught:
                call()
            assert not isinstance(caught.value, OSError)


@KINDS
def test_what_the_kernel_refuses_is_explained(pairs: Callable[..., Any], kind: str) -> None:
    m = pairs(kind)
    try:
        m.freeze()
    except NotSupported as error:
        assert "spin lock" in str(error) and "cannot be frozen" in str(error)
    else:  # Linux 6.1 does
        assert running_kernel() < (6, 2) and m.info().frozen
    for other in ("lru_hash", "percpu_hash", "percpu_array", "lru_percpu_hash"):
        with pytest.raises(NotSupported, match="take no values with a bpf_spin_lock"):
            pairs(other)
    with pytest.raises(ValueError, match="btf=False"):
        pairs(kind, btf=False)
    with pytest.raises(ValueError, match="BTF alone"):
        fastmap.create("queue", value=PAIR, max_entries=1)


@KINDS
def test_an_opened_map_has_its_lock(pairs: Callable[..., Any], kind: str) -> None:
    m = pairs(kind)
    m[1] = (0, 4, 5)
    with fastmap.open(id=m.id) as other:
        assert other.lock_flag == LOCK and other.value_dtype == PAIR
        other[1] = (None, 6, 7)
        assert other.lookup(1, flags=LOCK)["b"] == 7
    with fastmap.open(id=m.id, value=[("lock", "u4"), ("pad", "u4"), ("a", "u8"), ("b", "u8")]
                      ) as plain:
        assert not plain.lock_flag and plain[1].item() == (0, 0, 6, 7)


@pytest.mark.needs("SK_STORAGE")
def test_storage_with_a_lock(pairs: Callable[..., Any], make: Callable[..., Any]) -> None:
    m = make("sk_storage", value=PAIR)
    assert m.lock_flag == LOCK
    with socket.socket() as sock:
        m[sock] = (None, 1, 2)
        m.update(sock, (None, 3, 4), flags=LOCK)
        assert m.lookup(sock, flags=LOCK)["b"] == 4 and m.lookup_many([sock])[0]["a"] == [3]


def test_reading_a_map_with_a_lock_by_a_reader(pairs: Callable[..., Any]) -> None:
    m = pairs("hash", flags=MapFlag.NO_PREALLOC)
    m.update_many(np.arange(300, dtype="u4"), (None, 1, 2))
    reader = m.reader(chunk=16, fields=["value.a"], where=("value.b", "==", 2))
    assert len(reader.read()) == 300
    assert sum(len(batch) for batch in reader) == 300
    del reader
    gc.collect()


@pytest.mark.needs("in-kernel")
def test_programs_leave_locked_values_alone(make: Callable[..., Any],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """They would copy without the lock: also where the map's BTF, which tells, may not be read."""
    real = policy.special_fields
    for tell in (real, lambda core: ""):
        monkeypatch.setattr(policy, "special_fields", tell)
        m = make("hash", key="u4", value=PAIR, max_entries=4)
        for call in (lambda m: m.lookup_many([1], via="kernel"),
                     lambda m: m.update_many([1], [(0, 1, 2)], via="kernel"),
                     lambda m: m.reader(exact=False, via="kernel")):
            with pytest.raises(NotSupported, match="bpf_spin_lock"):
                call(m)
