"""STACK_TRACE: stacks that programs take, as arrays."""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from owners import only_this_process, store_word

import fastmap
from fastmap import KeyNotFound, MapFlag, NotSupported, Program
from fastmap.asm import R0, R1, R2, R3, R6, R9, Assembler, Helper

pytestmark = pytest.mark.quick

USER_STACK = 1 << 8
GETPPID = {"x86_64": 110, "aarch64": 173}[os.uname().machine]


def taker(stacks: Any, ids: Any, flags: int) -> Any:
    """Assemble a program that takes a stack at getppid, and stores its id in ``ids[0]``."""
    a = Assembler()
    a.mov(R6, R1)
    a.ldx(8, R9, R6, 8)
    a.jne(R9, GETPPID, "out")
    only_this_process(a)
    a.mov(R1, R6)
    a.ld_map(R2, stacks)
    a.mov(R3, flags)
    a.call(Helper.GET_STACKID)
    a.mov(R9, R0)
    store_word(a, ids, 0, R9)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


@contextmanager
def taking(stacks: Any, ids: Any, flags: int = 0) -> Any:
    with Program("raw_tracepoint", taker(stacks, ids, flags)) as program, \
            program.attach_raw_tracepoint("sys_enter"):
        yield


def kernel_names(addresses: Any) -> list[str]:
    """Return the kernel's functions that addresses lie in."""
    symbols = sorted((int(address, 16), name) for address, kind, name, *_ in
                     map(str.split, Path("/proc/kallsyms").read_text().splitlines())
                     if kind in "tT")
    starts = [address for address, _ in symbols]
    return [symbols[bisect.bisect_right(starts, int(each)) - 1][1] for each in addresses]


@pytest.fixture
def ids(make: Callable[..., Any]) -> Any:
    return make("array", value="i8", max_entries=1)


def test_a_stack_of_the_kernel(make: Callable[..., Any], ids: Any) -> None:
    m = make("stack_trace", max_entries=64)
    assert m.value_dtype == np.dtype(("u8", (127,))) and m.key_dtype == "u4"
    assert not m and len(m) == 0 and list(m) == [] and m.stacks() == {}
    with taking(m, ids):
        os.getppid()
    number = ids[0]
    assert number >= 0
    stack = m[number]
    assert stack.dtype == "u8" and 0 < len(stack) < 127 and stack.all()
    assert any("do_syscall" in name or "trace" in name for name in kernel_names(stack))
    assert m and len(m) == 1 and list(m) == [number] and number in m
    assert m.lookup(number).tolist() == m.get(number).tolist() == stack.tolist()
    values, found = m.lookup_many([number, 63 - number])
    assert values.shape == (2, 127) and found.tolist() == [True, False]
    assert values[0][:len(stack)].tolist() == stack.tolist() and not values[0][len(stack):].any()
    assert {k: v.tolist() for k, v in m.stacks().items()} == {number: stack.tolist()}
    taken = m.stacks(np.array([number, -17, number, 63 - number]))
    assert list(taken) == [number] and m.stacks([-17]) == {} and m.stacks([]) == {}
    del m[number]
    assert not m and m.get(number) is None
    with pytest.raises(KeyNotFound):
        m[number]


def test_many_stacks_are_read_and_deleted(make: Callable[..., Any], ids: Any) -> None:
    m = make("stack_trace", value=("u8", (16,)), max_entries=1024)
    numbers = set()

    def deeper(calls: int) -> None:
        if calls:
            deeper(calls - 1)
        else:
            os.getppid()
        numbers.add(ids[0])

    with taking(m, ids, USER_STACK):
        os.getppid()
        deeper(3)
    with taking(m, ids):
        os.getppid()
        numbers.add(ids[0])
    numbers = {n for n in numbers if n >= 0}
    assert len(numbers) >= 2 and set(m) == numbers and len(m) == len(numbers)
    batch = m.snapshot()
    assert set(batch.keys.tolist()) == numbers and batch.values.shape == (len(numbers), 16)
    assert not batch.complete  # from key to key: the kernel has no batch here
    assert set(m.stacks()) == numbers
    assert dict(m.items()).keys() == numbers
    drained = m.drain()
    assert set(drained.keys.tolist()) == numbers and not m
    with taking(m, ids):
        os.getppid()
    assert m
    m.clear()
    assert not m


@pytest.mark.parametrize("depth", [None, 4])
def test_frames_by_build_id(make: Callable[..., Any], ids: Any, depth: int | None) -> None:
    value = None if depth is None else [("status", "i4"), ("build_id", "u1", (20,)),
                                        ("offset", "u8")]
    spec = None if value is None else np.dtype((np.dtype(value), (depth,)))
    m = make("stack_trace", value=spec, max_entries=64, flags=MapFlag.STACK_BUILD_ID)
    assert m.value_dtype.itemsize == 32 * (depth or 127)
    with taking(m, ids, USER_STACK):
        os.getppid()
    stack = m[ids[0]]
    assert stack.dtype.names == ("status", "build_id", "offset") and len(stack) >= 1
    assert np.isin(stack["status"], [1, 2]).all()  # in a file with a build id; or an address
    assert (stack["offset"] > 0).all()
    known = stack[stack["status"] == 1]
    assert all(each.any() for each in known["build_id"])
    with fastmap.open(fd=m.fileno()) as other:
        assert other[ids[0]].tobytes() == stack.tobytes()
        assert other.value_dtype == m.value_dtype


def test_opened_stacks_are_addresses(make: Callable[..., Any], ids: Any) -> None:
    m = make("stack_trace", value=("u8", (32,)), max_entries=8)
    with taking(m, ids):
        os.getppid()
    with fastmap.open(id=m.id) as other:
        assert isinstance(other, fastmap.StackTrace) and other.value_dtype == m.value_dtype
        assert other[ids[0]].tolist() == m[ids[0]].tolist()


def test_only_programs_write(make: Callable[..., Any]) -> None:
    m = make("stack_trace", max_entries=8)
    with pytest.raises(NotSupported, match="only programs write"):
        m.update(1, np.zeros(127, "u8"))
    with pytest.raises(NotSupported, match="only programs write"):
        m[1] = np.zeros(127, "u8")
    with pytest.raises(NotSupported, match="only programs write"):
        m.update_many([1], np.zeros((1, 127), "u8"))


@pytest.mark.parametrize(("options", "message"), [
    ({"value": "V12"}, "frames of 8"),
    ({"value": ("u8", (3,)), "flags": MapFlag.STACK_BUILD_ID}, "frames of 32"),
    ({"key": "u8"}, "key"),
])
def test_stacks_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fastmap.create("stack_trace", max_entries=8, **options)
    assert not isinstance(caught.value, OSError)


def test_ids_past_the_end_are_not_there(make: Callable[..., Any]) -> None:
    stacks = make("stack_trace", value="V1016", max_entries=8)
    assert stacks.delete_many([3, 99]) == 0
    assert stacks.delete_many([3, 99], errors="return").tolist() == [errno.ENOENT, errno.E2BIG]
