"""README is in step with the code."""

from __future__ import annotations

import re

import maptable
import pytest

import fastmap
from fastmap import MapType
from fastmap.maps.families import CLASSES


def test_the_table_of_map_types_is_that_of_the_code() -> None:
    text = maptable.README.read_text()
    assert text == maptable.rewritten(text), "make readme writes it anew"


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
