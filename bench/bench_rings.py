"""The figures of streams: as bench_maps.py, over the rows of rings.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cases import SMALL, Case, Row, Size
from .cside import CSide
from .rings import RINGS, idle_cpu


@pytest.fixture(scope="module", params=RINGS, ids=lambda row: row.__name__)
def case(request: pytest.FixtureRequest, c: CSide, once: bool) -> Iterator[Case]:
    row: Row = request.param
    with row(c, SMALL if once else Size()) as case:
        case.check()
        yield case


def test_ratio(case: Case, once: bool) -> None:
    if once:
        return  # `check` ran both sides
    result = case.compare()
    print(result)
    assert result.verdict != "missed", str(result)


def test_an_idle_reader_uses_no_cpu(once: bool) -> None:
    assert idle_cpu(0.2 if once else 2) < 0.02
