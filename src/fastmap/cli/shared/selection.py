"""Which entries of a map a subcommand shows: ``--where``, ``--reduce``, ``--top``, ``--limit``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap._core.rows.convert import joined
from fastmap.btf.described import condition as meaning
from fastmap.cli.shared.output import Advance, Failure, Misuse
from fastmap.collect.groups import top
from fastmap.dtypes import REDUCTIONS, locate
from fastmap.kernel.map_facts import FACTS
from fastmap.live.table import LiveTable
from fastmap.maptypes.batch import Batch
from fastmap.maptypes.handle import Map
from fastmap.maptypes.table import Table

Array = npt.NDArray[Any]

#: Bytes of a map that is read at once, for --fast; larger ones are read chunk by chunk.
MOST_AT_ONCE = 64 << 20
#: Entries of such a map that are handed on at once.
SLICE = 1 << 16

_CONDITION = re.compile(
    r"\s*((?:key|value)(?:\.[^\s=!<>]+)?)\s*(==|!=|<=|>=|<|>|=|in\b)\s*(.*?)\s*")


def count(text: str) -> int:
    """Return the whole number from 1 on that `text` is."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def positive(text: str) -> float:
    """Return the number above 0 that `text` is."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose entries."""
    parser.add_argument("--where", metavar="CONDITION",
                        help="only entries that pass, such as 'value.bytes >= 4096', "
                             "'value.comm == bash', 'key.proto == UDP' or "
                             "'key.saddr in 10.0.0.0/8'; with one of == != < <= > >= in")
    parser.add_argument("--reduce", choices=REDUCTIONS,
                        help="per-CPU maps: make one value of those of all CPUs")
    parser.add_argument("--top", metavar="N", type=count,
                        help="only the N entries with the largest --by, the largest first")
    parser.add_argument("--by", metavar="COLUMN",
                        help="'value', 'value.bytes', 'key.pid', ...: what --top compares")
    parser.add_argument("--fast", action="store_true",
                        help="let a program in the kernel walk a hash, in a third of the time; of "
                             "a map that changes meanwhile an entry may then come twice or be "
                             "missed, as with bpftool")
    parser.add_argument("--limit", metavar="N", type=count, help="at most N entries")


def table_of(m: Map) -> Table:
    """Return the map as one that can be read whole, or say why it cannot."""
    if not isinstance(m, Table):
        why = ("its records are taken, not read: fastmap watch"
               if FACTS[m.type].family in ("ring", "events")
               else "the kernel lists no entries of such maps")
        raise Failure(f"{m.name or m.id} is of type {m.type.name.lower()}: {why}")
    return m


def condition(text: str | None, m: Map | LiveTable) -> tuple[str, str, Any] | None:
    """Return ``--where`` as `Map.reader` takes it."""
    if text is None:
        return None
    match = _CONDITION.fullmatch(text)
    if match is None or not match[3]:
        raise Misuse(f"--where {text!r}: it is a column, a comparison and a constant, such as "
                     "'value.bytes >= 4096'")
    path, compare, said = match.groups()
    side, _, rest = path.partition(".")
    dtype = m.key_dtype if side == "key" else m.value_dtype
    try:
        dtype = locate(dtype, rest)[0] if rest else dtype
    except ValueError as error:
        raise Misuse(f"--where {text!r}: {error}") from None
    compare = "==" if compare == "=" else compare
    if compare != "in" and (found := _constant_of(said, dtype)) is not None:
        return path, compare, found
    try:
        meant = meaning((path, compare, said), m.key_dtype, m.value_dtype,
                        getattr(m, "layouts", {}))
    except ValueError as error:
        raise Misuse(f"--where {text!r}: {error}") from None
    if meant is None or isinstance(meant[2], str):
        return path, compare, constant(said, dtype)  # says what it takes
    return path, compare, said


def _constant_of(said: str, dtype: np.dtype[Any]) -> Any:
    try:
        return constant(said, dtype)
    except Misuse:
        return None


def constant(said: str, dtype: np.dtype[Any]) -> Any:
    """Return the constant of a condition as the column's dtype wants it."""
    if dtype.names is not None or dtype.subdtype is not None:
        raise Misuse(f"--where compares one number or text, not {dtype}")
    try:
        if dtype.kind == "S":
            quoted = len(said) > 1 and said[0] == said[-1] and said[0] in "'\""
            return (said[1:-1] if quoted else said).encode()
        if dtype.kind == "V" and dtype.names is None:
            return bytes.fromhex(said.removeprefix("0x"))
        if dtype.kind == "f":
            return float(said)
        if dtype.kind == "b" and said.lower() in ("true", "false"):
            return said.lower() == "true"
        return int(said, 0)
    except ValueError:
        raise Misuse(f"--where: {said!r} is no constant to compare {dtype} with") from None


def column(batch: Batch, path: str) -> Array:
    """Return the numbers that `path` names in a batch, one of each entry."""
    side, _, rest = path.partition(".")
    if side not in ("key", "value"):
        raise Misuse(f"{path!r}: a column is 'key', 'value', or a field of one ('value.bytes')")
    array = batch.keys if side == "key" else batch.values
    if rest:
        try:
            locate(array.dtype, rest)
        except ValueError as error:
            raise Misuse(str(error)) from None
        for name in rest.split("."):
            array = array[name]
    if array.ndim != 1 or array.dtype.kind not in "iufb":
        per_cpu = array.ndim == 2 and array.dtype.kind in "iufb" and side == "value"
        raise Misuse(f"{path} is no number to sort by"
                     + ("; --reduce sum makes one of those of all CPUs" if per_cpu else
                        f", it is {array.dtype}{list(array.shape[1:]) or ''}; say --by COLUMN"))
    return array


def part(batch: Batch, which: Any) -> Batch:
    """Return some rows of a batch."""
    return Batch(batch.keys[which], batch.values[which], complete=False,
                 started_ns=batch.started_ns, ended_ns=batch.ended_ns,
                 key_objects=batch.key_objects, layouts=batch.layouts)


def selected(m: Map, given: argparse.Namespace, advance: Advance) -> Iterator[Batch]:
    """Yield the chosen entries of a map, chunk by chunk, in bounded memory.

    Parameters
    ----------
    m : Map
    given : Namespace
        With the options of `add_selection`.
    advance : callable
        Is told how many entries were read.
    """
    table = table_of(m)
    if given.by is not None and given.top is None:
        raise Misuse("--by goes with --top")
    if given.reduce is not None and not m.per_cpu:
        raise Misuse(f"--reduce is for per-CPU maps; {m.name or m.id} is of type "
                     f"{m.type.name.lower()}")
    where = condition(given.where, m)
    if m.per_cpu and where and where[0].startswith("value") and given.reduce is None:
        raise Misuse("--where on the values of a per-CPU map goes with --reduce sum")
    chunks = _read(table, given.reduce, where, given.fast, advance)
    if given.top is not None:
        chunks = _largest(chunks, given.by or "value", given.top)
    yield from chunks if given.limit is None else _first(chunks, given.limit)


def selected_live(table: LiveTable, given: argparse.Namespace) -> Iterator[Batch]:
    """Yield the chosen entries of a live table, sums over its columns."""
    if given.by is not None and given.top is None:
        raise Misuse("--by goes with --top")
    batch = table.read(reduce=given.reduce or "sum", where=condition(given.where, table))
    chunks: Iterator[Batch] = (part(batch, slice(at, at + SLICE))
                               for at in range(0, len(batch), SLICE))
    if given.top is not None:
        chunks = _largest(chunks, given.by or "value", given.top)
    yield from chunks if given.limit is None else _first(chunks, given.limit)


def _read(table: Table, reduce: str | None, where: tuple[str, str, Any] | None, fast: bool,
          advance: Advance) -> Iterator[Batch]:
    reader = table.reader(reduce=reduce, where=where, exact=not fast)
    size = table.max_entries * (table.key_dtype.itemsize + table.value_dtype.itemsize)
    if fast and not table.per_cpu and size <= MOST_AT_ONCE:
        # A walk in the kernel is of the whole map.
        whole = reader.read()
        chunks = (part(whole, slice(at, at + SLICE)) for at in range(0, len(whole), SLICE))
    else:
        chunks = (batch for batch in reader)
    for batch in chunks:
        yield batch
        advance(len(batch))


def _first(chunks: Iterator[Batch], most: int) -> Iterator[Batch]:
    for batch in chunks:
        yield batch if len(batch) <= most else part(batch, slice(most))
        most -= len(batch)
        if most <= 0:
            return


def _largest(chunks: Iterator[Batch], by: str, most: int) -> Iterator[Batch]:
    kept: Batch | None = None
    for batch in chunks:
        column(batch, by)  # says what is wrong in the words of the options
        best = top(batch, most, by)
        if kept is not None:
            both = Batch(joined([kept.keys, best.keys]), joined([kept.values, best.values]),
                         complete=False,
                         started_ns=kept.started_ns, ended_ns=best.ended_ns,
                         key_objects=batch.key_objects, layouts=batch.layouts)
            best = top(both, most, by)
        kept = best
    if kept is not None:
        yield kept
