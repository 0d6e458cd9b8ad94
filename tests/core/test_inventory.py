"""Walking the kernel's maps and programs: what they are, where pinned, and which uses which."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from privileges import drop_capabilities, keep_only
from support import in_child

import fastmap
from fastmap import MapFlag, MapType, ObjectNotFound, PermissionDenied, Program, ProgType
from fastmap.asm import FP, R0, R1, R2, Assembler, Code, Helper
from fastmap.cli.main import main
from fastmap.enums import running_kernel

pytestmark = pytest.mark.quick

Make = Callable[..., Any]
U4 = {"key": "u4", "value": "u4", "max_entries": 4}


def looking_up(*maps: Any) -> Code:
    """Assemble a program that looks up key 0 in each of the maps."""
    a = Assembler()
    a.st(8, FP, -8, 0)
    for each in maps:
        a.ld_map(R1, each)
        a.mov(R2, FP)
        a.add(R2, -8)
        a.call(Helper.MAP_LOOKUP_ELEM)
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


def test_maps_are_asked_when_their_turn_comes(make: Make) -> None:
    first, second = make("hash", **U4), make("hash", **U4)
    walk = fastmap.maps()
    assert any(info.id == first.id for info in walk)
    second.freeze()  # told of the one behind only now
    late = make("array", value="u8", max_entries=2, name="late")
    rest = {info.id: info for info in walk}
    assert rest[second.id].frozen is True and rest[late.id].name == "late"
    assert next(fastmap.maps()).id <= first.id


def test_a_map_has_all_its_fields(make: Make) -> None:
    m = make("bloom_filter", value="u8", max_entries=100, map_extra=3, name="filter")
    info = next(info for info in fastmap.maps() if info.id == m.id)
    assert info == m.info()
    assert (info.type, info.name, info.value_size, info.map_extra) == (
        MapType.BLOOM_FILTER, "filter", 8, 3)
    assert info.memlock is not None and info.memlock > 0 and info.frozen is False
    typed = make("hash", key="u4", value=[("a", "u8")], max_entries=1).info()
    assert typed.btf_id and typed.btf_key_type_id and typed.btf_value_type_id


def test_programs_and_their_maps(make: Make) -> None:
    one, two, other = (make("hash", **U4, name=f"used{n}") for n in range(3))
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with Program("socket_filter", looking_up(one, two), name="looks") as program, \
            Program("socket_filter", looking_up(two), license="MIT") as second:
        found = {info.id: info for info in fastmap.programs()}
        assert list(found) == sorted(found)
        info = found[program.id]
        assert (info.type, info.name) == (ProgType.SOCKET_FILTER, "looks")
        assert info.map_ids == (one.id, two.id) and found[second.id].map_ids == (two.id,)
        assert [m.name for m in info.maps()] == ["used0", "used1"]
        assert info.created_by_uid == os.getuid() and len(bytes.fromhex(info.tag)) == 8
        assert before <= info.load_time <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert info.gpl_compatible is True and found[second.id].gpl_compatible is False
        assert info.xlated_prog_len >= 8 * 8 and info.xlated_prog_len % 8 == 0
        assert info.jited_prog_len > 0 and info.memlock and info.btf_id == 0
        assert info.run_cnt == info.run_time_ns == 0 and info.attach_btf_id == 0
        if running_kernel() >= (5, 16):
            assert info.verified_insns >= 8
        assert [p.id for p in one.info().programs()] == [program.id]
        assert {p.id for p in two.info().programs()} == {program.id, second.id}
        assert other.info().programs() == []
    assert program.closed and two.info().programs() == []


def test_a_program_of_many_maps(make: Make) -> None:
    """More ids than the first question has room for."""
    used = [make("array", value="u4", max_entries=1) for _ in range(64)]
    for count in (63, 64):
        with Program("socket_filter", looking_up(*used[:count])) as program:
            info = next(i for i in fastmap.programs() if i.id == program.id)
            assert info.map_ids == tuple(m.id for m in used[:count])


@pytest.mark.parametrize("way", ["id", "fd", "path"])
def test_programs_are_opened(make: Make, bpffs: Path, way: str) -> None:
    m = make("hash", **U4)
    with Program("socket_filter", looking_up(m), name="opened") as program:
        program.pin(bpffs / "p")
        given = {"id": program.id, "fd": program.fileno(), "path": bpffs / "p"}[way]
        with Program.open(**{way: given}) as other:
            assert (other.id, other.name, other.type) == (program.id, "opened", program.type)
            assert other.fileno() != program.fileno() and not os.get_inheritable(other.fileno())
            assert other.run(data=bytes(64)) == 0
            # Others on the machine may have pinned programs of their own.
            assert [p.path for p in fastmap.pins() if (p.kind, p.id) == ("prog", program.id)] == [
                bpffs / "p"]
            info = next(i for i in fastmap.programs() if i.id == program.id)
            assert info.pins() == [bpffs / "p"]


def test_what_is_no_program(make: Make, bpffs: Path) -> None:
    m = make("hash", **U4)
    m.pin(bpffs / "m")
    for given in ({"fd": m.fileno()}, {"path": bpffs / "m"}):
        with pytest.raises(ValueError, match="bpf-map, not a bpf-prog"):
            Program.open(**given)
    with Program("socket_filter", looking_up(m)) as program:
        program.pin(bpffs / "p")
        for given in ({"fd": program.fileno()}, {"path": bpffs / "p"}):
            with pytest.raises(ValueError, match="bpf-prog, not a bpf-map"):
                fastmap.open(**given)
    with pytest.raises(ObjectNotFound, match="program id 2147483646"):
        Program.open(id=2**31 - 2)
    for wrong in ({}, {"id": 1, "fd": 3}):
        with pytest.raises(TypeError, match="takes one of"):
            Program.open(**wrong)


def test_pins(make: Make, bpffs: Path) -> None:
    m, other = make("hash", **U4, flags=MapFlag.NO_PREALLOC), make("hash", **U4)
    assert m.info().pins() == []
    (bpffs / "a folder").mkdir()
    places = [bpffs / "a folder" / "deep", bpffs / "z"]
    for place in places:
        m.pin(place)
    other.pin(bpffs / "other")
    (bpffs / "link").symlink_to(bpffs / "z")  # a way to a pin, not a pin
    assert m.info().pins() == places and other.info().pins() == [bpffs / "other"]
    found = [pin for pin in fastmap.pins() if bpffs in pin.path.parents]
    assert [p for p in found if p.id in (m.id, other.id)] == [
        (places[0], "map", m.id), (bpffs / "other", "map", other.id), (places[1], "map", m.id)]
    assert {p.kind for p in found} <= {"map", "link"}  # CONFIG_BPF_PRELOAD pins two links itself
    m.unpin(places[0])
    assert m.info().pins() == places[1:]


def test_pins_of_odd_places(make: Make, tmp_path: Path) -> None:
    """A mount point with a space, a newline and a backslash in its name; one on top of another."""
    m = make("hash", **U4)
    folder = tmp_path / "a b\n\\134c"
    folder.mkdir()
    with fastmap.bpffs(folder) as fs:
        m.pin(fs / "x")
        assert m.info().pins() == [folder / "x"]
    assert m.info().pins() == []


def test_without_capabilities_the_message_names_the_missing_one(make: Make) -> None:
    m = make("hash", **U4, name=f"caps{os.getpid()}")
    with Program("socket_filter", looking_up(m)) as program:
        number = program.id

        def task() -> None:
            keep_only()
            for call in (lambda: fastmap.open(id=m.id), lambda: fastmap.open(name=m.name),
                         lambda: next(fastmap.maps()), lambda: next(fastmap.programs()),
                         lambda: Program.open(id=number), lambda: m.info().programs()):
                with pytest.raises(PermissionDenied, match="CAP_SYS_ADMIN"):
                    call()

        in_child(task)


def test_a_name_that_the_kernel_cuts_is_told(make: Make) -> None:
    m = make("hash", **U4, name="read_latency_co", btf=False)
    with pytest.warns(UserWarning, match=f"opened map {m.id}, 'read_latency_co'"):
        fastmap.open(name="read_latency_count_total").close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastmap.open(name="read_latency_co").close()


def test_what_may_not_be_read_is_left_out(make: Callable[..., Any], bpffs: Path,
                                          capfd: pytest.CaptureFixture[str]) -> None:
    """An ordinary user's walk over pins goes on behind the first that is root's alone."""
    m = make("hash", key="u4", value="u4", max_entries=1)
    for name in ("a_private", "b_shared"):
        m.pin(bpffs / name)
    (bpffs / "c_folder").mkdir(mode=0o700)
    m.pin(bpffs / "c_folder" / "x")
    (bpffs / "b_shared").chmod(0o644)
    bpffs.chmod(0o755)

    def walk() -> None:
        found = {pin.path.name for pin in fastmap.pins() if bpffs in pin.path.parents}
        assert found <= {"b_shared"}, found  # before Linux 6.4, bpf(2) is root's altogether
        if running_kernel() >= (6, 4):
            assert found == {"b_shared"}, found

    for folder in bpffs.parents:  # of pytest's: root's alone, mostly
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)

    def child() -> None:
        drop_capabilities()
        walk()
        if running_kernel() >= (6, 4):
            assert main(["show", str(bpffs / "b_shared"), "--key=u4", "--value=u4"]) == 0

    in_child(child)
    said = capfd.readouterr()
    if running_kernel() >= (6, 4):
        assert f"pins:        {bpffs}/b_shared\n" in said.out
        assert f"may not be read, {bpffs}/a_private among them\n" in said.err, said.err
