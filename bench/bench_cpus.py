"""What a per-CPU map costs over the number of possible CPUs, each in a guest of its own.

The guests are those of the tests: Debian's Linux on an emulated machine, of whose CPUs one is
started, for the possible ones are what a per-CPU value has room for. Times of an emulated machine
are some twenty times a real one's, and not evenly so: they count beside each other alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .cside import build

HERE = Path(__file__).parents[1]
KERNEL = "6.12"
CPUS = (1, 4, 16, 64)
LIMIT = 120  # seconds for a guest's work
#: What is compared runs in turn in one guest, and does not mind another guest.
AT_ONCE = min(2, os.cpu_count() or 1)


def guest(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """tests.guest with these arguments, its progress lines kept back."""
    return subprocess.run([sys.executable, "-m", "tests.guest", *arguments], cwd=HERE, text=True,
                          capture_output=True)


def costs(cpus: int) -> dict[str, tuple[float, float]]:
    """What `percpu_cost` measures in a guest with so many possible CPUs."""
    ran = guest("run", "--kernel", KERNEL, "--topology", f"{cpus}possible", "--add", build(),
                "--timeout", str(LIMIT), "--", "env", f"CC={os.environ.get('CC', 'gcc')}",
                "python", "-m", "bench.percpu_cost")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["possible"] == cpus
    return {name: tuple(figures) for name, figures in told["costs"].items()}


def test_cost_over_possible_cpus(benchmark: BenchmarkFixture, once: bool) -> None:
    """The whole curve; the guest with one CPU alone for `--bench-once`."""
    ready = guest("fetch", "--kernel", KERNEL)
    if ready.returncode:  # no qemu, or no kernel to be had
        pytest.skip(ready.stderr.strip().splitlines()[-1])
    series: dict[str, list[tuple[int, float, float]]] = {}
    counts = CPUS[:1] if once else CPUS

    def curve() -> int:
        with ThreadPoolExecutor(AT_ONCE) as guests:
            # The first one alone: it makes the image that the others take.
            each = [costs(counts[0]), *guests.map(costs, counts[1:])]
        for cpus, found in zip(counts, each, strict=True):
            for name, (median, least) in found.items():
                series.setdefault(name, []).append((cpus, median, least))
        return len(counts)

    benchmark.group = "scaling"
    assert benchmark.pedantic(curve) == len(counts)
    benchmark.extra_info["curve"] = {"over": "possible CPUs (emulated)", "series": series}
