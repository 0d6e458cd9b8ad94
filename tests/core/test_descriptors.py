"""Descriptors that came from another process work without any capability."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import drop_capabilities, keep_only
from support import _fork

import fastmap
from fastmap import MapFlag, PermissionDenied, Program
from fastmap.asm import R0, Assembler

pytestmark = pytest.mark.quick

Make = Callable[..., Any]
libc = ctypes.CDLL(None, use_errno=True)
RECORD = np.dtype([("packets", "u8"), ("bytes", "u8")])
SYS_PIDFD_GETFD = 438  # on every architecture



@pytest.fixture(params=["capset", "another user", "no /proc"])
def lose(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], None]:
    """Return what makes a process lose all capabilities, and perhaps more."""
    (tmp_path / "empty").mkdir()

    def capset() -> None:
        keep_only()
        assert int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) == 0

    def sandboxed() -> None:
        os.chroot(tmp_path / "empty")
        os.chdir("/")
        keep_only()
        assert not os.listdir("/")

    return {"capset": capset, "another user": drop_capabilities, "no /proc": sandboxed}[
        request.param]


@contextmanager
def receiver(task: Callable[[list[int]], None],
             lose: Callable[[], None]) -> Iterator[socket.socket]:
    """Fork a child that drops everything; its `task` gets the descriptors sent to it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def run() -> None:
        here.close()
        lose()
        _, fds, _, _ = socket.recv_fds(there, 1, 8)
        task(fds)

    pid = _fork(run, 30)
    there.close()
    try:
        yield here
    finally:
        here.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed"


def send(to: socket.socket, *maps: Any) -> None:
    socket.send_fds(to, [b"x"], [m.fileno() for m in maps])


def test_everything_works_with_no_capability(make: Make, lose: Callable[[], None]) -> None:
    def task(fds: list[int]) -> None:
        table, array, percpu = fds
        with pytest.raises(PermissionDenied, match="CAP_BPF"):
            fastmap.create("hash", key="u4", value="u4", max_entries=1)
        with fastmap.open(fd=table, key="u4", value=RECORD) as m:
            assert type(m) is fastmap.HashMap and m.dtype_source == "given"
            assert m[1].item() == (2, 3) and 2 not in m
            m[2] = (4, 5)
            keys = np.arange(100, 200, dtype="u4")
            assert m.update_many(keys, (7, 8)) == 100
            values, found = m.lookup_many(keys)
            assert found.all() and (values["bytes"] == 8).all()
            reader = m.reader()
            assert len(reader.read()) == 102 and sum(map(len, m.reader(chunk=16))) == 102
            assert m.delete_many(keys[:50]) == 50
            assert sorted(m.drain().keys.tolist()) == [1, 2, *range(150, 200)]
            m[9] = (9, 9)
            info = m.info()
            assert info.id == m.id and info.max_entries == 1000
            if os.path.exists("/proc"):
                assert info.frozen is False and info.memlock and info.memlock > 0
            else:
                assert info.frozen is None and info.memlock is None
        with fastmap.open(fd=array, value=RECORD) as m:
            memory = m.memory(writable=True)
            assert memory[3].item() == (1, 2)
            memory[3] = (5, 6)
            assert m[3].item() == (5, 6)
        with fastmap.open(fd=percpu, key="u4", value="u8") as m:
            assert m.snapshot(reduce="sum").values.tolist() == [5 * len(fastmap.possible_cpus())]

    table = make("hash", key="u4", value=RECORD, max_entries=1000)
    table[1] = (2, 3)
    array = make("array", value=RECORD, max_entries=8, flags=MapFlag.MMAPABLE)
    array[3] = (1, 2)
    percpu = make("percpu_hash", key="u4", value="u8", max_entries=8)
    percpu[1] = 5
    with receiver(task, lose) as to:
        send(to, table, array, percpu)
    assert table[9].item() == (9, 9) and len(table) == 1 and array[3].item() == (5, 6)


def test_btf_may_not_be_read(make: Make, lose: Callable[[], None]) -> None:
    def task(fds: list[int]) -> None:
        with pytest.warns(UserWarning, match="needs CAP_SYS_ADMIN"), \
                fastmap.open(fd=fds[0]) as m:
            assert m.dtype_source == "none" and m.key_dtype == "V4" and m.value_dtype == "V16"
            assert m[(1).to_bytes(4, "little")] == bytes([2] + 7 * [0] + [3] + 7 * [0])
        with pytest.raises(PermissionDenied, match="CAP_SYS_ADMIN"):
            fastmap.open(fd=fds[0], btf="require")

    m = make("hash", key="u4", value=RECORD, max_entries=4)
    m[1] = (2, 3)
    with receiver(task, lose) as to:
        send(to, m)


@pytest.mark.parametrize("mode", ["readonly", "writeonly"])
def test_the_mode_came_along(make: Make, lose: Callable[[], None], mode: str) -> None:
    def task(fds: list[int]) -> None:
        with fastmap.open(fd=fds[0], key="u4", value=RECORD) as m:
            if mode == "readonly":
                assert m[1].item() == (2, 3)
            else:
                m[1] = (5, 6)
            with pytest.raises(PermissionDenied, match=mode.replace("only", "-only")):
                m.__setitem__(1, (4, 5)) if mode == "readonly" else m.lookup(1)

    m = make("hash", key="u4", value=RECORD, max_entries=4)
    m[1] = (2, 3)
    with fastmap.open(id=m.id, **{mode: True}) as narrow, receiver(task, lose) as to:
        send(to, narrow)
    assert m[1].item() == ((2, 3) if mode == "readonly" else (5, 6))


def test_what_else_may_come(make: Make, lose: Callable[[], None]) -> None:
    """Where there is no /proc to say what a descriptor is, the kernel tells."""
    def task(fds: list[int]) -> None:
        program, m, file = fds
        for wrong in (program, file):
            with pytest.raises(ValueError, match="not a bpf-map"):
                fastmap.open(fd=wrong, key="u4", value="u4")
        for wrong in (m, file):
            with pytest.raises(ValueError, match="not a bpf-prog"):
                Program.open(fd=wrong)
        with Program.open(fd=program) as here:
            assert here.name == "sent" and here.run(data=bytes(64)) == 7

    a = Assembler()
    a.mov(R0, 7)
    a.exit()
    m = make("queue", value="u4", max_entries=4)  # has neither batches nor keys
    with open(os.devnull) as file, Program("socket_filter", a.assemble(), name="sent") as program, \
            receiver(task, lose) as to:
        send(to, program, m, file)


KINDS: dict[str, dict[str, Any]] = {
    "queue": {"value": "u4", "max_entries": 4},
    "bloom_filter": {"value": "u4", "max_entries": 4},
    "ringbuf": {"max_entries": os.sysconf("SC_PAGESIZE")},
    "lpm_trie": {"key": [("prefixlen", "u4"), ("addr", "u1", (4,))], "value": "u4",
                 "max_entries": 4},
    "sk_storage": {"value": "u4"}, "cgroup_storage": {"value": "u4"},
    "stack_trace": {"value": "u8", "max_entries": 4}, "prog_array": {"max_entries": 4},
    "devmap": {"max_entries": 4}, "cpumap": {"max_entries": 1},
}


def test_every_sort_of_map_is_opened(make: Make, lose: Callable[[], None]) -> None:
    made = [make(kind, **options, btf=False) for kind, options in KINDS.items()]
    expected = [(type(m), m.id) for m in made]

    def task(fds: list[int]) -> None:
        opened = []
        for kind, fd in zip(KINDS, fds, strict=True):
            dtypes = {} if kind != "sk_storage" else {"value": "u4"}
            with fastmap.open(fd=fd, **dtypes) as m:
                opened.append((type(m), m.id))
        assert opened == expected

    here, there = socket.socketpair()
    with here, there:
        def run() -> None:
            lose()
            task(socket.recv_fds(there, 1, 32)[1])

        socket.send_fds(here, [b"x"], [m.fileno() for m in made])
        pid = _fork(run, 30)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_taken_by_pidfd_getfd(make: Make) -> None:
    """A collector takes the map out of a process that has it, without its help."""
    m = make("hash", key="u4", value="u4", max_entries=4)
    told, tell = os.pipe()
    done, finish = os.pipe()

    def task() -> None:
        with fastmap.create("hash", key="u4", value="u4", max_entries=4) as own:
            own[1] = 42
            os.write(tell, own.fileno().to_bytes(4, "little"))
            os.read(done, 1)
            assert own[2] == 43

    pid = _fork(task, 30)
    number = int.from_bytes(os.read(told, 4), "little")
    pidfd = os.pidfd_open(pid)
    got = libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
    assert got >= 0, os.strerror(ctypes.get_errno())
    with fastmap.open(fd=got) as theirs:
        os.close(got)
        assert theirs.id != m.id and theirs[1] == 42
        theirs[2] = 43
    os.write(finish, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (pidfd, told, tell, done, finish):
        os.close(fd)
