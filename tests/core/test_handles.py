"""Handles: freezing, live memory, and what a process without capabilities may do."""

from __future__ import annotations

import errno
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import keep_only
from support import in_child

import fastmap
from fastmap import MapFlag, Program, UpdateFlag
from fastmap.asm import R0, Assembler
from fastmap.enums import running_kernel
from fastmap.errors import BpfError, NotSupported, PermissionDenied

pytestmark = pytest.mark.quick

Make = Callable[..., Any]

RECORD = [("packets", "u8"), ("bytes", "u4")]
U4 = {"key": "u4", "value": "u4", "max_entries": 4}


# ---- freezing and memory -----------------------------------------------------------------------


def test_freeze(make: Make) -> None:
    m = make("hash", **U4)
    m[1] = 5
    with fastmap.open(id=m.id) as other:
        m.freeze()
        for handle in (m, other):
            for call in (lambda h: h.update(1, 6), lambda h: h.update_many([1], [6])):
                with pytest.raises(PermissionDenied, match="frozen"):
                    call(handle)
            assert handle[1] == 5 and handle.snapshot().values.tolist() == [5]
    # EPERM, a PermissionDenied; Linux 6.1 says EBUSY.
    with pytest.raises(BpfError, match="frozen already") as caught:
        m.freeze()
    assert caught.value.errno in (errno.EPERM, errno.EBUSY)


@pytest.mark.needs("MAP_FREEZE heeds RDONLY")
def test_freeze_through_a_read_only_handle(make: Make) -> None:
    m = make("hash", **U4)
    with (fastmap.open(id=m.id, readonly=True) as readonly,
          pytest.raises(PermissionDenied, match="read-only")):
        readonly.freeze()
    m[1] = 5


@pytest.mark.parametrize("value", ("u8", "u4", "V3", RECORD, ("u2", (3,))), ids=str)
def test_memory_is_the_map(make: Make, value: Any) -> None:
    m = make("array", value=value, max_entries=5, flags=MapFlag.MMAPABLE)
    dtype = np.dtype(value)
    rows = np.frombuffer(bytes(range(5 * dtype.itemsize)), dtype.base).reshape(5, *dtype.shape)
    writable, readonly = m.memory(writable=True), m.memory()
    assert writable.shape == rows.shape and writable.dtype == dtype.base
    m.update_many(np.arange(5), rows)
    assert (writable == rows).all() and (readonly == rows).all()
    writable[2] = rows[4]
    writable[3:] = rows[:2]
    expected = rows[[0, 1, 4, 0, 1]]
    assert m.snapshot().values.tolist() == expected.tolist() == readonly.tolist()
    assert not readonly.flags.writeable and writable.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        readonly[0] = rows[1]
    m.close()
    assert readonly.tolist() == expected.tolist()


def test_memory_that_is_refused(make: Make) -> None:
    for kind in ("array", "percpu_array"):
        with pytest.raises(NotSupported, match="MMAPABLE"):
            make(kind, value="u8", max_entries=4).memory()
    m = make("array", value="u8", max_entries=4, flags=MapFlag.MMAPABLE)
    with fastmap.open(id=m.id, readonly=True) as readonly:
        for writable in (False, True):
            with pytest.raises(PermissionDenied, match="read and write"):
                readonly.memory(writable)
    view = m.memory(writable=True)
    with pytest.raises(BpfError, match="writable mapping") as caught:
        m.freeze()
    assert caught.value.errno == errno.EBUSY
    del view
    gc.collect()
    m.freeze()
    assert m.memory()[0] == 0
    with pytest.raises(PermissionDenied, match="frozen"):
        m.memory(writable=True)
    m.close()
    with pytest.raises(ValueError, match="closed"):
        m.memory()


# ---- capabilities ------------------------------------------------------------------------------



def test_without_capabilities(make: Make) -> None:
    m = make("hash", key="u4", value=RECORD, max_entries=4)

    def child() -> None:
        keep_only()
        for kind in ("lru_hash", "lru_percpu_hash"):
            with pytest.raises(PermissionDenied, match="CAP_BPF") as caught:
                fastmap.create(kind, **U4)
            assert isinstance(caught.value, PermissionError)
            assert caught.value.errno == errno.EPERM
        for call in (lambda: fastmap.open(id=m.id), lambda: next(fastmap.maps()),
                     lambda: fastmap.open(name="x")):
            with pytest.raises(PermissionDenied, match="CAP_SYS_ADMIN"):
                call()
        m[1] = (2, 3)
        assert m.update_many([5, 6], (7, 8)) == 2 and len(m.snapshot()) == 3
        with fastmap.open(fd=m.fileno(), key="u4", value=RECORD) as inherited:
            assert inherited[1].item() == (2, 3) and inherited.delete_many([5]) == 1
            assert len(inherited.reader().drain()) == 2
        m[9] = (9, 9)

    in_child(child)
    assert list(m) == [9]


def test_btf_that_may_not_be_read(make: Make) -> None:
    m = make("hash", key="u4", value=RECORD, max_entries=4)

    def child() -> None:
        keep_only(39)  # CAP_BPF
        with fastmap.create("lru_hash", **U4) as own:
            own[1] = 1
        with pytest.raises(PermissionDenied, match="CAP_SYS_ADMIN"):
            fastmap.open(fd=m.fileno(), btf="require")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with fastmap.open(fd=m.fileno()) as other:
                assert other.dtype_source == "none" and other.value_dtype == "V12"
        assert len(caught) == 1 and "CAP_SYS_ADMIN" in str(caught[0].message)
        assert caught[0].filename == __file__

    in_child(child)


def test_possible_cpus() -> None:
    cpus = fastmap.possible_cpus()
    first, _, last = Path("/sys/devices/system/cpu/possible").read_text().strip().partition("-")
    assert cpus == tuple(range(int(first), int(last or first) + 1)) and isinstance(cpus, tuple)
    with fastmap.create("percpu_array", value="u8", max_entries=1) as m:
        assert m[0].shape == (len(cpus),)


def test_what_is_no_map_is_told_as_it_was_given(bpffs: Path) -> None:
    with open("/dev/null") as other, pytest.raises(
            ValueError, match=f"descriptor {other.fileno()} is /dev/null, not a bpf-map"):
        fastmap.open(fd=other.fileno())
    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    with Program("socket_filter", a.assemble()) as program:
        program.pin(bpffs / "program")
    with pytest.raises(ValueError, match=f"the pin {bpffs}/program is .*bpf-prog, not a bpf-map"):
        fastmap.open(bpffs / "program")
    with pytest.raises(ValueError, match="ELF object file"):
        Program("socket_filter", b"\x7fELF" + bytes(60))


@pytest.mark.parametrize("kind", ["ringbuf", "user_ringbuf"])
@pytest.mark.parametrize("mode", ["readonly", "writeonly"])
def test_a_ring_needs_both(make: Make, kind: str, mode: str) -> None:
    ring = make(kind, max_entries=4096)
    with fastmap.open(id=ring.id, **{mode: True}) as other, pytest.raises(
            PermissionDenied, match="reads and writes"):
        other.available  # noqa: B018


def test_flags_of_later_kernels(make: Make) -> None:
    m = make("percpu_array", key="u4", value="u8", max_entries=4)
    if running_kernel() >= UpdateFlag.CPU.since:
        m.update(0, 7, flags=UpdateFlag.ALL_CPUS)
        assert m[0].tolist() == [7] * len(m[0])
    else:
        with pytest.raises(NotSupported, match=r"UpdateFlag.CPU needs Linux 7\.0"):
            m.update(0, 1, flags=UpdateFlag.CPU)


@pytest.mark.parametrize("kind", ["array", "percpu_array"])
@pytest.mark.parametrize("value", ["u8", ("u4", (3,)), [("n", "u8"), ("x", "u1")]])
def test_clear_writes_zeros(make: Make, kind: str, value: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("fastmap.maptypes.arrays.CLEARED_BYTES", 100)  # several calls
    m = make(kind, key="u4", value=value, max_entries=50)
    cpus = [1] if kind == "percpu_array" else []
    m.update_many(np.arange(50), np.ones((50, *cpus, *m.value_dtype.shape), m.value_dtype.base))
    assert m.snapshot().values.tobytes().strip(b"\0")
    m.clear()
    assert not m.snapshot().values.tobytes().strip(b"\0")


def test_a_reader_is_a_context(make: Make) -> None:
    m = make("hash", key="u4", value="u8", max_entries=4)
    m[1] = 5
    with m.reader() as reader:
        kept = reader.read()
    assert kept.values.tolist() == [5] and reader.read().values.tolist() == [5]


def test_types_that_are_required_and_not_there(make: Make) -> None:
    m = make("hash", **U4, btf=False)
    with pytest.raises(ValueError, match=f"map {m.id} has no BTF that tells its key and value"):
        fastmap.open(fd=m.fileno(), btf="require")
    with pytest.raises(ValueError, match="tells its value: "):
        fastmap.open(fd=m.fileno(), key="u4", btf="require")
    with fastmap.open(fd=m.fileno(), key="u4", value="u4", btf="require") as other:
        assert other.dtype_source == "given"
