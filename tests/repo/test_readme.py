"""README and the pages that are made or run are in step with the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import maptable
import pytest

import fastmap
from fastmap import MapType
from fastmap.maptypes.registry import CLASSES


def test_the_table_of_map_types_is_that_of_the_code() -> None:
    text = maptable.PAGE.read_text()
    assert text == maptable.rewritten(text), "make tables writes it anew"


def test_it_has_a_row_for_every_type() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \| (.*) \| ([\d.]+) \|$", maptable.table(),
                      flags=re.MULTILINE)
    assert [row[0].upper() for row in rows] == [t.name for t in MapType if t]
    for kind, name, *_ in rows:
        assert getattr(fastmap, name) is CLASSES[MapType[kind.upper()]]


@pytest.mark.parametrize(("kind", "has", "lacks"), [
    ("hash", "one and many: `lookup` `update` `delete` `lookup_and_delete` (5.14)", "memory"),
    ("hash", "a dict", "`pop`"),
    ("array", "memory", "`delete`"),
    ("percpu_array", "batch (5.13)", "memory"),
    ("array_of_maps", "batch (5.19)", "`lookup_and_delete`"),
    ("perf_event_array", "`update`", "`lookup`"),
    ("queue", "", "`lookup`"),
    ("rhash", "7.2", "(5.6)"),
])
def test_rows_say_what_a_type_can_do(kind: str, has: str, lacks: str) -> None:
    (row,) = (line for line in maptable.table().splitlines() if line.startswith(f"| `{kind}` "))
    assert has in row and lacks not in row


def test_marks_must_be_there() -> None:
    with pytest.raises(ValueError, match="marks"):
        maptable.rewritten("# fastmap\n")


def test_the_example_of_streams_follows_process_starts() -> None:
    """It is run as it stands there, until it has told of a program that is started meanwhile."""
    text = (maptable.PAGE.parent / "streams.md").read_text()
    section = text.partition("\n## Process starts, as arrays\n")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as example:
        assert example.stdout is not None and example.stderr is not None
        stop = threading.Timer(60, example.kill)
        stop.start()
        try:
            os.set_blocking(example.stdout.fileno(), False)
            said = b""
            while b"b'sleep'" not in said and example.poll() is None:
                subprocess.run(["sleep", "0.1"], check=True)
                said += example.stdout.read() or b""
            assert re.search(rb"\(\d+, \d+, \d+, b'sleep'\)", said), said + example.stderr.read()
            example.send_signal(signal.SIGINT)
            assert example.wait() == 0 and example.stderr.read() == b""
        finally:
            stop.cancel()
            example.kill()


@pytest.mark.native("the emulated kernels have no bench/")
def test_the_measured_tables_are_those_of_the_results_it_names() -> None:
    from bench import readme

    folder = readme.named(readme.PAGE.read_text())
    for page in (readme.PAGE, readme.README):
        text = page.read_text()
        assert text == readme.rewritten(text, folder, page), "python -m bench.readme writes it"


def test_the_first_page_is_one_that_is_read() -> None:
    assert len((maptable.PAGE.parents[1] / "README.md").read_text().splitlines()) <= 150
