"""Live kernel data: the system calls of this machine, counted by a BPF program of our own.

A program on the raw tracepoint ``sys_enter`` counts per process and system call in a per-CPU hash.
Once a second the whole map is read with a `Reader`, the CPUs are summed in C, and the busiest rows
are shown.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmap import asm
from fastmap._core.system.program import Program
from fastmap._core.system.syscall import possible_cpus
from fastmap.enums import NOEXIST, ProgType
from fastmap.kernel.capabilities import missing_capabilities
from fastmap.maptypes.batch import Array
from fastmap.maptypes.create import create
from fastmap.text.syscall_names import syscall_names

KEY = np.dtype([("pid", "u4"), ("syscall", "u4")])
VALUE = np.dtype([("calls", "u8"), ("comm", "S16")])


def counter(counts: Any) -> asm.Code:
    """Assemble the program: count this call under (process, system call) in the map `counts`."""
    a = asm.Assembler()
    key, value = -8, -8 - VALUE.itemsize
    # ctx of sys_enter: the registers, then the number of the system call.
    a.ldx(8, asm.R6, asm.R1, 8)
    a.call(asm.Helper.GET_CURRENT_PID_TGID)
    a.rsh(asm.R0, 32)
    a.stx(4, asm.FP, key, asm.R0)
    a.stx(4, asm.FP, key + 4, asm.R6)
    a.ld_map(asm.R1, counts)
    a.mov(asm.R2, asm.FP)
    a.add(asm.R2, key)
    a.call(asm.Helper.MAP_LOOKUP_ELEM)
    a.jeq(asm.R0, 0, "new")
    a.mov(asm.R7, asm.R0)
    a.mov(asm.R1, 1)
    a.atomic_add(8, asm.R7, 0, asm.R1)
    # The name, once for each CPU the process runs on.
    a.ldx(1, asm.R1, asm.R7, 8)
    a.jne(asm.R1, 0, "out")
    a.mov(asm.R1, asm.R7)
    a.add(asm.R1, 8)
    a.mov(asm.R2, 16)
    a.call(asm.Helper.GET_CURRENT_COMM)
    a.ja("out")
    a.label("new")
    a.st(8, asm.FP, value, 1)
    a.mov(asm.R1, asm.FP)
    a.add(asm.R1, value + 8)
    a.mov(asm.R2, 16)
    a.call(asm.Helper.GET_CURRENT_COMM)
    a.ld_map(asm.R1, counts)
    a.mov(asm.R2, asm.FP)
    a.add(asm.R2, key)
    a.mov(asm.R3, asm.FP)
    a.add(asm.R3, value)
    a.mov(asm.R4, int(NOEXIST))
    a.call(asm.Helper.MAP_UPDATE_ELEM)
    a.label("out")
    a.mov(asm.R0, 0)
    a.exit()
    return a.assemble()


@dataclass(frozen=True)
class Row:
    """A busy (process, system call)."""

    pid: int
    comm: str
    syscall: str
    rate: float
    shares: str


@dataclass(frozen=True)
class Second:
    """What one read of the map showed."""

    rows: list[Row]
    entries: int
    calls: int
    rate: float
    read_ms: float

    def __str__(self) -> str:
        return (f"{self.rate:,.0f} system calls a second; read {self.entries:,} entries "
                f"(all CPUs, summed) in {self.read_ms:.2f} ms")


class SystemCalls:
    """The counting program, attached, and the reader of its map.

    Parameters
    ----------
    max_entries : int
        How many (process, system call) pairs are told apart.
    """

    def __init__(self, max_entries: int = 65536) -> None:
        self.counts = create("lru_percpu_hash", key=KEY, value=VALUE, max_entries=max_entries,
                             name="demo_syscalls")
        self._names = syscall_names()
        self._last_keys = np.empty(0, "u8")
        self._last_calls = np.empty(0, "u8")
        self._last_ns = time.monotonic_ns()
        try:
            self.reader = self.counts.reader(reduce={"calls": "sum", "comm": "any"})
            self._program = Program(ProgType.RAW_TRACEPOINT, counter(self.counts), name="demo")
            self._link = self._program.attach_raw_tracepoint("sys_enter")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Detach the program and give up the map."""
        for part in ("_link", "_program", "counts"):
            if hasattr(self, part):
                getattr(self, part).close()

    def __enter__(self) -> SystemCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, top: int) -> Second:
        """Read the map; return the `top` busiest rows since the last read."""
        batch = self.reader.read()
        seconds = (batch.started_ns - self._last_ns) / 1e9
        keys = batch.keys.view("u8")
        calls = batch.values["calls"]
        new = calls - self._before(keys, calls)
        busiest = np.argsort(new)[::-1][:top]
        busiest = busiest[new[busiest] > 0]
        per_cpu = self.counts.lookup_many(batch.keys[busiest])[0]["calls"]
        rows = [
            Row(int(batch.keys["pid"][i]), batch.values["comm"][i].decode(errors="replace"),
                self._name(int(batch.keys["syscall"][i])), float(new[i]) / seconds, shares(cpus))
            for i, cpus in zip(busiest, per_cpu, strict=True)
        ]
        order = np.argsort(keys)
        self._last_keys, self._last_calls = keys[order], calls[order]
        self._last_ns = batch.started_ns
        total = int(new.sum())
        return Second(rows, len(batch), total, total / seconds,
                      (batch.ended_ns - batch.started_ns) / 1e6)

    def _before(self, keys: Array, calls: Array) -> Array:
        """Return the calls that the last read had for `keys`: 0 for what is new since."""
        if not len(self._last_keys):
            return np.zeros_like(calls)
        at = np.minimum(np.searchsorted(self._last_keys, keys), len(self._last_keys) - 1)
        before = np.where(self._last_keys[at] == keys, self._last_calls[at], 0)
        # Evicted from the LRU and counted anew: all of its calls are new.
        return np.where(before > calls, 0, before)

    def _name(self, number: int) -> str:
        return self._names.get(number, f"syscall {number}")


def shares(calls: Array, most: int = 4) -> str:
    """Return the share of each CPU, the largest first, as text."""
    total = int(calls.sum())
    order = np.argsort(calls)[::-1][:most]
    cpus = possible_cpus()
    return " ".join(f"cpu{cpus[i]} {100 * int(calls[i]) / total:.0f}%" for i in order if calls[i])


def run(seconds: float = 10, top: int = 15) -> int:
    """Show the busiest system calls once a second; return the exit status."""
    missing = missing_capabilities("CAP_BPF", "CAP_PERFMON")
    if missing:
        print(f"fastmap demo: needs {' and '.join(missing)} (or CAP_SYS_ADMIN): run it as root",
              file=sys.stderr)
        return 1
    with SystemCalls() as calls:
        try:
            if sys.stdout.isatty() and (show := _live_table()) is not None:
                show(calls, seconds, top)
            else:
                _lines(calls, seconds, top)
        except KeyboardInterrupt:
            pass  # as good an end as any
    return 0


def _each_second(seconds: float) -> Any:
    """Yield once a second, the last time when `seconds` are over; never twice for one instant."""
    start = time.monotonic()
    due = start
    while due < start + seconds:
        due = min(due + 1, start + seconds)
        time.sleep(max(0.0, due - time.monotonic()))
        yield


def _lines(calls: SystemCalls, seconds: float, top: int) -> None:
    for _ in _each_second(seconds):
        second = calls.read(top)
        print(f"\n{second}", flush=True)
        print(f"{'PID':>8} {'PROCESS':<16} {'SYSTEM CALL':<20} {'CALLS/S':>10}  BY CPU")
        for row in second.rows:
            print(f"{row.pid:>8} {row.comm:<16} {row.syscall:<20} {row.rate:>10,.0f}  {row.shares}",
                  flush=True)


def _live_table() -> Any:
    """Return what shows the rows as a table that stays in place; None without rich."""
    try:
        from rich.live import Live
        from rich.table import Table
    except ImportError:
        return None

    def show(calls: SystemCalls, seconds: float, top: int) -> None:
        with Live(refresh_per_second=2) as live:
            for _ in _each_second(seconds):
                second = calls.read(top)
                table = Table(title="System calls by process", caption=str(second))
                for column, justify in (("PID", "right"), ("process", "left"),
                                        ("system call", "left"), ("calls/s", "right"),
                                        ("by CPU", "left")):
                    table.add_column(column, justify=justify)  # type: ignore[arg-type]
                for row in second.rows:
                    table.add_row(str(row.pid), row.comm, row.syscall, f"{row.rate:,.0f}",
                                  row.shares)
                live.update(table, refresh=True)

    return show
