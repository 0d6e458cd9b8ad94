"""`python -m bench.gate`: what calls cost, held against `gate.json`, and hot paths beside C.

System calls are exact, memory may be 5% and 4 KiB more, instructions 4% and 300: two runs differ by
1.5%, or by some 250 where malloc's aligned blocks depend on what the heap looks like (`k in m`). A
call that got better by more than that is said, so that the file can follow (`--write` writes it
anew, for a change that is meant). Of some hot paths the ratio to C is measured, in few rounds and
with limits so wide that there is a verdict on a noisy machine; a path that became twice as slow is
still noticed. Status 1 where one got worse.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .counts import Counts, allocations, counted_with, instructions, no_callgrind, system_calls
from .cside import CSide
from .harness import Result
from .rows.cases import Row, Size, drain, get_int, lookup_many, read, read_sum, set_int
from .rows.kernel_cases import KERNEL_ROWS
from .table import environment

FILE = Path(__file__).with_name("gate.json")
#: What a count may be over its figure: a share of it, and so many more.
MARGIN = {"system calls": (0.0, 0.0), "allocations": (0.05, 4096.0), "instructions": (0.04, 300.0)}
LOOSE = ("page faults",)  # of the allocations, these depend on what the kernel has at hand
#: In the file, with what its instructions were counted.
WITH = "instructions with"

#: Hot paths by system calls, whose limits are close to their figures, may be so far over them.
GENEROUS = 1.5
BY_CALLS: tuple[Row, ...] = (get_int, set_int, lookup_many, read, read_sum, drain)
#: Those in-kernel have limits that are generous themselves: up to half of them is air.
IN_KERNEL: tuple[Row, ...] = tuple(KERNEL_ROWS[f"kernel_{name}"] for name in (
    "lookup", "update", "pop", "few_8"))
ROUNDS = 16


def counted(callgrind: bool = True) -> dict[str, Counts]:
    """All counts, or all but instructions."""
    found = {"system calls": system_calls(), "allocations": allocations()}
    for each in found["allocations"].values():
        for name in LOOSE:
            each.pop(name)
    if callgrind:
        found["instructions"] = instructions()
    return found


def differences(now: dict[str, Counts], then: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What got worse and what got better, a line each."""
    worse, better = [], []
    for what, works in now.items():
        share, more = MARGIN[what]
        for work, figures in works.items():
            before = then.get(what, {}).get(work)
            if before is None:
                worse.append(f"{work}: {what} not in {FILE.name} (python -m bench.gate --write)")
                continue
            for name in {**before, **figures}:
                new, old = figures.get(name, 0), before.get(name, 0)
                slack = share * abs(old) + more
                if abs(new - old) > slack:
                    line = f"{work}: {new:,.9g} {name} ({what}), was {old:,.9g}"
                    (worse if new > old else better).append(line)
    return worse, better


def beside_c() -> Iterator[Result]:
    """The hot paths' ratios, with limits for the gate."""
    c, size = CSide(), Size()
    for row in (*BY_CALLS, *IN_KERNEL):
        with row(c, size) as case:
            case.check()
            limit = case.limit * (GENEROUS if row in BY_CALLS else 1)
            yield replace(case, limit=limit, rounds=min(case.rounds, ROUNDS)).compare()


def write() -> None:
    """Write the counts to the file."""
    if how := no_callgrind():
        raise SystemExit(f"instructions are counted by callgrind: {how}")
    FILE.write_text(json.dumps({**counted(), WITH: counted_with()}, indent=1) + "\n")


def without_callgrind(then: dict[str, Any]) -> str | None:
    """Why instructions are not compared, if they are not."""
    if how := no_callgrind():
        return f"instructions not counted, which takes callgrind: {how}"
    if then[WITH] != counted_with():
        return (f"instructions not compared: {FILE.name} has those of {then[WITH]}, "
                f"this is {counted_with()}")
    return None


def main() -> int:
    """Count and compare."""
    then = json.loads(FILE.read_text())
    if why := without_callgrind(then):
        print(why)
    now = counted(callgrind=why is None)
    worse, better = differences(now, then)
    ratios: list[Result] = []
    if "QEMU TCG" in environment():
        print("ratios not measured: this machine is emulated")
    else:
        ratios += beside_c()
    worse += [str(result) for result in ratios if result.verdict == "missed"]
    for line in better:
        print(f"better: {line}")
    for line in worse:
        print(f"worse: {line}")
    print(f"{sum(map(len, now.values()))} counts of {', '.join(now)}, {len(ratios)} ratios: "
          f"{'worse' if worse else 'none worse'}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(write() if "--write" in sys.argv[1:] else main())
