"""The annotations of the Python files, and the stubs of the compiled ones, with no exceptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastmap

ROOT = Path(__file__).parents[1]
COMPILED = sorted(f"fastmap._core.{path.stem}"
                  for path in (Path(fastmap.__file__).parent / "_core").glob("*.pyx"))

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
SAID = ['"int"', '"fastmap._core.program.Link"', '"tuple[int, ...]"', '"fastmap.maps.batch.Batch"',
        '"int"', '"fastmap.collect.DeltaBatch"', 'has no attribute "nothing"',
        'Argument "chunk" to "reader"']


def test_users_get_the_types(tmp_path: Path) -> None:
    (tmp_path / "uses.py").write_text(USES)
    run = subprocess.run([sys.executable, "-m", "mypy", "--config-file=", "--strict",
                          tmp_path / "uses.py"], cwd=ROOT / "src", capture_output=True, text=True)
    said = [line for line in run.stdout.splitlines() if ": note: " in line or ": error: " in line]
    assert len(said) == len(SAID), run.stdout + run.stderr
    for line, expected in zip(said, SAID, strict=True):
        assert expected in line
