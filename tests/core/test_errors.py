"""The errnos of the kernel, and the exceptions they become."""

from __future__ import annotations

import copy
import errno
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap import errors
from fastmap.enums import NOEXIST, Command, MapFlag, MapType
from fastmap.errors import (
    ENOTSUPP,
    BatchError,
    BpfError,
    KeyExists,
    KeyNotFound,
    MapFull,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    batch_error,
    from_errno,
)
from fastmap.kernel.map_facts import smallest_kernel

Make = Callable[..., Any]

HABITS: dict[type[BpfError], type[Exception]] = {
    KeyNotFound: KeyError, KeyExists: FileExistsError, MapFull: OSError,
    NotSupported: NotImplementedError, PermissionDenied: PermissionError,
    ObjectNotFound: FileNotFoundError,
}  # fmt: skip


@pytest.mark.parametrize("cls", HABITS)
def test_doubly_based(cls: type[BpfError]) -> None:
    assert issubclass(cls, BpfError) and issubclass(cls, OSError) and issubclass(cls, HABITS[cls])
    assert getattr(fastmap, cls.__name__) is cls
    error = cls(7, "what happened")
    assert error.errno == 7 and str(error) == "[Errno 7] what happened"


# ---- from the kernel ---------------------------------------------------------------------------

# What is done to an empty hash, a full one {1: 1}, a frozen one and an array of one element; the
# class, the errno, the command, and words of the message.
PROVOKED: dict[str, tuple[Callable[[Any, Any], Any], type[BpfError], int, Command, str]] = {
    "missing": (lambda m, p: m.empty[7], KeyNotFound, errno.ENOENT, Command.MAP_LOOKUP_ELEM,
                r"key 7: no such key \(BPF_MAP_LOOKUP_ELEM\)"),
    "take": (lambda m, p: m.empty.lookup_and_delete(7), KeyNotFound, errno.ENOENT,
             Command.MAP_LOOKUP_AND_DELETE_ELEM, "key 7: no such key"),
    "delete": (lambda m, p: m.empty.delete(7), KeyNotFound, errno.ENOENT, Command.MAP_DELETE_ELEM,
               "key 7"),
    "exist": (lambda m, p: m.empty.update(7, 1, flags=fastmap.EXIST), KeyNotFound, errno.ENOENT,
              Command.MAP_UPDATE_ELEM, "key 7: .*EXIST"),
    "noexist": (lambda m, p: m.full.update(1, 2, flags=NOEXIST), KeyExists, errno.EEXIST,
                Command.MAP_UPDATE_ELEM, "key 1: .*NOEXIST"),
    "full": (lambda m, p: m.full.update(2, 2), MapFull, errno.E2BIG, Command.MAP_UPDATE_ELEM,
             "key 2: map is full"),
    "past": (lambda m, p: m.array[9], KeyNotFound, errno.ENOENT, Command.MAP_LOOKUP_ELEM,
             "key 9: .*past the end"),
    "past it": (lambda m, p: m.array.update(9, 1), KeyNotFound, errno.E2BIG,
                Command.MAP_UPDATE_ELEM, "key 9: .*past the end"),
    "always there": (lambda m, p: m.array.update(0, 1, flags=NOEXIST), KeyExists, errno.EEXIST,
                     Command.MAP_UPDATE_ELEM, "key 0: an array's elements always exist"),
    "array": (lambda m, p: m.array.__delitem__(0), NotSupported, errno.EINVAL,
              Command.MAP_DELETE_ELEM, "key 0: .*write zeros"),
    "no take": (lambda m, p: m.array.lookup_and_delete(0), NotSupported, ENOTSUPP,
                Command.MAP_LOOKUP_AND_DELETE_ELEM, "ARRAY maps do not support"),
    "no drain": (lambda m, p: m.array.reader().drain(), NotSupported, ENOTSUPP,
                 Command.MAP_LOOKUP_AND_DELETE_BATCH, "ARRAY maps do not support"),
    "frozen": (lambda m, p: m.frozen.update(1, 1), PermissionDenied, errno.EPERM,
               Command.MAP_UPDATE_ELEM, "key 1: the map is frozen"),
    "flags": (lambda m, p: m.empty.update(7, 1, flags=64), BpfError, errno.EINVAL,
              Command.MAP_UPDATE_ELEM, "key 7: Invalid argument"),
    "no pin": (lambda m, p: fastmap.open(p / "x"), ObjectNotFound, errno.ENOENT, Command.OBJ_GET,
               "/x: nothing is pinned"),
    "no folder": (lambda m, p: m.empty.pin(p / "no" / "x"), ObjectNotFound, errno.ENOENT,
                  Command.OBJ_PIN, "/no/x: the folder"),
    "pinned": (lambda m, p: [m.empty.pin(p / "x"), m.full.pin(p / "x")], KeyExists, errno.EEXIST,
               Command.OBJ_PIN, "/x: something is pinned"),
    "a dot": (lambda m, p: m.empty.pin(p / "x.y"), PermissionDenied, errno.EPERM, Command.OBJ_PIN,
              "/x.y: .*dot"),
    "no id": (lambda m, p: fastmap.open(id=2**31 - 2), ObjectNotFound, errno.ENOENT,
              Command.MAP_GET_FD_BY_ID, "map id 2147483646: no object"),
    "too large": (lambda m, p: m.make("hash", key="u4", value="V4194304", max_entries=1),
                  BpfError, errno.E2BIG, Command.MAP_CREATE, "larger than this kernel allows"),
    "create": (lambda m, p: m.make("hash", key="u4", value="u4", max_entries=1, flags=1 << 30),
               BpfError, errno.EINVAL, Command.MAP_CREATE, "a flag"),
    "program": (lambda m, p: fastmap.Program("socket_filter", bytes(8)), BpfError, errno.EINVAL,
                Command.PROG_LOAD, "BPF_PROG_LOAD"),
    "verifier": (lambda m, p: fastmap.Program("socket_filter", b"\x95" + bytes(7)),
                 PermissionDenied, errno.EACCES, Command.PROG_LOAD, "R0 !read_ok"),
}  # fmt: skip


class Maps:
    """The maps of `PROVOKED`."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.empty, self.full, self.frozen = (
            make("hash", key="u4", value="u4", max_entries=1) for _ in range(3))
        self.full[1] = 1
        self.frozen.freeze()
        self.array = make("array", value="u4", max_entries=1, flags=MapFlag.MMAPABLE)


@pytest.mark.parametrize("name", PROVOKED)
@pytest.mark.quick
def test_what_the_kernel_says(make: Make, bpffs: Path, name: str) -> None:
    call, cls, code, command, words = PROVOKED[name]
    maps = Maps(make)
    with pytest.raises(cls, match=f"(?s){words}") as caught:
        call(maps, bpffs)
    error = caught.value
    assert type(error) is cls and error.errno == code and error.command is command
    assert error.strerror in str(error) and f"[Errno {code}]" in str(error)
    assert "Unknown error" not in str(error)


def test_batch_errors_are_of_both_classes(make: Make) -> None:
    maps = Maps(make)
    keys = np.arange(1, 4, dtype="u4")
    for cls, code, applied, call in (
        (MapFull, errno.E2BIG, 1, lambda: maps.full.update_many(keys, 5)),
        (KeyExists, errno.EEXIST, 0, lambda: maps.full.update_many(keys, 5, flags=NOEXIST)),
        (KeyNotFound, errno.ENOENT, 1, lambda: maps.full.delete_many(keys, errors="raise")),
        (PermissionDenied, errno.EPERM, 0, lambda: maps.frozen.update_many(keys, 5)),
        (NotSupported, errno.EINVAL, 0, lambda: maps.array.delete_many([0])),
    ):
        with pytest.raises(cls) as caught:
            call()
        error = caught.value
        assert isinstance(error, BatchError) and isinstance(error, HABITS[cls])
        assert (error.errno, error.applied, error.index) == (code, applied, applied)
        assert f"element {applied}: " in str(error) and f"[{applied} applied]" in str(error)
        assert error.command is not None
    with pytest.raises(BatchError) as plain:
        maps.empty.update_many(keys, 5, flags=64)
    assert plain.value.errno == errno.EINVAL and type(plain.value) is BatchError


# ---- the table ---------------------------------------------------------------------------------


def test_every_row_of_the_table_is_reached() -> None:
    """A row behind one that takes all of its cases would be dead."""
    reached = set()
    for number, commands, types, _, _ in errors._TABLE:
        for command in commands:
            for kind in types:
                reached.add(next(i for i, row in enumerate(errors._TABLE) if row[0] == number
                                 and command in row[1] and kind in row[2]))
    assert reached == set(range(len(errors._TABLE)))


@pytest.mark.parametrize("command", Command)
def test_any_errno_of_any_command(command: Command) -> None:
    """Whatever comes has a class and a message, and keeps its errno."""
    for number in (*errno.errorcode, ENOTSUPP, 999):
        for kind in (MapType.UNSPEC, MapType.HASH, MapType.LPM_TRIE, MapType.ARENA):
            error = from_errno(number, command, kind, "what was asked")
            assert isinstance(error, BpfError) and error.errno == number
            assert "what was asked: " in str(error) and f"BPF_{command.name}" in str(error)
            assert "{" not in str(error)
            both = batch_error(number, command, kind, 3, 5)
            assert isinstance(both, (BatchError,)) and isinstance(both, type(error))
            assert (both.errno, both.applied, both.index) == (number, 3, 5)


def test_full_tries_say_so_as_well() -> None:
    error = from_errno(errno.ENOSPC, Command.MAP_UPDATE_ELEM, MapType.LPM_TRIE, "key 1")
    assert type(error) is MapFull and "map is full" in str(error)
    assert type(from_errno(errno.ENOSPC, Command.MAP_UPDATE_ELEM, MapType.HASH)) is BpfError


@pytest.mark.parametrize(("command", "kind", "since"), [
    (Command.MAP_LOOKUP_ELEM, MapType.HASH, (3, 19)),
    (Command.MAP_LOOKUP_BATCH, MapType.HASH, (5, 6)),
    (Command.MAP_LOOKUP_BATCH, MapType.PERCPU_ARRAY, (5, 13)),
    (Command.MAP_DELETE_BATCH, MapType.LPM_TRIE, (5, 13)),
    (Command.MAP_LOOKUP_AND_DELETE_ELEM, MapType.LRU_HASH, (5, 14)),
    (Command.MAP_LOOKUP_AND_DELETE_ELEM, MapType.QUEUE, (4, 20)),
    (Command.MAP_CREATE, MapType.RINGBUF, (5, 8)),
    (Command.MAP_DELETE_ELEM, MapType.ARRAY, None),
])  # fmt: skip
def test_smallest_kernel(
    monkeypatch: pytest.MonkeyPatch, command: Command, kind: MapType, since: Any
) -> None:
    assert smallest_kernel(command, kind) == since
    monkeypatch.setattr(errors, "running_kernel", lambda: (3, 18))  # as if on an old one
    text = str(from_errno(ENOTSUPP if command else errno.EOPNOTSUPP, command, kind))
    if since is None:
        assert "ARRAY maps do not support" in text
    elif command is not Command.MAP_CREATE:
        assert f"on {kind.name} needs Linux {since[0]}.{since[1]};" in text


def test_errors_can_be_copied_and_pickled() -> None:
    for error in (from_errno(errno.ENOENT, Command.MAP_LOOKUP_ELEM, MapType.HASH, "key 5"),
                  batch_error(errno.EINVAL, Command.MAP_UPDATE_BATCH, MapType.HASH, 3, 5),
                  batch_error(errno.E2BIG, Command.MAP_UPDATE_BATCH, MapType.HASH, 3, 5)):
        for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(again) is type(error) and str(again) == str(error)
            assert again.errno == error.errno and again.__dict__ == error.__dict__
    code = f"import pickle; raise pickle.loads({pickle.dumps(error)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "fastmap.errors.BatchMapFull: [Errno 7] element 5" in ran.stderr
