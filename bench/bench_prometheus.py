"""A scrape of 10,000 series against prometheus_client's own rendering of the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count as count_from
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import fastmap
from fastmap.prometheus import MapCollector

from .conftest import Pair

LABELS: dict[str, list[Any]] = {
    "one label": [{"name": "saddr", "decode": "ipv4"}],
    "three labels": [{"name": "saddr", "decode": "ipv4"}, "dport",
                     {"name": "proto", "decode": {6: "tcp", 17: "udp"}}],
}


class Prebuilt:
    """Families that are there already: what is left is the rendering."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


@pytest.fixture
def flows(once: bool) -> Iterator[Any]:
    """A map of flows, each of an address of its own."""
    entries = 100 if once else 10_000
    key = np.dtype([("saddr", "u4"), ("dport", "u2"), ("proto", "u2")])
    keys = np.zeros(entries, key)
    keys["saddr"] = np.arange(entries) * 7919
    keys["dport"] = np.arange(entries) % 100
    keys["proto"] = np.where(np.arange(entries) % 3, 6, 17)
    values = np.zeros(entries, [("packets", "u8"), ("bytes", "u8")])
    values["bytes"] = np.arange(entries) * 1500
    with fastmap.create("hash", key=key, value=values.dtype, max_entries=2 * entries,
                        name="bench_flows") as m:
        m.update_many(keys, values)
        yield m


def replacing(m: Any, share: int) -> Callable[[], None]:
    """Return what replaces one of `share` entries by others, of addresses never seen before.

    It runs before each side: a scrape of ours finds twice as many new.
    """
    count = len(m) // share
    next_address = count_from(1 << 28, count)

    def replace() -> None:
        batch = m.snapshot()
        keys, values = batch.keys[:count], batch.values[:count]
        m.delete_many(keys)
        keys["saddr"] = next(next_address) + np.arange(count)
        m.update_many(keys, values)

    return replace


@pytest.mark.parametrize(("labels", "share"), [
    ("one label", 0), ("three labels", 0), ("three labels", 100), ("three labels", 5)])
def test_scrape(flows: Any, labels: str, share: int, pair: Pair) -> None:
    entries = len(flows)
    collector = MapCollector({"maps": [{
        "id": flows.id, "labels": LABELS[labels],
        "counters": [{"name": "flow_bytes", "help": "Bytes.", "field": "bytes"}]}]})
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    ours.register(collector)
    theirs.register(Prebuilt(collector.collect()))

    def render(registry: CollectorRegistry) -> int:
        return generate_latest(registry).count(b"\nflow_bytes_total{")

    before = replacing(flows, share) if share else None
    for _ in range(3):
        if before is not None:
            before()
        assert render(ours) == render(theirs) == entries
    pair("exporter", lambda _: render(ours), lambda _: render(theirs),
         name=f"exporter, a scrape of 10,000 series, {labels}" + (
             f", 1/{share} of them new each time" if share else ""),
         against="prometheus_client's rendering", entries=entries, limit=1.2, rounds=40, warmup=3,
         tries=2, before=before)
