"""The house of design.md, section 7: who imports whom, read off the import lines themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastmap

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fastmap.__file__).parent
CORE = PACKAGE / "_core"
SOURCES = sorted(path for ending in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{ending}"))

#: From the ground up; within a floor along the order of the words, where they stand in one string.
#: Words of different strings of a floor do not import each other.
FLOORS = (
    ("enums errors",),
    ("_core.uapi _core.syscall _core.memory _core.convert _core.codec _core.rows _core.columns"
     " _core.map _core.batch _core.prefix _core.trie _core.queue _core.program _core.run"
     " _core.walk _core.mount _core.ring _core.user_ring _core.perf _core.keyhash _core.join"
     " _core.jsonrows _core.btf_records jsontext dtypes btf_special btf_build btf_read btf elf asm"
     " touching percpu loops walks buckets counting",),
    ("features accel", "mounts inventory", "syscalls decode arrow_files arrow"),
    ("maps.rules maps.batch maps.base maps.reader maps.variables maps.tables maps.arrays maps.trie"
     " maps.queues maps.slots maps.nested maps.references maps.storage maps.code maps.records"
     " maps.consumer maps.streams maps.perf maps.arena maps.families",),
    ("types token compatible objects",),
    ("groups histograms pressures collect",),
    ("declaration series prometheus", "fleet", "demo"),
    ("commands.command commands.behind commands.output commands.target commands.cells"
     " commands.selection commands.histogram commands.listing commands.formats"
     " commands.dump commands.top commands.watch commands.checks commands.doctor"
     " commands.features commands.exporter commands.demo cli __main__",),
)
#: Of fastmap, the compiled core imports only this floor.
GROUND = ("enums", "errors")


def places() -> dict[str, tuple[int, int, int]]:
    """Return ``{module: (floor, row, place in the row)}``."""
    return {
        module: (floor, row, place)
        for floor, rows in enumerate(FLOORS)
        for row, words in enumerate(rows)
        for place, module in enumerate(words.split())
    }


def may_import(importer: str, imported: str) -> bool:
    if importer.startswith("_core.") and not imported.startswith("_core.") \
            and imported not in GROUND:
        return False
    floor, row, place = places()[importer]
    other, other_row, other_place = places()[imported]
    return other < floor or (other, other_row) == (floor, row) and other_place < place


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


#: The modules that have a file; the packages themselves are left out.
MODULES = {name_of(path) for path in SOURCES if path.stem != "__init__"}


def lines_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ``(from what, [names])`` for each import of a file; without names for ``import x``."""
    text = path.read_text()
    if path.suffix == ".py":
        package = ["fastmap", *path.relative_to(PACKAGE).parts[:-1]]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, []) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parent = package[:len(package) - node.level + 1] if node.level else []
                yield (".".join([*parent, *filter(None, [node.module])]),
                       [alias.name for alias in node.names])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield (ast.literal_eval(node.args[0]), [])
        return
    text = re.sub(r"\\\n|#.*", "", text)
    for source, names in re.findall(r"^\s*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|.*)$", text,
                                    flags=re.MULTILINE):
        assert not source.startswith("."), f"{path}: absolute imports in compiled modules"
        yield source, re.findall(r"[\w*]+", names)
    for names in re.findall(r"^\s*c?import\s+(.*)$", text, flags=re.MULTILINE):
        yield from ((name.split()[0], []) for name in names.split(","))


def imports_of(path: Path) -> set[str]:
    """Return the modules of fastmap that a file imports, without the leading ``fastmap.``."""
    found: set[str] = set()
    for source, names in lines_of(path):
        if source != "fastmap" and not source.startswith("fastmap."):
            continue
        inner = source.partition(".")[2]
        if inner in MODULES:
            found.add(inner)
            continue
        for name in names or [""]:
            module = ".".join(filter(None, [inner, name]))
            assert module in MODULES, f"{path} imports {module!r}: name the module itself"
            found.add(module)
    return found


def test_every_module_has_its_floor() -> None:
    assert not MODULES - set(places())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    name = name_of(path)
    if path == PACKAGE / "__init__.py":
        return  # the public names: it may see everything
    if name.endswith("__init__"):
        assert not imports_of(path)
        return
    upwards = {other for other in imports_of(path) - {name} if not may_import(name, other)}
    assert not upwards, f"{name} may not import these"


@pytest.mark.parametrize(("line", "imported"), [
    ("def late():\n    from fastmap.objects import create", {"objects"}),
    ("from ..objects import create", {"objects"}),
    ("from .. import objects, enums", {"objects", "enums"}),
    ("from . import reader", {"maps.reader"}),
    ("import fastmap.cli as c", {"cli"}),
    ("if TYPE_CHECKING:\n    from fastmap._core import map", {"_core.map"}),
    ("import importlib\nimportlib.import_module('fastmap.demo')", {"demo"}),
])
def test_every_sort_of_import_is_seen(line: str, imported: set[str], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "x.py").write_text(line)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert imports_of(folder / "x.py") == imported


@pytest.mark.parametrize(("line", "imported"), [
    ("from fastmap._core.map cimport MapCore", {"_core.map"}),
    ("from fastmap._core.codec cimport (\n    Codec,\n    Rows)", {"_core.codec"}),
    ("    from fastmap import errors  # late", {"errors"}),
    ("from fastmap._core import syscall", {"_core.syscall"}),
    ("cimport fastmap._core.batch as b", {"_core.batch"}),
])
def test_every_sort_of_cimport_is_seen(line: str, imported: set[str], tmp_path: Path) -> None:
    (tmp_path / "x.pyx").write_text(line + "\n")
    assert imports_of(tmp_path / "x.pyx") == imported


def test_upwards_is_not_downwards() -> None:
    assert may_import("maps.tables", "maps.reader") and may_import("cli", "demo")
    assert not may_import("maps.reader", "maps.tables")
    assert not may_import("_core.map", "dtypes") and not may_import("features", "accel")


def test_no_file_over_600_lines() -> None:
    files = [path for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*")
             if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h") or path.suffix == ".c"
             and path.parent != CORE]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 30
    assert not {path: lines for path, lines in lengths.items() if lines > 600}


@pytest.mark.parametrize("path", sorted(CORE.glob("*.pyx")), ids=lambda path: path.stem)
def test_every_compiled_module_has_its_declarations(path: Path) -> None:
    assert path.with_suffix(".pxd").exists() and path.with_suffix(".pyi").exists()
    assert not re.search(r"^\s*include\b", path.read_text(), flags=re.MULTILINE)


def test_no_system_header_of_bpf() -> None:
    for path in [*CORE.glob("*.h"), *CORE.glob("*.p[yx][xd]")]:
        assert not re.search(r"include.*linux/bpf|extern from.*linux/bpf", path.read_text()), path
