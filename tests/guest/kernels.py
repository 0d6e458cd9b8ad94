"""Debian's cloud kernels: found, fetched, unpacked, and the modules a guest needs of them."""

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

from .common import HarnessError, say, version_key
from .debian import Apt

SERIES = ("6.1", "6.12")  # the long-term kernels our users run; any other series can be named

# Since 6.19 the first package is empty, and needs the others.
PARTS = ("linux-image", "linux-binary", "linux-modules")

# In the order of need. The first two carry the harness's own connection. Some kernels have them
# built in; what a kernel has neither built in nor as a module is left out.
MODULES = ("virtio_pci", "virtio_console", "veth", "dummy", "tun", "sch_ingress", "cls_bpf")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    series: str
    release: str
    image: Path
    modules: Path


def find(cache: Path, series: str) -> Kernel | None:
    """Return the newest unpacked kernel of a series, or None."""
    folders = sorted((cache / "kernels" / series).glob("[!.]*"), key=lambda f: version_key(f.name))
    for folder in reversed(folders):
        # merged-/usr packages (6.12) put modules under usr/lib, older ones under lib
        for modules in (*folder.glob("usr/lib/modules/*"), *folder.glob("lib/modules/*")):
            # since 6.19 the kernel lies beside its modules
            for image in (folder / "boot" / f"vmlinuz-{modules.name}", modules / "vmlinuz"):
                if image.is_file():
                    return Kernel(series, modules.name, image, modules)
    return None


def fetch(cache: Path, apt: Apt, series: str, *, refresh: bool = False) -> Kernel:
    """Return the newest kernel of a series, from the cache where one is there."""
    if not re.fullmatch(r"\d+\.\d+", series):
        raise HarnessError(f"a kernel is named by its series, such as 6.12, not {series!r}")
    cached = find(cache, series)
    if cached is not None and not refresh:
        return cached
    apt.update(force=refresh)
    prefix = f"linux-image-{series}"
    found = apt.candidates(prefix, re.escape(prefix) + r"[.+-][\w.+~-]*?(?<!rt)-cloud-amd64")
    if not found:
        raise HarnessError(f"no package {prefix}*-cloud-amd64 on the mirrors that apt knows")
    name, version = max(found.items(), key=lambda item: version_key(item[1]))
    target = cache / "kernels" / series / f"{version}"
    if not target.exists():
        say(f"fetch   {name} ({version})")
        parts = [name.replace("linux-image", part) for part in PARTS]
        apt.unpack([part for part in parts if apt.candidates(part, re.escape(part))], target)
    kernel = find(cache, series)
    if kernel is None:
        raise HarnessError(f"{name} {version} holds no bootable kernel")
    return kernel


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _needs(module: bytes) -> list[str]:
    """Return the modules that one depends on, from its .modinfo (packages ship no modules.dep)."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return match[1].decode().split(",") if match and match[1] else []


def modules_in_order(kernel: Kernel, wanted: tuple[str, ...] = MODULES) -> list[tuple[str, bytes]]:
    """Return name and content of the wanted modules and of all they need, in loading order."""
    paths = {
        path.name.partition(".")[0].replace("-", "_"): path
        for path in (kernel.modules / "kernel").rglob("*.ko*")
    }
    ordered: dict[str, bytes] = {}

    def visit(name: str) -> None:
        name = name.replace("-", "_")
        if name in ordered or name not in paths:  # not a file: built in, or not to be had
            return
        data = _read_module(paths[name])
        for other in _needs(data):
            visit(other)
        ordered[name] = data

    for name in wanted:
        visit(name)
    return list(ordered.items())
