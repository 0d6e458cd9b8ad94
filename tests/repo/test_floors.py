"""The house of design.md, section 7: who imports whom, read off the import lines themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastmap

ROOT = Path(__file__).parents[2]
PACKAGE = Path(fastmap.__file__).parent
CORE = PACKAGE / "_core"
SOURCES = sorted(path for ending in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{ending}"))

#: From the ground up: the rooms (folders, or modules that stand alone) of each floor. A room
#: imports itself, rooms of lower floors, and those before it on its own.
FLOORS = (
    ("enums", "kernel.map_facts"),
    ("errors", "_core"),
    ("dtypes", "text", "btf", "kernel"),
    ("arrow", "asm"),
    ("inkernel",),
    ("maptypes", "probes", "live"),
    ("collect", "prometheus", "fleet"),
    ("", "cli"),
    ("__main__",),
)
#: The same within the compiled core, whose rooms see of fastmap only `GROUND`.
CORE_FLOORS = (("system",), ("rows",), ("maps", "streams", "delta", "btf_scan", "live"))
GROUND = ("enums", "errors")


def room_of(module: str) -> str:
    """Return the room a module is in: its folder, but for a file that `FLOORS` names itself."""
    return module if module in sum(FLOORS, ()) else module.partition(".")[0]


def heights(floors: tuple[tuple[str, ...], ...]) -> dict[str, tuple[int, int]]:
    """Return ``{room: (floor, place on it)}``."""
    return {room: (floor, place) for floor, rooms in enumerate(floors)
            for place, room in enumerate(rooms)}


def may_import(importer: str, imported: str) -> bool:
    one, other = room_of(importer), room_of(imported)
    if one == other == "_core":
        inner = heights(CORE_FLOORS)
        return inner[importer.split(".")[1]] >= inner[imported.split(".")[1]]
    if one == "_core":
        return other in GROUND
    floors = heights(FLOORS)
    return floors[one] >= floors[other]


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


def test_every_room_has_its_floor() -> None:
    assert {room_of(module) for module in MODULES} <= set(heights(FLOORS))
    inner = {module.split(".")[1] for module in MODULES if room_of(module) == "_core"}
    assert inner <= set(heights(CORE_FLOORS))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    name = name_of(path)
    if path == PACKAGE / "__init__.py":
        return  # the public names: it may see everything
    if name.endswith(".__init__"):  # may show what its own folder has
        folder = name.removesuffix("__init__")
        assert all(other.startswith(folder) for other in imports_of(path))
        return
    upwards = {other for other in imports_of(path) - {name} if not may_import(name, other)}
    assert not upwards, f"{name} may not import these"


@pytest.mark.parametrize(("line", "imported"), [
    ("def late():\n    from fastmap.maptypes.create import create", {"maptypes.create"}),
    ("from ..maptypes.open import open", {"maptypes.open"}),
    ("from .. import fleet, enums", {"fleet", "enums"}),
    ("from . import reader", {"maptypes.reader"}),
    ("import fastmap.cli.main as c", {"cli.main"}),
    ("if TYPE_CHECKING:\n    from fastmap._core.maps import map", {"_core.maps.map"}),
    ("import importlib\nimportlib.import_module('fastmap.fleet')", {"fleet"}),
])
def test_every_sort_of_import_is_seen(line: str, imported: set[str], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "maptypes"
    folder.mkdir()
    (folder / "x.py").write_text(line)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert imports_of(folder / "x.py") == imported


@pytest.mark.parametrize(("line", "imported"), [
    ("from fastmap._core.maps.map cimport MapCore", {"_core.maps.map"}),
    ("from fastmap._core.rows.codec cimport (\n    Codec,\n    Rows)", {"_core.rows.codec"}),
    ("    from fastmap import errors  # late", {"errors"}),
    ("from fastmap._core.system import syscall", {"_core.system.syscall"}),
    ("cimport fastmap._core.maps.batch_reader as b", {"_core.maps.batch_reader"}),
])
def test_every_sort_of_cimport_is_seen(line: str, imported: set[str], tmp_path: Path) -> None:
    (tmp_path / "x.pyx").write_text(line + "\n")
    assert imports_of(tmp_path / "x.pyx") == imported


def test_upwards_is_not_downwards() -> None:
    assert may_import("maptypes.table", "maptypes.reader") and may_import("cli.main", "fleet")
    assert may_import("_core.maps.map", "_core.rows.codec")
    assert not may_import("_core.rows.codec", "_core.maps.map")
    assert not may_import("_core.maps.map", "dtypes") and not may_import("inkernel.count", "probes")


def test_no_file_over_600_lines() -> None:
    files = [path for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*")
             if path.suffix in (".py", ".pyx", ".pxd", ".pyi", ".h") or path.suffix == ".c"
             and CORE not in path.parents]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 30
    assert not {path: lines for path, lines in lengths.items() if lines > 600}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.pyx")), ids=lambda path: path.stem)
def test_every_compiled_module_has_its_declarations(path: Path) -> None:
    assert path.with_suffix(".pxd").exists() and path.with_suffix(".pyi").exists()
    assert not re.search(r"^\s*include\b", path.read_text(), flags=re.MULTILINE)


def test_no_system_header_of_bpf() -> None:
    for path in [*CORE.rglob("*.h"), *CORE.rglob("*.p[yx][xd]")]:
        assert not re.search(r"include.*linux/bpf|extern from.*linux/bpf", path.read_text()), path


#: Underscored attributes that are Python's and the standard library's own.
OTHERS = {"_replace", "_value_", "_fill_text"}


def reaches(path: Path) -> list[str]:
    """Return the underscored names that a file takes of objects and modules, but does not make."""
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    taken = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") \
                and not node.attr.startswith("__"):
            if isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            else:
                taken.append(node.attr)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            own |= {each.id for each in targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastmap"):
            taken += [each.name for each in node.names if each.name.startswith("_")
                      and each.name != "_core"]
    return [name for name in taken if name not in own | OTHERS]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")),
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_takes_what_is_another_s(path: Path) -> None:
    assert not reaches(path)


def test_reaches_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("from fastmap.asm import _a\nclass X(Y):\n    def _b(self):\n"
                      "        return self._b, self._c, other._d, other._replace, other.__dict__\n")
    assert reaches(source) == ["_a", "_c", "_d"]
