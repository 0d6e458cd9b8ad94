"""What the benchmarks share: the C side, how a result is kept, `--bench-once`, and the table.

What a benchmark leaves in `benchmark.extra_info` makes the report: `ratios`, `Result`s;
`figures`, what stands for itself; and what bench_peers.py and bench_scaling.py say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .cside import CSide
from .harness import Result, Side, compare, quiet
from .table import markdown

#: Keeps a result for the table and the report. A missed target is told there and fails nothing:
#: another machine's figures are worth a page as well (`python -m bench.ratios` has a status).
Keep = Callable[[Result], None]
#: Measures our side for pytest-benchmark, then both in turn: `pair(group, ours, theirs, ...)`,
#: the rest as `harness.compare` takes it.
Pair = Callable[..., None]
#: Keeps what stands for itself: `figure(name, number, unit, target)`.
Figure = Callable[..., None]

_results = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-once",
        action="store_true",
        help="run each benchmark's body once, with small maps and no verdicts (for CI)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_results] = []
    if config.getoption("--bench-once"):
        config.option.benchmark_disable = True  # read by pytest-benchmark, which configures last


@pytest.fixture(scope="session")
def once(pytestconfig: pytest.Config) -> bool:
    """True when bodies only have to work, not to be fast."""
    return bool(pytestconfig.getoption("--bench-once"))


@pytest.fixture(scope="session")
def c() -> CSide:
    """The C baselines, built if need be."""
    return CSide()


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> list[Result]:
    """Where the benchmarks leave what they found, for the table."""
    return pytestconfig.stash[_results]


@pytest.fixture
def keep(benchmark: BenchmarkFixture, results: list[Result]) -> Keep:
    def keep(result: Result) -> None:
        benchmark.extra_info.setdefault("ratios", []).append(result.as_dict())
        results.append(result)

    return keep


@pytest.fixture
def pair(benchmark: BenchmarkFixture, keep: Keep, once: bool) -> Pair:
    def pair(group: str, ours: Side, theirs: Side, *, name: str, entries: int, rounds: int,
             before: Callable[[], None] | None = None, **how: Any) -> None:
        def block() -> None:
            assert ours(0) == entries

        benchmark.group = group
        benchmark.extra_info["entries"] = entries
        with quiet():
            benchmark.pedantic(block, setup=before, rounds=min(5, rounds), warmup_rounds=1)
        if not once:
            keep(compare(name, ours, theirs, entries=entries, rounds=rounds, before=before, **how))

    return pair


@pytest.fixture
def figure(benchmark: BenchmarkFixture, once: bool) -> Figure:
    def figure(name: str, number: float, unit: str, target: str = "") -> None:
        if not once:
            benchmark.extra_info.setdefault("figures", []).append([name, number, unit, target])

    return figure


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own tables
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if found := config.stash[_results]:
        terminalreporter.section("fastmap against C")
        terminalreporter.write_line(markdown(found))
