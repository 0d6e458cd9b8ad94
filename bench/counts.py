"""What does not depend on the machine's mood, counted for each of `works`.

System calls are counted by fastmap's own demo program on ``sys_enter``: fastmap measures fastmap.
Allocations are counted in a process of its own with `c/count.c` preloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fastmap.demo import SystemCalls
from fastmap.syscalls import syscall_names

from .allocations import measure
from .cside import build
from .harness import quiet
from .works import Work, works

HERE = Path(__file__).parents[1]
CALLS = 20

Counts = dict[str, dict[str, float]]


def _so_far(calls: SystemCalls) -> dict[str, int]:
    """This process's system calls until now, by name."""
    names, mine = syscall_names(), os.getpid()
    batch = calls.reader.read()
    own = batch.keys["pid"] == mine
    return {names.get(int(n), str(n)): int(c) for n, c in zip(
        batch.keys["syscall"][own], batch.values["calls"][own], strict=True)}


def _taken(calls: SystemCalls, work: Work | None, times: int) -> dict[str, int]:
    """The system calls of `times` calls, and of looking twice."""
    before = _so_far(calls)
    for _ in range(times if work else 0):
        work()  # type: ignore[misc]
    after = _so_far(calls)
    return {name: count - before.get(name, 0) for name, count in after.items()}


def system_calls() -> Counts:
    """System calls of one call of each work, the most of them bpf(2)."""
    found: Counts = {}
    with works() as each, SystemCalls() as calls, quiet():
        for name, work in each.items():
            work()
            _so_far(calls)
            idle, busy = _taken(calls, None, 0), _taken(calls, work, CALLS)
            counted = {kind: (n - idle.get(kind, 0)) / CALLS for kind, n in busy.items()}
            found[name] = {kind: n for kind, n in sorted(counted.items()) if n}
    return found


def allocations() -> Counts:
    """Bytes and blocks that one call of each work allocates, counted in a child."""
    told = subprocess.run(
        [sys.executable, "-m", "bench.counts"], check=True, stdout=subprocess.PIPE,
        cwd=HERE, env={**os.environ, "LD_PRELOAD": str(build("count"))})
    found: Counts = json.loads(told.stdout)
    return found


def _in_child() -> None:
    with works() as each, quiet():
        print(json.dumps({name: measure(work) for name, work in each.items()}))


if __name__ == "__main__":
    _in_child()
