"""What `import fastmap` loads, and that its names, loaded when they are used, are all there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastmap

pytestmark = pytest.mark.quick

#: All that `import fastmap` may load over numpy. A name's first use loads what it stands in.
ALLOWED = {"fastmap"}
#: What no map needs as long as it is not asked for threads, sockets, text or close names.
DEAR = {"asyncio", "concurrent.futures", "difflib", "logging", "socket", "pyarrow", "rich", "yaml",
        "prometheus_client", "distributed", "pandas"}


def told(code: str) -> set[str]:
    """Return what `code` prints, in a Python of its own."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_importing_loads_nothing_else() -> None:
    assert told("import numpy, sys; before = set(sys.modules); import fastmap\n"
                "print(*set(sys.modules) - before)") == ALLOWED


def test_a_map_loads_nothing_dear() -> None:
    loaded = told("import sys, fastmap\n"
                  "with fastmap.create('hash', key='u4', value='u8', max_entries=4) as m:\n"
                  "    m.update_many([1, 2], [3, 4]); m.snapshot()\n"
                  "print(*sys.modules)")
    assert "fastmap.maptypes.table" in loaded and not loaded & DEAR


def test_every_public_name_is_there() -> None:
    assert len(fastmap.__all__) > 50
    told("from fastmap import *\n"
         "import fastmap\n"
         "missing = [name for name in fastmap.__all__ if name not in globals()]\n"
         "assert not missing and set(fastmap.__all__) <= set(dir(fastmap)), missing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastmap.nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from fastmap import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_dir_is_what_users_may_use() -> None:
    """The public names, the documented modules, and nothing of how they are found."""
    listed = set(dir(fastmap)) - set(fastmap.__all__) - {"__version__"}
    assert listed == {"arrow", "asm", "btf", "collect", "enums", "errors", "fleet", "prometheus"}


def test_the_stub_says_each_name_once_and_nothing_else() -> None:
    """Type checkers read each line of it; Python reads those of one form."""
    assert fastmap.__file__ is not None
    names: list[str] = []
    for node in ast.parse(Path(fastmap.__file__).with_suffix(".pyi").read_text()).body[1:-1]:
        assert isinstance(node, ast.ImportFrom) and len(node.names) == 1
        assert node.names[0].name == node.names[0].asname
        names.append(node.names[0].name)
    assert len(names) == len(set(names)) and set(names) == set(dir(fastmap)) - {"__version__"}


def test_no_module_has_the_name_of_a_public_function() -> None:
    told("import fastmap, importlib.util\n"
         "for name in fastmap.__all__:\n"
         "    assert importlib.util.find_spec(f'fastmap.{name}') is None, name")


def test_modules_are_reached_by_their_names() -> None:
    told("import fastmap; fastmap.asm.Assembler, fastmap.btf.Btf, fastmap.collect.Delta")
