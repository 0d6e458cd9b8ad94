"""Declarations that are read again, and the log of it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import exporting, until

pytestmark = pytest.mark.native("no prometheus_client in the emulated kernels")

GOOD = "fastmap_exporter_config_last_reload_successful"
LAST = "fastmap_exporter_config_last_reload_success_timestamp_seconds"


@pytest.fixture
def table(make: Callable[..., Any], bpffs: Path) -> Any:
    m = make("hash", key=[("name", "S8")], value="u8", max_entries=100, pin=bpffs / "reloaded")
    for name, value in ((b"a", 10), (b"b", 20), (b"c", 30)):
        m[name,] = value
    return m


@pytest.fixture
def config(table: Any, bpffs: Path, tmp_path: Path) -> Path:
    path = tmp_path / "reloaded.yaml"
    path.write_text(declaration(bpffs, "first"))
    return path


def declaration(bpffs: Path, name: str) -> str:
    return (f"maps:\n- pin: {bpffs}/reloaded\n  labels: [{{name: name, decode: comm}}]\n"
            f"  counters: [{{name: {name}, help: R.}}]\n  max_series: 1\n")


def test_a_right_declaration_replaces_the_one_before(config: Path, bpffs: Path) -> None:
    with exporting(config) as exporter:
        assert exporter.value(GOOD) == 1
        before = exporter.value(LAST)
        assert exporter.value('first_total{name="c"}') == 30
        config.write_text(declaration(bpffs, "second"))
        assert exporter.value('first_total{name="c"}') == 30
        exporter.process.send_signal(signal.SIGHUP)
        assert exporter.said(r" INFO \S+/reloaded\.yaml was reloaded\n")
        assert exporter.value('second_total{name="c"}') == 30
        assert exporter.value('first_total{name="c"}') is None
        assert exporter.value(GOOD) == 1 and (exporter.value(LAST) or 0) > (before or 0)
        assert exporter.end() == 0


@pytest.mark.parametrize(("text", "error"), [
    ("maps:\n- id: 1\n  gauge: 7\n- id: x\n", r"ERROR \S+\.yaml:3: maps\[0\]\.gauge: no such word; "
     r"did you mean gauges\?\n\S+ ERROR \S+\.yaml:4: maps\[1\]\.id: a number, not 'x'\n"),
    ("maps: [", r"ERROR \S+\.yaml:1: is no YAML"),
    ("maps: [{pin: PIN, gauges: [{name: x, help: X., field: none}]}]",
     r"ERROR maps\[0\]\.gauges\[0\]\.field: "),
    ("maps: [{name: nothing_here, gauges: [{name: process_max_fds, help: X.}]}]",
     "ERROR Duplicate"),
    (None, r"ERROR .*No such file"),
])
def test_of_a_wrong_one_the_one_before_stays(config: Path, bpffs: Path, text: str | None,
                                             error: str) -> None:
    with exporting(config) as exporter:
        last = exporter.value(LAST)
        if text is None:
            config.unlink()
        else:
            config.write_text(text.replace("PIN", f"{bpffs}/reloaded"))
        exporter.process.send_signal(signal.SIGHUP)
        assert exporter.said("was not reloaded: the declaration before stays\n")
        assert exporter.said(error)
        assert exporter.value('first_total{name="c"}') == 30
        assert exporter.value(GOOD) == 0 and exporter.value(LAST) == last
        config.write_text(declaration(bpffs, "second"))
        exporter.process.send_signal(signal.SIGHUP)
        assert exporter.said(r"yaml was reloaded\n")
        assert exporter.value(GOOD) == 1 and exporter.value('second_total{name="c"}') == 30
        assert "Traceback" not in exporter.log.read_text()


def test_series_of_maps_that_stay_go_on(config: Path, bpffs: Path, table: Any,
                                        make: Callable[..., Any]) -> None:
    """The overflow counter does not fall: what it lost until then is not forgotten."""
    with exporting(config) as exporter:
        assert exporter.value('first_total{name="other"}') == 30
        del table[b"b",]
        assert exporter.value('first_total{name="other"}') == 30
        make("hash", key="u4", value="u8", max_entries=3, pin=bpffs / "more")
        more = f"- pin: {bpffs}/more\n  gauges: [{{name: more, help: M.}}]\n"
        config.write_text("maps:\n" + more + declaration(bpffs, "first").removeprefix("maps:\n"))
        exporter.process.send_signal(signal.SIGHUP)
        assert exporter.said(r"yaml was reloaded\n")
        assert exporter.value(f'fastmap_map_up{{map="{bpffs}/more"}}') == 1
        assert exporter.value('first_total{name="other"}') == 30


def test_many_signals_beside_scrapes(config: Path, bpffs: Path) -> None:
    with exporting(config) as exporter:
        for i in range(20):
            config.with_suffix(".new").write_text(declaration(bpffs, f"n{i}"))
            config.with_suffix(".new").rename(config)
            exporter.process.send_signal(signal.SIGHUP)
            assert exporter.ask()[0] == 200
        until(lambda: exporter.value('n19_total{name="c"}') == 30)
        assert exporter.value(GOOD) == 1 and "ERROR" not in exporter.log.read_text()


def test_the_log_as_text_and_json(config: Path, bpffs: Path) -> None:
    for style in ("text", "json"):
        config.write_text(declaration(bpffs, "first")
                          + '- pin: "/no\\nne\\e[31m"\n  gauges: [{name: none, help: N.}]\n')
        with exporting(config, "--log-format", style) as exporter:
            exporter.ask()
            config.write_text("maps: 7")
            exporter.process.send_signal(signal.SIGHUP)
            exporter.said("not reloaded")
            assert exporter.end() == 0
        lines = exporter.log.read_text().splitlines()
        if style == "text":
            found = [re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([A-Z]+) (.+)", line)
                     for line in lines]
            levels = [match[2].lower() if match else "" for match in found]
        else:
            records = [json.loads(line) for line in lines]
            levels = [record["level"] for record in records]
            assert all(set(record) == {"time", "level", "logger", "message"} for record in records)
            assert "/no\nne\x1b[31m" in records[1]["message"]
        assert levels == ["info", "warning", "error", "error", "info"], lines
