"""Tools of others that tests hold fastmap against: found, or installed once from Debian."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

OBJECTS = Path(__file__).parents[1] / "objects"
#: Where Debian puts tools for root, which need not be in an environment's PATH.
PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
#: What an installation may take, in seconds: clang's 36 MB take about half a minute.
PATIENCE = 300


@cache
def tool(command: str, package: str) -> str:
    """Return the path of `command`; install Debian's `package` where it is missing."""
    found = shutil.which(command, path=PATH)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get", path=PATH):
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=60", "-q", "-y"]
        quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
                   "env": {**os.environ, "PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"},
                   "timeout": PATIENCE}
        install = [*apt, "install", "--no-install-recommends", package]
        if subprocess.run(install, **quietly).returncode:  # type: ignore[call-overload]
            subprocess.run([*apt, "update"], **quietly)  # type: ignore[call-overload]
            subprocess.run(install, **quietly)  # type: ignore[call-overload]
        found = shutil.which(command, path=PATH)
    assert found is not None, f"no {command}: apt-get install {package}"
    return found


def run(*command: str | Path) -> str:
    """Run a tool; return what it says, or fail with it."""
    done = subprocess.run(command, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def bpftool(*arguments: str | Path | int) -> Any:
    """Run bpftool; return what it says in JSON, None where it says nothing."""
    said = run(tool("bpftool", "bpftool"), "-j", *map(str, arguments))
    return json.loads(said) if said.strip() else None


@cache
def built(name: str) -> bytes:
    """Return the object that clang makes of ``tests/objects/NAME.bpf.c``, with its BTF."""
    return subprocess.run(
        [tool("clang", "clang"), "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Wextra",
         "-Werror", "-c", OBJECTS / f"{name}.bpf.c", "-o", "-"],
        check=True, stdout=subprocess.PIPE, timeout=60).stdout


@cache
def unpacked(package: str) -> Path:
    """Return a folder with the files of a Debian package that is not installed: no service starts.

    It is kept in the user's cache, as kernels are.
    """
    where = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastmap" / package
    if not where.exists():
        where.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where.parent) as name:
            folder = Path(name)
            for command in (["apt-get", "-q", "download", package], ["apt-get", "-q", "update"],
                            ["apt-get", "-q", "download", package]):
                done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": PATH},
                                      text=True, capture_output=True, timeout=PATIENCE)
                if found := list(folder.glob("*.deb")):
                    break
            assert found, f"no package {package}: {done.stdout}{done.stderr}"
            run("dpkg", "-x", found[0], folder / "files")
            (folder / "files").rename(where)
    return where


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
