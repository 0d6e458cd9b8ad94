"""Write cpio archives of the format the kernel unpacks as its first root folder ("newc")."""

import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO


class Archive:
    """An archive in the making, whose files keep the paths they have on this machine.

    Owners and modes are normal ones (root, 755, 644), so that a guest's unprivileged user can
    read what lies below a home folder that nobody else may enter here.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._paths: set[str] = set()
        self._links: dict[str, str | None] = {}  # what readlink() said, None: not a link
        self._inode = 0

    def _entry(
        self, path: str, mode: int, data: bytes = b"", mtime: int = 0, device: str = "0:0"
    ) -> None:
        """Write one entry: numbers in hexadecimal, the name, the data, both padded."""
        self._inode += 1
        name = path.lstrip("/").encode() + b"\0"
        major, minor = map(int, device.split(":"))
        user, group, links, checksum = 0, 0, 1, 0
        fields = [self._inode, mode, user, group, links, mtime, len(data), 0, 0, major, minor]
        fields += [len(name), checksum]
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._stream.write(header + b"\0" * (-len(header) % 4))
        if data:
            self._stream.write(data + b"\0" * (-len(data) % 4))

    def _new(self, path: str) -> bool:
        """Note `path` as taken and make the folders above it; False if it was there."""
        if path in self._paths:
            return False
        parent = str(PurePosixPath(path).parent)
        if parent != path:
            self.folder(parent)
        self._paths.add(path)
        return True

    def folder(self, path: str) -> None:
        """Add a folder and those above it."""
        if path != "/" and self._new(path):
            self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, *, mode: int = 0o644, mtime: int = 0) -> None:
        """Add a file of the given content."""
        if self._new(path):
            self._entry(path, stat.S_IFREG | mode, data, mtime)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        if self._new(path):
            self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node: written as data, so no privilege is needed."""
        if self._new(path):
            self._entry(path, stat.S_IFCHR | 0o600, device=f"{major}:{minor}")

    def mirror(self, path: Path, read: Callable[[Path], bytes] | None = None) -> None:
        """Add a file, folder or link of this machine, and every link on the way to it.

        `read` gives a file's content where it is not to be taken as it is.
        """
        todo = list(path.parts[1:])[::-1]
        at = "/"
        while todo:
            part = todo.pop()
            if part == "..":
                at = os.path.dirname(at)
                continue
            step = os.path.join(at, part)
            target = self._readlink(step)
            if target is None:
                at = step
                continue
            self.link(step, target)
            if target.startswith("/"):
                at = "/"
            todo += [p for p in target.split("/") if p not in ("", ".")][::-1]
        if at in self._paths:
            return
        status = os.stat(at)
        if stat.S_ISDIR(status.st_mode):
            self.folder(at)
        elif stat.S_ISREG(status.st_mode):
            mode = 0o755 if status.st_mode & 0o100 else 0o644
            # Modification times are kept: compiled modules are valid for one time only.
            data = (read or Path.read_bytes)(Path(at))
            self.file(at, data, mode=mode, mtime=int(status.st_mtime))

    def _readlink(self, path: str) -> str | None:
        if path not in self._links:
            try:
                self._links[path] = os.readlink(path)
            except OSError:
                self._links[path] = None
        return self._links[path]

    def close(self) -> None:
        """Write the end mark, padded so that another archive may follow."""
        self._inode = 0
        self._entry("TRAILER!!!", 0)
        self._stream.write(b"\0" * (-self._stream.tell() % 512))
