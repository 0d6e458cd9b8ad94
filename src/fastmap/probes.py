"""What this kernel and this process can do: asked of the kernel itself, once, and on request.

The smallest kernel of each feature stands in `fastmap.enums`; here is how to ask the running one.
A probe runs after a failure or when `features` is called, never on a hot path.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmap._core.system import syscall
from fastmap._core.system.program import Program
from fastmap.btf.encoder import Builder, Kind, encode
from fastmap.enums import (
    FREEZE_BY_WRITERS,
    PROGRAM_FEATURES,
    Command,
    MapFlag,
    MapType,
    ProgType,
    UpdateFlag,
    Version,
    running_kernel,
    version_text,
)
from fastmap.errors import ENOTSUPP, BpfError, PermissionDenied, is_shortage
from fastmap.inkernel import key_programs
from fastmap.kernel.map_facts import BATCHES, FACTS, smallest_kernel


#: Bits of the capabilities that matter, as in the kernel's ``uapi/linux/capability.h``.
@dataclass(frozen=True)
class Feature:
    """A feature, and what the running kernel says to it.

    Attributes
    ----------
    name : str
        A map type, a command (with "on" a map type), a flag, or a way.
    since : tuple of int or None
        The first Linux release that has it.
    supported : bool or None
        None where it cannot be told.
    reason : str
        Why not, or why it cannot be told.
    lasting : bool
        False where it could not be asked now, for want of a descriptor or of memory.
    """

    name: str
    since: Version | None
    supported: bool | None
    reason: str = ""
    lasting: bool = True

    def __bool__(self) -> bool:
        return bool(self.supported)

    def __str__(self) -> str:
        word = {True: "yes", False: "no", None: "cannot tell"}[self.supported]
        return f"{self.name}: {word}{f' ({self.reason})' if self.reason else ''}"


class Features(Mapping[str, Feature]):
    """The features by name, in groups: map types, commands, flags, ways, programs."""

    def __init__(self, groups: dict[str, list[Feature]]) -> None:
        self.map_types = groups["map types"]
        self.commands = groups["commands"]
        self.flags = groups["flags"]
        self.ways = groups["ways"]
        self.programs = groups["programs"]
        self._all = {each.name: each for group in groups.values() for each in group}

    def __getitem__(self, name: str) -> Feature:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        return "\n".join(map(str, self._all.values()))


# A map type that takes the flag, and what it adds to that type's smallest map.
_FLAG_ON: dict[MapFlag, tuple[MapType, dict[str, int]]] = {
    MapFlag.NO_PREALLOC: (MapType.HASH, {}),
    MapFlag.NO_COMMON_LRU: (MapType.LRU_HASH, {}),
    MapFlag.NUMA_NODE: (MapType.ARRAY, {}),
    MapFlag.RDONLY: (MapType.ARRAY, {}),
    MapFlag.WRONLY: (MapType.ARRAY, {}),
    MapFlag.STACK_BUILD_ID: (MapType.STACK_TRACE, {"value_size": 32}),
    MapFlag.ZERO_SEED: (MapType.HASH, {}),
    MapFlag.RDONLY_PROG: (MapType.ARRAY, {}),
    MapFlag.WRONLY_PROG: (MapType.ARRAY, {}),
    MapFlag.CLONE: (MapType.SK_STORAGE, {}),
    MapFlag.MMAPABLE: (MapType.ARRAY, {}),
    MapFlag.PRESERVE_ELEMS: (MapType.PERF_EVENT_ARRAY, {}),
    MapFlag.INNER_MAP: (MapType.ARRAY, {}),
    MapFlag.SEGV_ON_FAULT: (MapType.ARENA, {}),
    MapFlag.NO_USER_CONV: (MapType.ARENA, {}),
    MapFlag.RB_OVERWRITE: (MapType.RINGBUF, {}),
}


def _make(kind: MapType, flags: int = 0, **sizes: int) -> syscall.Fd:
    """Create the smallest map of a type."""
    facts = FACTS[kind]
    more: dict[str, Any] = {}
    keep: list[syscall.Fd] = []
    if facts.family == "maps":
        keep.append(syscall.map_create(MapType.ARRAY, 4, 8, 1))
        more["inner_map_fd"] = keep[-1].fileno()
    if facts.described == "must":
        blob, key_id, value_id = encode(np.dtype("i4"), np.dtype("u8"))
        keep.append(syscall.btf_load(blob))
        more.update(btf_fd=keep[-1].fileno(), btf_key_type_id=key_id, btf_value_type_id=value_id)
    try:
        return syscall.map_create(kind, facts.key, sizes.get("value_size", facts.value),
                                  facts.entries, int(facts.always | flags), **more)
    finally:
        for fd in keep:
            fd.close()


def _judge(probe: Callable[[], Any], needs: str = "CAP_BPF") -> tuple[bool | None, str, bool]:
    """Run a probe: True where it succeeds, None where a capability is missing, or False.

    With it, why, and whether that lasts.
    """
    try:
        made = probe()
    except (OSError, MemoryError) as error:
        if is_shortage(error):
            return None, str(error) or "no memory", False
        code = getattr(error, "errno", 0)
        if code in (errno.EPERM, errno.EACCES):
            return None, f"{needs} is missing", True
        if code in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP):
            return False, "", True
        return None, str(error), True
    if isinstance(made, syscall.Fd | Program):
        made.close()
    return True, "", True


def _feature(name: str, since: Version | None, probe: Callable[[], Any],
             needs: str = "CAP_BPF") -> Feature:
    supported, reason, lasting = _judge(probe, needs)
    if supported is False:
        if since is None:
            reason = "no kernel has it"
        elif running_kernel() < since:
            reason = f"needs Linux {version_text(since)}"
        else:
            reason = "this kernel is configured without it"
    return Feature(name, since, supported, reason, lasting)


def _map_type(kind: MapType) -> Feature:
    if kind is MapType.STRUCT_OPS:
        return Feature(kind.name, kind.since, None, "only a struct of the kernel's own tells")
    return _feature(kind.name, kind.since, lambda: _make(kind),
                    FACTS[kind].capability)


def _known(command: Command) -> None:
    """Call `command` with a descriptor or id that is none: EINVAL where it is not known."""
    result = syscall.probe(command)
    if result in (-errno.EINVAL, -errno.EPERM):
        raise BpfError(-result, command.name)


#: The types that have batch commands.
_TABLES = [t for t in FACTS if any(smallest_kernel(c, t) for c in BATCHES)]


def _batch_on(command: Command, kind: MapType) -> None:
    fd = _make(kind)
    try:
        syscall.probe_batch(fd, command)
    finally:
        fd.close()


def _update_flag(flag: UpdateFlag) -> None:
    fd = _make(MapType.PERCPU_ARRAY)
    try:
        syscall.probe_update(fd, flag)
    finally:
        fd.close()


def _in_kernel() -> Program:
    # A real one: what it does with pointers is what takes CAP_PERFMON.
    layout = key_programs.Layout(4, 8, 8)
    fd = _make(MapType.HASH)
    buffer = syscall.map_create(MapType.ARRAY, 4, layout.size, 1, MapFlag.MMAPABLE)
    try:
        code = key_programs.lookup(fd, buffer, layout, may_goto=False)
        return Program(ProgType.SYSCALL, code, flags=16)
    finally:
        fd.close()
        buffer.close()


def _freeze_by_reader() -> None:
    """Freeze through a handle that may not write: a kernel that has the feature refuses."""
    fd = _make(MapType.ARRAY, MapFlag.RDONLY)
    try:
        syscall.map_freeze(fd)
    except PermissionDenied:
        return
    finally:
        fd.close()
    raise BpfError(errno.EOPNOTSUPP, "BPF_MAP_FREEZE")


def _btf(kind: Kind) -> syscall.Fd:
    """Load BTF that holds a type of the kind."""
    types = Builder()
    number = types.add_int("int", 4)
    if kind is Kind.FLOAT:
        types.add_float("float", 4)
    elif kind is Kind.DECL_TAG:
        types.add_decl_tag("tag", types.add_struct("s", 4, [("a", number, 0)]))
    elif kind is Kind.TYPE_TAG:
        types.add_ref(Kind.PTR, types.add_ref(kind, number, "tag"))
    else:
        types.add_enum("e", 8, [("A", 1)])
    return syscall.btf_load(types.build())


def _instructions_v4() -> Program:
    # r0 = 0; r0 = bswap16 r0; exit
    return Program(ProgType.SOCKET_FILTER,
                   bytes.fromhex("b700000000000000 d700000010000000 9500000000000000"))


def _kernel_function(name: str) -> None:
    """Look for the name in the kernel's BTF, where all that programs may call are described."""
    try:
        described = Path("/sys/kernel/btf/vmlinux").read_bytes()
    except OSError as error:
        if is_shortage(error):
            raise
        raise BpfError(errno.EIO, f"no BTF of the kernel: {error.strerror}") from None
    if b"\0" + name.encode() + b"\0" not in described:
        raise BpfError(errno.EOPNOTSUPP, name)


# How to try those of `PROGRAM_FEATURES`.
_PROGRAM_PROBES: dict[str, Callable[[], Any]] = {
    **{f"BTF {kind.name}": partial(_btf, kind)
       for kind in (Kind.FLOAT, Kind.DECL_TAG, Kind.TYPE_TAG, Kind.ENUM64)},
    "bpf_rcu_read_lock": partial(_kernel_function, "bpf_rcu_read_lock"),
    "instructions v4": _instructions_v4,
}


_kept: list[Features] = []


def forget() -> None:
    """Let the next `features` ask anew."""
    _kept.clear()


def features() -> Features:
    """Ask the running kernel what it has. The answers are kept, if all could be had.

    Returns
    -------
    Features
        A mapping of names ("HASH", "MAP_LOOKUP_BATCH on LPM_TRIE", "MMAPABLE", "in-kernel") to
        `Feature`, in groups ``map_types``, ``commands``, ``flags``, ``ways`` and ``programs`` (what
        programs and BTF may contain). Each says whether it is supported, not supported (and since
        which Linux it is), or why that cannot be told.
    """
    if _kept:
        return _kept[0]
    found = _asked()
    if all(each.lasting for each in found.values()):
        _kept[:] = [found]
    return found


def _asked() -> Features:
    commands = [_feature(c.name, c.since, partial(_known, c)) for c in syscall.PROBED]
    commands += [
        _feature(f"{c.name} on {t.name}", smallest_kernel(c, t), partial(_batch_on, c, t))
        for t in _TABLES for c in BATCHES
    ]
    commands.append(_feature("MAP_FREEZE heeds RDONLY", FREEZE_BY_WRITERS, _freeze_by_reader))
    flags = [
        _feature(flag.name or str(flag), flag.since,
                 partial(_make, kind, flag, **sizes),
                 "CAP_SYS_ADMIN" if flag is MapFlag.ZERO_SEED else "CAP_BPF")
        for flag, (kind, sizes) in _FLAG_ON.items()
    ]
    flags += [_feature(f"update {f.name}", f.since, partial(_update_flag, f))
              for f in (UpdateFlag.ANY, UpdateFlag.EXIST, UpdateFlag.CPU)]
    ways = [
        _feature("element", (3, 19), lambda: _make(MapType.HASH)),
        _feature("batch", (5, 6), lambda: _batch_on(Command.MAP_LOOKUP_BATCH, MapType.HASH)),
        _feature("memory", (5, 5), lambda: _make(MapType.ARRAY, MapFlag.MMAPABLE)),
        _feature("in-kernel", (5, 17), _in_kernel, "CAP_BPF or CAP_PERFMON"),
    ]
    programs = [_feature(name, since, _PROGRAM_PROBES[name])
                for name, since in PROGRAM_FEATURES.items()]
    return Features({"map types": [_map_type(t) for t in MapType if t], "commands": commands,
                     "flags": flags, "ways": ways, "programs": programs})
