"""`variables`: the sections of global variables that loaders make, here made by hand."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import in_child

import fastmap
from fastmap import MapFlag
from fastmap._core.system import syscall
from fastmap.asm import R0, R1, R2, Assembler
from fastmap.enums import MapType

#: ``u64 runs; u32 limits[2]; char label[12]``, and 4 bytes that nothing covers.
NAMES = ["runs", "limits", "label"]
SIZE = 32
VALUES = struct.pack("=QII12s4x", 7, 1, 2, b"start")

pytestmark = pytest.mark.quick


def section_btf(name: str = ".data") -> tuple[bytes, int]:
    """Return BTF of the variables in a section, and the id of the DATASEC."""
    strings = bytearray(b"\0")
    types = bytearray()
    count = 0

    def add(text: str, kind: int, vlen: int, size: int, *extra: int) -> int:
        nonlocal count
        at = len(strings) if text else 0
        if text:
            strings.extend(text.encode() + b"\0")
        types.extend(struct.pack(f"=III{len(extra)}I", at, kind << 24 | vlen, size, *extra))
        count += 1
        return count

    u64 = add("u64", 1, 0, 8, 64)
    u32 = add("u32", 1, 0, 4, 32)
    char = add("char", 1, 0, 1, 1 << 24 | 8)
    limits = add("", 3, 0, 0, u32, u32, 2)
    label = add("", 3, 0, 0, char, u32, 12)
    placed = []
    for text, of, offset, size in (("runs", u64, 0, 8), ("limits", limits, 8, 8),
                                   ("label", label, 16, 12)):
        placed += [add(text, 14, 0, of, 1), offset, size]
    last = add(name, 15, 3, SIZE, *placed)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + bytes(types) + bytes(strings), last


@pytest.fixture
def section() -> Iterator[Callable[..., Any]]:
    """Return a maker of such maps, opened as any map is, and filled."""
    opened: list[Any] = []

    def make(flags: int = MapFlag.MMAPABLE, filled: bool = True, **options: Any) -> Any:
        blob, last = section_btf()
        loaded = syscall.btf_load(blob)
        fd = syscall.map_create(MapType.ARRAY, 4, SIZE, 1, int(flags), b"obj.data",
                                btf_fd=loaded.fileno(), btf_value_type_id=last)
        loaded.close()
        try:
            if filled:
                with fastmap.open(fd=fd.fileno(), key="u4", value=f"V{SIZE}") as plain:
                    plain[0] = VALUES
            opened.append(fastmap.open(fd=fd.fileno(), **options))
        finally:
            fd.close()
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_names_dtypes_and_values(section: Callable[..., Any]) -> None:
    m = section()
    assert isinstance(m, fastmap.ArrayMap) and m.dtype_source == "btf"
    assert m[0]["limits"].tolist() == [1, 2]
    variables = m.variables
    assert list(variables) == NAMES and "runs" in variables and "stop" not in variables
    assert {name: (v.dtype.str, v.shape) for name, v in variables.items()} \
        == {"runs": ("<u8", ()), "limits": ("<u4", (2,)), "label": ("|S12", ())}
    assert int(variables["runs"]) == 7 and variables["label"][()] == b"start"
    assert repr(variables) == "<fastmap.Variables runs=7 limits=[1, 2] label=b'start'>"
    with pytest.raises(KeyError, match="no variable 'stop'; there are: runs, limits, label"):
        variables["stop"]


def test_they_are_live_both_ways(section: Callable[..., Any]) -> None:
    m = section()
    runs, limits = m.variables["runs"], m.variables["limits"]
    a = Assembler()
    a.ld_map_value(R1, m, 0)
    a.mov(R2, 1)
    a.atomic_add(8, R1, 0, R2)
    a.ldx(4, R0, R1, 8)  # limits[0]
    a.exit()
    with fastmap.Program("raw_tracepoint", a.assemble()) as program:
        assert program.run() == 1 and int(runs) == 8
        limits[0] = 40
        assert program.run() == 40 and int(runs) == 9
        runs[...] = 1 << 60
        assert program.run() == 40 and m[0]["runs"] == (1 << 60) + 1
    m[0] = (1, [5, 6], b"x")
    assert runs == 1 and limits.tolist() == [5, 6]


def test_setting_one_checks_it(section: Callable[..., Any]) -> None:
    m = section()
    variables = m.variables
    variables["runs"] = (1 << 64) - 1
    variables["limits"] = [8, 9]
    variables["label"] = b"stop"
    assert m[0]["limits"].tolist() == [8, 9] and m[0]["label"] == b"stop"
    assert m[0]["runs"] == (1 << 64) - 1
    for name, wrong, error in (("runs", 1.5, TypeError), ("runs", -1, OverflowError),
                               ("limits", [1, 2, 3], ValueError), ("limits", [1, 1 << 32],
                               OverflowError), ("label", b"much too long", ValueError),
                               ("stop", 1, KeyError)):
        with pytest.raises(error):
            variables[name] = wrong
    assert m[0]["limits"].tolist() == [8, 9] and m[0]["label"] == b"stop"


def test_views_outlive_the_map(section: Callable[..., Any]) -> None:
    m = section()
    runs = m.variables["runs"]
    m.close()
    runs += np.uint64(1)
    assert runs == 8
    with pytest.raises(ValueError, match="closed"):
        _ = m.variables


def test_frozen_and_program_read_only_are_read_only(section: Callable[..., Any]) -> None:
    m = section()
    kept = m.variables["runs"]
    with pytest.raises(fastmap.BpfError):
        m.freeze()  # memory is mapped for writing
    del kept
    m.freeze()
    variables = m.variables
    assert int(variables["runs"]) == 7 and not variables["limits"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        variables["runs"] = 1
    constants = section(MapFlag.MMAPABLE | MapFlag.RDONLY_PROG)
    assert not constants.variables["runs"].flags.writeable and constants.variables["runs"] == 7


def test_maps_without_variables(make: Callable[..., Any], section: Callable[..., Any]) -> None:
    plain = make("array", value=[("a", "u8")], max_entries=1, flags=MapFlag.MMAPABLE)
    with pytest.raises(TypeError, match="holds no global variables"):
        _ = plain.variables
    with pytest.raises(fastmap.NotSupported, match="MMAPABLE"):
        _ = section(0).variables
    assert not hasattr(make("hash", key="u4", value="u4", max_entries=1), "variables")


def test_a_read_only_handle_says_why(section: Callable[..., Any]) -> None:
    m = section()
    with fastmap.open(id=m.id, readonly=True) as other, \
            pytest.raises(fastmap.PermissionDenied, match="handle"):
        _ = other.variables


def test_names_that_may_not_be_read(section: Callable[..., Any]) -> None:
    m = section()
    with pytest.raises(TypeError, match="no fields"):
        _ = section(key="u4", value=f"V{SIZE}").variables
    value = np.dtype({"names": ["first", "name"], "formats": ["u8", "S4"], "offsets": [0, 16],
                      "itemsize": SIZE})
    told = section(value=value)
    assert list(told.variables) == ["first", "name"] and told.variables["name"][()] == b"star"

    def ordinary() -> None:
        os.setresuid(65534, 65534, 65534)
        with pytest.warns(UserWarning, match="CAP_SYS_ADMIN"):
            other = fastmap.open(fd=m.fileno())
        with other, pytest.raises(
                fastmap.PermissionDenied, match="CAP_SYS_ADMIN, or give value="):
            _ = other.variables
        assert m.variables["runs"] == 7  # what was opened before keeps its names

    in_child(ordinary)
