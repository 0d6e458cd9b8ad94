"""Proofs of the report: who is ahead, where nobody may say, and that all figures are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from . import readme, report
from .harness import Result

QUESTION = "one element: lookup"


def result(ratio: float, spread: tuple[float, float], **more: Any) -> dict[str, Any]:
    given = {"name": "work", "against": "C", "ours": 100 * ratio, "theirs": 100.0, "entries": 1,
             "rounds": 50, "limit": 1.0, **more}
    return Result(ratio=ratio, spread=spread, **given).as_dict()


@pytest.mark.parametrize(("ratio", "spread", "rounds", "who"), [
    (0.5, (0.4, 0.6), 50, "fastmap"), (1.1, (1.05, 1.2), 50, "C"),
    (1.02, (0.99, 1.05), 50, "no verdict"), (0.5, (0.0, float("inf")), 3, "too busy to say"),
])
def test_a_verdict_takes_a_spread_on_one_side_of_1(ratio: float, spread: tuple[float, float],
                                                   rounds: int, who: str) -> None:
    each = {"question": QUESTION, "peer": "C", "version": "", "returns": "a struct",
            "ratio": result(ratio, spread, rounds=rounds)}
    (row,) = report.peers([each])[1]
    assert row[-2] == who
    assert bool(row[-1]) == (who == "C")  # where another is ahead, the reason is told


def test_faster_ones_are_times_and_limits_are_ratios() -> None:
    rows = report.targets([{"ratios": [
        result(0.1, (0.08, 0.125), limit=1 / 7), result(1.02, (1.01, 1.03), limit=1.05)]}])[1]
    assert rows[0][4:] == ("10.00 (8.00-12.50) times as fast", ">= 7", "met")
    assert rows[1][4:] == ("1.020 (1.010-1.030)", "<= 1.05", "met")


def measured(path: Path) -> Path:
    ratio = result(0.5, (0.4, 0.6))
    infos = {
        "bench/bench_maps.py::test_fastmap[get_int]": {"ratios": [{**ratio, "name": "m[k]"}]},
        "bench/bench_maps.py::test_fastmap[kernel_len]": {"ratios": [{**ratio, "name": "len"}]},
        "bench/bench_maps.py::test_fastmap[ring_leased]": {"ratios": [{**ratio, "name": "ring"}]},
        "bench/bench_collect.py::test_join": {"ratios": [{**ratio, "name": "join"}],
                                              "figures": [["import", 1.25, "ms", "<= 15"]]},
        "bench/bench_peers.py::test_fastmap[lookup]": {
            "question": QUESTION, "peer": "fastmap", "returns": "int"},
        "bench/bench_peers.py::test_peer[lookup-C]": {
            "question": QUESTION, "peer": "C", "version": "12", "returns": "u64", "ratio": ratio},
        "bench/bench_scaling.py::test_cost_over[entries]": {
            "curve": {"over": "entries", "series": {"snapshot()": [[10, 2.0, 1.0]]}}},
    }
    path.write_text(json.dumps({
        "datetime": "2026-11-23T03:00:00", "benchmarks": [
            {"fullname": name, "extra_info": info} for name, info in infos.items()]}))
    return path


def test_everything_is_on_the_page_and_in_readme(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.plots, "drawn", lambda infos: {"ratios": "<?xml?><svg></svg>"})
    monkeypatch.setattr(report, "HERE", tmp_path)
    folder = report.main(measured(tmp_path / "bench.json"))
    page, text = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    for told in ("m[k]", "len", "ring", "join", "1.2 ms", QUESTION, "u64", "snapshot()"):
        assert told in page and told in text, told
    marks = "".join(f"<!-- measured: {name} -->\nold\n<!-- end -->\n"
                    for name in ("headline", "where", "figures", *readme.TABLES))
    made = readme.rewritten(marks, folder, readme.PAGE)
    assert "old" not in made and made == readme.rewritten(made, folder, readme.PAGE)
    for name, told in (("maps", "m[k]"), ("kernel", "len"), ("streams", "ring"), ("kit", "join")):
        block = made.partition(f"<!-- measured: {name} -->")[2].partition("<!-- end -->")[0]
        assert f"| {told} | C |" in block and block.count("\n") == 4, name
    with pytest.raises(ValueError, match="no marks for"):
        readme.rewritten("# fastmap\n", folder, readme.PAGE)
