"""What the benchmarks share: the C side, the `--bench-once` switch, and the table at the end."""

from __future__ import annotations

import pytest

from .cside import CSide
from .harness import Result
from .table import markdown

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


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own tables
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if found := config.stash[_results]:
        terminalreporter.section("fastmap against C")
        terminalreporter.write_line(markdown(found))
