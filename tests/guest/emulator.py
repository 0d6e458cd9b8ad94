"""Which qemu runs the guests.

QEMU before 8.1 miscompiles code that another CPU has just patched: kernels that patch themselves
(static branches, BPF trampolines) then die of stray breakpoints. QEMU 7.2, that of Debian 12,
broke about every fifth boot of 6.12, 10.0 none. So an older one is replaced by the one of the
backports of its own release, unpacked into the cache; the libraries it needs are already there.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .common import HarnessError, output_of, say, version_key
from .debian import Apt

NAME = "qemu-system-x86_64"
INSTALL = "the guests need qemu: apt-get install qemu-system-x86"
SOUND = (8, 1)
PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios")


@dataclass(frozen=True)
class Emulator:
    """A qemu and the folders of its firmware."""

    program: Path
    firmware: tuple[Path, ...]
    version: str

    def command(self) -> list[str]:
        """Return the start of its command line."""
        command = [str(self.program)]
        for folder in self.firmware:
            command += ["-L", str(folder)]
        return command


def _version(program: Path) -> str:
    match = re.search(r"version (\d+(?:\.\d+)+)", output_of([program, "--version"]))
    if match is None:
        raise HarnessError(f"{program} does not tell its version")
    return match[1]


def _unpacked(folder: Path) -> Emulator | None:
    """Return the emulator in the cache, if it is there and this system can run it."""
    program = folder / "usr/bin" / NAME
    try:
        version = _version(program)
    except HarnessError:
        return None
    return Emulator(program, (folder / "usr/share/qemu", folder / "usr/share/seabios"), version)


def find(cache: Path, apt: Apt) -> Emulator:
    """Return the emulator to use: $FASTMAP_QEMU, the system's, or a newer one from the cache."""
    chosen = os.environ.get("FASTMAP_QEMU")
    installed = shutil.which(chosen or NAME)
    if installed is None:
        raise HarnessError(f"FASTMAP_QEMU={chosen}: no such program" if chosen else INSTALL)
    program = Path(installed)
    system = Emulator(program, (), _version(program))
    if chosen or version_key(system.version) >= SOUND:
        return system
    folder = cache / "qemu"
    if (newer := _unpacked(folder)) is None and not folder.exists():
        say(f"fetch   a newer qemu: {system.version} has bugs that kernels run into")
        try:
            apt.update()
            suite = f"{_codename()}-backports"
            apt.unpack([f"{package}/{suite}" for package in PACKAGES], folder)
        except HarnessError as error:
            say(f"fetch   {error}")
        newer = _unpacked(folder)
    if newer is None:
        say(f"fetch   no newer qemu to be had: {system.version} may crash kernels at boot")
    return newer or system


def _codename() -> str:
    """Return the name of this Debian release; only its own backports fit its libraries."""
    match = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    return match[1] if match else "stable"
