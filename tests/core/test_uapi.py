"""uapi.h and enums.py, held against the BTF of the kernel that runs these tests."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from fastmap import asm, enums
from fastmap.btf import Btf, Kind

HEADER = Path(enums.__file__).parent / "_core" / "system" / "uapi.h"

#: Our struct: the kernel's type, and the member of union bpf_attr that it stands for (by its name,
#: or where it has none by the first field in it).
STRUCTS = {
    "fm_map_create": ("bpf_attr", "map_type"),
    "fm_map_elem": ("bpf_attr", "map_fd"),
    "fm_map_batch": ("bpf_attr", "batch"),
    "fm_prog_load": ("bpf_attr", "prog_type"),
    "fm_test_run": ("bpf_attr", "test"),
    "fm_obj": ("bpf_attr", "pathname"),
    "fm_get_id": ("bpf_attr", "start_id"),
    "fm_info": ("bpf_attr", "info"),
    "fm_raw_tracepoint": ("bpf_attr", "raw_tracepoint"),
    "fm_btf_load": ("bpf_attr", "btf"),
    "fm_bind_map": ("bpf_attr", "prog_bind_map"),
    "fm_token_create": ("bpf_attr", "token_create"),
    "fm_map_info": ("bpf_map_info", ""),
    "fm_prog_info": ("bpf_prog_info", ""),
    "fm_btf_info": ("bpf_btf_info", ""),
}
#: Fields that have another name here than in the kernel.
RENAMED = {("fm_get_id", "id"): "start_id"}

Layout = dict[str, tuple[int, int]]


@cache
def kernel() -> Btf:
    return Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())


def fields_of(type_id: int, base: int = 0) -> Layout:
    """Return ``{field: (offset, size)}``, those of anonymous members as the struct's own."""
    found: Layout = {}
    for member in kernel().members(type_id):
        offset = base + member.bit_offset // 8
        if member.name:
            found[member.name] = (offset, kernel().size(member.type_id))
        elif not member.bit_size:  # an unnamed bitfield is a hole
            found |= fields_of(member.type_id, offset)
    return found


def kernel_layout(ours: str) -> Layout:
    type_name, part = STRUCTS[ours]
    if not part:
        return fields_of(kernel().find(type_name, Kind.STRUCT))
    for member in kernel().members(kernel().find(type_name, Kind.UNION)):
        inner = fields_of(member.type_id) if member.bit_offset == 0 else {}
        if member.name == part or (not member.name and next(iter(inner), "") == part):
            return inner
    raise LookupError(f"union bpf_attr has no {part}")


def declared() -> dict[str, list[str]]:
    """Return the structs of the header and the names of their fields."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    bodies = re.findall(r"^struct (\w+) \{(.*?)^\};", text, flags=re.DOTALL | re.MULTILINE)
    return {name: re.findall(r"(\w+)(?:\[\d+\])?;", body) for name, body in bodies}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Return what the C compiler makes of the header: sizes, offsets and constants."""
    lines = [f'printf("{name} %zu 0\\n", sizeof(struct {name}));' for name in declared()]
    for name, fields in declared().items():
        lines += [
            f'printf("{name}.{field} %zu %zu\\n", offsetof(struct {name}, {field}),'
            f" sizeof(((struct {name} *)0)->{field}));" for field in fields
        ]
    constants = re.findall(r"^    (FM_\w+) = \d+,$", HEADER.read_text(), flags=re.MULTILINE)
    lines += [f'printf("{name} %d 0\\n", {name});' for name in constants]
    folder = tmp_path_factory.mktemp("uapi")
    source, binary = folder / "layout.c", folder / "layout"
    source.write_text('#define _GNU_SOURCE\n#include <stdio.h>\n#include "uapi.h"\n'
                      "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, f"-I{HEADER.parent}", source, "-o", binary], check=True)
    output = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    rows = (line.split() for line in output.splitlines())
    return {name: [int(offset), int(size)] for name, offset, size in rows}


def test_every_struct_of_the_header_is_held_against_the_kernel() -> None:
    assert set(declared()) == set(STRUCTS)


@pytest.mark.parametrize("ours", STRUCTS)
def test_fields_lie_where_the_kernel_has_them(ours: str, compiled: dict[str, list[int]]) -> None:
    there = kernel_layout(ours)
    named = {field: RENAMED.get((ours, field), field) for field in declared()[ours]
             if field != "unused"}
    assert {field: tuple(compiled[f"{ours}.{field}"]) for field in named} == {
        field: there[theirs] for field, theirs in named.items()}


@pytest.mark.parametrize("ours", STRUCTS)
def test_no_field_of_the_kernel_is_left_out(ours: str, compiled: dict[str, list[int]]) -> None:
    size = compiled[ours][0]
    there = {place for place in kernel_layout(ours).values() if place[0] < size}
    here = {tuple(compiled[f"{ours}.{field}"]) for field in declared()[ours] if field != "unused"}
    assert there <= here
    assert all(offset + length <= size for offset, length in there)


def test_commands_of_the_header(compiled: dict[str, list[int]]) -> None:
    commands = kernel().enum(kernel().find("bpf_cmd", Kind.ENUM))
    ours = {name: value for name, (value, _) in compiled.items() if name.startswith("FM_")}
    assert len(ours) > 20
    assert ours == {name: commands[name.replace("FM_", "BPF_")] for name in ours}
    assert {f"FM_{command.name}" for command in enums.Command} >= set(ours)


def test_instructions_have_the_kernel_s_layout() -> None:
    members = kernel().members(kernel().find("bpf_insn", Kind.STRUCT))
    assert [(m.name, m.bit_offset, m.bit_size) for m in members] == [
        ("code", 0, 0), ("dst_reg", 8, 4), ("src_reg", 12, 4), ("off", 16, 0), ("imm", 32, 0)]
    code = asm.Assembler()
    code.stx(8, asm.R1, -2, asm.R5)  # code 0x7b, dst 1, src 5, off -2, imm 0
    code.exit()
    assert code.assemble().insns[:8].hex() == "7b51feff00000000"


@cache
def kernel_constants() -> dict[str, int]:
    """Return the values of all enums of the kernel whose names begin with ``BPF_``."""
    btf, found = kernel(), {}
    for type_id in range(1, len(btf)):
        if btf.kind(type_id) in (Kind.ENUM, Kind.ENUM64):
            found |= {k: v for k, v in btf.enum(type_id).items() if k.startswith("BPF_")}
    return found


ENUMS = {
    enums.MapType: "BPF_MAP_TYPE_{}", enums.Command: "BPF_{}", enums.ProgType: "BPF_PROG_TYPE_{}",
    enums.MapFlag: "BPF_F_{}", enums.UpdateFlag: "BPF_{}",
}
#: Update flags that the kernel spells like flags of maps.
SPELLED = {"BPF_LOCK": "BPF_F_LOCK", "BPF_CPU": "BPF_F_CPU", "BPF_ALL_CPUS": "BPF_F_ALL_CPUS"}


@pytest.mark.parametrize("kind", ENUMS)
def test_numbers_are_the_kernel_s(kind: type[enums._Since] | type[enums._FlagSince]) -> None:
    there, missing = kernel_constants(), []
    for name, member in kind.__members__.items():
        theirs = ENUMS[kind].format(name)
        theirs = SPELLED.get(theirs, theirs)
        if theirs in there:
            assert there[theirs] == member, theirs
        elif member.since <= enums.running_kernel():
            missing.append(theirs)
    assert not missing, "the kernel is new enough for these, and does not know them"


def test_helpers_have_the_kernel_s_numbers() -> None:
    there = kernel_constants()
    assert {helper: there[f"BPF_FUNC_{helper.name.lower()}"] for helper in asm.Helper} == {
        helper: helper.value for helper in asm.Helper}


@pytest.mark.parametrize("kind", [enums.MapType, enums.ProgType])
def test_no_type_of_the_kernel_is_missing(kind: type[enums._Since]) -> None:
    prefix = ENUMS[kind].format("")
    values = {value for name, value in kernel_constants().items()
              if name.startswith(prefix) and not name.startswith("BPF_MAP_TYPE_MAX")}
    known = {int(member) for member in kind} | {max(values)}  # the last one is their __MAX
    assert values <= known
