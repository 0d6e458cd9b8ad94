"""Every way to install fastmap, each in a fresh environment, and what is in the archives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a source tree"),
]

#: What a user's environment must be able to do.
USE = """
import fastmap, sys
from fastmap import asm, btf
assert fastmap.__file__.startswith(sys.argv[1]), fastmap.__file__
assert "asyncio" not in sys.modules  # importing it takes longer than all of fastmap
with fastmap.create("hash", key="u4", value="u8", max_entries=4) as m:
    m[1] = 2
    assert dict(m.snapshot().items()) == {1: 2}
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def quickly(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the C compiler does not optimise: these builds only prove."""
    compiler = tmp_path_factory.mktemp("cc") / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
    compiler.chmod(0o755)
    return {"CC": str(compiler), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def fresh_environment(where: Path) -> Path:
    """Return the python of a new environment that sees this one's packages, but not fastmap."""
    run(sys.executable, "-m", "venv", "--without-pip", where, cwd=where.parent)
    (site,) = where.glob("lib/python*/site-packages")
    # As a path of its own, so that its .pth files (an editable fastmap) are not looked at.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return where / "bin" / "python"


PIP = ("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
       "--ignore-installed")


def archive_of(pattern: str, folder: Path) -> Path:
    (archive,) = folder.glob(pattern)
    return archive


def build(kind: str, sources: Path, target: Path, **environment: str) -> Path:
    """Build an "sdist" or a "wheel" by the backend that pyproject.toml names."""
    code = f"from setuptools import build_meta as b; b.build_{kind}({str(target)!r})"
    run(sys.executable, "-c", code, cwd=sources, **environment)
    return archive_of("fastmap_bpf-*.tar.gz" if kind == "sdist" else "fastmap_bpf-*.whl", target)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, quickly: dict[str, str]) -> Path:
    """Return a copy of the source tree without anything compiled, and beside it the sdist of it."""
    copy = tmp_path_factory.mktemp("sources") / "fastmap"
    built = shutil.ignore_patterns("*.so", "__pycache__", "build", "dist", "*.egg-info", ".*")
    shutil.copytree(ROOT, copy, ignore=built)
    for generated in (copy / "src/fastmap/_core").rglob("*.c"):
        generated.unlink()
    # This leaves the C of Cython in the tree, where builds other than the sdist's find it.
    build("sdist", copy, copy.parent, **quickly)
    return copy


def check_sdist(path: Path, sources: Path) -> None:
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(file.relative_to(sources)) for folder in ("src", "tests", "bench")
              for file in (sources / folder).rglob("*")
              if file.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h", ".typed")
              or (folder in ("bench", "tests") and file.suffix == ".c")
              or (folder == "bench" and file.suffix in (".go", ".json", ".md"))}
    needed |= {"pyproject.toml", "setup.py", "README.md", "LICENSE", "src/fastmap/py.typed"}
    assert not needed - names, "the sdist lacks these"
    assert not [name for name in names if name.endswith(".so") or "__pycache__" in name]
    assert not [name for name in names if name.startswith("src") and name.endswith(".c")]


def check_wheel(path: Path, sources: Path) -> None:
    names = set(zipfile.ZipFile(path).namelist())
    package = sources / "src" / "fastmap"
    for file in package.rglob("*"):
        name = str(file.relative_to(sources / "src"))
        if file.suffix in (".py", ".pyi") or file.name == "py.typed":
            assert name in names, "the wheel lacks it"
        elif file.suffix == ".pyx":
            stem = name.removesuffix(".pyx")
            assert any(each.startswith(f"{stem}.cpython-") for each in names), stem
    assert not [name for name in names if name.endswith((".pyx", ".pxd", ".h", ".c"))
                and not name.endswith(".bpf.h")]
    assert "fastmap/include/fastmap.bpf.h" in names  # for the compilers of others
    assert not [name for name in names if name.startswith(("tests", "bench"))]


@pytest.mark.parametrize("way", ["install", "editable", "wheel", "sdist"])
def test_ways_to_install(way: str, sources: Path, quickly: dict[str, str], tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "venv")
    home = tmp_path / "venv"
    tree = shutil.copytree(sources, tmp_path / "tree")
    if way == "editable":
        run(python, *PIP, "-e", tree, cwd=tmp_path, **quickly)
        home = tree
    elif way == "wheel":
        wheel = build("wheel", tree, tmp_path, **quickly)
        check_wheel(wheel, sources)
        run(python, *PIP, wheel, cwd=tmp_path)
    elif way == "sdist":
        sdist = archive_of("fastmap_bpf-*.tar.gz", sources.parent)
        check_sdist(sdist, sources)
        run(python, *PIP, sdist, cwd=tmp_path, **quickly)
    else:
        run(python, *PIP, tree, cwd=tmp_path, **quickly)
    run(python, "-W", "error", "-c", USE, str(home), cwd=tmp_path)
    if way != "editable":  # which has a finder or a .pth of setuptools, and no script in a wheel
        assert (tmp_path / "venv/bin/fastmap").exists()
