"""`python -m bench.peers.install`: what the suite needs, from Debian and PyPI; a line for each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from ..counts import no_callgrind
from .kinds import KINDS

PATIENCE = 600


def no_qemu() -> str | None:
    """What boots the guests with so many CPUs."""
    return None if shutil.which("qemu-system-x86_64") else "apt-get install qemu-system-x86"


#: What else the suite measures with.
TOOLS = {"callgrind": no_callgrind, "qemu": no_qemu}


def run(*command: str) -> bool:
    """Run an installer quietly; did it work?"""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                              timeout=PATIENCE)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def apt(packages: list[str]) -> bool:
    """Install Debian packages, with fresh lists where the old ones do not do."""
    base = ["apt-get", "-o", "DPkg::Lock::Timeout=60", "-q", "-y"]
    install = [*base, "install", "--no-install-recommends", *packages]
    return run(*install) or (run(*base, "update") and run(*install))


def main() -> int:
    """Install what is missing, and say what cannot be had; never a failure of its own."""
    for name, missing in (*((kind.name, kind.missing) for kind in KINDS), *TOOLS.items()):
        how = missing()
        if how is not None:
            tool, _, packages = how.partition(" install ")
            worked = (apt(packages.split()) if tool == "apt-get" else
                      run(sys.executable, "-m", "pip", "install", "-q", *packages.split()))
            getattr(missing, "cache_clear", lambda: None)()
            how = missing() if worked else how
        print(f"{name}: {'there' if how is None else f'cannot be had by {how}'}")
    print("pylibbpf, tinybpf: left out; they take maps from object files or pins of their own, or "
          "are not on PyPI")
    return 0


if __name__ == "__main__":
    sys.exit(main())
