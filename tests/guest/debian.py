"""Debian packages without root: a private apt state in the cache folder.

The system's apt is asked which mirrors it uses and how it reaches them (proxies and the like);
its own state is neither used nor changed. The suites beyond the system's own release are read
from the same mirrors, with Debian's archive key.
"""

import os
import re
import shutil
import time
from pathlib import Path

from .common import HarnessError, building, output_of, say

# Where kernels and the emulator are looked for: 6.1 is bookworm's, 6.12 trixie's, newer ones
# come with backports. A suite that the mirror lacks is left out.
SUITES = (
    "bookworm",
    "bookworm-updates",
    "bookworm-backports",
    "trixie",
    "trixie-updates",
    "trixie-backports",
)
SECURITY_SUITES = ("bookworm-security", "trixie-security")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_LAST = 24 * 3600.0  # seconds before the lists of a private apt are fetched anew


class Apt:
    """apt-get and apt-cache over a state of our own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "apt.conf"
        self._fresh = False

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        return output_of(command, cwd=cwd, APT_CONFIG=str(self._config))

    def update(self, *, force: bool = False) -> None:
        """Fetch the package lists, unless they are of today."""
        stamp = self._folder / "updated"
        age = time.time() - stamp.stat().st_mtime if stamp.exists() else LISTS_LAST
        if self._fresh or (age < LISTS_LAST and not force):
            return
        say("fetch   package lists")
        self._configure()
        try:
            self._run("apt-get", "update", "--quiet")
        except HarnessError as error:
            # One missing suite makes apt fail although the others are there; whether what we
            # need was found is seen by the search that follows.
            say(f"fetch   {error}")
        stamp.touch()
        self._fresh = True

    def _configure(self) -> None:
        """Write the sources and the settings of the private state."""
        if shutil.which("apt-get") is None:
            raise HarnessError("fetching kernels needs apt-get (Debian, or a container of it)")
        for name in ("lists/partial", "archives/partial"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        listed = output_of(
            ["apt-get", "indextargets", "Created-By: Packages", "--format", "$(REPO_URI)"]
        )
        mirrors = dict.fromkeys(uri for uri in listed.split() if re.search(r"/debian\b", uri))
        stanzas = []
        for uri in mirrors:
            suites = SECURITY_SUITES if "security" in uri else SUITES
            stanza = [
                "Types: deb",
                f"URIs: {uri}",
                f"Suites: {' '.join(suites)}",
                "Components: main",
                "Targets: Packages",
            ]
            if KEYRING.exists():
                stanza.append(f"Signed-By: {KEYRING}")
            stanzas.append("\n".join(stanza) + "\n")
        if not stanzas:
            raise HarnessError("no Debian mirror among the sources of apt")
        sources = self._folder / "guest.sources"
        sources.write_text("\n".join(stanzas))
        # `Acquire` says how the system reaches its mirrors. The rest of its settings stays out:
        # hooks among them act on the system's own state.
        settings = [
            line
            for line in output_of(["apt-config", "dump", "Acquire"]).splitlines()
            if not line.endswith(' "";')
        ]
        for key, value in {
            "Dir::State": str(self._folder),
            "Dir::State::status": os.devnull,  # nothing is installed, as far as this apt knows
            "Dir::Cache": str(self._folder),
            "Dir::Etc::SourceList": str(sources),
            "Dir::Etc::SourceParts": os.devnull,
            "Dir::Etc::Parts": os.devnull,
            "Dir::Etc::Main": os.devnull,
            "APT::Sandbox::User": "",  # the user _apt cannot write below a home folder
            "APT::Architecture": "amd64",
        }.items():
            settings.append(f'{key} "{value}";')
        self._config.write_text("\n".join(settings) + "\n")

    def candidates(self, prefix: str, pattern: str) -> dict[str, str]:
        """Return name and version of the packages whose whole name matches `pattern`."""
        names = [
            name
            for name in self._run("apt-cache", "pkgnames", prefix).split()
            if re.fullmatch(pattern, name)
        ]
        if not names:
            return {}
        shown = self._run("apt-cache", "show", "--no-all-versions", *names)
        found: dict[str, str] = {}
        name = ""
        for line in shown.splitlines():
            field, _, value = line.partition(": ")
            if field == "Package":
                name = value
            elif field == "Version":
                found[name] = value
        return found

    def unpack(self, packages: list[str], target: Path) -> None:
        """Download packages (``name`` or ``name/suite``) and unpack them all into `target`."""
        with building(target) as folder:
            self._run("apt-get", "download", "--quiet", *packages, cwd=folder)
            for archive in sorted(folder.glob("*.deb")):
                output_of(["dpkg-deb", "-x", archive, folder])
                archive.unlink()
