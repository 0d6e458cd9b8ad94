"""STRUCT_OPS: the state of a kernel struct that programs implement, typed by the kernel's BTF.
INSN_ARRAY, and RHASH: by the documented rules, where the kernel has them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from owners import kernel_types
from raw import put

import fastmap
from fastmap import MapType, NotSupported, Program, btf
from fastmap._core.system import syscall
from fastmap.asm import R0, Assembler

pytestmark = pytest.mark.quick

WHOLE = "bpf_struct_ops_tcp_congestion_ops"


@pytest.fixture
def congestion() -> Iterator[Any]:
    """Give a STRUCT_OPS map of a congestion control, as a loader makes it: not registered yet."""
    type_id = kernel_types().named(f"struct {WHOLE}")
    size = kernel_types().dtype(type_id).itemsize
    blob = btf.encode(np.dtype("u4"), None)[0]
    loaded = syscall.btf_load(blob)
    made = syscall.map_create(MapType.STRUCT_OPS, 4, size, 1, 0, b"cong", btf_fd=loaded.fileno(),
                              btf_vmlinux_value_type_id=type_id)
    loaded.close()
    number = fastmap.MapInfo.of(made).id
    with fastmap.open(id=number) as m:
        made.close()
        yield m


def test_what_is_not_registered_yet(congestion: Any) -> None:
    m = congestion
    assert isinstance(m, fastmap.StructOps) and m.dtype_source == "btf" and m.max_entries == 1
    assert m.state.name == "INIT" and m.refcnt == 0
    assert m.data["name"] == b""
    assert set(m.data.dtype.names) >= {"ssthresh", "cong_avoid", "name", "owner"}
    assert m.info().btf_vmlinux_value_type_id
    with pytest.raises(NotSupported, match="cannot be frozen"):
        m.freeze()


def test_values_of_another_dtype(congestion: Any) -> None:
    size = congestion.value_dtype.itemsize
    with fastmap.open(fd=congestion.fileno(), value=f"V{size}") as m:
        assert m[0] == bytes(size) and m.dtype_source == "given"
        with pytest.raises(ValueError, match="dtype is not known"):
            m.state  # noqa: B018


@pytest.mark.parametrize("options", [{}, {"value": "u8"}])
def test_it_is_not_created(options: dict[str, Any]) -> None:
    with pytest.raises(NotSupported, match="opens and reads"):
        fastmap.create("struct_ops", **options)


def test_instructions_before_6_19() -> None:
    if fastmap.features()["INSN_ARRAY"]:
        fastmap.create("insn_array", max_entries=1).close()
        return
    with pytest.raises(NotSupported, match=r"INSN_ARRAY needs Linux 6\.19"):
        fastmap.create("insn_array", max_entries=1)


def test_a_resizable_hash_before_7_2() -> None:
    if fastmap.features()["RHASH"]:
        fastmap.create("rhash", key="u4", value="u4", max_entries=1).close()
        return
    with pytest.raises(NotSupported, match=r"RHASH needs Linux 7\.2"):
        fastmap.create("rhash", key="u4", value="u4", max_entries=1)


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("insn_array", {"value": "u8"}, "INSN_ARRAY"),
    ("insn_array", {"key": "u8"}, "INSN_ARRAY"),
    ("rhash", {"key": "V65536", "value": "u4"}, "65535"),
    ("rhash", {"key": "u4", "value": "u4", "map_extra": 11}, "map_extra=11"),
    ("rhash", {"key": "u4", "value": "u4", "max_entries": 1 << 20, "map_extra": 65536}, "65536"),
])
def test_refused_before_the_kernel_is_asked(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fastmap.create(kind, **{"max_entries": 10, **options})
    assert not isinstance(caught.value, OSError)


@pytest.mark.needs("INSN_ARRAY")
def test_where_instructions_went(make: Callable[..., Any]) -> None:
    m = make("insn_array", max_entries=2)
    m[0] = 0
    m.update(1, 2)  # the first instruction takes two places
    with pytest.raises(ValueError, match="kernel's to write"):
        m[0] = (0, 1, 0)
    with pytest.raises(NotSupported):
        m.delete(0)
    with pytest.raises(NotSupported, match="does not map"):
        m.memory()
    m.freeze()
    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    code = struct.pack("=BBhiBBhi", 0x18, 0x10 | 1, 0, m.fileno(), 0, 0, 0, 0)
    Program("raw_tracepoint", code + a.assemble().insns).close()
    assert m[1]["orig_off"] == 2 and len(m) == 2


@pytest.mark.needs("RHASH")
def test_a_resizable_hash(make: Callable[..., Any]) -> None:
    m = make("rhash", key="u8", value="u8", max_entries=10000, map_extra=16)
    keys = np.arange(5000, dtype="u8")
    assert m.update_many(keys, 3 * keys) == 5000
    batch = m.snapshot()
    assert not batch.complete
    assert dict(zip(batch.keys.tolist(), batch.values.tolist(), strict=True)) == {
        k: 3 * k for k in range(5000)}
    put(m, bytes(8), (9).to_bytes(8, "little"))
    assert m[0] == 9
    m.clear()
    assert not m
