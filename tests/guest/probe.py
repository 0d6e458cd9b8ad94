"""Tell, as JSON, what the Python that runs this consists of. Runs in the project's environment.

Usage: ``python probe.py PROJECT PACKAGE...``: the project's distribution, and more that the tests
use. Whatever they require is found here, as far as it is installed.
"""

import importlib.metadata as metadata
import importlib.util
import json
import re
import site
import sys
import sysconfig
from pathlib import Path

EXTRAS = ("test", "cli")  # of the project itself


def requirements(distribution: metadata.Distribution, extras: tuple[str, ...]) -> list[str]:
    """Return the names a distribution requires.

    Markers are not evaluated, apart from extras: a package that is required elsewhere but
    installed here only costs a little space.
    """
    names = []
    for requirement in distribution.requires or []:
        specifier, _, marker = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if extra is None or extra[1] in extras:
            match = re.match(r"[\w.-]+", specifier)
            if match:
                names.append(match[0])
    return names


def distributions(project: str, packages: list[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions of the project, of `packages`, and of all they need."""
    found: dict[str, metadata.Distribution] = {}
    todo = [project, *packages]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        todo += requirements(found[name], EXTRAS if name == project else ())
    return found


def files_of(distribution: metadata.Distribution) -> list[str]:
    """Return a distribution's files; without a list of them, those of the folder of its name."""
    if distribution.files:
        return [str(distribution.locate_file(file)) for file in distribution.files]
    name = distribution.metadata["Name"].replace("-", "_")
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [str(path) for folder in folders for path in Path(folder).rglob("*")]


def main() -> None:
    project, packages = sys.argv[1], sys.argv[2:]
    found = distributions(project, packages)
    facts = {
        "executable": sys.executable,
        "base": getattr(sys, "_base_executable", sys.executable),
        "prefix": sys.prefix,
        "tag": sys.implementation.cache_tag,
        "version": sys.version,
        "stdlib": sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}),
        "sites": site.getsitepackages(),
        "files": {name: files_of(distribution) for name, distribution in found.items()},
    }
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
