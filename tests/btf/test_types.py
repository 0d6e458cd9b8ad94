"""BTF of the kernel, of maps, programs and files, by what `btf_dtype` takes as a source."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clang_types import OBJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from support import in_child

import fastmap
from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.asm import R0, Assembler
from fastmap.btf import Builder, Kind, elf

Make = Callable[..., Any]
EVENT = np.dtype({"names": ["pid", "took"], "formats": ["u4", "f8"], "offsets": [0, 8]})
VMLINUX = Path("/sys/kernel/btf/vmlinux")


def program_types() -> tuple[bytes, bytes]:
    """Return the BTF of a program, `struct event` in it, and what its function is there."""
    b = Builder()
    number, double = b.add_int("unsigned int", 4), b.add_float("double", 8)
    b.add_struct("event", 16, [("pid", number, 0), ("took", double, 8)])
    function = b.add_func("main", b.add_func_proto(number))
    return b.build(), struct.pack("=II", 0, function)


@pytest.fixture
def program() -> Iterator[Fd]:
    """Return a socket filter with BTF."""
    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    data, functions = program_types()
    types = syscall.btf_load(data)
    try:
        fd = syscall.prog_load(1, a.assemble().insns, b"GPL", b"events", 0, 0, 0, types,
                               functions, 8)
    finally:
        types.close()
    yield fd
    fd.close()


# ---- what has BTF --------------------------------------------------------------------------------


@pytest.mark.quick
def test_the_kernel() -> None:
    node = np.dtype([("next", "u8"), ("prev", "u8")])
    types = fastmap.read_btf()
    for source in ("vmlinux", VMLINUX, str(VMLINUX), types):
        assert fastmap.btf_dtype("list_head", source) == node
    assert fastmap.btf_dtype("struct list_head") == node
    assert fastmap.btf_dtype("__be32") == np.dtype(">u4")
    assert fastmap.btf_layout("bpf_cmd").enums[""]["BPF_BTF_LOAD"] == 18
    assert list(fastmap.btf_layout("bpf_insn").bitfields) == ["dst_reg", "src_reg"]
    with pytest.raises(KeyError, match=r"'list_haed'; near: .*list_head"):
        fastmap.btf_dtype("list_haed")
    with pytest.raises(FileNotFoundError):
        fastmap.btf_dtype("list_head", "no_such_module")


@pytest.mark.quick
def test_the_kernels_types_need_no_capability() -> None:
    def read() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        assert fastmap.btf_dtype("list_head").itemsize == 16

    in_child(read)


@pytest.mark.quick
def test_a_map(make: Make, bpffs: Path) -> None:
    m = make("hash", key=[("a", ">u4"), ("b", "u4")], value=EVENT, max_entries=4)
    m.pin(bpffs / "m")
    for source in (m, m.fileno(), m.info(), bpffs / "m", str(bpffs / "m")):
        assert fastmap.btf_dtype("value", source) == EVENT
        assert fastmap.btf_dtype("key", source) == m.key_dtype
        assert fastmap.btf_dtype("struct value", source) == EVENT
    assert fastmap.btf_dtype("value", map_id=m.id) == EVENT
    assert fastmap.read_btf(map_id=m.id).find("value", Kind.STRUCT)
    with pytest.raises(KeyError):
        fastmap.btf_dtype("nothing", m)
    bare = make("hash", key="u4", value="u4", max_entries=4, btf=False)
    for source in (bare, bare.info()):
        with pytest.raises(ValueError, match=f"map {bare.id} has no BTF"):
            fastmap.btf_dtype("value", source)


@pytest.mark.quick
def test_key_and_value_of_a_map_are_its_own() -> None:
    b = Builder()
    number = b.add_int("unsigned int", 4)
    value = b.add_struct("key", 8, [("x", number, 0), ("y", number, 4)])
    b.add_struct("value", 4, [("z", number, 0)])
    types = syscall.btf_load(b.build())
    made = syscall.map_create(fastmap.MapType.HASH, 4, 8, 4, btf_fd=types.fileno(),
                              btf_key_type_id=number, btf_value_type_id=value)
    types.close()
    try:
        assert fastmap.btf_dtype("value", made.fileno()) == np.dtype([("x", "u4"), ("y", "u4")])
        assert fastmap.btf_dtype("key", made.fileno()) == np.dtype("u4")
        assert fastmap.btf_dtype("struct value", made.fileno()) == np.dtype([("z", "u4")])
    finally:
        made.close()


@pytest.mark.quick
def test_a_program(program: Fd, bpffs: Path) -> None:
    number = syscall.prog_info(program)["id"]
    syscall.obj_pin(program, bpffs / "p")
    for source in (program, program.fileno(), bpffs / "p"):
        assert fastmap.btf_dtype("event", source) == EVENT
    assert fastmap.btf_dtype("event", prog_id=number) == EVENT
    assert fastmap.btf_layout("struct event", prog_id=number).dtype == EVENT
    with pytest.raises(KeyError, match="near: event"):
        fastmap.btf_dtype("events", program)
    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    with fastmap.Program("socket_filter", a.assemble()) as bare, \
            pytest.raises(ValueError, match=f"program {bare.id} has no BTF"):
        fastmap.btf_dtype("event", bare)
    with pytest.raises(FileNotFoundError):
        fastmap.btf_dtype("event", prog_id=0x7FFFFFFF)
    with pytest.raises(FileNotFoundError):
        fastmap.btf_dtype("event", map_id=0x7FFFFFFF)


def test_btf_itself() -> None:
    types = syscall.btf_load(program_types()[0])
    try:
        assert fastmap.btf_dtype("event", types) == EVENT
    finally:
        types.close()


def test_what_is_no_source(make: Make, tmp_path: Path) -> None:
    m = make("hash", key="u4", value="u4", max_entries=4)
    for source in (None, 1.5, True, b"x", object()):
        with pytest.raises(TypeError, match="a source of BTF"):
            fastmap.btf_dtype("x", source)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a type's name"):
        fastmap.btf_dtype(3)  # type: ignore[arg-type]
    for two in ({"prog_id": 1, "map_id": 1}, {"source": m, "map_id": 1}):
        with pytest.raises(TypeError, match="one of a source"):
            fastmap.read_btf(**two)
    with pytest.raises(ValueError, match="is no file"):
        fastmap.read_btf(tmp_path)
    text = tmp_path / "text"
    text.write_text("no BTF at all")
    with pytest.raises(ValueError, match="no ELF file, no raw BTF, and cannot be opened"):
        fastmap.read_btf(text)
    with text.open() as file, pytest.raises(ValueError, match="not a bpf-map"):
        fastmap.read_btf(file)


@pytest.mark.quick
def test_create_for_bpftool(make: Make) -> None:
    value = [("share", "f8"), ("parts", "f4", (2,)), ("n", "u8")]
    exact = fastmap.read_btf(make("hash", key="u4", value=value, max_entries=1))
    m = make("hash", key="f4", value=value, max_entries=1, btf="bpftool")
    safe = fastmap.read_btf(m)
    kinds = [{types.kind(i) for i in range(1, len(types))} for types in (exact, safe)]
    assert Kind.FLOAT in kinds[0] and Kind.FLOAT not in kinds[1]
    assert {safe.name(i) for i in range(1, len(safe)) if safe.kind(i) is Kind.DECL_TAG} == {
        "float32", "float64"}
    with fastmap.open(id=m.id) as again:
        assert (again.key_dtype, again.value_dtype) == (np.dtype("f4"), np.dtype(value))
        assert again.dtype_source == "btf"
    for wrong in ("yes", 2, None):
        with pytest.raises(ValueError, match="'bpftool'"):
            fastmap.create("hash", key="u4", value="u4", max_entries=1, btf=wrong)  # type: ignore[arg-type]


# ---- files ---------------------------------------------------------------------------------------


def elf_file(sections: dict[str, bytes], *, bits: int = 64, order: str = "<",
             flags: int = 0, extended: bool = False) -> bytes:
    """Make an ELF file of these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in sections) + b".shstrtab\0"
    parts = {**sections, ".shstrtab": names}
    header, entry = (("HHIIIIIHHHHHH", "IIIIIIIIII") if bits == 32
                     else ("HHIQQQIHHHHHH", "IIQQQQIIQQ"))
    at = 16 + struct.calcsize(order + header)
    bodies, rows = b"", []
    for name, body in parts.items():
        rows.append((names.index(name.encode() + b"\0"), 1, flags, 0, at + len(bodies), len(body),
                     0, 0, 1, 0))
        bodies += body
    count = len(rows) + 1
    first = (0, 0, 0, 0, 0, count if extended else 0, count - 1 if extended else 0, 0, 0, 0)
    table = b"".join(struct.pack(order + entry, *row) for row in [first, *rows])
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    fields = (1, 247, 1, 0, 0, at + len(bodies), 0, 64, 0, 0, struct.calcsize(order + entry),
              0 if extended else count, 0xFFFF if extended else count - 1)
    return ident + struct.pack(order + header, *fields) + bodies + table


@pytest.mark.quick
def test_object_files(tmp_path: Path) -> None:
    file = tmp_path / "types.o"
    file.write_bytes(OBJECT)
    dtype = fastmap.btf_dtype("inner", file)
    assert (dtype.itemsize, dtype["level"], dtype.fields["when"][1]) == (24, np.dtype("i4"), 8)
    assert fastmap.btf_layout("inner", str(file)).enums == {"level": {"LOW": -1, "HIGH": 1}}
    assert fastmap.btf_layout("locked", file).special["lock"] == "bpf_spin_lock"
    with pytest.raises(ValueError, match="2 types are named 'both'"):
        fastmap.btf_dtype("both", file)
    file.write_bytes(program_types()[0])
    assert fastmap.btf_dtype("event", file) == EVENT
    file.write_bytes(elf_file({".text": b"x"}))
    with pytest.raises(ValueError, match=r"no section .BTF: compile it with -g"):
        fastmap.btf_dtype("event", file)
    file.write_bytes(elf_file({".BTF": b"x"}))
    with pytest.raises(ValueError, match="too few"):
        fastmap.btf_dtype("event", file)


def test_modules_continue_the_kernel_or_an_extract_of_it(tmp_path: Path) -> None:
    kernel = fastmap.read_btf()
    node = kernel.named("struct list_head")

    def module(strings: int, first: int, member: int) -> bytes:
        words = (strings, 1 | 4 << 24, 16, strings + 2, member, 0)
        return struct.pack("=HBBIIIII6I", 0xEB9F, 1, 0, 24, 0, 24, 24, 4, *words) + b"s\0m\0"

    size = struct.unpack_from("=I", VMLINUX.read_bytes(), 20)[0]
    file = tmp_path / "module.ko"
    file.write_bytes(elf_file({".BTF": module(size, len(kernel), node)}))
    assert fastmap.btf_dtype("s", file) == np.dtype([("m", kernel.dtype(node))])
    b = Builder()
    wide = b.add_int("wide", 16)
    base = b.build()
    strings = struct.unpack_from("=I", base, 20)[0]
    file.write_bytes(elf_file({".BTF": module(strings, 2, wide), ".BTF.base": base}))
    assert fastmap.btf_dtype("s", file) == np.dtype([("m", "V16")])
    for each in list(VMLINUX.parent.iterdir())[:4]:
        types = fastmap.read_btf(each.name)
        assert types.named("struct list_head") == node and len(types) >= len(kernel)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("extended", [False, True])
def test_every_sort_of_elf_file(bits: int, order: str, extended: bool) -> None:
    parts = {".text": b"code", ".BTF.ext": b"more", ".BTF": b"types", ".empty": b""}
    data = io.BytesIO(elf_file(parts, bits=bits, order=order, extended=extended))
    for name, body in parts.items():
        assert elf.section(data, name) == body
    assert elf.section(data, ".BT") is None
    assert elf.section(data, ".shstrtab") is not None


def test_broken_elf_files() -> None:
    good = elf_file({".BTF": b"types"})
    for data, message in (
        (b"", "beyond the end"), (b"\x7fELF" + bytes(60), "does not begin as one"),
        (b"x" * 64, "does not begin as one"), (good[:63], "beyond the end"),
        (good[:-1], "beyond the end"), (elf_file({".BTF": b"x"}, flags=1 << 11), "compressed"),
        (good[:58] + b"\1\0" + good[60:], "too short"),
        (good[:62] + b"\7\0" + good[64:], "names in section 7"),
    ):
        with pytest.raises(ValueError, match=message):
            elf.section(io.BytesIO(data), ".BTF")
    without = good[:40] + bytes(8) + good[48:]
    assert elf.section(io.BytesIO(without), ".BTF") is None


class _Guarded(io.BytesIO):
    """A file of which no more may be asked for than it has."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None and 0 <= size <= len(self.getbuffer())
        return super().read(size)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
       st.sampled_from([32, 64]), st.integers(0, 500))
@settings(deadline=None, max_examples=200)
def test_hostile_elf_files(edits: list[tuple[int, int]], bits: int, length: int) -> None:
    data = bytearray(elf_file({".text": b"abc", ".BTF": b"types"}, bits=bits))
    for at, value in edits:
        data[at % len(data)] = value
    file = _Guarded(bytes(data[: length or len(data)]))
    try:
        found = elf.section(file, ".BTF")
    except ValueError:
        return
    assert found is None or len(found) <= len(data)


def test_files_that_are_no_btf_stay_errors(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for data in (b"\x9f\xeb", b"\xeb\x9f" + bytes(30), b"\x7fELF", b"", b"\x7fELF" + b"\2" * 90):
        file.write_bytes(data)
        with pytest.raises(ValueError):
            fastmap.read_btf(file)
