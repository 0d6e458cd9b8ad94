"""Programs of `fastmap.asm` count in live tables as those of clang do."""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap.asm import FP, R0, R1, R2, R3, R4, R6, R7, Assembler, Helper
from fastmap.live.layout import own_columns
from fastmap.live.program import SCRATCH, functions, get


def counter(table: Any, *, insert: bool = True) -> Any:
    """Load a program that counts ``args[0]`` events, of the keys from ``args[1]`` on.

    A key is its number in the first bytes, modulo ``args[2]``; the first u64 of its value counts.
    Returns how many found nothing.
    """
    size = table.key_dtype.itemsize
    key = -(size + 7) // 8 * 8
    a = Assembler()
    a.mov(R6, R1)
    a.ldx(8, R1, R6, 8)
    a.stx(8, FP, -24, R1)  # the next number
    a.ldx(8, R1, R6, 16)
    a.stx(8, FP, -16, R1)
    a.st(8, FP, -8, 0)  # how many found nothing
    a.ldx(8, R1, R6, 0)
    a.ld_func(R2, "one")
    a.mov(R3, FP)
    a.add(R3, -24)
    a.mov(R4, 0)
    a.call(Helper.LOOP)
    a.ldx(8, R0, FP, -8)
    a.exit()
    a.function("one")
    a.mov(R6, R2)
    a.ldx(8, R7, R6, 0)
    a.mov(R1, R7)
    a.add(R1, 1)
    a.stx(8, R6, 0, R1)
    a.ldx(8, R1, R6, 8)
    a.mod(R7, R1)
    for at in range(key, 0, 8):
        a.st(8, FP, at, 0)
    a.stx(min(4, 1 << size.bit_length() - 1), FP, key, R7)
    get(a, table, key=key, scratch=key - SCRATCH, insert=insert)
    a.jne(R0, 0, "there")
    a.ldx(8, R1, R6, 16)
    a.add(R1, 1)
    a.stx(8, R6, 16, R1)
    a.ja("out")
    a.label("there")
    a.mov(R1, 1)
    if insert:
        a.atomic_add(8, R0, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    functions(a, table, insert=insert)
    program = fastmap.Program("raw_tracepoint", a.assemble())

    def count(events: int, keys: int, first: int = 0) -> int:
        return program.run(struct.pack("=3Q", events, first, keys))

    return program, count


@pytest.mark.parametrize("columns", [None, *range(1, min(own_columns(), 2) + 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 12, 16, 20, 31, 64])
def test_keys_of_any_size(size: int, columns: int | None) -> None:
    keys = 200 if size == 1 else 3000
    with fastmap.LiveTable.create(key=f"V{size}", value="u8", capacity=4096,
                                  columns=columns) as table:
        program, count = counter(table)
        with program:
            assert count(10000, keys) == 0
            batch = table.read()
            raw = np.zeros((keys, max(size, 4)), "u1")
            raw[:, :4] = np.arange(keys, dtype="<u4").view("u1").reshape(keys, 4)
            wanted = np.ascontiguousarray(raw[:, :size]).view(f"V{size}")[:, 0]
            values, found = table.lookup_many(wanted)
            assert found.all() and len(batch) == keys
            assert (values == 10000 // keys + (np.arange(keys) < 10000 % keys)).all()
            assert len(table.expire(wanted[:100])) == 100
            assert count(100, keys) == 0 and table.used == keys
        peek, look = counter(table, insert=False)
        with peek:
            table.expire(wanted[:50])
            assert look(keys, keys) == 50
            assert table.full == 0 and len(table) == keys - 50


def test_a_full_table() -> None:
    with fastmap.LiveTable.create(key="u8", value="u8", capacity=100) as table:
        program, count = counter(table)
        with program:
            missed = count(1000, 500)
            batch = table.read()
            assert table.full == missed == 1000 - batch.values.sum()
            assert len(table.evict(keep=0)) == len(batch)
            assert count(50, 50) == 0 and len(table) == 50


def test_two_cpus_and_expiry() -> None:
    with fastmap.LiveTable.create(key="u8", value="u8", capacity=4096) as table:
        programs = [counter(table) for _ in range(2)]
        missed = [0, 0]

        def write(i: int) -> None:
            for turn in range(60):
                missed[i] += programs[i][1](4000, 1000, turn)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        flushed = np.zeros(1000, "u8")
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            gone = table.expire(np.arange(0, 1000, 3, dtype="u8"))
            assert len(np.unique(gone.keys)) == len(gone)
            flushed[gone.keys] += gone.values
        batch = table.read()
        flushed[batch.keys] += batch.values
        for program, _ in programs:
            program.close()
        assert flushed.sum() + sum(missed) == 2 * 60 * 4000
        if not sum(missed):
            assert (flushed == 480).all()
