"""Memory lives as long as its views; descriptors are private; fork takes nothing away."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import mmap
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import INSIDE, address_space, in_child

import fastmap
from fastmap import MapFlag
from fastmap._core.system import memory
from fastmap.asm import R0, Assembler

pytestmark = pytest.mark.quick

RECORD = np.dtype([("a", "u4"), ("b", "u1", (3,)), ("c", "u8")])

#: What a user may keep of a batch; everything else is dropped.
VIEWS: dict[str, Callable[[Any], Any]] = {
    "keys": lambda b: b.keys,
    "values": lambda b: b.values,
    "slice": lambda b: b.values[3:9],
    "step": lambda b: b.keys[::-3],
    "row": lambda b: b.values[5],
    "column": lambda b: b.values[:, 0],
    "field": lambda b: b.values["c"],
    "sub-array": lambda b: b.values["b"][1:, :, 1],
    "transpose": lambda b: b.values.T["a"],
    "view": lambda b: b.keys.view("u1"),
    "reshape": lambda b: b.keys[:12].reshape(3, 4).T,
    "0-d": lambda b: b.keys[4:5].reshape(()),
    "memoryview": lambda b: memoryview(b.keys)[2:5],
    "frombuffer": lambda b: np.frombuffer(memoryview(b.keys).cast("B")[8:], "u4")[::2],
    "asarray": lambda b: np.asarray(memoryview(b.keys)),
}


def entries(n: int, factor: int) -> tuple[Any, Any]:
    keys = np.arange(n, dtype="u8")
    values = np.zeros((n, len(fastmap.possible_cpus())), RECORD)
    values["a"], values["b"], values["c"] = keys[:, None], factor, factor * keys[:, None]
    return keys, values


def batch_of(factor: int, way: str = "read") -> Any:
    count = 8000 if way == "snapshot" else 200  # few bytes would be a copy, and numpy's
    with fastmap.create("percpu_hash", key="u8", value=RECORD, max_entries=count) as m:
        m.update_many(*entries(count, factor))
        if way == "snapshot":
            return m.snapshot()
        reader = m.reader()
        return next(iter(reader)) if way == "chunk" else getattr(reader, way)()


@pytest.mark.parametrize("keep", VIEWS)
@pytest.mark.parametrize("way", ["read", "drain", "snapshot", "chunk"])
def test_a_view_keeps_its_memory(keep: str, way: str) -> None:
    before = memory.live()
    view = VIEWS[keep](batch_of(7, way))  # map, reader and batch are gone, the map is closed
    gc.collect()
    shown = np.array(view)
    assert memory.live()[0] > before[0]
    others = [batch_of(255), batch_of(254)]  # the next mappings: freed pages would be theirs
    assert np.array(view).tobytes() == shown.tobytes() != bytes(shown.nbytes)
    del others, view
    gc.collect()
    assert memory.live() == before


def test_the_ledger_counts_owners_and_bytes() -> None:
    owners, size = memory.live()
    block, mapping = memory.Block(100), memory.Mapping(8192)
    assert memory.live() == (owners + 2, size + 8292)
    assert block.address % 64 == 0 and mapping.address % mmap.PAGESIZE == 0
    array = np.frombuffer(block, "u1")[10:]
    del block
    assert memory.live() == (owners + 2, size + 8292) and len(array) == 90
    del array
    mapping.close()
    assert memory.live() == (owners, size)


def test_large_mappings_ask_for_huge_pages() -> None:
    def advised(mapping: memory.Mapping) -> bool:
        told = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*$(?:\n(?!VmFlags).*)*\nVmFlags:(.*)$",
                          Path("/proc/self/smaps").read_text(), re.M)
        (flags,) = (flags for start, end, flags in told  # neighbours alike are one
                    if int(start, 16) <= mapping.address < int(end, 16))
        return "hg" in flags.split()

    with contextlib.ExitStack() as stack:
        found = []
        for size in (1 << 20, 8 << 20):
            mapping = memory.Mapping(size)
            stack.callback(mapping.close)
            found.append(advised(mapping))
    assert found == [False, True]


def test_a_mapping_refuses_to_close_under_its_views() -> None:
    mapping = memory.Mapping(4096)
    view = np.frombuffer(mapping, "u4")[5:]
    with pytest.raises(BufferError, match="1 views"):
        mapping.close()
    view[0] = 7  # still there
    del view
    mapping.close()
    mapping.close()
    with pytest.raises(ValueError, match="closed"):
        memoryview(mapping)


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_memory_that_cannot_be_had(size: int) -> None:
    before = memory.live()
    for owner in (memory.Block, memory.Mapping):
        with pytest.raises((ValueError, MemoryError)):
            owner(size)
    assert memory.live() == before


# ---- memory() ------------------------------------------------------------------------------------


def mmapable(make: Callable[..., Any], value: Any = "u4") -> Any:
    return make("array", value=value, max_entries=100, flags=MapFlag.MMAPABLE)


def test_memory_outlives_the_map(make: Callable[..., Any]) -> None:
    m = mmapable(make)
    other = fastmap.open(id=m.id)
    m[9] = 1
    view = m.memory()[5:][4:6]
    m.close()
    del m
    gc.collect()
    other[9] = 77
    other.close()
    assert view.tolist() == [77, 0]


def test_memory_is_read_only_unless_asked(make: Callable[..., Any]) -> None:
    m = mmapable(make)
    view = m.memory()
    assert not view.flags.writeable
    with pytest.raises(ValueError):
        view[0] = 1
    with pytest.raises(ValueError):
        view.flags.writeable = True
    assert view.base is not None and memoryview(view).readonly
    m.memory(writable=True)[3] = 5
    assert view[3] == m[3] == 5


def test_memory_of_a_frozen_map_is_read_only(make: Callable[..., Any]) -> None:
    m = mmapable(make)
    m[1] = 4
    m.freeze()
    assert m.memory()[1] == 4
    with pytest.raises(PermissionError):
        m.memory(writable=True)


# ---- buffers that grow ---------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("reduce", [None, "sum"])
def test_growth_leaves_older_views_alone(filled: Callable[..., Any], chunk: int,
                                         reduce: str | None) -> None:
    m = filled(5000, type="percpu_hash" if reduce else "hash", max_entries=1 << 20,
               flags=MapFlag.NO_PREALLOC)
    with address_space(8 << 20):  # too little to reserve for a million entries
        reader = m.reader(chunk=chunk, reduce=reduce)
        first = next(iter(reader))
        kept = first.copy()
        for take in (reader.read, reader.read, reader.drain):
            batch = take()
            assert np.array_equal(np.sort(batch.keys), np.arange(5000))
            factor = 3 * (len(fastmap.possible_cpus()) if reduce else 1)
            assert np.array_equal(batch.values, factor * batch.keys)
        assert np.array_equal(first.keys, kept.keys)
        assert np.array_equal(first.values, kept.values)
    assert len(m) == 0


@pytest.mark.parametrize("chunk", [3, 64, 1000])
def test_growth_in_a_drain_keeps_what_was_drained(filled: Callable[..., Any], chunk: int) -> None:
    m = filled(5000, max_entries=1 << 20, flags=MapFlag.NO_PREALLOC)
    with address_space(8 << 20):
        batch = m.reader(chunk=chunk).drain()
        assert np.array_equal(np.sort(batch.keys), np.arange(5000))
        assert np.array_equal(batch.values, 3 * batch.keys)


def test_a_huge_sparse_map_costs_little(filled: Callable[..., Any]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    m = filled(1000, max_entries=1 << 22, flags=MapFlag.NO_PREALLOC)
    before = resident()
    reader = m.reader()
    assert len(reader.read()) == 1000
    assert resident() - before < 16 << 20  # of the 128 MiB that are reserved


# ---- closed maps ---------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Any]] = {
    "increment_many": lambda m: m.increment_many([1], 1), "prepare": lambda m: m.prepare(),
    "lookup": lambda m: m.lookup(1),
    "update": lambda m: m.update(1, 1),
    "delete": lambda m: m.delete(1),
    "lookup_and_delete": lambda m: m.lookup_and_delete(1),
    "get": lambda m: m.get(1),
    "pop": lambda m: m.pop(1, None),
    "popitem": lambda m: m.popitem(),
    "setdefault": lambda m: m.setdefault(1, 1),
    "clear": lambda m: m.clear(),
    "keys": lambda m: list(m.keys()),
    "values": lambda m: list(m.values()),
    "items": lambda m: list(m.items()),
    "variables": lambda m: m.variables,
    "lookup_many": lambda m: m.lookup_many([1]),
    "update_many": lambda m: m.update_many([1], 1),
    "delete_many": lambda m: m.delete_many([1]),
    "lookup_and_delete_many": lambda m: m.lookup_and_delete_many([1]),
    "reader": lambda m: m.reader().read(),
    "snapshot": lambda m: m.snapshot(),
    "drain": lambda m: m.drain(),
    "memory": lambda m: m.memory(),
    "info": lambda m: m.info(),
    "freeze": lambda m: m.freeze(),
    "fileno": lambda m: m.fileno(),
    "pin": lambda m: m.pin("/sys/fs/bpf/never"),
    "unpin": lambda m: m.unpin("/sys/fs/bpf/never"),
    "m[k]": lambda m: m[1],
    "m[k] =": lambda m: m.__setitem__(1, 1),
    "del m[k]": lambda m: m.__delitem__(1),
    "in": lambda m: 1 in m,
    "len": len,
    "iter": lambda m: list(m),
    "with": lambda m: m.__enter__(),
    "no keys": lambda m: m.update_many([], []),
}


@pytest.mark.parametrize("kind", ["hash", "percpu_hash", "array", "percpu_array"])
def test_a_closed_map_is_a_value_error_everywhere(make: Callable[..., Any], kind: str) -> None:
    flags = MapFlag.MMAPABLE if kind == "array" else 0
    key = {} if "array" in kind else {"key": "u4"}
    m = make(kind, value="u4", max_entries=4, flags=flags, **key)
    public = {name for name in dir(m)
              if not name.startswith("_") and callable(getattr(type(m), name, None))} - {
                  "close", "settle", "untold", *INSIDE} | {"variables"} & set(dir(m))
    assert public <= set(CALLS), "a method without its test here"
    reader = m.reader()
    m.close()
    m.close()
    assert m.closed and "closed" in repr(m)
    wrong = []
    for name, call in {**CALLS, "read": lambda m: reader.read()}.items():
        if name.isidentifier() and name not in public | {"len", "iter", "with", "in", "read"}:
            continue
        try:
            call(m)
        except ValueError as error:
            if "closed" not in str(error):
                wrong.append((name, error))
        except Exception as error:
            wrong.append((name, error))
        else:
            wrong.append((name, None))
    assert not wrong


# ---- descriptors and fork ------------------------------------------------------------------------


def test_descriptors_are_close_on_exec(make: Callable[..., Any], bpffs: Path) -> None:
    m = make("hash", key="u4", value="u4", max_entries=4, pin=bpffs / "m")
    code = Assembler()
    code.mov(R0, 0)
    code.exit()
    with (fastmap.open(bpffs / "m") as a, fastmap.open(id=m.id) as b,
          fastmap.open(fd=m.fileno()) as c,
          fastmap.Program("raw_tracepoint", code.assemble()) as program,
          program.attach_raw_tracepoint("sys_exit") as link):
        for each in (m, a, b, c, program, link):
            assert fcntl.fcntl(each.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        heirs = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, check=True,
                               capture_output=True, text=True).stdout
        assert "bpf" not in heirs and "btf" not in heirs


def busy(reader: Any) -> bool:
    """Tell whether another thread is inside `reader` just now."""
    try:
        next(iter(reader))
    except RuntimeError:
        return True
    return False


def until_busy(reader: Any) -> None:
    """Return once another thread is inside `reader`."""
    while not busy(reader):
        # Asked without a pause, the other thread would run only while this one is inside.
        time.sleep(0.001)


def test_fork_beside_a_busy_reader(filled: Callable[..., Any]) -> None:
    m, n = filled(200_000), 200_000
    reader, stop, counts = m.reader(), threading.Event(), []

    def loop() -> None:
        while not stop.is_set():
            with contextlib.suppress(RuntimeError):  # `busy` was inside
                counts.append(len(reader.read()))

    def in_the_child() -> None:
        assert len(reader.read()) == n, "a reader that was busy works in the child"
        assert m[7] == 21 and m.lookup_many([1, n])[1].tolist() == [True, False]
        m[7] = 8
        number = m.fileno()
        m.close()  # at once: the thread inside it is not here
        with pytest.raises(OSError):
            os.fstat(number)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        until_busy(reader)
        in_child(in_the_child)
    finally:
        stop.set()
        thread.join()
    assert m[7] == 8 and not m.closed
    assert set(counts) == {n} and len(reader.read()) == n


def test_a_child_s_views_are_its_own(filled: Callable[..., Any]) -> None:
    m = filled(1000)
    reader = m.reader()
    batch = reader.read()
    before = batch.copy()

    def in_the_child() -> None:
        m.update_many(np.arange(1000, dtype="u8"), 1)
        assert set(reader.read().values.tolist()) == {1} == set(batch.values.tolist())

    in_child(in_the_child)
    assert np.array_equal(batch.values, before.values)
    assert set(reader.read().values.tolist()) == {1}


def closed_inside(m: Any) -> threading.Thread | None:
    """Close `m` while a thread reads it; return that thread, None where the read had just ended."""
    number, reader = m.fileno(), m.reader(chunk=1)

    def insist() -> None:
        while True:
            try:
                reader.read()
            except RuntimeError:  # `busy` was inside
                continue
            except ValueError:  # closed
                return

    thread = threading.Thread(target=insist)
    thread.start()
    until_busy(reader)
    m.close()
    try:
        os.fstat(number)  # the read goes on: the descriptor is still open
    except OSError:
        thread.join()
        return None
    return thread


def test_a_close_deferred_at_fork_does_not_leak(filled: Callable[..., Any]) -> None:
    thread = None
    while thread is None:
        m = filled(300_000)
        number = m.fileno()
        thread = closed_inside(m)

    def in_the_child() -> None:
        with pytest.raises(ValueError):
            m.fileno()
        m.close()
        with contextlib.suppress(OSError):
            os.fstat(number)
            raise AssertionError("the child's descriptor is open")

    in_child(in_the_child)
    thread.join()
    with pytest.raises(OSError):
        os.fstat(number)
