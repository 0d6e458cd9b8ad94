"""Maps as metrics: what a scrape tells of real maps, and what declarations may say."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netlink
import numpy as np
import pytest
from test_declaration import HISTOGRAM

import fastmap

pytestmark = pytest.mark.native("no prometheus_client in the emulated kernels")

FLOW = [("saddr", "u4"), ("proto", "u1")]
COUNTS = [("packets", "u4"), ("bytes", "u8"), ("comm", "S16")]
CPUS = len(fastmap.possible_cpus())


def collector(*maps: dict[str, Any]) -> Any:
    from fastmap.prometheus import MapCollector
    return MapCollector({"maps": list(maps)})


def series(source: Any, name: str) -> dict[Any, float]:
    """Scrape; return the series of that name by the values of their labels, in order of names.

    What is rendered is read again by prometheus_client's parser of OpenMetrics, the strictest.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    registry = CollectorRegistry()
    registry.register(source)
    text = generate_latest(registry).decode()
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                values = tuple(sample.labels.values())
                assert values not in found, "doubled"
                found[values if len(values) != 1 else values[0]] = sample.value
    return found


def flow(address: int, proto: int = 6) -> tuple[int, int]:
    """Return a key: an address of 10.0.0.0/16 as it lies in memory."""
    return int.from_bytes(bytes([10, 0, *address.to_bytes(2, "big")]), sys.byteorder), proto


def flows(m: Any, **more: Any) -> dict[str, Any]:
    return {"id": m.id, "labels": [{"name": "source", "field": "saddr", "decode": "ipv4"}],
            "counters": [{"name": "flow_bytes", "help": "Bytes.", "field": "bytes"}], **more}


@pytest.fixture
def table(make: Callable[..., Any]) -> Any:
    """Return a map of three flows, two of one address."""
    m = make("hash", key=np.dtype(FLOW, align=True), value=np.dtype(COUNTS, align=True),
             max_entries=1000, name="flows")
    m[flow(1)] = (1, 100, b"curl")
    m[flow(1, 17)] = (2, 2**40, b"named")
    m[flow(258, 17)] = (3, 7, b"named\0old")
    return m


def test_counters_and_gauges(table: Any) -> None:
    labels = [{"name": "source", "field": "saddr", "decode": "ipv4"},
              {"name": "proto", "decode": {6: "tcp"}}]
    source = collector(flows(table, labels=labels, gauges=[
        {"name": "flow_load", "help": "Load.", "field": "packets", "multiplier": 0.5}]))
    assert series(source, "flow_bytes_total") == {
        ("tcp", "10.0.0.1"): 100, ("17", "10.0.0.1"): 2**40, ("17", "10.0.1.2"): 7}
    assert series(source, "flow_load") == {
        ("tcp", "10.0.0.1"): 0.5, ("17", "10.0.0.1"): 1, ("17", "10.0.1.2"): 1.5}
    assert series(source, "fastmap_map_entries") == {str(table.id): 3}
    assert 0 < series(source, "fastmap_map_scrape_duration_seconds")[str(table.id)] < 60


def test_what_has_the_same_labels_is_added_up(table: Any) -> None:
    source = collector(flows(table))
    assert series(source, "flow_bytes_total") == {"10.0.0.1": 100 + 2**40, "10.0.1.2": 7}
    table[flow(258, 6)] = (0, 5, b"")
    del table[flow(1, 17)]
    assert series(source, "flow_bytes_total") == {"10.0.0.1": 100, "10.0.1.2": 12}


def test_labels_of_the_value(table: Any) -> None:
    """They may change under the same key; a metric may have labels of its own."""
    source = collector(flows(table, gauges=[{
        "name": "flow_packets", "help": "Packets.", "field": "value.packets",
        "labels": [{"name": "process", "field": "value.comm"}]}]))
    assert series(source, "flow_packets") == {"curl": 1, "named": 5}
    table[flow(1, 17)] = (2, 0, b"dig")
    assert series(source, "flow_packets") == {"curl": 1, "named": 3, "dig": 2}
    assert series(source, "flow_bytes_total") == {"10.0.0.1": 100, "10.0.1.2": 7}


def test_no_labels_at_all(make: Callable[..., Any]) -> None:
    m = make("array", value="i4", max_entries=3)
    m.update_many([0, 1, 2], [5, -7, 9])
    source = collector({"id": m.id, "gauges": [{"name": "level", "help": "Level."}]})
    assert series(source, "level") == {(): 7}
    m[0] = -5
    assert series(source, "level") == {(): -3}


def test_an_empty_map(make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key=FLOW, value=[("bytes", "u8"), ("slots", "u4", 3)], max_entries=4)
    for how in ("sum", "label"):
        source = collector(flows(m, per_cpu=how, max_series=1, histograms=[
            {"name": "size", "help": "S.", "field": "slots", "bucket_max": 1},
            {"name": "slot", "help": "S.", "field": "bytes", "bucket_max": 1}]))
        assert series(source, "flow_bytes_total") == series(source, "size_bucket") == {}
        assert series(source, "fastmap_map_up") == {str(m.id): 1}
        assert series(source, "fastmap_map_entries") == {str(m.id): 0}


def test_a_label_of_a_plain_key(make: Callable[..., Any]) -> None:
    m = make("array", value="u8", max_entries=3)
    m.update_many([0, 1, 2], [5, 7, 9])
    source = collector({"id": m.id, "counters": [{
        "name": "packets_total", "help": "Packets.",
        "labels": [{"name": "direction", "decode": {0: "rx", 1: "tx"}}]}]})
    assert series(source, "packets_total") == {"rx": 5, "tx": 7, "2": 9}


def test_interfaces_are_asked_for_at_each_scrape(make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="u8", max_entries=8)
    source = collector({"id": m.id, "labels": [{"name": "device", "decode": "interface"}],
                        "gauges": [{"name": "sent", "help": "Sent."}]})
    with netlink.namespace():
        one, other = netlink.veth("va", "vb")
        m.update_many([one, other, 999_999], [5, 6, 7])
        assert series(source, "sent") == {"va": 5, "vb": 6, "999999": 7}
        netlink.rename(one, "uplink")
        assert series(source, "sent") == {"uplink": 5, "vb": 6, "999999": 7}


def test_interfaces_may_have_any_name(make: Callable[..., Any]) -> None:
    """The kernel takes bytes that are no ASCII, nor UTF-8: one such device spoils no scrape."""
    m = make("hash", key="u8", value="u8", max_entries=8)
    source = collector({"id": m.id, "labels": [{"name": "device", "decode": "interface"}],
                        "gauges": [{"name": "sent", "help": "Sent."}]})
    with netlink.namespace():
        one, other = netlink.veth("va", "vb")
        netlink.rename(one, "wl-\xe9-\u2713\u2713\u2713")
        netlink.rename(other, os.fsdecode(b"\xff" * 14 + b'"'))
        m.update_many([one, other, 2**64 - 1], [5, 6, 7])
        assert series(source, "sent") == {
            "wl-\xe9-\u2713\u2713\u2713": 5, "\\xff" * 14 + '"': 6, str(2**64 - 1): 7}


@pytest.mark.parametrize(("how", "result"), [("sum", sum), ("max", max), ("min", min)])
@pytest.mark.parametrize("value", ["u8", [("bytes", "u4"), ("comm", "S8")]])
def test_per_cpu_values_become_one(make: Callable[..., Any], how: str, result: Any,
                                   value: Any) -> None:
    m = make("percpu_hash", key="u4", value=value, max_entries=4)
    numbers = np.arange(10, 10 + CPUS)
    values = np.zeros(CPUS, value)
    if value == "u8":
        values[...] = numbers
    else:
        values["bytes"], values["comm"] = numbers, b"curl"
    m[7] = values
    labels: list[Any] = ["key" if value == "u8" else {"name": "key", "field": "value.comm"}]
    source = collector({"id": m.id, "per_cpu": how, "labels": labels, "gauges": [
        {"name": "sent", "help": "S.", "field": "value" if value == "u8" else "bytes"}]})
    assert series(source, "sent") == {"7" if value == "u8" else "curl": result(numbers.tolist())}


def test_cpus_as_a_label(make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key=FLOW, value=[("bytes", "u4"), ("slots", "u4", 3)], max_entries=4)
    for address in (1, 2):
        m[flow(address)] = [(10 * address + i, (i, 1, 0)) for i in range(CPUS)]
    source = collector(flows(m, per_cpu="label", histograms=[
        {"name": "size", "help": "S.", "field": "slots", "bucket_max": 1}]))
    assert series(source, "flow_bytes_total") == {
        (str(cpu), f"10.0.0.{address}"): 10 * address + i
        for address in (1, 2) for i, cpu in enumerate(fastmap.possible_cpus())}
    assert series(source, "size_count") == {
        (str(cpu), f"10.0.0.{address}"): i + 1
        for address in (1, 2) for i, cpu in enumerate(fastmap.possible_cpus())}


# ---- histograms --------------------------------------------------------------------------------

SLOTS = {0: 4, 1: 3, 2: 2, 3: 1}


def histogram(m: Any, **words: Any) -> Any:
    return collector({"id": m.id, "histograms": [{"name": "io", "help": "I/O.", **words}]})


@pytest.fixture
def slots(make: Callable[..., Any]) -> Any:
    """Return a map of the slots of two disks; 4 is the sum."""
    m = make("hash", key=[("disk", "S8"), ("slot", "u8")], value="u8", max_entries=100)
    for slot, count in SLOTS.items():
        m[(b"sda", slot)] = count
    m[(b"sda", 4)] = 12345
    m[(b"sdb", 2)] = 1
    return m


def test_a_histogram_of_slots_in_the_key(slots: Any) -> None:
    words = {"labels": ["disk"], "bucket_min": 0, "bucket_max": 3, "bucket_multiplier": 1e-6}
    source = histogram(slots, **words)
    assert series(source, "io_bucket") == {
        ("sda", "1e-06"): 4, ("sda", "2e-06"): 7, ("sda", "4e-06"): 9, ("sda", "8e-06"): 10,
        ("sda", "+Inf"): 10, ("sdb", "1e-06"): 0, ("sdb", "2e-06"): 0, ("sdb", "4e-06"): 1,
        ("sdb", "8e-06"): 1, ("sdb", "+Inf"): 1}
    assert series(source, "io_count") == {"sda": 10, "sdb": 1}
    assert series(source, "io_sum") == pytest.approx({"sda": 0.012345, "sdb": 0})
    source = histogram(slots, **words, sum_multiplier=2)
    assert series(source, "io_sum") == {"sda": 24690, "sdb": 0}


@pytest.mark.parametrize(("words", "bounds", "counts"), [
    ({"bucket_type": "linear", "bucket_max": 3, "bucket_multiplier": 0.1},
     ["0.0", "0.1", "0.2", "0.3"], [4, 7, 9, 10, 10]),
    ({"bucket_type": "exp2zero", "bucket_max": 3, "bucket_multiplier": 1024},
     ["0.0", "1024.0", "2048.0", "4096.0"], [4, 7, 9, 10, 10]),
    ({"bucket_type": "fixed", "bucket_keys": [1, 3]}, ["1.0", "3.0"], [7, 10, 10]),
    ({"bucket_min": 1, "bucket_max": 2, "sum_slot": 4}, ["2.0", "4.0"], [7, 9, 10]),
])
def test_bounds(slots: Any, words: Any, bounds: list[str], counts: list[int]) -> None:
    """Slots below count in the first bucket, those beyond in +Inf: nothing is lost."""
    del slots[(b"sdb", 2)]
    found = series(histogram(slots, bucket="key.slot", **words), "io_bucket")
    assert found == dict(zip([*bounds, "+Inf"], counts, strict=True))


def test_without_a_slot_of_the_sum(slots: Any) -> None:
    source = histogram(slots, labels=["disk"], bucket_max=3, sum_slot=False)
    assert series(source, "io_bucket")["sda", "+Inf"] == 10 + 12345
    assert series(source, "io_count") == series(source, "io_sum") == {}


@pytest.mark.parametrize("kind", ["array", "percpu_array"])
def test_a_histogram_of_an_array(make: Callable[..., Any], kind: str) -> None:
    m = make(kind, value="u8", max_entries=5)
    for slot, count in {**SLOTS, 4: 99}.items():
        m[slot] = count
    source = histogram(m, bucket_max=3)
    times = CPUS if m.per_cpu else 1
    assert list(series(source, "io_bucket").values()) == [
        times * count for count in (4, 7, 9, 10, 10)]
    assert series(source, "io_sum") == {(): times * 99}


def test_a_histogram_in_the_value(make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value=[("calls", "u8"), ("slots", "u4", 5)], max_entries=9)
    m[1] = (0, (4, 3, 2, 1, 99))
    m[2] = (0, (2**32 - 1,) * 2 + (0, 0, 2**32 - 1))
    source = histogram(m, field="slots", bucket_max=3, labels=["cpu"])
    found = series(source, "io_bucket")
    assert [found["1", le] for le in ("1.0", "2.0", "4.0", "8.0", "+Inf")] == [4, 7, 9, 10, 10]
    assert found["2", "+Inf"] == 2 * (2**32 - 1)
    assert series(source, "io_sum") == {"1": 99, "2": 2**32 - 1}


# ---- the limit ---------------------------------------------------------------------------------

def test_beyond_the_limit_nothing_is_lost(table: Any) -> None:
    table.clear()
    for address in range(20):
        table[flow(address)] = (0, 1 + address % 10 + 100 * (address in (3, 17)), b"")
    source = collector(flows(table, max_series=2, overflow="rest"))
    total = sum(record["bytes"] for record in table.values())
    found = series(source, "flow_bytes_total")
    assert found == {"10.0.0.3": 104, "10.0.0.17": 108, "rest": total - 212}
    assert series(source, "fastmap_map_overflow_entries") == {str(table.id): 18}
    # Later ones are not let in, however large; the overflow series goes on.
    table[flow(30)] = (0, 5000, b"")
    table[flow(4)] = (0, 6000, b"")
    found = series(source, "flow_bytes_total")
    assert found == {"10.0.0.3": 104, "10.0.0.17": 108, "rest": total - 212 + 5000 + 6000 - 5}


def test_the_overflow_series_never_falls(table: Any) -> None:
    """Keys that go would make of the counter one that began anew."""
    table.clear()
    for address in range(10):
        table[flow(address)] = (0, 100 - address, b"")
    source = collector(flows(table, max_series=1))
    before = series(source, "flow_bytes_total")["other"]
    for address in range(1, 9):
        del table[flow(address)]
    assert series(source, "flow_bytes_total") == {"10.0.0.0": 100, "other": before}
    table[flow(9)] = (0, 91 + 1000, b"")
    assert series(source, "flow_bytes_total") == {"10.0.0.0": 100, "other": before + 1000}


def test_the_overflow_histogram_never_falls(slots: Any) -> None:
    source = collector({"id": slots.id, "max_series": 1, "labels": ["disk"], "histograms": [
        {"name": "io", "help": "I/O.", "bucket_max": 3}]})
    slots.update_many([(b"sdc", slot) for slot in range(5)], [7, 0, 0, 1, 30])
    before = series(source, "io_bucket")
    assert [before["other", le] for le in ("1.0", "2.0", "4.0", "8.0", "+Inf")] == [7, 7, 8, 9, 9]
    slots.delete_many([(b"sdc", slot) for slot in range(5)])
    slots[(b"sdb", 2)] = 3
    after = series(source, "io_bucket")
    assert [after["other", le] for le in ("1.0", "2.0", "4.0", "8.0", "+Inf")] == [7, 7, 10, 11, 11]
    assert series(source, "io_count") == {"sda": 10, "other": 11}
    assert series(source, "io_sum") == {"sda": 12345, "other": 30}


def test_cpus_as_a_label_share_the_limit(make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key=FLOW, value=[("bytes", "u4")], max_entries=4)
    for address in (1, 2, 3):
        m[flow(address)] = [(10 * address,)] * CPUS
    found = series(collector(flows(m, per_cpu="label", max_series=CPUS)), "flow_bytes_total")
    assert found == {(str(cpu), source): value for cpu in fastmap.possible_cpus()
                     for source, value in (("10.0.0.3", 30), ("other", 30))}


def test_places_that_are_free_are_given_to_what_is_new(table: Any) -> None:
    table.clear()
    for address in range(4):
        table[flow(address)] = (0, 100 - address, b"")
    source = collector(flows(table, max_series=2))
    assert set(series(source, "flow_bytes_total")) == {"10.0.0.0", "10.0.0.1", "other"}
    del table[flow(0)]
    assert set(series(source, "flow_bytes_total")) == {"10.0.0.1", "other"}
    table[flow(9)] = (0, 1, b"")  # 2 and 3 were counted in other until now: they stay there
    assert set(series(source, "flow_bytes_total")) == {"10.0.0.1", "10.0.0.9", "other"}


def test_what_comes_and_goes_is_forgotten(make: Callable[..., Any]) -> None:
    """Places, too, also of the labels with `le`: others have them then."""
    m = make("hash", key="u4", value=[("sent", "u8"), ("slots", "u4", 1)], max_entries=200)
    source = collector({"id": m.id, "max_series": 150, "labels": ["flow"],
                        "gauges": [{"name": "sent", "help": "S.", "field": "sent"}],
                        "histograms": [{"name": "size", "help": "S.", "field": "slots",
                                        "bucket_max": 0}]})
    values = np.zeros(100, m.value_dtype)
    for start in range(0, 2000, 50):
        m.clear()
        keys = np.arange(start, start + 100)
        values["sent"] = values["slots"][:, 0] = keys
        m.update_many(keys, values)
        assert series(source, "sent") == {str(key): key for key in keys}
        assert series(source, "size_bucket") == {
            (str(key), le): key for key in keys for le in ("1.0", "+Inf")}
    (labels,) = {metric.labels for metric in source._maps[0]._metrics}
    kept = labels.series
    assert len(kept.labels) <= 151 and len(kept._places) <= 201
    assert len(kept._known) == len(kept._numbers) - 1 == len(kept._texts) == 100


# ---- maps that come and go ---------------------------------------------------------------------

def test_a_missing_map_is_down_and_found_again(make: Callable[..., Any], table: Any, bpffs: Path,
                                               caplog: pytest.LogCaptureFixture) -> None:
    pin = bpffs / "levels"

    def create(value: int) -> Any:
        m = make("array", value="u8", max_entries=1, pin=pin)
        m[0] = value
        return m

    source = collector({"pin": str(pin), "gauges": [{"name": "level", "help": "L."}]},
                       flows(table))
    up = {str(pin): 0.0, str(table.id): 1.0}
    assert series(source, "fastmap_map_up") == up and series(source, "level") == {}
    assert "10.0.1.2" in series(source, "flow_bytes_total")
    first = create(5)
    assert series(source, "level") == {(): 5}
    assert series(source, "fastmap_map_up") == dict.fromkeys(up, 1)
    pin.unlink()
    number = first.id
    first.close()
    assert number not in [info.id for info in fastmap.maps()], "the exporter keeps it alive"
    assert series(source, "fastmap_map_up") == up
    create(6)
    assert series(source, "level") == {(): 6}
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 4 and all(str(pin) in each for each in warnings), "said once each"


def test_a_new_map_under_the_name_is_read_as_it_is(make: Callable[..., Any]) -> None:
    source = collector({"name": "exp_again", "labels": ["key"],
                        "gauges": [{"name": "level", "help": "L."}]})
    for key, value in (("u4", "u8"), ("u8", "u4"), ("S4", "i2")):
        with make("hash", key=key, value=value, max_entries=3, name="exp_again") as m:
            m[b"1" if key == "S4" else 1] = 7
            assert series(source, "level") == {"1": 7}
        assert series(source, "level") == {}


def test_a_map_that_no_longer_fits_is_down(make: Callable[..., Any], bpffs: Path,
                                           caplog: pytest.LogCaptureFixture) -> None:
    pin = bpffs / "levels"
    source = collector({"pin": str(pin), "gauges": [
        {"name": "level", "help": "L.", "field": "level"}]})
    make("array", value=[("depth", "u8")], max_entries=1, pin=pin)
    assert series(source, "fastmap_map_up") == {str(pin): 0}
    assert "maps[0].gauges[0].field: the value has no field 'level'" in caplog.text


# ---- declarations ------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "error"), [
    ({"labels": ["dport"]},
     r"maps\[0\].labels\[0\]: the key has no field 'dport' .*; there are: saddr, proto"),
    ({"labels": [{"name": "saddr", "decode": "ipv6"}]},
     r"maps\[0\].labels\[0\]: ipv6 decodes 16 bytes; uint32 has 4"),
    ({"counters": [{"name": "a", "help": "A.", "field": "comm"}]},
     r"maps\[0\].counters\[0\].field: a counter is a number; comm is \|S16"),
    ({"counters": [{"name": "a", "help": "A."}]}, r"maps\[0\].counters\[0\].field: a counter is a"),
    ({"counters": [{"name": "a", "help": "A.", "field": "key.saddr"}]},
     r"maps\[0\].counters\[0\].field: a field of the value"),
    ({"histograms": [{**HISTOGRAM, "field": "bytes", "bucket": "proto", "labels": ["proto"]}]},
     r"maps\[0\].histograms\[0\].bucket: proto is a label as well"),
    ({"histograms": [{**HISTOGRAM, "field": "bytes", "bucket": "value.comm"}]},
     r"maps\[0\].histograms\[0\].bucket: a slot is a number"),
    ({"key": "u4"}, r"maps\[0\]: "),
    ({"key": "O"}, r"maps\[0\].key: "),
    ({"per_cpu": "label"}, r"maps\[0\].per_cpu: a HASH map has one value for all CPUs"),
])
def test_a_map_that_does_not_fit_is_told_at_once(table: Any, words: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        collector(flows(table, **words))


def test_a_map_without_keys_is_refused(make: Callable[..., Any]) -> None:
    m = make("queue", value="u4", max_entries=3)
    with pytest.raises(ValueError, match=r"maps\[0\]: a QUEUE map has no keys"):
        collector({"id": m.id, "gauges": [{"name": "level", "help": "L."}]})


def test_dtypes_of_a_map_without_btf(make: Callable[..., Any]) -> None:
    m = make("hash", key=FLOW, value="u8", max_entries=3, btf=False)
    m[flow(1)] = 5
    for key in ({"saddr": "u4", "proto": "u1"}, [["saddr", "u1", 4], ["proto", "V1"]]):
        source = collector({"id": m.id, "key": key, "value": "u8",
                            "labels": [{"name": "saddr", "decode": "ip"}],
                            "gauges": [{"name": "sent", "help": "S."}]})
        assert series(source, "sent") == {"10.0.0.1": 5}


def test_metrics_are_told_apart_from_those_of_others(table: Any) -> None:
    from prometheus_client import CollectorRegistry, Counter

    registry = CollectorRegistry()
    registry.register(collector(flows(table)))
    with pytest.raises(ValueError, match="flow_bytes"):
        Counter("flow_bytes", "Bytes.", registry=registry)


# ---- the command -------------------------------------------------------------------------------

def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastmap", "exporter", *map(str, arguments)],
                          text=True, capture_output=True, timeout=60)


def test_once(table: Any, tmp_path: Path) -> None:
    config = tmp_path / "flows.yaml"
    config.write_text(textwrap.dedent(f"""
        maps:
          - id: {table.id}
            labels:
              - {{name: source, field: saddr, decode: ipv4}}
              - {{name: proto, decode: {{0x6: tcp, 17: udp}}}}
            counters:
              - {{name: flow_bytes_total, help: Bytes., field: bytes}}
        """))
    done = command(config, "--once")
    assert done.returncode == 0 and done.stderr == ""
    assert '\nflow_bytes_total{proto="udp",source="10.0.1.2"} 7.0\n' in done.stdout


@pytest.mark.parametrize(("text", "arguments", "error"), [
    ("maps: [", [], "is no YAML"),
    ("maps: [{id: 1}]", [], "maps[0]: has none of counters"),
    (None, [], "No such file"),
    ("maps: [{name: exp_none, gauges: [{name: a, help: A.}]}]", ["--listen", "nowhere"],
     "'nowhere' is no HOST:PORT"),
])
def test_errors_are_one_line(tmp_path: Path, text: str | None, arguments: list[str],
                             error: str) -> None:
    config = tmp_path / "wrong.yaml"
    if text is not None:
        config.write_text(text)
    done = command(config, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("fastmap exporter: ") and error in done.stderr
    assert "Traceback" not in done.stderr


def test_check(table: Any, tmp_path: Path) -> None:
    config = tmp_path / "checked.yaml"
    config.write_text(f"maps:\n- id: {table.id}\n  gauges: [{{name: a, help: A., field: none}}]\n")
    done = command(config, "--check")  # the map has no such field: it is not opened
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{config}: right\n", "")
    config.write_text("maps:\n- id: 1\n  gauge: 1\n- id: x\n")
    done = command(config, "--check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        f"{config}:3: maps[0].gauge: no such word; did you mean gauges?\n"
        f"{config}:4: maps[1].id: a number, not 'x'\n")
    done = command(tmp_path / "none.yaml", "--check")
    assert done.returncode == 1 and "none.yaml: No such file" in done.stderr


def test_without_the_extra() -> None:
    code = ("import sys; sys.modules['prometheus_client'] = None; import fastmap.cli.main; "
            "sys.exit(fastmap.cli.main.main(['exporter', 'x']))")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ("fastmap exporter: fastmap.prometheus needs prometheus_client: "
                           "pip install 'fastmap-bpf[prometheus]'\n")


def test_only_the_exporter_needs_it() -> None:
    code = "import fastmap, sys; assert not {'prometheus_client', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_sample_is_one() -> None:
    """They are made without Sample's constructor."""
    from fastmap.prometheus.collector import _Samples

    samples = _Samples()
    samples.add(["a", "b"], [{}, {"x": "y"}], np.array([1.5, math.inf]))
    assert len(samples) == 2 and samples[1].labels == {"x": "y"} and samples[0].timestamp is None
    assert [(each.name, each.value) for each in samples] == [("a", 1.5), ("b", math.inf)]


# ---- the page ----------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "prometheus.md"


def test_the_declaration_of_the_page_works(make: Callable[..., Any], bpffs: Path,
                                           tmp_path: Path) -> None:
    make("hash", key=FLOW, value=COUNTS, max_entries=9, pin=bpffs / "flows")[flow(1)] = (2, 3, b"")
    calls = make("lru_percpu_hash", key=[("pid", "u4"), ("syscall", "u4")], max_entries=9,
                 value=[("calls", "u8"), ("comm", "S16")], pin=bpffs / "calls")
    calls[7, 999] = [(1, b"cat")] * CPUS
    latency = make("hash", key=[("device", "S8"), ("slot", "u4")], value="u8", max_entries=99,
                   pin=bpffs / "io_latency")
    latency[b"sda", 3], latency[b"sda", 27] = 2, 12
    make("percpu_hash", key="u4", value="V8", max_entries=3, btf=False, pin=bpffs / "queue")[0] = [
        np.array([cpu, 9], "u4").tobytes() for cpu in range(CPUS)]
    text = PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]
    config = tmp_path / "page.yaml"
    config.write_text(text.replace("/sys/fs/bpf", str(bpffs)))
    done = command(config, "--once")
    assert done.returncode == 0 and done.stderr == ""
    for line in ('flow_bytes_total{protocol="tcp",source="10.0.0.1"} 3.0',
                 f'system_calls_total{{process="cat",syscall="999"}} {float(CPUS)}',
                 'io_latency_seconds_bucket{device="sda",le="4e-06"} 0.0',
                 'io_latency_seconds_bucket{device="sda",le="8e-06"} 2.0',
                 'io_latency_seconds_sum{device="sda"} 1.2e-05',
                 f"queue_depth {CPUS - 1}.0"):
        assert f"\n{line}\n" in done.stdout, done.stdout
