"""BPF tokens: maps made inside a user namespace, by what a bpffs delegates to it."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import keep_only
from support import _fork

import fastmap
from fastmap import NotSupported, PermissionDenied, Token
from fastmap.enums import Command, MapFlag, MapType, running_kernel

pytestmark = pytest.mark.quick

U4 = {"key": "u4", "value": "u4", "max_entries": 4}
ANY = {f"delegate_{what}": "any" for what in ("cmds", "maps", "progs", "attachs")}

# The same on every architecture.
MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 429, 430, 431, 432
SET_STRING, CREATE = 1, 6  # enum fsconfig_command
NEW_NAMESPACES = 0x10000000 | 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS
CAP_BPF = 39

libc = ctypes.CDLL(None, use_errno=True)


def call(*arguments: Any) -> int:
    result: int = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {arguments[0]}")
    return result


def inside(folder: Path, task: Callable[[], None], delegated: dict[str, str]) -> None:
    """Run `task` in a user namespace of its own, with a bpffs on `folder` that delegates."""
    here, there = socket.socketpair()

    def child() -> None:
        here.close()
        there.recv(1)
        assert libc.unshare(NEW_NAMESPACES) == 0, os.strerror(ctypes.get_errno())
        there.send(b"u")
        assert there.recv(1) == b"m"  # the parent has mapped our user
        fs = call(FSOPEN, b"bpf", 1)
        socket.send_fds(there, [b"f"], [fs])
        assert there.recv(1) == b"c"  # and made the file system: only it may delegate
        mount = call(FSMOUNT, fs, 1, 0)
        call(MOVE_MOUNT, mount, b"", -100, os.fsencode(folder), 4)  # of this namespace only
        os.close(mount)
        os.close(fs)
        task()

    pid = _fork(child, 30)
    there.close()
    try:
        with here:
            here.send(b"s")
            if here.recv(1) == b"u":
                Path(f"/proc/{pid}/uid_map").write_text("0 0 1")
                Path(f"/proc/{pid}/setgroups").write_text("deny")
                Path(f"/proc/{pid}/gid_map").write_text("0 0 1")
                here.send(b"m")
                fs = socket.recv_fds(here, 1, 1)[1][0]
                try:
                    for name, value in delegated.items():
                        call(FSCONFIG, fs, SET_STRING, name.encode(), value.encode(), 0)
                    call(FSCONFIG, fs, CREATE, None, None, 0)
                finally:
                    os.close(fs)
                here.send(b"c")
    finally:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed"


@pytest.mark.needs("TOKEN_CREATE")
def test_a_process_in_a_user_namespace_makes_maps(tmp_path: Path) -> None:
    record = np.dtype([("packets", "u8"), ("bytes", "u8")])

    def task() -> None:
        with pytest.raises(PermissionDenied, match="CAP_BPF"):
            fastmap.create("lru_hash", **U4)
        with Token(tmp_path) as token:
            assert not os.get_inheritable(token.fileno()) and f"fd {token.fileno()}" in repr(token)
            for kind in ("hash", "lru_hash", "percpu_hash"):
                with fastmap.create(kind, key="u4", value=record, max_entries=100, token=token,
                                    pin=tmp_path / kind) as m:
                    assert m.info().btf_id > 0 and not m.flags & MapFlag.TOKEN_FD
                    m[1] = (2, 3)
                    assert m.update_many(np.arange(50, dtype="u4"), (7, 8)) == 50
                    assert len(m.snapshot()) == len(m) == 50
                    with fastmap.create(kind, key="u4", value=record, max_entries=100, token=token,
                                        pin=tmp_path / kind, exist_ok=True) as same:
                        assert same.id == m.id
            with fastmap.create("ringbuf", max_entries=4096, token=token) as ring:
                assert ring.type is MapType.RINGBUF
            with fastmap.create("array", value="u8", max_entries=4, flags=MapFlag.MMAPABLE,
                                token=token, btf=False) as array:
                array.memory(writable=True)[2] = 9
                assert array[2] == 9
        assert token.closed and "closed" in repr(token)
        with pytest.raises(ValueError, match="closed"):
            fastmap.create("hash", **U4, token=token)
        with fastmap.open(tmp_path / "hash", key="u4", value=record) as m:
            assert m[1].item() == (7, 8)  # made with the token, and outlives it

    inside(tmp_path, task, ANY)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs("TOKEN_CREATE")
def test_a_token_allows_what_is_delegated(tmp_path: Path) -> None:
    def task() -> None:
        folder = os.open(tmp_path, os.O_DIRECTORY)
        with Token(folder) as token:  # by a descriptor, which stays open
            os.close(folder)
            # BTF_LOAD is not delegated: the maps come without BTF.
            with fastmap.create("hash", **U4, token=token) as m:
                assert m.info().btf_id == 0
            with pytest.raises(PermissionDenied, match="token does not allow ARRAY") as caught:
                fastmap.create("array", value="u4", max_entries=1, token=token)
            assert caught.value.errno == errno.EPERM

    inside(tmp_path, task, {"delegate_cmds": hex(1 << Command.MAP_CREATE),
                            "delegate_maps": hex(1 << MapType.HASH)})


@pytest.mark.needs("TOKEN_CREATE")
def test_a_bpffs_that_delegates_nothing(tmp_path: Path) -> None:
    def task() -> None:
        with pytest.raises(PermissionDenied, match="delegates nothing"):
            Token(tmp_path)

    inside(tmp_path, task, {})


@pytest.mark.needs("TOKEN_CREATE")
def test_a_token_needs_cap_bpf_in_the_namespace(tmp_path: Path) -> None:
    def task() -> None:
        with Token(tmp_path) as token:
            keep_only()
            with pytest.raises(PermissionDenied, match="CAP_BPF"):
                Token(tmp_path)
            with pytest.raises(PermissionDenied):
                fastmap.create("hash", **U4, token=token)

    inside(tmp_path, task, ANY)


@pytest.mark.needs("TOKEN_CREATE")
def test_a_token_is_for_user_namespaces(bpffs: Path) -> None:
    with pytest.raises(NotSupported, match="user namespace"):
        Token(bpffs)


@pytest.mark.needs("TOKEN_CREATE")
def test_what_is_no_bpffs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, error in ((tmp_path / "no", FileNotFoundError), (tmp_path, OSError),
                        (tmp_path / "file", NotADirectoryError), (987654, OSError)):
        with pytest.raises(error):
            Token(path)


def test_older_kernels_say_since_when(bpffs: Path) -> None:
    if running_kernel() < (6, 9):
        with pytest.raises(NotSupported, match=r"6\.9"):
            Token(bpffs)
    feature = fastmap.features()["TOKEN_CREATE"]
    assert feature.since == (6, 9) and feature.supported == (running_kernel() >= (6, 9))


@pytest.mark.needs("TOKEN_CREATE")
def test_the_flag_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="token="):
        fastmap.create("hash", **U4, flags=MapFlag.TOKEN_FD)
