"""What ``fastmap doctor`` looks at: each finding says how it is, and how to fix it."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmap._core.system import syscall
from fastmap.enums import MapType, running_kernel, version_text
from fastmap.errors import BpfError
from fastmap.kernel.bpffs import mounted
from fastmap.kernel.capabilities import CAPABILITIES
from fastmap.kernel.inventory import maps as inventory
from fastmap.maptypes.open import open as open_map
from fastmap.maptypes.reader import padded_keys
from fastmap.maptypes.table import CLASSES as DICTS
from fastmap.maptypes.table import DictMap
from fastmap.probes import features

#: CAP_SYS_RESOURCE lifts RLIMIT_MEMLOCK, of which maps take before Linux 5.11.
CAP_SYS_RESOURCE = 24
#: Kernels from which memory of maps is counted by cgroups, and no longer by RLIMIT_MEMLOCK.
NO_MEMLOCK = (5, 11)
BATCHES, IN_KERNEL = (5, 6), (5, 17)
#: Where bpftool, libbpf and people look for pins.
USUAL = Path("/sys/fs/bpf")
NO_SYS = "cannot be told: /sys is not mounted"
SECCOMP = "docker run --security-opt seccomp=unconfined --cap-add BPF --cap-add PERFMON ..."
#: What each extra brings.
EXTRAS = {"cli": "rich", "arrow": "pyarrow", "prometheus": "prometheus_client",
          "fleet": "distributed"}


def as_root(command: str) -> str:
    """Return how to run a subcommand as root: sudo does not look into a virtual environment."""
    script = Path(sys.argv[0])
    itself = str(script.absolute()) if script.name == "fastmap" else f"{sys.executable} -m fastmap"
    return f"sudo {itself} {command}"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
    state : {"ok", "note", "missing", "essential"}
        "missing" is what something does not work without, "essential" what nothing does.
    text : str
        How it is.
    fix : str
        The command that fixes it; empty where there is none.
    """

    what: str
    state: str
    text: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """Where things are looked up; a test names other places.

    Attributes
    ----------
    root : Path
        Of /proc and /sys.
    capabilities : int
        The effective ones, as the kernel's bit mask.
    """

    root: Path = Path("/")
    capabilities: int = -1

    def read(self, path: str) -> str | None:
        """Return the text of a file; None where there is none, or it may not be read."""
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return None

    def has_sys(self) -> bool:
        """Return whether /sys is there to be looked at."""
        return (self.root / "sys/kernel").is_dir()

    def effective(self) -> int:
        """Return the capabilities as a mask."""
        if self.capabilities >= 0:
            return self.capabilities
        status = self.read("proc/self/status") or ""
        return int(status.partition("CapEff:")[2].split(None, 1)[0], 16)

    def in_user_namespace(self) -> bool:
        """Return whether capabilities are those of another user namespace than the first."""
        said = self.read("proc/self/uid_map")
        return said is not None and said.split() != ["0", "0", "4294967295"]

    def filtered(self) -> bool:
        """Return whether a seccomp filter stands before system calls."""
        status = self.read("proc/self/status") or ""
        return status.partition("\nSeccomp:")[2].split(None, 1)[:1] == ["2"]

    def has(self, capability: int) -> bool:
        """Return whether this process has a capability."""
        return bool(self.effective() >> capability & 1)


def findings(machine: Machine | None = None) -> Iterator[Finding]:
    """Look at everything, in the order of what depends on what."""
    machine = machine or Machine()
    yield kernel()
    yield from capabilities(machine)
    yield bpf_works(machine)
    yield unprivileged(machine)
    yield bpffs()
    yield jit(machine)
    yield memlock(machine)
    yield lockdown(machine)
    yield types(machine)
    yield keys()
    yield from ways()
    yield from extras()


def kernel() -> Finding:
    """The release, and what its age costs."""
    running, release = running_kernel(), os.uname().release
    if running < BATCHES:
        return Finding("kernel", "missing", f"Linux {release}: no batch commands, which need "
                       f"{version_text(BATCHES)}; whole reads go element by element")
    if running < IN_KERNEL:
        return Finding("kernel", "note", f"Linux {release}: no in-kernel path, which needs "
                       f"{version_text(IN_KERNEL)}; everything else works")
    return Finding("kernel", "ok", f"Linux {release}")


def capabilities(machine: Machine) -> Iterator[Finding]:
    """What this process may do."""
    admin = machine.has(CAPABILITIES["CAP_SYS_ADMIN"])
    uses = {
        "CAP_BPF": ("essential", "creating maps and programs"),
        "CAP_PERFMON": ("missing", "tracing programs, perf buffers, and loading what the in-kernel "
                                   "way needs"),
        "CAP_NET_ADMIN": ("note", "network maps (DEVMAP, SOCKMAP, ...) and programs"),
        "CAP_SYS_ADMIN": ("missing", "finding maps by id or name (fastmap list), and reading their "
                                     "BTF; pins need none of it"),
    }
    inside = machine.in_user_namespace()
    if inside:
        yield Finding("user namespace", "note", "capabilities count inside of it alone: maps and "
                      "programs need a token of a bpffs that delegates them (fastmap.Token)")
    for name, (state, what) in uses.items():
        if inside:
            yield Finding(name, "note", f"{what}: counts inside of the user namespace alone")
            continue
        has = machine.has(CAPABILITIES[name])
        if has:
            yield Finding(name, "ok", what)
        elif admin and name in ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"):
            yield Finding(name, "ok", f"CAP_SYS_ADMIN stands for it: {what}")
        else:
            yield Finding(name, state, f"missing: {what}", as_root("doctor"))


def bpf_works(machine: Machine) -> Finding:
    """Whether a map can be made: the one thing that nothing works without."""
    what = "bpf(2)"
    try:
        syscall.map_create(MapType.HASH, 4, 8, 1).close()
    except BpfError as error:
        if error.errno == errno.ENOSYS:
            return Finding(what, "essential", "not in this kernel (CONFIG_BPF_SYSCALL)")
        if error.errno in (errno.EPERM, errno.EACCES):
            if machine.in_user_namespace():
                return Finding(what, "essential", "refused: this is a user namespace, where maps "
                               "are made by a token", as_root("doctor") + "  # outside of it")
            if machine.filtered():
                return Finding(what, "essential", "refused by a seccomp filter", SECCOMP)
            if machine.has(CAPABILITIES["CAP_BPF"]) or machine.has(CAPABILITIES["CAP_SYS_ADMIN"]):
                return Finding(what, "essential", "refused although the capabilities are there: a "
                               "container's filter of system calls", SECCOMP)
            return Finding(what, "essential", "refused: no map can be made",
                           as_root("doctor"))
        return Finding(what, "essential", f"a map cannot be made: {error.strerror}")
    return Finding(what, "ok", "a map can be made")


def unprivileged(machine: Machine) -> Finding:
    """The sysctl kernel.unprivileged_bpf_disabled."""
    what = "unprivileged_bpf_disabled"
    said = machine.read("proc/sys/kernel/unprivileged_bpf_disabled")
    texts = {"0": "0: processes without capabilities may make maps and simple programs",
             "1": "1: only with CAP_BPF, and so until the next boot",
             "2": "2: only with CAP_BPF"}
    return Finding(what, "note" if said in (None, "0") else "ok",
                   texts.get(said or "", f"{said or 'no such sysctl'}"),
                   "sudo sysctl -w kernel.unprivileged_bpf_disabled=2" if said == "0" else "")


def bpffs() -> Finding:
    """Where maps can be pinned."""
    where = [str(path) for path, _ in mounted()]
    if not where:
        return Finding("bpffs", "missing", "not mounted: nothing can be pinned, or opened by a pin",
                       f"sudo mount -t bpf bpf {USUAL}")
    unreadable = [path for path in where if not os.access(path, os.X_OK | os.R_OK)]
    if str(USUAL) not in where:
        return Finding("bpffs", "note", f"mounted on {', '.join(where)}, maybe for another "
                       f"program; none on {USUAL}", f"sudo mount -t bpf bpf {USUAL}")
    if unreadable:
        return Finding("bpffs", "note", f"{', '.join(unreadable)} may not be read by this user",
                       f"sudo chmod o+rx {unreadable[0]}")
    return Finding("bpffs", "ok", f"mounted on {', '.join(where)}")


def jit(machine: Machine) -> Finding:
    """The sysctl net.core.bpf_jit_enable."""
    said = machine.read("proc/sys/net/core/bpf_jit_enable")
    if said == "0":
        return Finding("JIT", "missing", "off: programs are interpreted, several times slower",
                       "sudo sysctl -w net.core.bpf_jit_enable=1")
    if said is None:
        # Another network namespace than the first has no such sysctl; kernels built with
        # CONFIG_BPF_JIT_ALWAYS_ON have it, and it is 1.
        return Finding("JIT", "note", "cannot be told here (net.core.bpf_jit_enable is not there)")
    return Finding("JIT", "ok", "on" if said == "1" else "on, and it writes its code to the log")


def memlock(machine: Machine) -> Finding:
    """RLIMIT_MEMLOCK, of which maps take before 5.11."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if running_kernel() >= NO_MEMLOCK:
        return Finding("memlock", "ok", f"{limit}; maps do not count (from Linux 5.11 on, cgroups "
                       "do that)")
    if soft == resource.RLIM_INFINITY or machine.has(CAP_SYS_RESOURCE):
        return Finding("memlock", "ok", limit)
    return Finding("memlock", "missing", f"{limit}: maps that are larger fail with EPERM",
                   "ulimit -l unlimited")


def lockdown(machine: Machine) -> Finding:
    """The lockdown of the kernel, which can forbid programs to read its memory."""
    said = machine.read("sys/kernel/security/lockdown") or ""
    if not machine.has_sys():
        return Finding("lockdown", "note", NO_SYS)
    mode = said.partition("[")[2].partition("]")[0] or "none"
    if mode == "confidentiality":
        return Finding("lockdown", "missing", "confidentiality: tracing programs may not read the "
                       "kernel's memory",
                       "reboot with lockdown=integrity on the kernel's command line")
    return Finding("lockdown", "ok", mode)


def types(machine: Machine) -> Finding:
    """The BTF of the kernel."""
    if (machine.root / "sys/kernel/btf/vmlinux").exists():
        return Finding("BTF of the kernel", "ok", "/sys/kernel/btf/vmlinux")
    if not machine.has_sys():
        return Finding("BTF of the kernel", "note", NO_SYS)
    return Finding("BTF of the kernel", "missing", "not there (CONFIG_DEBUG_INFO_BTF): no structs "
                   "of the kernel by name, no in-kernel walk of large hashes")


def keys() -> Finding:
    """Whether some map has keys whose padding is not zero, in its first chunk."""
    what, found = "padding of keys", []
    try:
        for info in inventory():
            if not info.btf_id or info.type not in DICTS:
                continue
            with suppress(BpfError, ValueError), open_map(id=info.id, readonly=True) as m:
                if isinstance(m, DictMap) and padded_keys(m, chunks=1):
                    found.append(f"{info.name}({info.id})")
    except BpfError:
        return Finding(what, "note", "the maps of this machine may not be looked through")
    if found:
        return Finding(what, "note", f"not zero in {', '.join(found)}: such a key is found by its "
                       "exact bytes alone, and one key may be there twice",
                       "in the program: __builtin_memset(&key, 0, sizeof(key))")
    return Finding(what, "ok", "zero, as far as types are known")


def ways() -> Iterator[Finding]:
    """The ways to the data, tried out."""
    for way in features().ways:
        state = {True: "ok", False: "missing", None: "missing"}[way.supported]
        yield Finding(f"the {way.name} way", state, "works" if way else way.reason)


def extras() -> Iterator[Finding]:
    """The optional libraries."""
    for extra, module in EXTRAS.items():
        if find_spec(module) is not None:
            yield Finding(f"fastmap-bpf[{extra}]", "ok", f"{module} is installed")
        else:
            yield Finding(f"fastmap-bpf[{extra}]", "note", f"{module} is not installed",
                          f"pip install 'fastmap-bpf[{extra}]'")
