"""The maps and programs of the kernel: walked by id, described, and which uses which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.errors import ObjectNotFound
from fastmap.kernel.bpffs import pins_of


def _told(fd: Fd) -> dict[str, str]:
    """Return the fdinfo of a descriptor; nothing in a sandbox without /proc."""
    try:
        return syscall.fdinfo(fd)
    except FileNotFoundError:
        return {}


def _number(told: dict[str, str], name: str) -> int | None:
    return int(told[name]) if name in told else None


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says about a map: ``struct bpf_map_info`` and the descriptor's fdinfo.

    Attributes
    ----------
    type, id, key_size, value_size, max_entries, map_flags, name, ... : int or str
        As the kernel names them.
    memlock : int or None
        Bytes of kernel memory, as the kernel estimates them. None, as is `frozen`, in a sandbox
        without /proc: nothing else tells them.
    frozen : bool or None
    """

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    name: str
    ifindex: int
    btf_vmlinux_value_type_id: int
    netns_dev: int
    netns_ino: int
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int
    btf_vmlinux_id: int
    map_extra: int
    memlock: int | None
    frozen: bool | None

    @classmethod
    def of(cls, fd: Fd) -> Self:
        """Ask the kernel about the map behind `fd`."""
        fields = syscall.map_info(fd)
        told = _told(fd)
        frozen = _number(told, "frozen")
        return cls(**fields, memlock=_number(told, "memlock"),
                   frozen=None if frozen is None else frozen == 1)

    def pins(self) -> list[Path]:
        """Return where the map is pinned now, on every bpffs that this process can reach.

        Notes
        -----
        Each call walks all pins: for many maps, `fastmap.pins` is one walk.
        """
        return pins_of("map", self.id)

    def programs(self) -> list[ProgramInfo]:
        """Return the programs that use the map now. Needs CAP_SYS_ADMIN.

        Notes
        -----
        Linux 4.15. Each call walks all programs: for many maps, ``fastmap.programs()`` and their
        `map_ids` are one walk.
        """
        return [program for program in programs() if self.id in program.map_ids]


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel says about a program: ``struct bpf_prog_info``, and its fdinfo.

    Attributes
    ----------
    type, id, name : int or str
        `fastmap.ProgType` has names for the types.
    tag : str
        The hash of its instructions, in hexadecimal.
    map_ids : tuple of int
        The maps that it uses.
    load_time : int
        When it was loaded, in nanoseconds since the machine was started.
    run_time_ns, run_cnt : int
        Counted while the sysctl kernel.bpf_stats_enabled is 1.
    jited_prog_len, xlated_prog_len : int
        Bytes of machine code, and of verified instructions (8 each). The kernel tells 0 to a
        process without CAP_BPF and CAP_PERFMON.
    verified_insns : int
        How many instructions the verifier went through. Linux 5.16; 0 before.
    memlock : int or None
        Bytes of kernel memory. None in a sandbox without /proc.
    """

    type: int
    id: int
    tag: str
    jited_prog_len: int
    xlated_prog_len: int
    load_time: int
    created_by_uid: int
    map_ids: tuple[int, ...]
    name: str
    ifindex: int
    gpl_compatible: bool
    netns_dev: int
    netns_ino: int
    btf_id: int
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    verified_insns: int
    attach_btf_obj_id: int
    attach_btf_id: int
    memlock: int | None

    @classmethod
    def of(cls, fd: Fd) -> Self:
        """Ask the kernel about the program behind `fd`."""
        return cls(**syscall.prog_info(fd), memlock=_number(_told(fd), "memlock"))

    def pins(self) -> list[Path]:
        """Return where the program is pinned now, on every bpffs that this process can reach."""
        return pins_of("prog", self.id)

    def maps(self) -> list[MapInfo]:
        """Return the maps that the program uses, in the order of `map_ids`. Needs CAP_SYS_ADMIN."""
        return [info for number in self.map_ids
                if (info := _asked(number, syscall.map_get_fd_by_id, MapInfo.of)) is not None]


def _asked(number: int, get: Callable[[int], Fd], of: Callable[[Fd], Any]) -> Any:
    """Return what `of` says of the object with an id; None where it has gone."""
    try:
        fd = get(number)
    except ObjectNotFound:
        return None
    try:
        return of(fd)
    finally:
        fd.close()


def _walk(following: Callable[[int], int | None], get: Callable[[int], Fd],
          of: Callable[[Fd], Any]) -> Iterator[Any]:
    number = 0
    while (found := following(number)) is not None:
        number = found
        if (info := _asked(number, get, of)) is not None:
            yield info


def maps() -> Iterator[MapInfo]:
    """Walk the maps of the kernel, by ascending id: each is asked for when its turn comes.

    Yields
    ------
    MapInfo
        Maps that come and go meanwhile may or may not be there.

    Raises
    ------
    PermissionDenied
        CAP_SYS_ADMIN is missing.

    Notes
    -----
    Linux 4.13.

    Examples
    --------
    >>> for info in fastmap.maps():
    ...     print(info.id, info.name, info.memlock, [p.name for p in info.programs()])
    """
    return _walk(syscall.map_get_next_id, syscall.map_get_fd_by_id, MapInfo.of)


def programs() -> Iterator[ProgramInfo]:
    """Walk the programs of the kernel, by ascending id: each is asked for when its turn comes.

    Yields
    ------
    ProgramInfo
        With the ids of the maps that it uses.

    Raises
    ------
    PermissionDenied
        CAP_SYS_ADMIN is missing.

    Notes
    -----
    Linux 4.13.
    """
    return _walk(syscall.prog_get_next_id, syscall.prog_get_fd_by_id, ProgramInfo.of)
