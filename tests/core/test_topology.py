"""Possible CPUs are not the online ones: what a per-CPU value holds, and where.

On most machines they are the same. The guests of ``make test-kernels`` have topologies where they
differ: more possible than present, and a hole among the online ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw

import fastmap
from fastmap import Program, asm
from fastmap._core.system.syscall import cpu_list
from fastmap.enums import Command

pytestmark = pytest.mark.quick

CPUS = Path("/sys/devices/system/cpu")
RUN_ON_CPU = 1
PER_CPU = ["percpu_hash", "percpu_array", "lru_percpu_hash"]


def cpus(what: str) -> tuple[int, ...]:
    return cpu_list((CPUS / what).read_text())


def add_own_number(m: Any) -> asm.Code:
    """Assemble: add 100 + the number of the CPU it runs on to the value of key 0."""
    a = asm.Assembler()
    a.st(8, asm.FP, -8, 0)
    a.ld_map(asm.R1, m)
    a.mov(asm.R2, asm.FP)
    a.add(asm.R2, -8)
    a.call(asm.Helper.MAP_LOOKUP_ELEM)
    a.jeq(asm.R0, 0, "out")
    a.mov(asm.R6, asm.R0)
    a.call(asm.Helper.GET_SMP_PROCESSOR_ID)
    a.add(asm.R0, 100)
    a.ldx(m.value_dtype.itemsize, asm.R1, asm.R6, 0)
    a.add(asm.R1, asm.R0)
    a.stx(m.value_dtype.itemsize, asm.R6, 0, asm.R1)
    a.label("out")
    a.mov(asm.R0, 0)
    a.exit()
    return a.assemble()


@pytest.mark.parametrize(("text", "numbers"), [
    ("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0,3-4\n", (0, 3, 4)), ("\n", ()),
    ("1-2,7,9-10", (1, 2, 7, 9, 10)),
])
def test_lists_of_cpus(text: str, numbers: tuple[int, ...]) -> None:
    assert cpu_list(text) == numbers


def test_possible_cpus_are_the_kernel_s() -> None:
    assert fastmap.possible_cpus() == cpus("possible")
    assert set(fastmap.possible_cpus()) >= set(cpus("present")) >= set(cpus("online"))


def test_this_is_the_topology_that_was_asked_for() -> None:
    asked = os.environ.get("FASTMAP_TOPOLOGY", "")
    online = len(cpus("online"))
    if asked == "holes":
        assert len(fastmap.possible_cpus()) == 16
        assert online == 4
        assert cpus("online") != tuple(range(4)), "no hole among the online CPUs"
    elif asked.endswith("cpu"):
        assert online == int(asked.removesuffix("cpu"))


@pytest.mark.parametrize("value", ["u4", "u8"])
@pytest.mark.parametrize("kind", PER_CPU)
def test_the_kernel_fills_a_row_of_all_possible_cpus(
    make: Callable[..., Any], kind: str, value: str
) -> None:
    m = make(kind, key="u4", value=value, max_entries=4)
    m[0] = list(range(1, len(cpus("possible")) + 1))
    row = bytearray(b"\xaa" * (8 * len(cpus("possible")) + 64))
    assert raw.elem(Command.MAP_LOOKUP_ELEM, m.fileno(), bytes(4), row) == 0
    width = 8 * len(cpus("possible"))
    assert row[width:] == b"\xaa" * 64
    assert np.frombuffer(row[:width], "u8").tolist() == m[0].tolist()


@pytest.mark.parametrize("value", ["u4", "u8"])
@pytest.mark.parametrize("kind", PER_CPU)
def test_a_program_s_cpu_is_its_column(make: Callable[..., Any], kind: str, value: str) -> None:
    m = make(kind, key="u4", value=value, max_entries=4)
    m[0] = 0
    with Program("raw_tracepoint", add_own_number(m)) as program:
        for cpu in cpus("online"):
            program.run(flags=RUN_ON_CPU, cpu=cpu)
    expected = [100 + cpu if cpu in cpus("online") else 0 for cpu in cpus("possible")]
    assert m[0].tolist() == expected
    assert m.lookup_many([0])[0].tolist() == [expected]
    assert m.snapshot().values[0].tolist() == expected
    assert m.reader().read().values.shape[1] == len(cpus("possible"))
    written = [value for value in expected if value]
    for reduce, result in (("sum", sum(expected)), ("max", max(expected)),
                           ("min", min(written)), ("any", written[0])):
        assert m.snapshot(reduce=reduce).values[0] == result
        assert m.lookup_many([0], reduce=reduce)[0][0] == result
    last = cpus("online")[-1]
    assert m.lookup(0, cpu=last) == 100 + last


@pytest.mark.parametrize("kind", PER_CPU)
def test_bulk_writes_reach_every_possible_cpu(make: Callable[..., Any], kind: str) -> None:
    m = make(kind, key="u4", value="u2", max_entries=64)
    width = len(cpus("possible"))
    values = np.arange(32 * width, dtype="u2").reshape(32, width)
    m.update_many(np.arange(32, dtype="u4"), values)
    assert (m.lookup_many(np.arange(32, dtype="u4"))[0] == values).all()
    sums = m.lookup_many(np.arange(32, dtype="u4"), reduce="sum")[0]
    assert (sums == values.sum(axis=1)).all()


def test_one_cpu_at_a_time(make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key="u4", value="u4", max_entries=4)
    for cpu in cpus("possible"):
        m.update(7, 1000 + cpu, cpu=cpu)
    assert m[7].tolist() == [1000 + cpu for cpu in cpus("possible")]
    with pytest.raises(ValueError, match="possible"):
        m.update(7, 1, cpu=max(cpus("possible")) + 1)
