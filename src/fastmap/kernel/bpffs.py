"""bpffs: where it is mounted, mounting it, and what is pinned on it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fastmap._core.system import mount, syscall
from fastmap.enums import MapFlag
from fastmap.errors import BpfError, PermissionDenied


class Pin(NamedTuple):
    """Something pinned on a bpffs.

    Attributes
    ----------
    path : Path
    kind : {"map", "prog", "link"}
    id : int
        The kernel's number of the map, program or link.
    """

    path: Path
    kind: str
    id: int


def mounted() -> list[tuple[Path, int]]:
    """Return the folders on which a bpffs can be reached, each with its device number."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            mine, _, theirs = line.partition(b" - ")
            if theirs.split(None, 1)[0] != b"bpf":
                continue
            device, where = mine.split()[2], mine.split()[4]
            major, minor = map(int, device.split(b":"))
            where = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), where)
            found.append((Path(os.fsdecode(where)), os.makedev(major, minor)))
    return found


def on_bpffs(path: str | os.PathLike[str]) -> bool:
    """Return whether a file or folder is on a mounted bpffs."""
    there = os.stat(path).st_dev
    return any(device == there for _, device in mounted())


def pins() -> Iterator[Pin]:
    """Walk what is pinned on every bpffs that this process can reach.

    Yields
    ------
    Pin
        With ``path``, ``kind`` ("map", "prog" or "link") and ``id``. A bpffs mounted on several
        folders is walked on each.

    Notes
    -----
    Linux 4.13. Each pin is opened for a moment, those of maps for reading only. Folders and pins
    that this process may not read are left out.
    """
    return walk([])


def walk(left_out: list[Path]) -> Iterator[Pin]:
    """Walk as `pins` does; what may not be read is added to `left_out`."""
    for where, device in mounted():
        try:
            if os.stat(where).st_dev == device:  # else another file system hides it
                yield from _below(where, left_out)
        except FileNotFoundError:
            continue  # unmounted since
        except PermissionError:
            left_out.append(where)


def _below(folder: Path, left_out: list[Path]) -> Iterator[Pin]:
    try:
        with os.scandir(folder) as entries:
            files = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        left_out.append(folder)
        return
    for entry in files:
        path = Path(entry.path)
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(path, left_out)
            elif not entry.is_symlink():
                yield _pin(path)
        except FileNotFoundError:
            continue  # unpinned since
        except PermissionError:
            left_out.append(path)


def _pin(path: Path) -> Pin:
    try:
        fd = syscall.obj_get(path, MapFlag.RDONLY)
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = syscall.obj_get(path)  # a link is opened for everything, or not at all
    try:
        told = syscall.fdinfo(fd)
    finally:
        fd.close()
    # A link tells its program's id as well.
    kind = next(kind for kind in ("map", "link", "prog") if f"{kind}_id" in told)
    return Pin(path, kind, int(told[f"{kind}_id"]))


def pins_of(kind: str, number: int) -> list[Path]:
    """Return where a map, program or link is pinned."""
    return [pin.path for pin in pins() if (pin.kind, pin.id) == (kind, number)]


class Bpffs(os.PathLike[str]):
    """A folder that is on a bpffs. Made by `fastmap.bpffs`.

    It is a path: ``fs / "flows"`` is what to pin at. As a context manager it gives a `Path`, and
    unmounts at the end what it has mounted.

    Attributes
    ----------
    path : Path
    mounted : bool
        Whether it was mounted for this object. One that was there already is left alone.
    """

    def __init__(self, path: Path, mounted: bool) -> None:
        self.path = path
        self.mounted = mounted

    def unmount(self) -> None:
        """Unmount the bpffs, if it was mounted for this object; its pins go with it.

        Raises
        ------
        PermissionDenied
            CAP_SYS_ADMIN is missing.
        """
        if self.mounted:
            _check(mount.unmount(os.fsencode(self.path)), self.path, "unmounting")
            self.mounted = False

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.unmount()

    def __repr__(self) -> str:
        return f"<fastmap.Bpffs {str(self.path)!r}{', mounted here' if self.mounted else ''}>"


def bpffs(path: str | os.PathLike[str] = "/sys/fs/bpf", *, mode: int = 0o700) -> Bpffs:
    """Return a folder that is on a bpffs, and mount one there where none is.

    Parameters
    ----------
    path : path
        A folder. Where it is on a bpffs already, nothing is done.
    mode : int
        Who may enter the new one: permissions of its root folder.

    Returns
    -------
    Bpffs
        A path, and a context manager that unmounts what it mounted. Without ``with``, the mount
        stays until it is unmounted or the machine is restarted.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        There is no such folder: it is not made.
    PermissionDenied
        CAP_SYS_ADMIN is missing.

    Notes
    -----
    Linux 4.4. The mount is seen by the processes of this mount namespace. A bpffs that delegates
    BPF into a user namespace cannot be mounted in one call by one process: see `fastmap.Token`.
    """
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"mode is an integer, not {mode!r}")
    if not 0 <= mode <= 0o7777:
        raise ValueError(f"mode={mode:#o}: 0 to 0o7777")
    folder = Path(os.path.realpath(path, strict=True))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a bpffs is mounted on a folder", str(folder))
    if on_bpffs(folder):
        return Bpffs(folder, mounted=False)
    _check(mount.mount_bpf(os.fsencode(folder), b"mode=%o" % mode), folder, "mounting")
    return Bpffs(folder, mounted=True)


def _check(number: int, path: Path, doing: str) -> None:
    if number in (errno.EPERM, errno.EACCES):
        raise PermissionDenied(number, f"{path}: {doing} a bpffs needs CAP_SYS_ADMIN")
    if number:
        raise OSError(number, f"{doing} a bpffs: {os.strerror(number)}", str(path))
