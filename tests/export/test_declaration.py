"""Declarations of metrics: what is wrong in one is told by its place."""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmap.prometheus.check import checked
from fastmap.prometheus.config import declared, examined
from fastmap.prometheus.yaml_file import MOST_BYTES, MOST_DEPTH

pytestmark = pytest.mark.native("no PyYAML in the emulated kernels")

GOOD = {"id": 1, "counters": [{"name": "a", "help": "A."}]}
HISTOGRAM = {"name": "h", "help": "H.", "bucket_max": 3}


@pytest.mark.parametrize(("wrong", "error"), [
    (None, "the declaration: words with values, not None"),
    ({}, "maps: missing"),
    ({"maps": []}, r"maps: a list, not \[\]"),
    ({"maps": [GOOD], "map": 1}, "map: no such word; did you mean maps"),
    ({"maps": [7]}, r"maps\[0\]: words with values, not 7"),
    ({"maps": [{"counters": GOOD["counters"]}]}, r"maps\[0\]: one of pin, name and id"),
    ({"maps": [{**GOOD, "name": "x"}]}, r"maps\[0\]: one of pin, name and id"),
    ({"maps": [{**GOOD, "id": "1"}]}, r"maps\[0\].id: a number, not '1'"),
    ({"maps": [{"id": 1}]}, r"maps\[0\]: has none of counters, gauges, histograms"),
    ({"maps": [GOOD, GOOD]}, r"maps\[1\]: the map is declared already, as maps\[0\]"),
    ({"maps": [GOOD, {**GOOD, "id": 2}]},
     r"maps\[1\].counters\[0\]: the metric is declared already, as maps\[0\].counters\[0\]"),
    ({"maps": [{**GOOD, "gauges": [{"name": "a_total", "help": "A."}]}]},
     r"maps\[0\].gauges\[0\]: the metric is declared already"),
    ({"maps": [{**GOOD, "per_cpu": "avg"}]},
     r"maps\[0\].per_cpu: one of sum, max, min, min_nonzero, label"),
    ({"maps": [{**GOOD, "max_series": 0}]}, r"maps\[0\].max_series: 0 is below 1"),
    ({"maps": [{**GOOD, "key": "u99"}]}, r"maps\[0\].key: "),
    ({"maps": [{"id": 1, "counters": [{"name": "a-b", "help": "A."}]}]},
     r"maps\[0\].counters\[0\].name: Prometheus does not take 'a-b'"),
    ({"maps": [{"id": 1, "gauges": [{"name": "fastmap_map_up", "help": "A."}]}]},
     r"maps\[0\].gauges\[0\].name: fastmap_map_up is one of the exporter's own"),
    ({"maps": [{"id": 1, "counters": [{"name": "a"}]}]}, r"maps\[0\].counters\[0\].help: missing"),
    ({"maps": [{"id": 1, "counters": [{"name": "a", "help": "A.", "feild": "x"}]}]},
     r"maps\[0\].counters\[0\].feild: no such word"),
    ({"maps": [{**GOOD, "labels": ["le-ft"]}]}, r"maps\[0\].labels\[0\].name: Prometheus does not"),
    ({"maps": [{**GOOD, "labels": ["a", "a"]}]}, r"maps\[0\].labels\[1\]: the label a is there"),
    ({"maps": [{**GOOD, "labels": [{"name": "a", "decode": "ipv5"}]}]},
     r"maps\[0\].labels\[0\].decode: 'ipv5' is no decoder: ipv4"),
    ({"maps": [{**GOOD, "labels": [{"name": "a", "decode": {"x": "y"}}]}]},
     r"maps\[0\].labels\[0\].decode: a map of numbers"),
    ({"maps": [{**GOOD, "per_cpu": "label", "labels": ["cpu"]}]},
     r"maps\[0\].labels\[0\]: the label cpu is maps\[0\].counters\[0\]'s own"),
    ({"maps": [{**GOOD, "per_cpu": "label", "labels": [{"name": "a", "field": "value.a"}]}]},
     r"maps\[0\].labels\[0\]: a label of the value"),
    ({"maps": [{"id": 1, "labels": ["le"], "histograms": [HISTOGRAM]}]}, "the label le is"),
    ({"maps": [{"id": 1, "histograms": [{"name": "h", "help": "H."}]}]},
     r"maps\[0\].histograms\[0\].bucket_max: missing"),
    ({"maps": [{"id": 1, "histograms": [{**HISTOGRAM, "bucket_type": "log2"}]}]},
     r"bucket_type: one of exp2, exp2zero, linear, fixed, not 'log2'"),
    ({"maps": [{"id": 1, "histograms": [{**HISTOGRAM, "bucket_min": 4}]}]}, "below bucket_min"),
    ({"maps": [{"id": 1, "histograms": [{**HISTOGRAM, "bucket_max": 10**9}]}]}, "too many"),
    ({"maps": [{"id": 1, "histograms": [{**HISTOGRAM, "bucket_multiplier": 0}]}]},
     "bucket_multiplier: 0 is not above 0"),
    ({"maps": [{"id": 1, "histograms": [{**HISTOGRAM, "sum_slot": 3}]}]}, "3 is a bucket"),
    ({"maps": [{"id": 1, "histograms": [
        {"name": "h", "help": "H.", "bucket_type": "fixed", "bucket_keys": [3, 1]}]}]},
     "bucket_keys: ascending"),
])
def test_a_wrong_declaration_names_the_place(wrong: Any, error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}" if error.startswith("maps") else error):
        declared(wrong)


HALF = "\ud800"


def gauge(**words: Any) -> dict[str, Any]:
    return {"maps": [{"id": 1, "gauges": [{"name": "a", "help": "A.", **words}]}]}


def histogram(**words: Any) -> dict[str, Any]:
    return {"maps": [{"id": 1, "histograms": [{**HISTOGRAM, **words}]}]}


def of_map(**words: Any) -> dict[str, Any]:
    return {"maps": [{**GOOD, **words}]}


@pytest.mark.parametrize(("wrong", "error"), [
    (gauge(multiplier=10**399), "maps[0].gauges[0].multiplier: a finite number, not an integer of"),
    (gauge(multiplier=10**5000), "maps[0].gauges[0].multiplier: a finite number, not an integer "),
    (gauge(multiplier=math.nan), "maps[0].gauges[0].multiplier: a finite number, not nan"),
    (gauge(multiplier=-math.inf), "maps[0].gauges[0].multiplier: a finite number, not -inf"),
    (gauge(multiplier=True), "maps[0].gauges[0].multiplier: a number, not True"),
    (gauge(multiplier="2"), "maps[0].gauges[0].multiplier: a number, not '2'"),
    (gauge(multiplier=[10**5000]), "maps[0].gauges[0].multiplier: a number, not [an integer of"),
    (gauge(help=HALF), r"maps[0].gauges[0].help: '\ud800' is no Unicode text"),
    (gauge(name=HALF), "maps[0].gauges[0].name: Prometheus does not take"),
    (gauge(field=HALF), "maps[0].gauges[0].field: "),
    (gauge(name="fastmap_exporter_x"), "maps[0].gauges[0].name: fastmap_exporter_x is one of"),
    (gauge(name="x" * 10**6 + "-"), "maps[0].gauges[0].name: Prometheus does not take"),
    (of_map(counters=[{"name": "_total", "help": "A."}]), "maps[0].counters[0].name: nothing but"),
    (of_map(counters=[{"name": "a", "help": "A.", "multiplier": 0}]),
     "maps[0].counters[0].multiplier: 0 is not above 0"),
    (of_map(id=2**64), "maps[0].id: 18446744073709551616 is above 4294967295"),
    (of_map(id=0), "maps[0].id: 0 is below 1"),
    (of_map(id=True), "maps[0].id: a number, not True"),
    (of_map(id=1.0), "maps[0].id: an integer, not 1.0"),
    (of_map(max_series=10**30), "maps[0].max_series: "),
    (of_map(overflow=HALF), "maps[0].overflow: "),
    (of_map(labels=[{"name": "a", "decode": {1: HALF}}]), "maps[0].labels[0].decode: "),
    (of_map(labels=[{"name": "a", "decode": {1: ["x" * 10**6]}}]), "maps[0].labels[0].decode: "),
    (of_map(per_cpu=["sum"]),
     "maps[0].per_cpu: one of sum, max, min, min_nonzero, label, not ['sum']"),
    (of_map(key=[["a", "u1", 2**64]]), "maps[0].key: "),
    (of_map(key=[]), "maps[0].key: "),
    (of_map(counterz=[]), "maps[0].counterz: no such word; did you mean counters?"),
    ({"maps": [{"id": 1, "counterz": []}]}, "maps[0].counterz: no such word; did you mean count"),
    ({"maps": [{"id": 1, "counters": [{"nam": "a"}]}]},
     "maps[0].counters[0].name: missing; is it meant by nam?"),
    (of_map(**{"x" * 10**6: 1}), "maps[0].'xxx"),
    ({"maps": [{**GOOD, 10**5000: 1}]}, "maps[0].an integer of 16610 bits: no such word"),
    (histogram(bucket_multiplier=1e308), "maps[0].histograms[0]: the bounds of its buckets do not"),
    (histogram(bucket_min=-5000, bucket_max=-4990), "maps[0].histograms[0]: the bounds of its"),
    (histogram(bucket_type="exp2zero", bucket_min=-2), "maps[0].histograms[0]: the bounds of it"),
    (histogram(bucket_type="fixed", bucket_keys=[2**60, 2**60 + 1], bucket_max=None),
     "maps[0].histograms[0]: the bounds of its buckets do not rise"),
    (histogram(bucket_type="linear", bucket_min=10**400, bucket_max=10**400 + 3),
     "maps[0].histograms[0].bucket_min: "),
    (histogram(bucket_type="fixed", bucket_keys=[1, True]),
     "maps[0].histograms[0].bucket_keys[1].slot: a number, not True"),
    (histogram(sum_slot=True), "maps[0].histograms[0].sum_slot: a number, not True"),
    (histogram(sum_multiplier=-1), "maps[0].histograms[0].sum_multiplier: -1 is not above 0"),
])
def test_hostile_words_are_refused_by_place(wrong: Any, error: str) -> None:
    with pytest.raises(ValueError) as caught:
        declared(wrong)
    assert str(caught.value).startswith(error)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


def test_numbers_of_numpy_are_numbers() -> None:
    found, = declared(histogram(bucket_multiplier=np.float64(0.5), bucket_max=np.int64(2)))
    assert found.metrics[0].buckets is not None
    assert found.metrics[0].buckets.bounds == (0.5, 1.0, 2.0)


def test_all_that_is_wrong_is_found() -> None:
    found, problems = examined({"map": 1, "maps": [
        {**GOOD, "gauges": [{"name": "b-"}, {"name": "c"}, {"name": "d", "help": "D."}]},
        7, {"id": "x"}, {**GOOD, "name": "y"}, {"id": 2, "counters": GOOD["counters"]}]})
    assert [str(each).partition(": ")[0] for each in problems] == [
        "maps[0].gauges[0].name", "maps[0].gauges[1].help", "maps[1]", "maps[2].id", "maps[3]",
        "map", "maps[4].counters[0]"]
    assert [each.id for each in found] == [1, 2]


def test_all_unknown_words_are_told() -> None:
    counter = {"name": "a", "help": "A.", "x": 1, "y": 2}
    _, problems = examined({"mapz": 1, "mops": 2, "maps": [
        {**GOOD, "labls": 1, "per_cpus": 2, "counters": [counter]}]})
    assert [str(each).partition(": ")[0] for each in problems] == [
        "maps[0].counters[0].x", "maps[0].counters[0].y", "maps[0].labls", "maps[0].per_cpus",
        "mapz", "mops"]


WRONG = """\
# A comment.
maps:
  - pin: /none
    labels: &labels
      - name: le-ft
    gauges: [{name: a}]
  - &other
    pin: /other
    max_serie: 3
    per_cpuu: sum
    gauges:
      - name: b
        help: B.
        feild: x
      - name: c
        help: C.
        labels:
          - name: d
            decode: ipv5
    counterz: []
  - pin: /third
    gauges:
      - help: x

map: 1
"""


def test_lines_of_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    told = [each.removeprefix(f"{path}:").split(": ")[:2] for each in checked(path)]
    assert told == [
        ["5", "maps[0].labels[0].name"], ["9", "maps[1].max_serie"], ["10", "maps[1].per_cpuu"],
        ["14", "maps[1].gauges[0].feild"], ["19", "maps[1].gauges[1].labels[0].decode"],
        ["20", "maps[1].counterz"], ["23", "maps[2].gauges[0].name"], ["25", "map"]]
    assert "did you mean max_series?" in checked(path)[1]


@pytest.mark.parametrize(("text", "told"), [
    ("", ":1: the declaration: words with values, not None"),
    ("7", ":1: the declaration: words with values, not 7"),
    ("maps: [{id: 1}", ":1: is no YAML: "),
    ("\nmaps:\n  - id: 1\n id: 2\n", ":4: is no YAML: "),
    ("\n\nmaps: []\nmaps: []", ":4: is no YAML: 'maps' is there already"),
    ("maps:\n- {id: 1, ? [a] : b}", ":2: is no YAML: "),
    ("x\0y", ": is no YAML: "),
    ("maps: &a [*a]", ":1: is no YAML: more than 100000 values"),
    ("maps:\n- {id: 1, <<: {id: 2}, gauges: [{name: a, help: A.}], 7: 8}",
     ":2: maps[0].7: no such"),
    ("maps:\n- id: 1\n  gauges:\n  - {name: a, help: A.}\n  - {name: a, help: A.}\n",
     ":5: maps[0].gauges[1]: the metric is declared already"),
])
def test_the_line_of_one_error(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    found, = checked(path)
    assert found.startswith(f"{path}{told}") and "\n" not in found


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)) + "maps: *a11\n"
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(("text", "error"), [
    (BOMB, "more than 100000 values, aliases counted"),
    (MERGES, "more than 100000 values, aliases counted"),
    ("maps: &a [*a]", "more than 100000 values, aliases counted"),
    ("maps: " + "[" * 3000 + "]" * 3000, f"more than {MOST_DEPTH} values within each other"),
    ("maps: " + "{a: " * 3000 + "}" * 3000, f"more than {MOST_DEPTH} values within each other"),
    ("maps:\n  - id: " + "9" * 5000, "line 2, column 9: int: Exceeds the limit"),
    ("maps: !!int ''", "line 1, column 7: int: "),
    ("maps: !!bool maybe", "line 1, column 7: bool: "),
    ("maps: 2001-99-99", "line 1, column 7: timestamp: month must be"),
    ("maps: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    ("maps: []\nmaps: []", "line 2, column 1: 'maps' is there already"),
    ("#" * MOST_BYTES + "\n", f"larger than {MOST_BYTES} bytes"),
    (r'maps: [{id: 1, gauges: [{name: a, help: "\ud800"}]}]', "maps[0].gauges[0].help: "),
    ("maps: [{id: 1, gauges: [{name: a, help: A., multiplier: .nan}]}]",
     "maps[0].gauges[0].multiplier: a finite number, not nan"),
])
def test_hostile_files_are_refused(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        declared(path)
    assert error in str(caught.value)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # KiB


def test_a_file_without_an_end() -> None:
    with pytest.raises(ValueError, match="/dev/zero is no declaration: larger than"):
        declared("/dev/zero")


def test_aliases_and_merges_of_a_fair_file(tmp_path: Path) -> None:
    path = tmp_path / "fair.yaml"
    path.write_text("""
        maps:
          - id: 1
            labels: &labels [{name: source, field: saddr, decode: ipv4}]
            gauges: [&one {name: a, help: A.}, {<<: *one, name: b}]
          - {id: 2, labels: *labels, gauges: [{name: c, help: C.}]}
        """)
    one, two = declared(path)
    assert [each.name for each in one.metrics] == ["a", "b"] and one.metrics[1].help == "A."
    assert two.metrics[0].labels[0].field == "saddr"
