"""What an exporter shall tell of maps: a short declaration, checked word by word.

It is YAML or a Python dict; docs/prometheus.md tells its words. Those of histograms are
ebpf_exporter's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from fastmap.decode import How, check_how

#: Buckets of one histogram, at most: each is a series.
MOST_BUCKETS = 1024
#: Label values that a map's metrics may have, where the declaration does not say.
MAX_SERIES = 10_000
PER_CPU = ("sum", "max", "min", "label")
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
    path: str

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
    path: str

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
        "sum", "max", "min": one value of all CPUs; "label": a series for each.
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
    path: str

    @property
    def title(self) -> str:
        """What names it in the metrics about maps."""
        return str(self.pin or self.name or self.id)


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
    if isinstance(source, (str, PathLike)):
        source = _yaml(source)
    table = _Table(source, "", "the declaration")
    found = tuple(_map(each) for each in table.list("maps", 1))
    table.done()
    _once([(title, each.path) for each in found
           for title in [(each.pin, each.name, each.id)]], "the map")
    _once([(name, metric.path) for each in found for metric in each.metrics
           for name in sorted(metric.series())], "the metric")
    return found


def _yaml(path: str | PathLike[str]) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError("a declaration in YAML needs PyYAML: pip install 'fastmap[prometheus]'"
                          ) from None
    try:
        return yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{fspath(path)} is no YAML: {error}") from None


def _once(named: list[tuple[Any, str]], what: str) -> None:
    paths: dict[Any, str] = {}
    for name, path in named:
        if paths.setdefault(name, path) != path:
            raise ValueError(f"{path}: {what} is declared already, as {paths[name]}")


_MISSING: Any = object()


class _Table:
    """A mapping of the declaration: hands out its words, and knows the path of each."""

    def __init__(self, given: Any, path: str, what: str = "") -> None:
        self.path = path
        if not isinstance(given, Mapping):
            raise ValueError(f"{path or what}: words with values, not {given!r:.60}")
        self._given = given
        self._asked: list[str] = []

    def at(self, word: str) -> str:
        return f"{self.path}.{word}" if self.path else word

    def take(self, word: str, default: Any = _MISSING) -> Any:
        self._asked.append(word)
        found = self._given.get(word)
        if found is None:
            if default is _MISSING:
                raise ValueError(f"{self.at(word)}: missing")
            return default
        return found

    def text(self, word: str, default: Any = _MISSING, like: re.Pattern[str] | None = None) -> Any:
        found = self.take(word, default)
        if found is default:
            return found
        if not isinstance(found, str) or not found:
            raise ValueError(f"{self.at(word)}: text, not {found!r}")
        if like is not None and like.fullmatch(found) is None:
            raise ValueError(f"{self.at(word)}: Prometheus does not take {found!r} as a name")
        return found

    def number(self, word: str, default: Any = _MISSING) -> Any:
        found = self.take(word, default)
        if found is default:
            return found
        if isinstance(found, bool) or not isinstance(found, (int, float)) \
                or not abs(found) < float("inf"):
            raise ValueError(f"{self.at(word)}: a number, not {found!r}")
        return found

    def integer(self, word: str, default: Any = _MISSING, least: int | None = None) -> Any:
        found = self.number(word, default)
        if found is default:
            return found
        if not isinstance(found, int):
            raise ValueError(f"{self.at(word)}: an integer, not {found!r}")
        if least is not None and found < least:
            raise ValueError(f"{self.at(word)}: {found} is below {least}")
        return found

    def choice(self, word: str, words: tuple[str, ...], default: str) -> str:
        found = self.take(word, default)
        if found not in words:
            raise ValueError(f"{self.at(word)}: one of {', '.join(words)}, not {found!r}")
        return str(found)

    def dtype(self, word: str) -> np.dtype[Any] | None:
        found = self.take(word, None)
        if isinstance(found, Mapping):
            found = list(found.items())
        elif isinstance(found, list):
            found = [tuple(each) if isinstance(each, list) else each for each in found]
        try:
            return None if found is None else np.dtype(found)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.at(word)}: {error}") from None

    def raw(self, word: str, least: int = 0) -> Iterator[tuple[Any, str]]:
        found = self.take(word, _MISSING if least else [])
        if not isinstance(found, (list, tuple)) or len(found) < least:
            raise ValueError(f"{self.at(word)}: a list, not {found!r}")
        for i, each in enumerate(found):
            yield each, f"{self.at(word)}[{i}]"

    def list(self, word: str, least: int = 0) -> Iterator[_Table]:
        for each, path in self.raw(word, least):
            yield _Table(each, path)

    def done(self) -> None:
        for word in self._given:
            if word not in self._asked:
                raise ValueError(f"{self.at(str(word))}: no such word; "
                                 f"there are {', '.join(self._asked)}")


def _map(table: _Table) -> DeclaredMap:
    pin, name = table.text("pin", None), table.text("name", None)
    number = table.integer("id", None, 1)
    if sum(each is not None for each in (pin, name, number)) != 1:
        raise ValueError(f"{table.path}: one of pin, name and id says which map it is")
    key, value = table.dtype("key"), table.dtype("value")
    per_cpu = table.choice("per_cpu", PER_CPU, "sum")
    max_series = table.integer("max_series", MAX_SERIES, 1)
    overflow = table.text("overflow", "other")
    labels = _labels(table) or ()
    metrics = tuple(_metric(each, kind, labels, per_cpu)
                    for word, kind in KINDS.items() for each in table.list(word))
    if not metrics:
        raise ValueError(f"{table.path}: has none of {', '.join(KINDS)}")
    table.done()
    return DeclaredMap(pin, name, number, key, value, per_cpu, max_series, overflow, metrics,
                       table.path)


def _labels(table: _Table) -> tuple[Label, ...] | None:
    """Return the labels of a map or a metric; None where it has no such word."""
    if table.take("labels", None) is None:
        return None
    found: list[Label] = []
    for given, path in table.raw("labels"):
        one = _Table({"name": given} if isinstance(given, str) else given, path)
        name = one.text("name", like=_LABEL)
        label = Label(name, one.text("field", name), one.take("decode", None), path)
        try:
            check_how(label.decode)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{one.at('decode')}: {error}") from None
        one.done()
        if name in (each.name for each in found):
            raise ValueError(f"{path}: the label {name} is there already")
        found.append(label)
    return tuple(found)


def _metric(table: _Table, kind: str, labels: tuple[Label, ...], per_cpu: str) -> DeclaredMetric:
    name = table.text("name", like=_METRIC)
    if name.startswith("fastmap_map_"):
        raise ValueError(f"{table.at('name')}: {name} is one of the exporter's own")
    if kind == "counter":
        name = name.removesuffix("_total")  # it is added where samples are named
    text = table.text("help")
    field = table.text("field", "value")
    own = _labels(table)
    labels = labels if own is None else own
    taken = ["le"] * (kind == "histogram") + ["cpu"] * (per_cpu == "label")
    for label in labels:
        if label.name in taken:
            raise ValueError(f"{label.path}: the label {label.name} is {table.path}'s own")
        if per_cpu == "label" and label.field.split(".")[0] == "value":
            raise ValueError(f"{label.path}: a label of the value, which differs from CPU to CPU; "
                             "per_cpu: label takes labels of the key")
    buckets = _buckets(table) if kind == "histogram" else None
    multiplier = 1.0 if buckets else float(table.number("multiplier", 1))
    table.done()
    return DeclaredMetric(kind, name, text, field, multiplier, labels, buckets, table.path)


def _buckets(table: _Table) -> Buckets:
    kind = table.choice("bucket_type", BUCKET_TYPES, "exp2")
    multiplier = table.number("bucket_multiplier", 1)
    if not multiplier > 0:
        raise ValueError(f"{table.at('bucket_multiplier')}: {multiplier} is not above 0")
    slot = table.text("bucket", "")
    if kind == "fixed":
        slots = [_Table({"slot": each}, path).integer("slot")
                 for each, path in table.raw("bucket_keys", 1)]
        if slots != sorted(set(slots)):
            raise ValueError(f"{table.at('bucket_keys')}: ascending, each once")
    else:
        least, most = table.integer("bucket_min", 0), table.integer("bucket_max")
        if not least <= most:
            raise ValueError(f"{table.at('bucket_max')}: {most} is below bucket_min, {least}")
        if most - least >= MOST_BUCKETS or (kind != "linear" and most > 1000):
            raise ValueError(f"{table.at('bucket_max')}: {most} makes too many buckets, or too "
                             "large ones")
        slots = list(range(least, most + 1))
    if len(slots) > MOST_BUCKETS:
        raise ValueError(f"{table.at('bucket_keys')}: at most {MOST_BUCKETS}")
    # ebpf_exporter's place for the sum; false: the program keeps none.
    sum_slot = table.take("sum_slot", slots[-1] + 1)
    if sum_slot is False:
        sum_slot = None
    elif table.integer("sum_slot", None) in slots:
        raise ValueError(f"{table.at('sum_slot')}: {sum_slot} is a bucket")
    sum_multiplier = table.number("sum_multiplier", multiplier)
    # In decimals: 3 slots of 0.1 end at 0.3, not at 0.30000000000000004.
    unit = Decimal(repr(multiplier))
    bound: Callable[[int], Decimal | int] = {
        "exp2": lambda i: Decimal(2) ** i, "exp2zero": lambda i: Decimal(2) ** (i - 1) if i else 0,
    }.get(kind, lambda i: i)
    return Buckets(slot, tuple(slots), tuple(float(bound(i) * unit) for i in slots), sum_slot,
                   float(sum_multiplier))
