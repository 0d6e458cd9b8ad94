"""The figures fastmap has to reach: one group a row of the table, fastmap and C beside each other.

pytest-benchmark gives each side's own statistics; the verdict comes from the harness, which runs
the two in turn. A spread that crosses the target leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .allocations import STEADY, growth
from .conftest import Figure, Keep
from .cside import CSide
from .harness import Result, Side, quiet
from .rows.array_cases import ARRAYS
from .rows.cases import ROWS, SMALL, Case, Row, Size
from .rows.kernel_cases import KERNEL_ROWS
from .rows.perf_rows import PERFS
from .rows.rings import RINGS, idle_cpu
from .rows.threads import Bulk, bulk_calls, element_rate, progress

BULK = ("lookup_many", "update_many", "reader.read", "drain")


@pytest.fixture(scope="module")
def size(once: bool) -> Size:
    return SMALL if once else Size()


ALL = {**{row.__name__: row for row in (*ROWS, *RINGS)}, **KERNEL_ROWS, **ARRAYS, **PERFS}


@pytest.fixture(scope="module", params=ALL.values(), ids=ALL)
def case(request: pytest.FixtureRequest, c: CSide, size: Size) -> Iterator[Case]:
    row: Row = request.param
    with row(c, size) as case:
        case.check()
        yield case
        case.check()  # the last thing a side did was right as well


@pytest.fixture(scope="module")
def bulks(c: CSide, size: Size) -> Iterator[dict[str, Bulk]]:
    with bulk_calls(c, size) as calls:
        yield {bulk.name: bulk for bulk in calls}


def run(benchmark: BenchmarkFixture, case: Case, side: Side) -> None:
    """pytest-benchmark's own statistics of one side, each call a new block."""
    number = 0

    def block() -> None:
        assert side(number) == case.entries

    def setup() -> None:
        nonlocal number
        number += 1
        if case.before is not None:
            case.before()

    benchmark.group = case.name
    benchmark.extra_info["entries"] = case.entries
    with quiet():
        benchmark.pedantic(block, setup=setup, rounds=max(3, case.rounds // 4), warmup_rounds=1)


def test_fastmap(benchmark: BenchmarkFixture, case: Case, keep: Keep, once: bool) -> None:
    run(benchmark, case, case.ours)
    if not once:
        keep(case.compare())


def test_c(benchmark: BenchmarkFixture, case: Case) -> None:
    run(benchmark, case, case.theirs)


def whole(benchmark: BenchmarkFixture, keep: Keep, once: bool, group: str,
          work: Callable[[], Result]) -> None:
    """A row that is one measurement as a whole: run it, and keep what it found."""
    benchmark.group = group
    result = benchmark.pedantic(work)
    if not once:
        keep(result)


@pytest.mark.parametrize("work", STEADY)
def test_allocations(benchmark: BenchmarkFixture, keep: Keep, once: bool, work: str) -> None:
    sizes = {"few": 200, "many": 2_000} if once else {}
    whole(benchmark, keep, once, "allocations", lambda: growth(work, **sizes))


@pytest.mark.parametrize("name", BULK)
def test_progress_of_another_thread(benchmark: BenchmarkFixture, keep: Keep, once: bool,
                                    bulks: dict[str, Bulk], name: str) -> None:
    bulk = bulks[name]

    def work() -> Result:
        return progress(bulk, rounds=1) if once else progress(bulk)

    whole(benchmark, keep, once, "another thread", work)


def test_elements_beside_a_thread(benchmark: BenchmarkFixture, keep: Keep, once: bool, c: CSide,
                                  size: Size) -> None:
    def work() -> Result:
        return element_rate(c, size, rounds=1) if once else element_rate(c, size)

    whole(benchmark, keep, once, "elements", work)


def test_an_idle_reader_uses_no_cpu(benchmark: BenchmarkFixture, figure: Figure,
                                    once: bool) -> None:
    benchmark.group = "ring buffer"
    share = benchmark.pedantic(idle_cpu, args=(0.2 if once else 2,))
    figure("a ring's reader that waits, and one by asyncio: CPU", 100 * share, "%", "<= 2")
    assert share < 0.02
