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
    assert "fastmap.maps.tables" in loaded and not loaded & DEAR


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


def test_type_checkers_and_python_are_told_the_same() -> None:
    """The imports that type checkers read, and the table that Python reads."""
    assert fastmap.__file__ is not None
    homes = {}
    for node in ast.walk(ast.parse(Path(fastmap.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fastmap."):
            homes |= {name.name: node.module for name in node.names}
    assert homes == fastmap._HOMES and set(homes) == set(fastmap.__all__)


@pytest.mark.parametrize("first", ["fastmap.maps.base", "fastmap.features", "fastmap.maps"])
def test_functions_keep_their_names(first: str) -> None:
    """`fastmap.maps` and `fastmap.features` are functions, also where modules of the name load."""
    told(f"import {first}\n"
         "import fastmap\n"
         "from fastmap import features, maps\n"
         "assert callable(fastmap.maps) and callable(fastmap.features)\n"
         "assert maps is fastmap.maps and features is fastmap.features\n"
         "next(maps(), None)")


def test_modules_are_reached_by_their_names() -> None:
    told("import fastmap; fastmap.asm.Assembler, fastmap.btf.Btf, fastmap.collect.Delta")
