"""Compiled forms of what a guest imports, made by this machine.

Compiling is what an emulated CPU is slowest at: it was 25 of the 33 seconds that the quick tests
took in a guest. pytest rewrites tests and plugins before it compiles them, so it must do that
itself: by collecting tests here, with its results kept in a folder of ours.
"""

import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from .common import REPOSITORY, guarded


def compile_packages(python: str, prefix: Path) -> None:
    """Compile what every run of the tests imports of Python and its packages, below `prefix`."""
    test = prefix / "test_imports.py"
    test.write_text("import hypothesis.extra.numpy\n")
    _collect(python, prefix, prefix, ["-c", os.devnull, str(test)])


def compile_tests(python: str, prefix: Path, sources: Sequence[Path]) -> None:
    """Compile the project's tests and what they import, below `prefix`.

    Without conftest files, which may want to use bpf(2) at once; these are compiled as if they
    were tests. What hypothesis keeps (constants of the code under test, a table of unicode) is
    dear to compute, too: it lands in `prefix`/hypothesis.
    """
    extra = prefix / "test_unicode.py"
    extra.write_text("from hypothesis.internal import charmap\n\ncharmap.charmap()\n")
    files = [str(path) for path in (*sources, extra) if path.name in ("conftest.py", extra.name)]
    _collect(python, prefix, REPOSITORY, ["--noconftest", "tests", *files])


def _collect(python: str, prefix: Path, folder: Path, arguments: list[str]) -> None:
    """Let pytest collect tests, without caring about the outcome: this only saves time."""
    options = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {
        "PYTHONPYCACHEPREFIX": str(prefix),
        "PYTHONDONTWRITEBYTECODE": "",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(prefix / "hypothesis"),
    }
    subprocess.run(
        guarded([python, *options, *arguments]),
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def compiled_forms(source: Path, tag: str, prefix: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (compiled file, its place in the guest) for a source, of Python and of pytest.

    They are looked for below `prefix` and, where Python itself puts them, beside the source.
    """
    status = source.stat()
    # Python marks validity by the time and the size of the source, new pytests by a hash of it.
    # Time and size are checked here, so that no dead weight is taken; a hash by the importer only.
    expected = struct.pack("<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size)
    hashed = struct.pack("<I", 3)
    place = source.parent / "__pycache__"
    name = f"{source.stem}.{tag}"
    for folder in (prefix / source.parent.relative_to("/"), place):
        for path in (folder / f"{name}.pyc", *folder.glob(f"{name}-pytest-*.pyc")):
            head = first_bytes(path, 16)[4:]
            if head == expected or head.startswith(hashed):
                yield path, place / path.name


def first_bytes(path: Path, size: int) -> bytes:
    """Return the first bytes of a file, or none if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError:
        return b""
