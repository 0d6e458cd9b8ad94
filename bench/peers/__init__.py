"""The other libraries, on the same map, in the same run.

A `Peer` offers some of the questions (`OPS`); each gives a side for the harness and, once, the sums
of what came back. C runs in this process; every other peer is a process of its own that inherits
the map's descriptor, is pinned to the CPU of the measuring thread, does one block of work when it
is told to, and tells its own time (`child.py` has the protocol). What a peer needs is looked for;
where it is missing, `missing` says so in one line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, Protocol

import numpy as np

from ..cside import U64, CSide
from ..harness import CPUS, Side

HERE = Path(__file__).parent
#: What a peer may be asked: one element at a time (5,000 of them a block), a whole read by the
#: library's best way and by its iterator, the same and the entries are gone, the values of given
#: keys, and given keys updated at once.
OPS = ("lookup", "update", "delete", "read", "walk", "drain", "given", "put")
#: Those that process the whole map, and those after which entries are missing.
WHOLE, TAKING = ("read", "walk", "drain"), ("delete", "drain")
MASK = 2**64 - 1
#: Seconds after which a peer that says nothing is taken to hang: a block takes one or two.
PATIENCE = 120


@dataclass(frozen=True)
class Ground:
    """The map that all look at, u64 to u64, each value three times its key."""

    fd: int
    keys: U64
    room: int
    block: int

    def part(self, number: int) -> U64:
        """Return the keys of a block: the same ones for every peer."""
        start = number % (len(self.keys) // self.block) * self.block
        return self.keys[start : start + self.block]


class Peer(Protocol):
    """A library that is there."""

    version: str

    def side(self, op: str) -> Side:
        """What the harness calls."""

    def sums(self, op: str, number: int) -> tuple[int, int]:
        """Do a block; return the sums of the keys and of the values that came back."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Kind:
    """A library: what its calls return, op by op, how it is started, and what it takes.

    `missing` gives None where it can be had, else the line that says why not; `ring` starts it on a
    ring buffer, given its descriptor and how many records lie in it at each turn; `perf` on a
    PERF_EVENT_ARRAY, given the pages of a ring too; `note` is what a reader of the table has to
    know for fairness.
    """

    name: str
    returns: dict[str, str]
    start: Callable[[Ground], Peer]
    missing: Callable[[], str | None]
    ring: Callable[[int, int], Peer] | None = None
    perf: Callable[[int, int, int], Peer] | None = None
    note: str = ""


class Clock:
    """A clock for pytest-benchmark that stands while a peer does what it does not time."""

    def __init__(self) -> None:
        self._left_out = 0

    def leave_out(self, nanoseconds: int) -> None:
        """These have passed, and count for nobody."""
        self._left_out += nanoseconds

    def __call__(self) -> float:
        return perf_counter() - self._left_out / 1e9


clock = Clock()


class ChildSide:
    """A side whose time the peer itself tells; `told` is that, and what its process waited."""

    def __init__(self, child: Child, op: str) -> None:
        self._child, self._op = child, op
        self._told = (0, 0)

    def __call__(self, number: int) -> int:
        start = perf_counter_ns()
        answer = self._child.ask(self._op, number)
        self._told = answer["ns"], answer["waited"]
        clock.leave_out(perf_counter_ns() - start - answer["ns"])
        return int(answer["entries"])

    def told(self) -> tuple[int, int]:
        """Return the nanoseconds of the last block, and those that its process waited for a CPU."""
        return self._told


class Child:
    """A peer in a process of its own."""

    def __init__(self, command: list[str | Path], *, ground: Ground | None = None, ring: int = -1,
                 records: int = 0, perf: int = -1, pages: int = 0, file: str = "", type: str = "",
                 environment: dict[str, str] | None = None, version: str = "") -> None:
        said: dict[str, Any] = {"map": -1, "ring": ring, "keys": -1, "entries": 0, "room": 0,
                                "block": 1, "records": records, "version": version,
                                "cpu": max(CPUS), "perf": perf, "pages": pages,
                                "file": file, "type": type}
        keys = -1
        if ground is not None:
            keys = os.memfd_create("keys")
            os.write(keys, ground.keys.tobytes())
            said |= {"map": ground.fd, "keys": keys, "entries": len(ground.keys),
                     "room": ground.room, "block": ground.block}
        try:
            self._process = subprocess.Popen(
                [*command, json.dumps(said)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env={**os.environ, **(environment or {})}, cwd=HERE,
                pass_fds=[fd for fd in (said["map"], ring, perf, keys) if fd >= 0])
        finally:
            if keys >= 0:
                os.close(keys)
        self.version = str(self._answer()["version"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Each answer is one line, and asked for: none is in the file's own buffer.
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            self._process.kill()
            self.close()
            raise RuntimeError(f"{self._process.args!r} said nothing for {PATIENCE} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, op: str, number: int, check: bool = False) -> dict[str, Any]:
        """Have a block done; return what was told."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{op} {number} {int(check)}\n")
        self._process.stdin.flush()
        return self._answer()

    def side(self, op: str) -> Side:
        """What the harness calls."""
        return ChildSide(self, op)

    def sums(self, op: str, number: int) -> tuple[int, int]:
        """The sums of a block."""
        answer = self.ask(op, number, check=True)
        return int(answer["keys"]), int(answer["values"])

    def close(self) -> None:
        """End the process: it reads until there is nothing."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


@dataclass
class InProcess:
    """C, called through ctypes, one call a block."""

    version: str
    sides: dict[str, Side]
    outputs: dict[str, tuple[U64, U64]] = field(default_factory=dict)

    def side(self, op: str) -> Side:
        """What the harness calls."""
        return self.sides[op]

    def sums(self, op: str, number: int) -> tuple[int, int]:
        """The sums of a block."""
        n = self.sides[op](number)
        keys, values = (part[:n] for part in self.outputs.get(op, (np.zeros(0, "u8"),) * 2))
        return int(keys.sum()) & MASK, int(values.sum()) & MASK

    def close(self) -> None:
        """Nothing to end."""


def expected(ground: Ground, op: str, number: int) -> tuple[int, int]:
    """The sums of a block, from what the map was filled with."""
    if op in ("update", "delete", "put"):
        return 0, 0
    whole = op in WHOLE
    keys = ground.keys if whole else ground.part(number)
    return int(keys.sum()) & MASK if whole else 0, int((keys * np.uint64(3)).sum()) & MASK


def fill(c: CSide, ground: Ground) -> Callable[[], int]:
    """Return what puts every entry (back) into the map."""
    return c.update_batch(ground.fd, ground.keys, ground.keys * np.uint64(3))
