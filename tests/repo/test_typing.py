"""The annotations of the Python files, and the stubs of the compiled ones, with no exceptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastmap
from fastmap.maptypes.registry import CLASSES

ROOT = Path(__file__).parents[2]
PACKAGE = Path(fastmap.__file__).parent
COMPILED = sorted(".".join(["fastmap", *path.relative_to(PACKAGE).with_suffix("").parts])
                  for path in (PACKAGE / "_core").rglob("*.pyx"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a source tree"),
]


@pytest.mark.parametrize("arguments", [["mypy"], ["mypy.stubtest", *COMPILED]],
                         ids=["mypy", "stubtest"])
def test_types(arguments: list[str]) -> None:
    assert len(COMPILED) >= 7
    run = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stdout + run.stderr


#: What users write, and what mypy must say of it.
USES = """
import fastmap
from fastmap import asm

with fastmap.Program("syscall", asm.Assembler().assemble(), flags=16) as program:
    reveal_type(program.run())
    reveal_type(program.attach_raw_tracepoint("sys_enter"))
reveal_type(fastmap.possible_cpus())
def use(m: fastmap.HashMap) -> None:
    reveal_type(m.snapshot())
    reveal_type(m.fileno())
    reveal_type(fastmap.collect.Delta(m).read())
    fastmap.nothing
    m.reader(chunk="many")
"""
SAID = ['"int"', '"fastmap._core.system.program.Link"', '"tuple[int, ...]"',
        '"fastmap.maptypes.batch.Batch"',
        '"int"', '"fastmap.collect.delta.DeltaBatch"', 'has no attribute "nothing"',
        'Argument "chunk" to "reader"']


def test_users_get_the_types(tmp_path: Path) -> None:
    (tmp_path / "uses.py").write_text(USES)
    run = subprocess.run([sys.executable, "-m", "mypy", "--config-file=", "--strict",
                          tmp_path / "uses.py"], cwd=ROOT / "src", capture_output=True, text=True)
    said = [line for line in run.stdout.splitlines() if ": note: " in line or ": error: " in line]
    assert len(said) == len(SAID), run.stdout + run.stderr
    for line, expected in zip(said, SAID, strict=True):
        assert expected in line


def revealed(code: str, where: Path) -> list[str]:
    """Return what mypy says that each ``reveal_type`` of some code is."""
    where.write_text(code)
    run = subprocess.run([sys.executable, "-m", "mypy", "--config-file=", "--strict", where],
                         cwd=ROOT / "src", capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return [line.split('"')[1] for line in run.stdout.splitlines() if "Revealed type" in line]


def test_create_and_open_have_the_class_of_the_type(tmp_path: Path) -> None:
    """For each map type, by name and by number: the class that the registry has."""
    code = "import fastmap\nfrom fastmap.enums import MapType\n"
    for kind in sorted(CLASSES):
        for said in (f'"{kind.name.lower()}"', f"MapType.{kind.name}"):
            code += (f"reveal_type(fastmap.create({said}, value='u8', max_entries=1, pin='x'))\n"
                     f"reveal_type(fastmap.open('x', type={said}, readonly=True))\n")
    expected = [f"{CLASSES[kind].__module__}.{CLASSES[kind].__name__}"
                for kind in sorted(CLASSES) for _ in range(4)]
    assert revealed(code, tmp_path / "uses.py") == expected


def test_what_is_not_known_is_any(tmp_path: Path) -> None:
    code = ("import fastmap\n"
            "def use(kind: str, pin: str) -> None:\n"
            "    reveal_type(fastmap.create(kind, key='u4'))\n"
            "    reveal_type(fastmap.open(pin))\n"
            "    reveal_type(fastmap.open(id=7, key='u4', value='u8'))\n")
    assert revealed(code, tmp_path / "uses.py") == ["Any"] * 3
