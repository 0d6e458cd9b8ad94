"""How ``fastmap dump`` writes entries for other programs: JSON, CSV, Arrow, Parquet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from fastmap.cli.shared.background import Behind
from fastmap.cli.shared.output import json_visible
from fastmap.maptypes.batch import Array, Batch
from fastmap.text.json import JsonWriter
from fastmap.text.visible import visible

#: Rows of a row group of Parquet: what readers take up at once.
ROW_GROUP = 1 << 20


class Sink:
    """Where bytes go: a descriptor, written at once and whole. A file, to pyarrow.

    Not the buffer of `sys.stdout`: a thread that a full pipe holds in there keeps Python from
    ending, and without a buffer (PYTHONUNBUFFERED) it writes as much as fits.
    """

    closed = False

    def __init__(self, number: int) -> None:
        self._number = number
        self._written = 0
        #: Whether people look at it, and what is written may do something to their terminal.
        self.terminal = os.isatty(number)

    def write(self, data: Any) -> int:
        """Write all of it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest):
            rest = rest[os.write(self._number, rest):]
        self._written += size
        return size

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._written

    def flush(self) -> None:
        """Do nothing: it is written."""

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Leave the descriptor to its owner."""
        self.closed = True


#: How columns are decoded: ``{"key.saddr": "ip"}``.
Notes: TypeAlias = Mapping[str, str]
#: Writes batches; told whether they are of all CPUs, what an empty batch is like, notes, and
#: whether enums have names.
Writer: TypeAlias = Callable[[Iterable[Batch], Sink, bool, Callable[[], Batch], Notes, bool], None]


def write_json(chunks: Iterable[Batch], sink: Sink, per_cpu: bool,
               empty: Callable[[], Batch], notes: Notes, names: bool) -> None:
    """Write an array of ``{"key": ..., "value": ...}``."""
    writer = JsonWriter(per_cpu)

    def write(batch: Batch) -> None:
        for text in writer.text(batch.keys, batch.values):
            sink.write(json_visible(str(text, "utf-8")).encode() if sink.terminal else text)

    # The text of a chunk is made and written while the kernel is asked for the next: on two CPUs
    # that hides all of it.
    with Behind(write) as behind:
        for batch in chunks:
            behind.give(batch.copy())
    sink.write(writer.end())


def _or_empty(chunks: Iterable[Batch], empty: Callable[[], Batch]) -> Iterator[Batch]:
    """Yield the chunks; an empty one where there is none, for its columns."""
    count = 0
    for count, batch in enumerate(chunks, 1):  # noqa: B007
        yield batch
    if not count:
        yield empty()


def _tables(chunks: Iterable[Batch], empty: Callable[[], Batch], notes: Notes,
            names: bool) -> Iterator[Any]:
    """Yield the chunks as pyarrow has them."""
    return (batch.to_arrow(annotations=notes, names=names) for batch in _or_empty(chunks, empty))


def write_arrow(chunks: Iterable[Batch], sink: Sink, per_cpu: bool,
                empty: Callable[[], Batch], notes: Notes, names: bool) -> None:
    """Write a stream of Arrow (IPC)."""
    tables = _tables(chunks, empty, notes, names)
    first = next(tables)
    import pyarrow

    with pyarrow.ipc.new_stream(sink, first.schema) as stream:
        stream.write_batch(first)
        for table in tables:
            stream.write_batch(table)


def write_parquet(chunks: Iterable[Batch], sink: Sink, per_cpu: bool,
                  empty: Callable[[], Batch], notes: Notes, names: bool) -> None:
    """Write Parquet."""
    tables = _tables(chunks, empty, notes, names)
    first = next(tables)
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(sink, first.schema) as file:
        waiting, rows = [first], first.num_rows
        for table in tables:
            if rows >= ROW_GROUP:
                file.write_table(pyarrow.Table.from_batches(waiting))
                waiting, rows = [], 0
            waiting.append(table)
            rows += table.num_rows
        file.write_table(pyarrow.Table.from_batches(waiting))


def write_csv(chunks: Iterable[Batch], sink: Sink, per_cpu: bool,
              empty: Callable[[], Batch], notes: Notes, names: bool) -> None:
    """Write CSV with a heading; of nested records, each field is a column, lists are JSON.

    On a terminal what is not printable is escaped, as in tables.
    """
    def tables() -> Iterator[Any]:
        for batch in _or_empty(chunks, empty):
            hexed = {**_bytes("key", batch.keys, 1), **_bytes("value", batch.values, 1 + per_cpu)}
            yield _flat(batch.to_arrow(annotations={**hexed, **notes}, names=names),
                        sink.terminal)

    flat = tables()
    first = next(flat)
    import pyarrow.csv

    with pyarrow.csv.CSVWriter(sink, first.schema) as file:
        file.write_table(first)
        for table in flat:
            file.write_table(table)


def _bytes(name: str, array: Array, lead: int) -> dict[str, str]:
    """Return the columns that are arrays of u1, addresses say: CSV has them as hexadecimal."""
    if array.dtype.names is not None:
        return {path: how for field in array.dtype.names
                for path, how in _bytes(f"{name}.{field}", array[field], lead).items()}
    return {name: "hex"} if array.dtype == np.uint8 and array.ndim == lead + 1 else {}


def _flat(batch: Any, terminal: bool) -> Any:
    """Return a table of columns that CSV has words for: structs apart, bytes hexadecimal."""
    import pyarrow as pa

    table = pa.Table.from_batches([batch])
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for at, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind):
            made: Callable[[Any], str] = partial(_json, kind=kind)
        elif pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
            made = bytes.hex
        elif terminal and pa.types.is_string(kind):
            made = visible
        else:
            continue
        texts = [None if item is None else made(item) for item in table[at].to_pylist()]
        if terminal:
            texts = [None if text is None else visible(text) for text in texts]
        table = table.set_column(at, field.name, pa.array(texts, pa.string()))
    return table


def _json(item: Any, kind: Any) -> str:
    """Return a list as ``--json`` has it, in one cell."""
    return json.dumps(_plain(item, kind), ensure_ascii=False, separators=(",", ":"))


def _plain(item: Any, kind: Any) -> Any:
    import pyarrow as pa

    if isinstance(item, list):
        if kind.value_type == pa.uint8():
            return bytes(item).hex()
        return [_plain(each, kind.value_type) for each in item]
    if isinstance(item, dict):
        return {name: _plain(each, kind.field(name).type) for name, each in item.items()}
    if isinstance(item, bytes):
        return item.hex()
    return None if isinstance(item, float) and not math.isfinite(item) else item


WRITERS: dict[str, Writer] = {"json": write_json, "csv": write_csv, "arrow": write_arrow,
                              "parquet": write_parquet}
