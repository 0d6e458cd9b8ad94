"""Maps as metrics: a collector for prometheus_client.

A scrape opens each map anew, so that the exporter keeps no map alive and finds one that was made
again; it reads the map whole, in a few system calls, and adds up what has the same labels. Label
values are decoded once and kept: reading 10,000 series takes a tenth of their rendering.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import Any

import numpy as np
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from fastmap._core.system.syscall import possible_cpus
from fastmap.errors import ObjectNotFound
from fastmap.live.table import LiveTable
from fastmap.maptypes.open import open as open_map
from fastmap.maptypes.table import Table
from fastmap.prometheus.config import Buckets, DeclaredMap, DeclaredMetric, declared
from fastmap.prometheus.labels import Field, LabelSet
from fastmap.text.decoders import Column

_log = logging.getLogger(__name__)
#: What a Sample has after name, labels and value: nothing that a map could tell.
_TAIL = tuple(Sample("", {}, 0.0)[3:])

#: What the exporter tells of each map beside the map's own metrics.
_OWN = {
    "fastmap_map_up": "Whether the map was there and could be read.",
    "fastmap_map_entries": "Entries that were read.",
    "fastmap_map_overflow_entries": "Entries that count in overflow series.",
    "fastmap_map_scrape_duration_seconds": "How long opening, reading and decoding the map took.",
}


class MapCollector:
    """Collects metrics from maps, for a registry of prometheus_client.

    Parameters
    ----------
    source : Mapping or path
        The declaration (docs/prometheus.md), or the YAML file that has it.
    before : MapCollector, optional
        What is known of maps that are declared as there is taken over, such as which label sets
        have series; that collector is not to be used any more.

    Raises
    ------
    ValueError
        It is no declaration, or a map that is there now does not fit it: the message begins with
        the path of what is wrong, such as ``maps[0].counters[1].field``.

    Notes
    -----
    A map that is missing at a scrape, or cannot be read, is ``fastmap_map_up 0``, and the log tells
    the reason; the others go on. Needs CAP_SYS_ADMIN where maps are found by name or id.

    Examples
    --------
    >>> import prometheus_client
    >>> from fastmap.prometheus import MapCollector
    >>> collector = MapCollector({"maps": [{
    ...     "pin": "/sys/fs/bpf/flows",
    ...     "labels": [{"name": "source", "field": "saddr", "decode": "ipv4"}],
    ...     "counters": [{"name": "flow_bytes", "help": "Bytes sent.", "field": "bytes"}],
    ... }]})
    >>> prometheus_client.REGISTRY.register(collector)
    """

    def __init__(self, source: Any, *, before: MapCollector | None = None) -> None:
        self._maps = [_Map(each) for each in declared(source)]
        for each in self._maps:
            each.check()
        for i, each in enumerate(self._maps):
            for known in before._maps if before is not None else ():
                if known.declared.same(each.declared):
                    known.declared = each.declared
                    self._maps[i] = known
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Return the metrics without samples: what a registry asks to tell doubles."""
        return [family for each in self._maps for family in each.families()] + [
            Metric(name, text, "gauge") for name, text in _OWN.items()]

    def collect(self) -> list[Metric]:
        """Read the maps; return their metrics. One thread at a time; others wait."""
        own = {name: Metric(name, text, "gauge") for name, text in _OWN.items()}
        found: list[Metric] = []
        with self._lock:
            for each in self._maps:
                families, about = each.collect()
                found += families
                for name, value in about.items():
                    own[name].add_sample(name, {"map": each.declared.title}, value)
        return found + list(own.values())

    def opened(self) -> bool:
        """Return whether one of the maps has been opened or read; look for them where none has."""
        with self._lock:
            return any(each.opened() for each in self._maps)


class _Samples(Sequence[Sample]):
    """The samples of a metric, each made when it is asked for.

    What renders them asks for one at a time: it is made and gone again in the cache, and at the
    speed of C; of Sample's own constructor, 10,000 take as long as reading them from the kernel.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.labels: list[dict[str, str]] = []
        self.values: list[float] = []

    def add(self, names: list[str], labels: Iterable[dict[str, str]], values: Column) -> None:
        """Add samples."""
        self.names += names
        self.labels += labels
        self.values += values.tolist()

    def __iter__(self) -> Iterator[Sample]:
        rows = zip(self.names, self.labels, self.values, *map(repeat, _TAIL))  # noqa: B905
        return map(tuple.__new__, repeat(Sample), rows)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]


class _Metric:
    """A metric of a map whose dtypes are known: from places and columns to samples."""

    def __init__(self, m: Any, declared: DeclaredMetric, labels: LabelSet) -> None:
        self.declared = declared
        self.labels = labels
        path = f"{declared.path}.field"
        self.field = Field(m, declared.field, "value", False, path)
        if self.field.side != "value":
            raise ValueError(f"{path}: a field of the value, not of the key")
        self.field.number(path, f"a {declared.kind}")
        self._slot: Field | None = None
        shape = self.field.dtype.shape
        if declared.buckets is not None and len(shape) < 2:
            self._bucket_texts: list[str] = [
                floatToGoString(bound)  # type: ignore[no-untyped-call]
                for bound in (*declared.buckets.bounds, float("inf"))]
            if not shape:
                self._slot = self._slot_of(m, declared.buckets)
        elif shape:
            raise ValueError(f"{path}: {self.field.dtype} is more than one number")
        #: By CPU: what the overflow series had at the last scrape, and what it has lost until then.
        self._kept: dict[str, tuple[Column, Column]] = {}

    def _slot_of(self, m: Any, buckets: Buckets) -> Field:
        path = f"{self.declared.path}.bucket"
        names = m.key_dtype.names
        slot = Field(m, buckets.slot or (f"key.{names[-1]}" if names else "key"), "key", False,
                      path)
        slot.number(path, "a slot", "iu")
        if any((each.side, each.field) == (slot.side, slot.field) for each in self.labels.fields):
            raise ValueError(f"{path}: {slot.field or 'key'} is a label as well")
        return slot

    def weights(self, values: Column) -> Column:
        """Return how large each entry is: which of them have series of their own goes by it."""
        column = self.field.column(values, values)
        weights: Column = column.reshape(len(column), -1).sum(axis=1, dtype="f8")
        return weights

    def samples(self, keys: Column, values: Column, places: Column, wide: bool) -> _Samples:
        """Return the samples; with `wide`, values are ``(n, cpus)``, a series for each CPU."""
        column = self.field.column(values, values)
        found = _Samples()
        if wide:
            for i, cpu in enumerate(possible_cpus()):
                self._add(found, keys, column[:, i], places, str(cpu))
        else:
            self._add(found, keys, column, places, "")
        return found

    def _add(self, found: _Samples, keys: Column, column: Column, places: Column,
             cpu: str) -> None:
        series = self.labels.series
        counts = np.bincount(places, minlength=len(series.labels))
        counts[0] += series.overflowed  # from then on it is always there
        present = np.flatnonzero(counts)
        more = {"cpu": cpu} if cpu else {}
        name, buckets = self.declared.name, self.declared.buckets
        if buckets is None:
            totals = _added(places, column, len(counts)) * self.declared.multiplier
            if self.declared.kind == "counter":
                name += "_total"
                self._never_less(totals, cpu)
            labels = series.labels
            if cpu:
                labels = [each[0] for each in series.extended(cpu, [more])]
            found.add([name] * len(present), [labels[place] for place in present.tolist()],
                      totals[present])
            return
        table = self._table(keys, column, places, len(counts), buckets)
        self._never_less(table, cpu)
        table = table[present]
        edges = len(buckets.slots) + 1
        np.cumsum(table[:, :edges], axis=1, out=table[:, :edges])
        table[:, edges] = table[:, edges - 1]
        names = [f"{name}_bucket"] * edges + [f"{name}_count", f"{name}_sum"]
        if buckets.sum_slot is None:
            # OpenMetrics has both or none; the count is that of +Inf.
            names, table = names[:edges], table[:, :edges]
        extended = series.extended(
            (self.declared.name, cpu), [{**more, "le": text} for text in self._bucket_texts]
            + [more] * (len(names) - edges))
        found.add(names * len(present),
                  chain.from_iterable(extended[place] for place in present.tolist()),
                  table.reshape(-1))

    def _table(self, keys: Column, column: Column, places: Column, count: int,
               buckets: Buckets) -> Column:
        """Return for each place the counts of the buckets, that beyond them, and 0 and the sum."""
        # A slot below the first bucket is within its bound; one beyond the last within +Inf alone.
        edges = len(buckets.slots) + 1
        if self._slot is None:
            slots = np.tile(np.arange(column.shape[1]), len(column))
            places = np.repeat(places, column.shape[1])
        else:
            slots = self._slot.column(keys, keys)
        at = np.searchsorted(buckets.slots, slots)
        if buckets.sum_slot is not None:
            at[slots == buckets.sum_slot] = edges + 1
        width = edges + 2
        table = _added(places * width + at, column.reshape(-1), count * width)
        table = table.reshape(count, width)
        table[:, -1] *= buckets.sum_multiplier
        return table

    def _never_less(self, totals: Column, cpu: str) -> None:
        """Keep in the overflow series what keys have counted there that are gone since.

        A counter that fell would be taken for one that began anew, and all of it for new.
        """
        if self.labels.series.overflowed:
            now = totals[0].copy()
            last, lost = self._kept.get(cpu, (now, 0 * now))
            lost = lost + np.maximum(last - now, 0)
            self._kept[cpu] = now, lost
            totals[0] = now + lost


def _added(places: Column, column: Column, count: int) -> Column:
    """Add up a column by place: floats, as Prometheus has them, also of nothing."""
    return np.bincount(places, column, count).astype("f8", copy=False)


class _Map:
    """A declared map: opened, read, and told of at each scrape."""

    def __init__(self, declared: DeclaredMap) -> None:
        self.declared = declared
        self._id = 0
        self._metrics: list[_Metric] = []
        self._reading: dict[str, Any] = {}
        self._down = ""
        self._seen = False

    def _open(self) -> Any:
        d = self.declared
        try:
            return open_map(d.pin, name=d.name, id=d.id, key=d.key, value=d.value, readonly=True)
        except ObjectNotFound as error:
            if d.id is not None:
                raise
            with suppress(ObjectNotFound):
                return LiveTable.open(d.pin, name=d.name, key=d.key, value=d.value)
            raise error

    def check(self) -> None:
        """Raise where the map is there, and does not fit the declaration."""
        try:
            m = self._open()
        except OSError:
            return  # said at each scrape
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.declared.path}: {error}") from None
        with m:
            self._bind(m)
            self._seen = True

    def opened(self) -> bool:
        """Return whether the map has been opened, now or before, and fits the declaration."""
        if not self._seen:
            with suppress(ValueError):
                self.check()
        return self._seen

    def _bind(self, m: Any) -> None:
        """Find the fields in the map's dtypes; a map of another id begins anew."""
        if m.id == self._id:
            return
        d = self.declared
        if not isinstance(m, (Table, LiveTable)):
            raise ValueError(f"{d.path}: a {m.type.name} map has no keys with values to read")
        if isinstance(m, Table) and d.per_cpu == "label" and not m.per_cpu:
            raise ValueError(f"{d.path}.per_cpu: a {m.type.name} map has one value for all CPUs")
        sets: dict[Any, LabelSet] = {}
        metrics = []
        for metric in d.metrics:
            identity = tuple(label.identity for label in metric.labels)
            if identity not in sets:
                sets[identity] = LabelSet(m, metric.labels, self._limit(m), d.overflow)
            metrics.append(_Metric(m, metric, sets[identity]))
        self._metrics = metrics
        self._reading = self._columns(m, sets.values())
        self._id = m.id

    def _limit(self, m: Any) -> int:
        cpus = len(possible_cpus()) if m.per_cpu and self.declared.per_cpu == "label" else 1
        return max(self.declared.max_series // cpus, 1)

    def _columns(self, m: Any, sets: Iterable[LabelSet]) -> dict[str, Any]:
        """Return the arguments of a reader that reads what the metrics need, and no more."""
        numbers = {metric.field.field for metric in self._metrics}
        texts = {field.field for each in sets for field in each.fields if field.side == "value"}
        reading: dict[str, Any] = {}
        if m.value_dtype.names is not None and "" not in numbers | texts:
            reading["fields"] = [f"value.{name}" for name in sorted(numbers | texts)]
        if m.per_cpu and self.declared.per_cpu != "label":
            how = self.declared.per_cpu
            reading["reduce"] = how if m.value_dtype.names is None else {
                **dict.fromkeys(texts, "any"), **dict.fromkeys(numbers, how)}
        return reading

    def families(self) -> list[Metric]:
        """Return the map's metrics, without samples."""
        return [Metric(each.name, each.help, each.kind) for each in self.declared.metrics]

    def collect(self) -> tuple[list[Metric], dict[str, float]]:
        """Return the map's metrics, and what is told of the map itself."""
        started = time.perf_counter()
        families = self.families()
        about = {"fastmap_map_up": 0.0}
        try:
            with self._open() as m:
                self._bind(m)
                about |= self._read(m, families)
                self._seen = True
                down = ""
        except (OSError, ValueError, TypeError) as error:
            # Of one map: the others go on.
            self._id = 0
            families = self.families()
            down = str(error) or repr(error)
        if down and down != self._down:
            _log.warning("%s: %s", self.declared.title, down)
        elif self._down and not down:
            _log.warning("%s: is there again", self.declared.title)
        self._down = down
        about["fastmap_map_scrape_duration_seconds"] = time.perf_counter() - started
        return families, about

    def _read(self, m: Any, families: list[Metric]) -> dict[str, float]:
        batch = (m.read(**{"reduce": None, **self._reading}) if isinstance(m, LiveTable)
                 else m.reader(via="syscall", **self._reading).read())
        places: dict[LabelSet, Column] = {}
        wide = m.per_cpu and "reduce" not in self._reading
        for metric, family in zip(self._metrics, families, strict=True):
            labels = metric.labels
            if labels not in places:
                places[labels] = labels.places(batch.keys, batch.values,
                                               partial(metric.weights, batch.values))
            family.samples = metric.samples(  # type: ignore[assignment]
                batch.keys, batch.values, places[labels], wide)
        over = sum(int(np.count_nonzero(each == 0)) for labels, each in places.items()
                   if labels.series.overflowed)
        return {"fastmap_map_up": 1.0, "fastmap_map_entries": float(len(batch)),
                "fastmap_map_overflow_entries": float(over)}
