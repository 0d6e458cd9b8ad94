"""Local storage: user space and programs share values of sockets, files, tasks and cgroups."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from owners import (
    EGRESS,
    INGRESS,
    LSM_MAC,
    add_one,
    attach_lsm,
    attach_to_cgroup,
    cgroup,
    finish,
    function_id,
    inside,
    lsm_programs,
    offset_of,
    only_this_process,
    storage_get,
)
from support import in_child

import fastmap
from fastmap import KeyExists, KeyNotFound, NotSupported, PidFd, Program
from fastmap.asm import R0, R1, R2, R6, Assembler, Helper

pytestmark = pytest.mark.quick

__all__ = ["cgroup"]  # a fixture

VALUE = np.dtype([("count", "u8"), ("mark", "u4")], align=True)
GET_LOCAL_STORAGE = 81

SK = pytest.param("sk_storage", marks=pytest.mark.needs("SK_STORAGE"))
INODE = pytest.param("inode_storage", marks=pytest.mark.needs("INODE_STORAGE"))
TASK = pytest.param("task_storage", marks=pytest.mark.needs("TASK_STORAGE"))
CGRP = pytest.param("cgrp_storage", marks=pytest.mark.needs("CGRP_STORAGE"))


@pytest.fixture
def owner(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return a maker of an owner for a type of storage, that lives as long as the test."""
    def of(kind: str) -> Any:
        if kind == "sk_storage":
            sock = socket.socket()
            request.addfinalizer(sock.close)
            return sock
        if kind == "inode_storage":
            path = tmp_path / "file"
            path.write_text("x")
            return path
        if kind == "task_storage":
            return os.getpid()
        return request.getfixturevalue("cgroup")

    return of


@pytest.mark.parametrize("kind", [SK, INODE, TASK, CGRP])
def test_values_of_an_owner(make: Callable[..., Any], owner: Any, kind: str) -> None:
    m = make(kind, value=VALUE)
    key = owner(kind)
    assert m.key_dtype == "i4" and m.max_entries == 0 and m.type.name.lower() == kind
    assert key not in m and m.get(key) is None and m.get(key, 7) == 7
    with pytest.raises(KeyNotFound, match="the owner has no value here"):
        m[key]
    with pytest.raises(KeyNotFound, match="its owner is gone, or has no value"):
        m.update(key, (1, 2), flags=fastmap.EXIST)
    m[key] = (5, 6)
    assert key in m
    assert m[key].item() == m.get(key).item() == m.lookup(key).item() == (5, 6)
    with pytest.raises(KeyExists):
        m.update(key, (1, 2), flags=fastmap.NOEXIST)
    m.update(key, (7, 8), flags=fastmap.EXIST)
    values, found = m.lookup_many([key, key])
    assert values["count"].tolist() == [7, 7] and found.all()
    assert m.update_many([key], [(9, 10)]) == 1
    assert m[key].item() == (9, 10)
    assert m.delete_many([key, key]) == 1
    with pytest.raises(KeyNotFound):
        del m[key]
    m[key] = (1, 1)
    del m[key]
    assert key not in m
    values, found = m.lookup_many([key])
    assert not found.any() and values.tolist() == [(0, 0)]
    assert m.lookup_many([])[0].shape == (0,)


@pytest.mark.parametrize("kind", [SK, INODE, TASK, CGRP])
def test_what_a_storage_is_not(make: Callable[..., Any], kind: str) -> None:
    m = make(kind, value="u8", max_entries=0)
    for name in ("keys", "values", "items", "snapshot", "reader"):  # the kernel lists no owners
        assert not hasattr(m, name)
    with pytest.raises(TypeError, match="not iterable"):
        iter(m)
    for wrong in (None, 1.5, True, b"x", (1, 2)):
        with pytest.raises(TypeError, match="a key of a"):
            m[wrong]
    with pytest.raises(ValueError, match="0"):
        fastmap.create(kind, value="u8", max_entries=5)
    with pytest.raises(TypeError, match="value"):
        fastmap.create(kind)
    m.close()
    for call in (lambda: m.lookup_many([]), lambda: m.delete_many([])):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("kind", [SK, INODE, TASK, CGRP])
def test_it_is_described_and_found_again(make: Callable[..., Any], owner: Any, kind: str) -> None:
    m = make(kind, value=VALUE, name="store", btf=False)  # the kernel demands BTF all the same
    m[owner(kind)] = (3, 4)
    with fastmap.open(id=m.id) as other:
        assert type(other) is type(m)
        assert other.dtype_source == "btf" and other.value_dtype == VALUE
    with pytest.raises((TypeError, ValueError)):
        fastmap.create(kind, value=np.dtype(("u1", (2,) * 32)))  # deeper than BTF goes


@pytest.mark.needs("SK_STORAGE")
def test_keys_of_sockets(make: Callable[..., Any], tmp_path: Path) -> None:
    m = make("sk_storage", value="u8", flags=fastmap.MapFlag.CLONE)
    assert fastmap.MapFlag.CLONE in m.flags
    with socket.socket() as sock, (tmp_path / "f").open("w") as file:
        m[sock] = 5
        assert m[sock.fileno()] == m[np.int32(sock.fileno())] == 5
        with pytest.raises(fastmap.BpfError, match="not a socket") as caught:
            m[file]
        assert caught.value.errno == 88
        with pytest.raises(TypeError):
            m["/tmp"]
    with pytest.raises(fastmap.BpfError, match="closed") as caught:
        m[987654]
    assert caught.value.errno == 9
    with pytest.raises(fastmap.BpfError):
        987654 in m  # noqa: B015
    with pytest.raises(OverflowError):
        m[1 << 31]


@pytest.mark.needs("TASK_STORAGE")
def test_keys_of_tasks(make: Callable[..., Any]) -> None:
    m = make("task_storage", value="u8")
    m[os.getpid()] = 1
    number = os.pidfd_open(os.getpid())
    try:
        assert m[PidFd(number)] == 1
    finally:
        os.close(number)
    with (Path("/proc/self/stat")).open() as file, \
            pytest.raises(fastmap.BpfError, match="not a pidfd"):
        m[file]
    with pytest.raises(ValueError, match="no number of a process"):
        m[0]
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.waitpid(pid, 0)
    assert pid not in m and m.get(pid, 3) == 3
    for call in (lambda: m[pid], lambda: m.update(pid, 2), lambda: m.delete(pid)):
        with pytest.raises(KeyNotFound, match="there is no process"):
            call()
    assert not [each for each in os.listdir("/proc/self/fd") if _is_pidfd(each)]


def _is_pidfd(number: str) -> bool:
    try:
        return "pidfd" in os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return False


@pytest.mark.needs("ARENA")  # of Linux 6.9, as the pidfds of threads are
def test_threads_are_keys(make: Callable[..., Any]) -> None:
    m = make("task_storage", value="u8")
    ready, stop = threading.Event(), threading.Event()
    ids: list[int] = []

    def wait() -> None:
        ids.append(threading.get_native_id())
        ready.set()
        stop.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        ready.wait()
        m[ids[0]] = 7
        assert m[ids[0]] == 7 and os.getpid() not in m
    finally:
        stop.set()
        thread.join()


@pytest.mark.needs("INODE_STORAGE")
def test_keys_of_files(make: Callable[..., Any], tmp_path: Path) -> None:
    m = make("inode_storage", value="u8")
    path = tmp_path / "file"
    path.write_text("")
    m[path] = 4
    os.link(path, tmp_path / "again")
    with path.open() as file:
        assert m[file] == m[file.fileno()] == m[str(tmp_path / "again")] == 4
    m[tmp_path] = 5  # a folder is a file
    assert m[path] == 4
    with pytest.raises(FileNotFoundError):
        m[tmp_path / "missing"]
    path.unlink()
    (tmp_path / "again").unlink()
    path.write_text("")
    assert path not in m  # another inode, or the same number anew


@pytest.mark.needs("CGRP_STORAGE")
def test_keys_of_cgroups(make: Callable[..., Any], cgroup: Path, tmp_path: Path) -> None:
    m = make("cgrp_storage", value="u8")
    m[cgroup] = 1
    number = os.open(cgroup, os.O_RDONLY)
    try:
        assert m[number] == m[str(cgroup)] == 1
    finally:
        os.close(number)
    with pytest.raises(fastmap.BpfError, match="not of a cgroup"):
        m[tmp_path]


@pytest.mark.needs("TASK_STORAGE")
def test_a_program_counts_system_calls_of_a_task(make: Callable[..., Any]) -> None:
    m = make("task_storage", value=VALUE)
    m[os.getpid()] = (1000, 77)
    a = Assembler()
    only_this_process(a)
    a.call(Helper.GET_CURRENT_TASK_BTF)
    storage_get(a, Helper.TASK_STORAGE_GET, m, R0)
    add_one(a)
    with Program("raw_tracepoint", finish(a)) as program, \
            program.attach_raw_tracepoint("sys_enter"):
        for _ in range(50):
            os.getppid()
    count, mark = m[os.getpid()].item()
    assert count >= 1050 and mark == 77


@pytest.mark.needs("CGRP_STORAGE")
def test_a_program_counts_system_calls_of_a_cgroup(
    make: Callable[..., Any], cgroup: Path
) -> None:
    m = make("cgrp_storage", value="u8")
    a = Assembler()
    only_this_process(a)
    a.call(Helper.GET_CURRENT_TASK_BTF)
    a.ldx(8, R6, R0, offset_of("task_struct", "cgroups"))
    a.ldx(8, R2, R6, offset_of("css_set", "dfl_cgrp"))
    storage_get(a, Helper.CGRP_STORAGE_GET, m, R2)
    add_one(a)
    with Program("raw_tracepoint", finish(a)) as program, \
            program.attach_raw_tracepoint("sys_enter"):
        os.getppid()
        assert cgroup not in m
        with inside(cgroup):
            for _ in range(50):
                os.getppid()
    assert m[cgroup] >= 50


def counting_packets(storage: Any) -> Any:
    """Assemble a CGROUP_SKB program that counts the packets of each socket."""
    a = Assembler()
    a.ldx(8, R6, R1, fastmap.btf_dtype("__sk_buff").fields["sk"][1])
    a.jeq(R6, 0, "out")
    storage_get(a, Helper.SK_STORAGE_GET, storage, R6)
    add_one(a)
    return finish(a, 1)


@pytest.mark.needs("SK_STORAGE")
def test_a_program_counts_packets_of_a_socket(make: Callable[..., Any], cgroup: Path) -> None:
    m = make("sk_storage", value="u8")
    with Program("cgroup_skb", counting_packets(m), expected_attach_type=EGRESS) as program, \
            inside(cgroup), \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two, \
            attach_to_cgroup(program, cgroup, EGRESS):
        one.bind(("127.0.0.1", 0))
        m[one] = 100
        for _ in range(5):
            one.sendto(b"x", one.getsockname())
        two.sendto(b"x", one.getsockname())
        assert (m[one], m[two]) == (105, 1)
        values, found = m.lookup_many([two, one])
        assert values.tolist() == [1, 105] and found.all()


@pytest.mark.needs("INODE_STORAGE")
def test_a_program_counts_how_often_a_file_is_opened(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    m = make("inode_storage", value="u8")
    path = tmp_path / "file"
    path.write_text("")
    m[path] = 10
    if not lsm_programs():  # a kernel that loads none: no program can use this type there
        assert m[path] == 10
        return
    a = Assembler()
    a.ldx(8, R6, R1, 0)  # file_open(struct file *)
    only_this_process(a)
    a.ldx(8, R2, R6, offset_of("file", "f_inode"))
    storage_get(a, Helper.INODE_STORAGE_GET, m, R2)
    add_one(a)
    with Program("lsm", finish(a), expected_attach_type=LSM_MAC,
                 attach_btf_id=function_id("bpf_lsm_file_open")) as program, \
            attach_lsm(program):
        for _ in range(3):
            path.open().close()
    assert m[path] == 13


def counting_here(storage: Any) -> Any:
    """Assemble a CGROUP_SKB program that counts packets in the value of the cgroup it is at."""
    a = Assembler()
    a.ld_map(R1, storage)
    a.mov(R2, 0)
    a.call(GET_LOCAL_STORAGE)
    add_one(a)
    return finish(a, 1)


def send(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        for _ in range(count):
            sock.sendto(b"x", sock.getsockname())


@pytest.mark.needs("CGROUP_STORAGE")
def test_packets_of_a_cgroup_by_attachment(make: Callable[..., Any], cgroup: Path) -> None:
    m = make("cgroup_storage", value="u8")
    assert m.key_dtype.names == ("cgroup_inode_id", "attach_type") and m.max_entries == 0
    assert not m and list(m) == [] and (cgroup, EGRESS) not in m
    with pytest.raises(KeyNotFound, match="no program with this map is attached"):
        m[cgroup, EGRESS] = 1
    with pytest.raises(TypeError, match="attach_type"):
        m[cgroup]
    inode = cgroup.stat().st_ino
    code = counting_here(m)
    with Program("cgroup_skb", code, expected_attach_type=EGRESS) as out, \
            Program("cgroup_skb", code, expected_attach_type=INGRESS) as into, \
            inside(cgroup), \
            attach_to_cgroup(out, cgroup, EGRESS), attach_to_cgroup(into, cgroup, INGRESS):
        assert m[cgroup, EGRESS] == m[inode, EGRESS] == m[str(cgroup), INGRESS] == 0
        m[cgroup, EGRESS] = 100
        send(7)
        assert (m[cgroup, EGRESS], m[cgroup, INGRESS]) == (107, 7)
        batch = m.snapshot()
        assert sorted(zip(batch.keys["attach_type"].tolist(), batch.values.tolist(), strict=True)
                      ) == [(INGRESS, 7), (EGRESS, 107)]
        assert (batch.keys["cgroup_inode_id"] == inode).all() and not batch.complete
        assert {k.item(): v for k, v in m.items()} == {(inode, EGRESS): 107, (inode, INGRESS): 7}
        values, found = m.lookup_many([(inode, EGRESS), (inode, 99)])
        assert values.tolist() == [107, 0] and found.tolist() == [True, False]
        assert m and (cgroup, EGRESS) in m
        for delete in (lambda: m.delete((cgroup, EGRESS)), lambda: m.__delitem__((cgroup, EGRESS))):
            with pytest.raises(NotSupported, match="come with the attachment of a program"):
                delete()
    assert m[cgroup, EGRESS] == 107  # the values stay with the cgroup


@pytest.mark.needs("CGROUP_STORAGE")
def test_values_go_with_their_cgroup(make: Callable[..., Any], cgroup: Path) -> None:
    m = make("cgroup_storage", key="u8", value="u8")
    folder = cgroup / "inner"
    folder.mkdir()
    with Program("cgroup_skb", counting_here(m), expected_attach_type=EGRESS) as program, \
            attach_to_cgroup(program, folder, EGRESS):
        m[folder] = 1
        assert list(m) == [folder.stat().st_ino]
    folder.rmdir()
    until = time.monotonic() + 20  # the kernel takes its time
    while m and time.monotonic() < until:
        time.sleep(0.01)
    assert not m and list(m) == []


@pytest.mark.needs("PERCPU_CGROUP_STORAGE")
@pytest.mark.parametrize("key", [None, "u8"])
def test_packets_of_a_cgroup_by_cpu(
    make: Callable[..., Any], cgroup: Path, key: str | None
) -> None:
    m = make("percpu_cgroup_storage", key=key, value="u8")
    owner = cgroup if key else (cgroup, EGRESS)
    with Program("cgroup_skb", counting_here(m), expected_attach_type=EGRESS) as program, \
            inside(cgroup), attach_to_cgroup(program, cgroup, EGRESS):
        m[owner] = 0
        send(9)
        assert m[owner].shape == (len(fastmap.possible_cpus()),) and m[owner].sum() == 9
        assert m.snapshot(reduce="sum").values.tolist() == [9]
        m.update(owner, 50, cpu=fastmap.possible_cpus()[0])
        assert m.lookup(owner, cpu=fastmap.possible_cpus()[0]) == 50
        assert int(m[owner].sum()) >= 50
        assert len(list(m)) == 1 and m.get(cgroup / ".." if key else (0, EGRESS)) is None


@pytest.mark.needs("SK_STORAGE")
def test_a_child_uses_storage(make: Callable[..., Any]) -> None:
    m = make("sk_storage", value="u8")
    with socket.socket() as sock:
        in_child(lambda: m.__setitem__(sock, 9))
        assert m[sock] == 9
