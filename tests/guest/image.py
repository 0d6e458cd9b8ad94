"""The guest's file system: this machine's Python and the project, at the paths they have here.

Same paths mean that nothing needs relocating (virtual environments, editable installs, compiled
modules), and that a traceback of a guest points at files of this machine. It comes in two cpio
archives, one behind the other: the base (Python and its packages), cached by a hash of what goes
into it, and the project (package, tests, kernel modules, what to run), written for every guest.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common import REPOSITORY, HarnessError, building, output_of, say
from .compiled import compile_packages, compile_tests, compiled_forms, first_bytes
from .cpio import Archive

PROJECT = "fastmap-bpf"
PACKAGES = ("numpy", "pytest", "hypothesis", "pytest-benchmark")
# Not needed by the harness: for tests that run them, and for `shell`. Absent ones are left out.
TOOLS = ("bpftool", "cat", "dmesg", "env", "head", "id", "ip", "ls", "mount", "ps", "sh", "sleep")

# Parts of a standard library or a package that no test runs.
UNUSED_FOLDERS = re.compile(
    r"__pycache__|site-packages|dist-packages|tests?|idlelib|turtledemo|tkinter|ensurepip|lib2to3"
    r"|pydoc_data|distutils|f2py|config-[\w-]*"
)
UNUSED_FILES = re.compile(
    r".*\.(a|c|exe|h|lib|o|pxd|pyc|pyi|pyx)|_(test|tkinter|simd|sqlite3)\w*\..*\.so"
)
# Of the repository: nothing hidden, built, or large.
UNUSED_PROJECT_FOLDERS = re.compile(r"\..*|__pycache__|build|dist|.*\.egg-info")
UNUSED_PROJECT_FILES = re.compile(r".*\.(o|pyc|html|gcda|gcno)|\..*")
LARGEST_PROJECT_FILE = 8 << 20
BASES_KEPT = 3
BASES_LAST = 24 * 3600.0  # seconds: each clone of the repository has its own

PARTS = ("compiled.py", "cpio.py", "image.py")  # what makes the base what it is

GUEST = "/guest"  # where the harness keeps its own files in a guest
SMALL_FILES = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


@dataclass(frozen=True)
class Python:
    """What probe.py found out about the Python of the guests."""

    executable: str
    base: str
    prefix: str
    tag: str
    version: str
    stdlib: list[str]
    sites: list[str]
    files: dict[str, list[str]]  # of each distribution


def probe(executable: Path, packages: Iterable[str] = ()) -> Python:
    """Ask a Python, usually that of a virtual environment, what it consists of."""
    script = Path(__file__).with_name("probe.py")
    facts: dict[str, Any] = json.loads(
        output_of([executable, script, PROJECT, *PACKAGES, *packages])
    )
    if missing := {"numpy", "pytest"} - set(facts["files"]):
        raise HarnessError(f"{executable} lacks {' and '.join(sorted(missing))}")
    return Python(**facts)


def _walk(folder: Path, unused_folders: re.Pattern[str]) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not unused_folders.fullmatch(name)]
        for name in names:
            yield Path(at, name)


def _distribution_files(python: Python, name: str) -> Iterator[Path]:
    """Yield the files of a distribution that are needed to run it, all of the project's own."""
    for text in python.files.get(name, []):
        path = Path(os.path.normpath(text))
        if path.suffix == ".pyc" or not path.is_file():
            continue
        if name != PROJECT:
            inside = [path.relative_to(site) for site in python.sites if path.is_relative_to(site)]
            if not inside or UNUSED_FILES.fullmatch(path.name):  # not inside: a script in bin
                continue
            if any(UNUSED_FOLDERS.fullmatch(part) for part in inside[0].parts[:-1]):
                continue
        yield path


def _base_files(python: Python) -> list[Path]:
    """Return the files of Python and of its packages, without the compiled ones."""
    files = {Path(python.executable), Path(python.base)}
    if (configuration := Path(python.prefix, "pyvenv.cfg")).exists():
        files.add(configuration)
    for folder in python.stdlib:
        files.update(
            path
            for path in _walk(Path(folder), UNUSED_FOLDERS)
            if not UNUSED_FILES.fullmatch(path.name) and path.is_file()
        )
    for name in python.files:
        if name != PROJECT:
            files.update(_distribution_files(python, name))
    files.update(Path(found) for tool in TOOLS if (found := shutil.which(tool)))
    return sorted(files)


def _digest(files: Iterable[Path], *more: str) -> str:
    """Return a hash that changes when one of `files` does, judged by size and time."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in files:
        status = path.stat()
        digest.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _libraries(files: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that programs and extension modules load."""
    binaries = [path for path in files if first_bytes(path, 4) == b"\x7fELF"]
    if not binaries:
        return set()
    text = subprocess.run(
        ["ldd", *map(str, binaries)],
        capture_output=True,
        text=True,
        check=False,  # it fails when one of many is not dynamic
    ).stdout
    return {Path(found) for found in re.findall(r"(?:=> |^\s)(/\S+) \(0x", text, re.M)}


def _stripped(file: Path) -> bytes:
    """Return the content of a file; of a library of an own build of Python, only what is run.

    Such builds (pyenv) are three times as large with debug information, and the kernel of a guest
    takes 20 ms to unpack a MiB. Wheels are left alone: strip breaks what patchelf has arranged.
    """
    tool = shutil.which("strip")
    if tool is None or first_bytes(file, 4) != b"\x7fELF" or file.stat().st_size < 1 << 16:
        return file.read_bytes()
    with tempfile.NamedTemporaryFile() as stripped:
        command = [tool, "-g", "-o", stripped.name, str(file)]
        done = subprocess.run(command, capture_output=True, check=False)
        return (Path(stripped.name) if done.returncode == 0 else file).read_bytes()


def compiled(cache: Path, python: Python) -> Path:
    """Return the folder with the compiled forms of the project's tests, made if need be."""
    files = _walk(REPOSITORY, UNUSED_PROJECT_FOLDERS)
    sources = sorted(path for path in files if path.suffix == ".py")
    digest = _digest(sources, python.executable, python.version, *python.files)
    prefix = cache / "compiled" / python.tag
    stamp = prefix / f"stamp-{hashlib.sha256(bytes(REPOSITORY)).hexdigest()[:16]}"
    if not stamp.exists() or stamp.read_text() != digest:
        say("image   compiling the tests")
        prefix.mkdir(parents=True, exist_ok=True)
        compile_tests(python.executable, prefix, sources)
        stamp.write_text(digest)
    return prefix


def base(cache: Path, python: Python) -> Path:
    """Return the archive with Python and its packages, from the cache where it is there."""
    files = _base_files(python)
    own = "".join(Path(__file__).with_name(name).read_text() for name in PARTS)
    loader = [path for path in (Path("/etc/ld.so.cache"),) if path.exists()]
    target = cache / "images" / f"base-{_digest([*files, *loader], python.version, own)}"
    archive_path = target / "base.cpio"
    if archive_path.exists():
        os.utime(target)
        return archive_path
    say(f"image   base with Python {python.version.split()[0]}, {len(files)} files")
    with (
        building(target) as folder,
        (folder / "base.cpio").open("wb") as stream,
        tempfile.TemporaryDirectory() as prefix,
    ):
        compile_packages(python.executable, Path(prefix))
        archive = Archive(stream)
        archive.character_device("/dev/console", 5, 1)  # init's output, before it mounts anything
        archive.folder("/root")
        for name, text in SMALL_FILES.items():
            archive.file(name, text.encode())
        sites = tuple(f"{site}/" for site in python.sites)
        for file in [*files, *loader, *sorted(_libraries(files))]:
            archive.mirror(file, None if str(file).startswith(sites) else _stripped)
            if file.suffix == ".py":
                for path, place in compiled_forms(file, python.tag, Path(prefix)):
                    archive.file(str(place), path.read_bytes())
        archive.close()
    _forget(target.parent)
    return archive_path


def _forget(folder: Path) -> None:
    """Remove base images not used for a day, but for the last used ones; runs go on beside this."""
    used = sorted(folder.glob("base-*"), key=lambda path: path.stat().st_mtime)
    for path in used[:-BASES_KEPT]:
        if time.time() - path.stat().st_mtime > BASES_LAST:
            shutil.rmtree(path, ignore_errors=True)


def _project_files(python: Python) -> Iterator[Path]:
    """Yield the files of the repository and of the installed package."""
    for path in _walk(REPOSITORY, UNUSED_PROJECT_FOLDERS):
        generated = path.suffix in (".c", ".cpp") and path.with_suffix(".pyx").exists()
        if generated or UNUSED_PROJECT_FILES.fullmatch(path.name) or not path.is_file():
            continue
        if path.stat().st_size <= LARGEST_PROJECT_FILE:
            yield path
    yield from _distribution_files(python, PROJECT)


def write(
    target: Path,
    base_archive: Path,
    python: Python,
    prefix: Path,
    modules: list[tuple[str, bytes]],
    job: dict[str, Any],
    added: Iterable[Path] = (),
) -> None:
    """Write the whole initramfs of one guest: the base, then the project and the job."""
    shutil.copyfile(base_archive, target)
    with target.open("ab") as stream:
        archive = Archive(stream)
        init = f"#!{os.path.realpath(python.base)} -IS\n"
        init += Path(__file__).with_name("init.py").read_text()
        archive.file("/init", init.encode(), mode=0o755)
        archive.file(f"{GUEST}/job.json", json.dumps(job).encode())
        for number, (name, data) in enumerate(modules):
            archive.file(f"{GUEST}/modules/{number:02}-{name}.ko", data)
        for path in (prefix / "hypothesis").rglob("*"):
            if path.is_file():
                inside = path.relative_to(prefix)
                archive.file(f"{GUEST}/{inside}", path.read_bytes())
        files = list(_project_files(python))
        for path in added:
            files += _walk(path, UNUSED_PROJECT_FOLDERS) if path.is_dir() else [path]
        extensions = [path for path in files if path.suffix == ".so"]
        for file in [*files, *sorted(_libraries(extensions))]:
            archive.mirror(file)
            if file.suffix == ".py":
                for path, place in compiled_forms(file, python.tag, prefix):
                    archive.file(str(place), path.read_bytes())
        archive.close()
