"""Declarations of metrics: what is wrong in one is told by its place."""

from __future__ import annotations

from typing import Any

import pytest

from fastmap.declaration import declared

pytestmark = pytest.mark.native("no PyYAML in the emulated kernels")

GOOD = {"id": 1, "counters": [{"name": "a", "help": "A."}]}
HISTOGRAM = {"name": "h", "help": "H.", "bucket_max": 3}


@pytest.mark.parametrize(("wrong", "error"), [
    (None, "the declaration: words with values, not None"),
    ({}, "maps: missing"),
    ({"maps": []}, r"maps: a list, not \[\]"),
    ({"maps": [GOOD], "map": 1}, "map: no such word; there are maps"),
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
    ({"maps": [{**GOOD, "per_cpu": "avg"}]}, r"maps\[0\].per_cpu: one of sum, max, min, label"),
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
