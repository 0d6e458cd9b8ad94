"""What does not depend on the machine's mood, counted for each of `works`.

System calls are counted by fastmap's own demo program on ``sys_enter``: fastmap measures fastmap.
Allocations are counted in a process of its own with `c/count.c` preloaded, instructions of user
space in one under callgrind, which `c/mark.c` tells where a work begins and ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from itertools import repeat
from pathlib import Path

import numpy as np

from fastmap.cli.system_calls import SystemCalls
from fastmap.text.syscall_names import syscall_names

from .allocations import measure
from .cside import build, possible_cpus
from .harness import quiet
from .rows.works import Work, works

HERE = Path(__file__).parents[1]
CALLS = 20
#: Calls before the counted ones: Python 3.11 rewrites a function's code in its first eight.
WARM = 16
#: Of so many parts of a work the least counts: now and then one gets to fetch memory.
PARTS = 4
NOTHING = "nothing"

Counts = dict[str, dict[str, float]]


def _so_far(calls: SystemCalls) -> dict[str, int]:
    """This process's system calls until now, by name."""
    names, mine = syscall_names(), os.getpid()
    batch = calls.reader.read()
    own = batch.keys["pid"] == mine
    return {names.get(int(n), str(n)): int(c) for n, c in zip(
        batch.keys["syscall"][own], batch.values["calls"][own], strict=True)}


def _taken(calls: SystemCalls, work: Work, times: int) -> dict[str, int]:
    """The system calls of `times` calls, and of looking twice."""
    before = _so_far(calls)
    for _ in range(times):
        work()
    after = _so_far(calls)
    return {name: count - before.get(name, 0) for name, count in after.items()}


def system_calls() -> Counts:
    """System calls of one call of each work, the most of them bpf(2)."""
    found: Counts = {}
    with works() as each, SystemCalls() as calls, quiet():
        for name, work in each.items():
            work()
            _so_far(calls)
            idle, busy = _taken(calls, work, 0), _taken(calls, work, CALLS)
            counted = {kind: (n - idle.get(kind, 0)) / CALLS for kind, n in busy.items()}
            found[name] = {kind: n for kind, n in sorted(counted.items()) if n}
    return found


def _in_child(what: str, *wrapped: str, **env: str) -> str:
    """What a child prints that counts one thing, in an environment or wrapped in a command."""
    return subprocess.run([*wrapped, sys.executable, "-m", __name__, what], check=True, text=True,
                          stdout=subprocess.PIPE, cwd=HERE, env={**os.environ, **env}).stdout


def allocations() -> Counts:
    """Bytes and blocks that one call of each work allocates, counted in a child."""
    found: Counts = json.loads(_in_child("allocations", LD_PRELOAD=str(build("count"))))
    return found


def no_callgrind() -> str | None:
    """How to get what counts instructions, where it is missing."""
    header = Path("/usr/include/valgrind/callgrind.h")
    return None if shutil.which("valgrind") and header.exists() else "apt-get install valgrind"


def counted_with() -> str:
    """What a count of instructions depends on, beside fastmap: others are not comparable."""
    python, numpy = platform.python_version_tuple(), np.__version__.split(".")
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimized = ", optimized" if "--enable-optimizations" in options else ""  # up to a fifth less
    gcc = subprocess.run(["gcc", "-dumpversion"], text=True, capture_output=True).stdout.strip()
    return (f"Python {'.'.join(python[:2])}{optimized}, numpy {'.'.join(numpy[:2])}, gcc {gcc}, "
            f"{platform.machine()}, {possible_cpus()} possible CPUs")


def instructions() -> Counts:
    """Instructions of user space that one call of each work takes, counted in a child."""
    build("mark")  # not under valgrind
    with tempfile.TemporaryDirectory() as folder:
        parts, log = Path(folder, "parts"), Path(folder, "log")
        try:
            _in_child("instructions", "valgrind", "--tool=callgrind", "--instr-atstart=no",
                      "--combine-dumps=yes", f"--callgrind-out-file={parts}",
                      f"--log-file={log}",  # it warns of each bpf(2) command it has not heard of
                      PYTHONHASHSEED="0")
        except subprocess.CalledProcessError:
            print(log.read_text(), file=sys.stderr)
            raise
        totals: dict[str, list[int]] = {}
        for name, total in re.findall(
                r"^desc: Trigger: Client Request: (.+)$(?:\n.*)+?\nsummary: (\d+)$",
                parts.read_text(), re.M):
            totals.setdefault(name, []).append(int(total))
    empty = min(totals.pop(NOTHING))
    return {name: {"instructions": round((min(each) - empty) / CALLS)}
            for name, each in totals.items()}


def _marked(each: dict[str, Work]) -> None:
    """Run each work, warm, as parts of callgrind's counts that have the work's name."""
    mark = ctypes.PyDLL(str(build("mark")))
    start, zero, dump = mark.mark_start, mark.mark_zero, mark.mark_dump
    start()
    nothing: tuple[str, Work] = (NOTHING, lambda: None)
    for name, work in (nothing, *each.items()):
        part = name.encode()
        for _ in range(WARM):
            work()
        for _ in range(PARTS):
            zero()
            for _ in repeat(None, CALLS):
                work()
            dump(part)


def main(what: str) -> None:
    """The child."""
    with works() as each, quiet():
        if what == "instructions":
            _marked(each)
        else:
            print(json.dumps({name: measure(work) for name, work in each.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
