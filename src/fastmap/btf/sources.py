"""BTF wherever it is: of the kernel, its modules, maps, programs, and object files."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.btf import elf
from fastmap.btf.encoder import HEADER, MAGIC
from fastmap.btf.layout import Btf, Layout
from fastmap.errors import BpfError

_KERNEL = Path("/sys/kernel/btf")
_BTF_MAGICS = tuple(MAGIC.to_bytes(2, order) for order in ("little", "big"))


class _File(Protocol):
    def fileno(self) -> int: ...


class _Info(Protocol):
    @property
    def btf_id(self) -> int: ...


Source: TypeAlias = "Btf | str | os.PathLike[str] | int | _File | _Info"


def read_btf(
    source: Source = "vmlinux", *, prog_id: int | None = None, map_id: int | None = None
) -> Btf:
    """Read all the types of a map, a program, a file, or the kernel.

    Parameters
    ----------
    source : str, path, map, Program, int, MapInfo or Btf
        "vmlinux" or the name of a loaded module; the path of an object file (ELF, whole or not yet
        linked), of raw BTF, or of a pin; a map or program, or its descriptor; the info of a map.
    prog_id, map_id : int, optional
        Instead: the kernel's number of a program or map. Needs CAP_SYS_ADMIN.

    Returns
    -------
    fastmap.btf.Btf
        Its types are indexed (vmlinux: 50 ms), and read when they are asked for.

    Raises
    ------
    ValueError
        There is no BTF, or it is broken.
    PermissionDenied
        The BTF of a map or program needs CAP_SYS_ADMIN.
    FileNotFoundError
        No such file, module or id.
    """
    return _typed(source, prog_id, map_id)[0]


def btf_dtype(
    name: str, source: Source = "vmlinux", *, prog_id: int | None = None,
    map_id: int | None = None,
) -> np.dtype[Any]:
    """Return a struct, union, typedef or enum as a dtype, with its very size and offsets.

    Parameters
    ----------
    name : str
        "task_struct"; where a struct and a typedef of one name differ, "struct task_struct". Of a
        map, "key" and "value" are its own.
    source, prog_id, map_id
        As for `read_btf`.

    Raises
    ------
    KeyError
        There is no such type: the message has names that resemble it.
    ValueError
        Several types have the name; or the type has no dtype (it is a function, or void), or its
        BTF is broken.
    PermissionDenied, FileNotFoundError
        As for `read_btf`.

    Notes
    -----
    What a dtype cannot hold, names of enums and where bitfields are, has `btf_layout`. Reading
    many types out of one source: ``types = read_btf(source); types.dtype(types.named(name))``.
    """
    types, type_id = _named(name, source, prog_id, map_id)
    return types.dtype(type_id)


def btf_layout(
    name: str, source: Source = "vmlinux", *, prog_id: int | None = None,
    map_id: int | None = None,
) -> Layout:
    """Return what `btf_dtype` does, with what a dtype cannot hold. The parameters are the same.

    Returns
    -------
    fastmap.btf.Layout
        ``.dtype``, and by dotted paths ``.enums`` (``{"state": {"IDLE": 0, ...}}``), ``.bitfields``
        (``.bitfields["flags"].extract(records)``) and ``.special`` (locks, timers and their kind).
    """
    types, type_id = _named(name, source, prog_id, map_id)
    return types.layout(type_id)


def btf_blob(btf_id: int) -> bytes:
    """Return the bytes of a BTF object of the kernel. Needs CAP_SYS_ADMIN."""
    loaded = syscall.btf_get_fd_by_id(btf_id)
    try:
        return syscall.btf_bytes(loaded)
    finally:
        loaded.close()


_Roles: TypeAlias = Mapping[str, int]


def _named(
    name: str, source: Source, prog_id: int | None, map_id: int | None
) -> tuple[Btf, int]:
    if not isinstance(name, str):
        raise TypeError(f"a type's name is a str, not {name!r}")
    types, roles = _typed(source, prog_id, map_id)
    return types, roles.get(name) or types.named(name)


def _typed(source: Source, prog_id: int | None, map_id: int | None) -> tuple[Btf, _Roles]:
    """Return the types of a source, and the ids of its key and value where it is a map."""
    if prog_id is not None or map_id is not None:
        if source != "vmlinux" or (prog_id is not None and map_id is not None):
            raise TypeError("one of a source, prog_id= and map_id=")
        if prog_id is not None:
            return _of(syscall.prog_get_fd_by_id(prog_id))
        return _of(syscall.map_get_fd_by_id(map_id or 0))
    if isinstance(source, Btf):
        return source, {}
    if isinstance(source, (str, os.PathLike)):
        return _at(source)
    if isinstance(source, int) and not isinstance(source, bool):
        return _of(syscall.duplicate(source))
    if hasattr(source, "fileno"):
        return _of(syscall.duplicate(source.fileno()))
    if hasattr(source, "btf_id"):
        return _loaded({**vars(source)}, f"map {getattr(source, 'id', '')}")
    raise TypeError(f"a source of BTF is a path, a map, a program or a descriptor, not {source!r}")


def _of(fd: Fd) -> tuple[Btf, _Roles]:
    """Return the types of what `fd` is, and close it."""
    try:
        kind = os.readlink(f"/proc/self/fd/{fd.fileno()}")
        if kind == "anon_inode:btf":
            return Btf(syscall.btf_bytes(fd)), {}
        if kind == "anon_inode:bpf-prog":
            info = syscall.prog_info(fd)
            return _loaded(info, f"program {info['id']}")
        info = syscall.map_info(fd)
        return _loaded(info, f"map {info['id']}")
    finally:
        fd.close()


def _loaded(info: Mapping[str, Any], what: str) -> tuple[Btf, _Roles]:
    if not info["btf_id"]:
        raise ValueError(f"{what} has no BTF")
    roles = {role: info.get(f"btf_{role}_type_id", 0) for role in ("key", "value")}
    return Btf(btf_blob(info["btf_id"])), roles


def _at(path: str | os.PathLike[str]) -> tuple[Btf, _Roles]:
    where = Path(path)
    if isinstance(path, str) and "/" not in path and (_KERNEL / path).is_file():
        where = _KERNEL / path
    if not S_ISREG(where.stat().st_mode):
        raise ValueError(f"{where} is no file")
    with _opened(where) as file:
        head = file.read(4)
        if head[:2] in _BTF_MAGICS:
            split = where.parent == _KERNEL and where.name != "vmlinux"
            return Btf(_raw(file, head), read_btf() if split else None), {}
        if head == elf.MAGIC:
            blob, base = elf.section(file, ".BTF"), elf.section(file, ".BTF.base")
            if blob is None:
                raise ValueError(f"{where} has no section .BTF: compile it with -g")
            # A module continues vmlinux's BTF, or an extract of it that came along.
            split = where.suffix == ".ko" and base is None
            return Btf(blob, Btf(base) if base else read_btf() if split else None), {}
    try:
        return _of(syscall.obj_get(where))
    except BpfError as error:
        raise ValueError(
            f"{where} is no ELF file, no raw BTF, and cannot be opened as a pin ({error})"
        ) from None


def _raw(file: BinaryIO, head: bytes) -> bytes:
    """Return the BTF that `file` goes on with, of the size that its header says."""
    header = head + file.read(HEADER.size - len(head))
    if len(header) < HEADER.size:
        return header  # too short, which its reader tells
    order = "<" if head[:2] == _BTF_MAGICS[0] else ">"
    _, _, _, length, *parts = struct.unpack(order + HEADER.format.lstrip("<>="), header)
    types, strings = sum(parts[:2]), sum(parts[2:])
    extent = max(types, strings)
    if length >= HEADER.size + 8:  # kinds that a later kernel describes
        header += file.read(8)
        if len(header) == HEADER.size + 8:
            extent = max(extent, sum(struct.unpack_from(order + "II", header, HEADER.size)))
    size = length + extent
    if size > elf.MOST_BYTES:
        raise ValueError(f"the header tells of {size} bytes: no BTF has more than "
                         f"{elf.MOST_BYTES >> 20} MiB")
    return header + file.read(max(size - len(header), 0))


def _opened(where: Path) -> BinaryIO:
    try:
        return where.open("rb")
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return BytesIO()  # a pin: of all but maps with BTF, the kernel lets nothing be read
