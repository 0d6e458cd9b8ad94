"""`python -m bench.percpu_cost`: what one per-CPU map costs on the CPUs there are, as JSON.

It runs in a guest of tests/guest (see `bench_cpus.py`), but needs none.
"""

from __future__ import annotations

import json
from time import perf_counter_ns

import numpy as np

import fastmap

from .cside import CSide, possible_cpus, touched
from .harness import Side, quiet, taken
from .rows.cases import SLACK, best_chunk, scattered

ENTRIES = 2_000
#: Seconds for all sides together.
BUDGET, FEWEST, MOST = 2.0, 5, 60


def costs(c: CSide, n: int = ENTRIES) -> dict[str, tuple[float, float]]:
    """The median and the least of each side, in nanoseconds an entry."""
    cpus, keys = possible_cpus(), scattered(n)
    with fastmap.create("percpu_hash", key="u8", value="u8", max_entries=n) as m:
        values = keys[:, None] * np.arange(3, 3 + cpus, dtype="u8")
        assert c.update_batch(m.fileno(), keys, values)() == n
        each, summed = m.reader(via="syscall"), m.reader(reduce="sum", via="syscall")
        walk = m.reader(reduce="sum", exact=False, via="kernel")
        out_keys, sums = touched(n + SLACK, "u8"), touched(n + SLACK, "u8")
        sides: dict[str, Side] = {
            "C, batch and sum": best_chunk(
                lambda chunk: c.percpu_sum(m.fileno(), out_keys, sums, cpus, chunk), n),
            "reader().read()": lambda number: len(each.read()),
            'reader(reduce="sum").read()': lambda number: len(summed.read()),
            'reader(reduce="sum", exact=False).read(), in-kernel':
                lambda number: len(walk.read()),
            'lookup_many(reduce="sum", via="syscall")': lambda number: int(np.count_nonzero(
                m.lookup_many(keys, reduce="sum", via="syscall")[1])),
            'lookup_many(reduce="sum"), in-kernel': lambda number: int(np.count_nonzero(
                m.lookup_many(keys, reduce="sum", via="kernel")[1])),
        }
        factors = np.arange(3, 3 + cpus, dtype="u8")
        got, rows = each.read()
        assert len(got) == n and np.array_equal(rows, got[:, None] * factors)
        for read in (summed.read(), walk.read()):
            assert len(read) == n and np.array_equal(read.values, read.keys * factors.sum())
        for via in ("syscall", "kernel"):
            found, there = m.lookup_many(keys, reduce="sum", via=via)
            assert there.all() and np.array_equal(found, keys * factors.sum())
        with quiet():
            start = perf_counter_ns()
            taken(sides, n, 1)
            rounds = int(2 * BUDGET * 1e9 / (perf_counter_ns() - start))
            took = taken(sides, n, min(MOST, max(FEWEST, rounds)))
        assert np.array_equal(sums.view("u8")[:n], out_keys.view("u8")[:n] * factors.sum())
    return {name: (float(np.median(times)), min(times)) for name, times in took.items()}


if __name__ == "__main__":
    print(json.dumps({"possible": possible_cpus(), "costs": costs(CSide())}))
