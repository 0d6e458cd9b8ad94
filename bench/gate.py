"""`python -m bench.gate`: what a call costs in system calls and memory, held against `gate.json`.

System calls are exact, memory may be 5% and 4 KiB more. A call that got better by more than that is
said, so that the file can follow (`--write` writes it anew, for a change that is meant). Status 1
where one got worse.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .counts import Counts, allocations, system_calls

FILE = Path(__file__).with_name("gate.json")
#: What a count may be over its figure: a share of it, and so many more.
MARGIN = {"system calls": (0.0, 0.0), "allocations": (0.05, 4096.0)}
LOOSE = ("page faults",)  # of the allocations, these depend on what the kernel has at hand


def counted() -> dict[str, Counts]:
    """All counts."""
    found = {"system calls": system_calls(), "allocations": allocations()}
    for each in found["allocations"].values():
        for name in LOOSE:
            each.pop(name)
    return found


def differences(now: dict[str, Counts], then: dict[str, Counts]) -> tuple[list[str], list[str]]:
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
                    line = f"{work}: {new:,g} {name} ({what}), was {old:,g}"
                    (worse if new > old else better).append(line)
    return worse, better


def main(write: bool) -> int:
    """Count, and compare or write."""
    now = counted()
    if write:
        FILE.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    then = json.loads(FILE.read_text())
    worse, better = differences(now, then)
    for line in better:
        print(f"better: {line}")
    for line in worse:
        print(f"worse: {line}")
    print(f"{sum(map(len, now.values()))} counts of {', '.join(now)}: "
          f"{'worse' if worse else 'none worse'}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
