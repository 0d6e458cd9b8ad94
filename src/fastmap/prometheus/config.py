"""What an exporter shall tell of maps: a short declaration, checked word by word.

It is YAML or a Python dict; docs/prometheus.md tells its words. Those of histograms are
ebpf_exporter's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice, pairwise
from os import PathLike
from typing import Any

import numpy as np

from fastmap.prometheus.said import cut
from fastmap.prometheus.words import Words, encodable
from fastmap.prometheus.yaml_file import values_of
from fastmap.text.decoders import How, check_how

#: Buckets of one histogram, at most: each is a series.
MOST_BUCKETS = 1024
#: Label values that a map's metrics may have, where the declaration does not say.
MAX_SERIES = 10_000
#: A map has no more entries.
MOST_SERIES = (1 << 32) - 1
MOST_ID = (1 << 32) - 1
#: What the names of the exporter's own metrics begin with.
OWN = ("fastmap_map_", "fastmap_exporter_")
PER_CPU = ("sum", "max", "min", "min_nonzero", "label")
KINDS = {"counters": "counter", "gauges": "gauge", "histograms": "histogram"}
BUCKET_TYPES = ("exp2", "exp2zero", "linear", "fixed")

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Label:
    """A label: a field of the key (``"saddr"``, ``"key.saddr"``) or value, and its decoder."""

    name: str
    field: str
    decode: How
    path: str = dataclasses.field(compare=False)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells labels apart: two with the same are one."""
        how = tuple(self.decode.items()) if isinstance(self.decode, Mapping) else self.decode
        return self.name, self.field, how


@dataclass(frozen=True)
class Buckets:
    """The buckets of a histogram.

    Attributes
    ----------
    slot : str
        The field of the key that has the slot; empty: the last one.
    slots : tuple of int
        The slots of the buckets, ascending.
    bounds : tuple of float
        The upper bound of each: its ``le``.
    sum_slot : int or None
        The slot that has the sum of what was observed.
    sum_multiplier : float
        From the sum's unit to that of the bounds.
    """

    slot: str
    slots: tuple[int, ...]
    bounds: tuple[float, ...]
    sum_slot: int | None
    sum_multiplier: float


@dataclass(frozen=True)
class DeclaredMetric:
    """A metric: a field of the value times `multiplier`, or a histogram over `buckets`."""

    kind: str
    name: str
    help: str
    field: str
    multiplier: float
    labels: tuple[Label, ...]
    buckets: Buckets | None
    path: str = dataclasses.field(compare=False)

    def series(self) -> set[str]:
        """Return the names that its samples have."""
        if self.kind == "counter":
            return {self.name + "_total", self.name}
        if self.kind == "histogram":
            return {self.name + end for end in ("", "_bucket", "_count", "_sum")}
        return {self.name}


@dataclass(frozen=True)
class DeclaredMap:
    """A map, how it is found, and its metrics.

    Attributes
    ----------
    pin, name, id : str or int, optional
        One of them.
    key, value : dtype, optional
        Where the map's BTF does not tell them.
    per_cpu : str
        "sum", "max", "min", "min_nonzero": one value of all CPUs; "label": a series for each.
    max_series : int
        How many label sets a metric may have; all further ones are added up in one more.
    overflow : str
        The value of that one's labels.
    """

    pin: str | None
    name: str | None
    id: int | None
    key: np.dtype[Any] | None
    value: np.dtype[Any] | None
    per_cpu: str
    max_series: int
    overflow: str
    metrics: tuple[DeclaredMetric, ...]
    path: str = dataclasses.field(compare=False)

    @property
    def title(self) -> str:
        """What names it in the metrics about maps."""
        return str(self.pin or self.name or self.id)

    def same(self, other: DeclaredMap) -> bool:
        """Return whether another says the same, wherever it stands."""
        # numpy takes None for float64.
        return (self == other and (self.key is None) == (other.key is None)
                and (self.value is None) == (other.value is None))


def declared(source: Any) -> tuple[DeclaredMap, ...]:
    """Return the maps of a declaration.

    Parameters
    ----------
    source : Mapping or path
        The declaration, or the YAML file that has it.

    Raises
    ------
    ValueError
        It is no declaration: the message begins with the path of what is wrong, such as
        ``maps[0].counters[1].field``.
    OSError
        The file cannot be read.
    """
    found, problems = examined(source)
    if problems:
        raise problems[0]
    return found


def examined(source: Any) -> tuple[tuple[DeclaredMap, ...], list[ValueError]]:
    """Return those maps of a declaration that are right, and all that is wrong."""
    problems: list[ValueError] = []
    found: list[DeclaredMap] = []
    try:
        if isinstance(source, (str, PathLike)):
            source = values_of(source)
        words = Words(source, "", "the declaration", problems)
        found = words.each("maps", lambda each: _map(each, problems), problems, 1)
        words.done()
    except ValueError as error:
        problems.append(error)
    _once([(title, each.path) for each in found
           for title in [(each.pin, each.name, each.id)]], "the map", problems)
    _once([(name, metric.path) for each in found for metric in each.metrics
           for name in sorted(metric.series())], "the metric", problems)
    return tuple(found), problems


def _once(named: list[tuple[Any, str]], what: str, problems: list[ValueError]) -> None:
    paths: dict[Any, str] = {}
    twice: set[str] = set()
    for name, path in named:
        if paths.setdefault(name, path) != path and path not in twice:
            twice.add(path)
            problems.append(ValueError(f"{path}: {what} is declared already, as {paths[name]}"))


def _map(words: Words, problems: list[ValueError]) -> DeclaredMap:
    pin, name = words.text("pin", None), words.text("name", None)
    number = words.integer("id", None, 1, MOST_ID)
    key, value = words.dtype("key"), words.dtype("value")
    per_cpu = words.choice("per_cpu", PER_CPU, "sum")
    max_series = words.integer("max_series", MAX_SERIES, 1, MOST_SERIES)
    overflow = words.text("overflow", "other")
    labels = _labels(words) or ()
    before = len(problems)
    metrics = tuple(metric for word, kind in KINDS.items() for metric in words.each(
        word, partial(_metric, kind=kind, labels=labels, per_cpu=per_cpu), problems))
    words.done()
    if sum(each is not None for each in (pin, name, number)) != 1:
        raise ValueError(f"{words.path}: one of pin, name and id says which map it is")
    if not metrics and len(problems) == before:
        raise ValueError(f"{words.path}: has none of {', '.join(KINDS)}")
    return DeclaredMap(pin, name, number, key, value, per_cpu, max_series, overflow, metrics,
                       words.path)


def _labels(words: Words) -> tuple[Label, ...] | None:
    """Return the labels of a map or a metric; None where it has no such word."""
    if words.take("labels", None) is None:
        return None
    found: list[Label] = []
    for given, path in words.raw("labels"):
        one = Words({"name": given} if isinstance(given, str) else given, path)
        name = one.text("name", like=_LABEL)
        label = Label(name, one.text("field", name), _decode(one), path)
        one.done()
        if name in (each.name for each in found):
            raise ValueError(f"{path}: the label {name} is there already")
        found.append(label)
    return tuple(found)


def _decode(words: Words) -> How:
    how: How = words.take("decode", None)
    try:
        check_how(how)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{words.at('decode')}: {cut(str(error), 200)}") from None
    if isinstance(how, Mapping):
        for name in how.values():
            encodable(name, words.at("decode"))
    return how


def _metric(words: Words, kind: str, labels: tuple[Label, ...], per_cpu: str) -> DeclaredMetric:
    name = words.text("name", like=_METRIC)
    if name.startswith(OWN):
        raise ValueError(f"{words.at('name')}: {cut(name, 60)} is one of the exporter's own")
    if kind == "counter":
        name = name.removesuffix("_total")  # it is added where samples are named
        if not name:
            raise ValueError(f"{words.at('name')}: nothing but _total, which every counter has")
    text = words.text("help")
    field = words.text("field", "value")
    own = _labels(words)
    labels = labels if own is None else own
    taken = ["le"] * (kind == "histogram") + ["cpu"] * (per_cpu == "label")
    for label in labels:
        if label.name in taken:
            raise ValueError(f"{label.path}: the label {label.name} is {words.path}'s own")
        if per_cpu == "label" and label.field.split(".")[0] == "value":
            raise ValueError(f"{label.path}: a label of the value, which differs from CPU to CPU; "
                             "per_cpu: label takes labels of the key")
    buckets = _buckets(words) if kind == "histogram" else None
    # A counter rises.
    multiplier = 1.0 if buckets else float(
        words.number("multiplier", 1, 0 if kind == "counter" else None))
    words.done()
    return DeclaredMetric(kind, name, text, field, multiplier, labels, buckets, words.path)


def _buckets(words: Words) -> Buckets:
    kind = words.choice("bucket_type", BUCKET_TYPES, "exp2")
    multiplier = words.number("bucket_multiplier", 1, 0)
    slot = words.text("bucket", "")
    slots = _slots(words, kind)
    # ebpf_exporter's place for the sum; false: the program keeps none.
    sum_slot = words.take("sum_slot", slots[-1] + 1)
    if sum_slot is False:
        sum_slot = None
    elif words.integer("sum_slot", None) in slots:
        raise ValueError(f"{words.at('sum_slot')}: {sum_slot} is a bucket")
    sum_multiplier = words.number("sum_multiplier", multiplier, 0)
    # In decimals: 3 slots of 0.1 end at 0.3, not at 0.30000000000000004.
    unit = Decimal(repr(multiplier))
    bound: Callable[[int], Decimal | int] = {
        "exp2": lambda i: Decimal(2) ** i, "exp2zero": lambda i: Decimal(2) ** (i - 1) if i else 0,
    }.get(kind, lambda i: i)
    bounds = tuple(float(bound(i) * unit) for i in slots)
    for last, this in pairwise((*bounds, float("inf"))):
        if not last < this:
            raise ValueError(f"{words.path}: the bounds of its buckets do not rise: {this} comes "
                             f"after {last}")
    return Buckets(slot, tuple(slots), bounds, sum_slot, float(sum_multiplier))


def _slots(words: Words, kind: str) -> list[int]:
    if kind == "fixed":
        keys = list(islice(words.raw("bucket_keys", 1), MOST_BUCKETS + 1))
        if len(keys) > MOST_BUCKETS:
            raise ValueError(f"{words.at('bucket_keys')}: at most {MOST_BUCKETS}")
        slots = [Words({"slot": each}, path).integer("slot") for each, path in keys]
        if slots != sorted(set(slots)):
            raise ValueError(f"{words.at('bucket_keys')}: ascending, each once")
        return slots
    least = words.integer("bucket_min", 0)
    most = words.integer("bucket_max")
    if not least <= most:
        raise ValueError(f"{words.at('bucket_max')}: {most} is below bucket_min, {least}")
    if most - least >= MOST_BUCKETS or (kind != "linear" and most > 1000):
        raise ValueError(f"{words.at('bucket_max')}: {most} makes too many buckets, or too "
                         "large ones")
    return list(range(least, most + 1))
