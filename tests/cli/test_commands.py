"""Which commands each map type has: what `enums` says, against the running kernel."""

from __future__ import annotations

import errno
import mmap

import pytest
import raw

from fastmap import MapType, possible_cpus
from fastmap._core.system import syscall
from fastmap._core.system.memory import Mapping
from fastmap.enums import Command, running_kernel
from fastmap.errors import ENOTSUPP, BpfError
from fastmap.kernel.map_facts import mappable, smallest_kernel
from fastmap.probes import _make

pytestmark = pytest.mark.quick

ELEMENTS = (Command.MAP_LOOKUP_ELEM, Command.MAP_UPDATE_ELEM, Command.MAP_DELETE_ELEM,
            Command.MAP_GET_NEXT_KEY, Command.MAP_LOOKUP_AND_DELETE_ELEM)
BATCHES = (Command.MAP_LOOKUP_BATCH, Command.MAP_UPDATE_BATCH, Command.MAP_DELETE_BATCH,
           Command.MAP_LOOKUP_AND_DELETE_BATCH)
#: STRUCT_OPS needs a struct of the kernel's own.
TYPES = [t for t in MapType if t not in (MapType.UNSPEC, MapType.STRUCT_OPS)]
#: Where EINVAL is about the entry: no such device, no socket there, no instruction.
ABOUT_THE_ENTRY = {
    (Command.MAP_UPDATE_ELEM, MapType.DEVMAP),
    (Command.MAP_UPDATE_ELEM, MapType.DEVMAP_HASH),
    (Command.MAP_DELETE_ELEM, MapType.SOCKMAP),
    (Command.MAP_UPDATE_ELEM, MapType.INSN_ARRAY),
}
#: A number that no descriptor has, and a 32-bit one may have.
NO_DESCRIPTOR = b"\xfe\xff\xff\x7f"
REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP)


def claimed(command: Command, kind: MapType) -> bool:
    since = smallest_kernel(command, kind)
    return since is not None and since <= running_kernel()


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_commands_of_a_type(kind: MapType) -> None:
    if kind.since > running_kernel():
        with pytest.raises(BpfError):
            _make(kind)
        return
    fd = _make(kind)
    try:
        info = syscall.map_info(fd)
        wrong = []
        for command in BATCHES:
            try:
                syscall.probe_batch(fd, command)
                there = True
            except BpfError as error:
                assert error.errno in REFUSALS, error
                there = False
            if there != claimed(command, kind):
                wrong.append((command.name, there))
        # A key that is there, or could be; of local storage, a descriptor that is none.
        key = bytes(info["key_size"]) if info["max_entries"] else b"\xff" * info["key_size"]
        room = max(info["value_size"], info["key_size"], 8) * (1 + len(possible_cpus()))
        for command in ELEMENTS:
            if (command, kind) in ABOUT_THE_ENTRY:
                continue
            value = bytearray(NO_DESCRIPTOR[:info["value_size"]]).ljust(room, b"\0")
            if command == Command.MAP_DELETE_ELEM:
                value = bytearray()
            there = raw.elem(command, fd.fileno(), key, value) not in REFUSALS
            if there != claimed(command, kind):
                wrong.append((command.name, there))
        try:
            Mapping(mmap.PAGESIZE, fd, 0, False).close()
            there = True
        except OSError as error:  # EINVAL: an array made without MMAPABLE, too
            there = error.errno != ENOTSUPP
        if there != (mappable(kind) is not None):
            wrong.append(("mmap", there))
        assert not wrong, f"{kind.name}: the kernel says otherwise"
    finally:
        fd.close()
