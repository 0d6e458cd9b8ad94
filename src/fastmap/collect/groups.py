"""Batches made smaller: grouped by columns, and the rows of the largest values. See `collect`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from fastmap._core.delta.keyhash import numbered
from fastmap._core.rows.convert import taken
from fastmap.btf.described import bitfield
from fastmap.btf.layout import Layout
from fastmap.dtypes import split_column
from fastmap.maptypes.batch import Array, Batch

Columns: TypeAlias = str | Sequence[str]


def column(batch: Batch, path: str) -> Array:
    """Return a column of a batch: ``"key"``, ``"value"``, or a field, such as ``"value.bytes"``.

    Returns
    -------
    ndarray
        ``(n,)``, ``(n, cpus)`` of a per-CPU map that was not reduced. A view where it can be.

    Raises
    ------
    TypeError, ValueError
        There is no such column.
    """
    side, rest = split_column(path)
    array = batch.keys if side == "key" else batch.values
    while rest:
        names = array.dtype.names or ()
        # What `fields=` picked keeps its dots: "value.inner.a" may be the field "inner.a".
        name = rest if rest in names else rest.partition(".")[0]
        if name not in names:
            whole = batch.keys if side == "key" else batch.values
            bits = bitfield(whole, batch.layouts.get(side), path.partition(".")[2])
            if bits is not None:
                return bits
            raise ValueError(f"no field {name!r} (of {path!r}); there are: "
                             f"{', '.join(names) or 'none, it is ' + str(array.dtype)}")
        array, rest = array[name], rest[len(name) + 1:]
    return array


def names_of(paths: Columns | None) -> list[str]:
    """Return columns that were given as one word or several as a list."""
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def packed(batch: Batch, paths: Sequence[str]) -> Array:
    """Return columns side by side, without padding, named as their fields: labels of the rows."""
    columns = {path.partition(".")[2] or path: column(batch, path) for path in paths}
    if len(columns) < len(paths):
        raise ValueError(f"columns of one name among {', '.join(paths)}")
    rows: Array = np.zeros(len(batch), [(name, each.dtype, each.shape[1:])
                                        for name, each in columns.items()])
    for name, each in columns.items():
        rows[name] = each
    return rows


def number(rows: Array) -> tuple[Array, Array]:
    """Return ``(numbers, firsts)``: which rows are equal, and where each sort comes first."""
    if not len(rows) or not rows.dtype.itemsize:
        return np.zeros(len(rows), "u4"), np.zeros(min(len(rows), 1), "u4")
    owners: tuple[Any, Any, int] = numbered(rows)
    numbers, firsts, count = owners
    return np.frombuffer(numbers, "u4", len(rows)), np.frombuffer(firsts, "u4", count)


def summable(array: Array, path: str) -> Array:
    """Return a column that numbers can be made of, in native byte order."""
    if array.dtype.names is not None or array.dtype.kind not in "iufb":
        raise TypeError(f"{path} is no number, it is {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of sums: of 64 bits, as `reduce` has it."""
    return np.dtype("f8" if dtype.kind == "f" else "i8" if dtype.kind == "i" else "u8")


def group_by(batch: Batch, fields: Columns, *, sum: Columns | None = None,
             max: Columns | None = None, min: Columns | None = None,
             count: bool = False) -> Batch:
    """Group the rows of a batch by some of its columns.

    Parameters
    ----------
    batch : Batch
    fields : str or sequence of str
        What the rows of a group have in common: ``"key.pid"``, ``["key.src", "key.dst"]``.
    sum, max, min : str or sequence of str, optional
        Columns of numbers: ``sum="value.bytes"``. Sums have 64 bits, modulo, or are f8.
    count : bool
        Whether to count the rows as well; where nothing else is asked for, they are.

    Returns
    -------
    Batch
        Arrays of its own, the groups in the order in which they first come. The keys have the
        fields of `fields` (they are plain where it is one column, given as a str); the values
        those of `sum`, `max` and `min`, named as the fields (``bytes_sum``, ``bytes_max`` where one
        is asked for by several), and ``count``, a u8. It can be grouped again, and given to `top`.

    Raises
    ------
    TypeError, ValueError
        There is no such column, or it is no number.
    """
    asked = [(word, operation, path)
             for word, operation, paths in (("sum", np.add, sum), ("max", np.maximum, max),
                                            ("min", np.minimum, min))
             for path in names_of(paths)]
    if not names_of(fields):
        raise ValueError("fields names at least one column")
    rows = packed(batch, names_of(fields))
    numbers, firsts = number(rows)
    paths = [path for _, _, path in asked]
    made: dict[str, Array] = {}
    for word, operation, path in asked:
        name = path.partition(".")[2] or path
        name += f"_{word}" if paths.count(path) > 1 else ""
        if name in made:
            raise ValueError(f"two columns would be called {name!r}")
        given = summable(column(batch, path), path)
        # Of max and min each group begins with the value of its first row.
        made[name] = (np.zeros((len(firsts), *given.shape[1:]), wide(given.dtype))
                      if word == "sum" else given[firsts])
        operation.at(made[name], numbers, given)
    if count or not asked:
        if "count" in made:
            raise ValueError("two columns would be called 'count'")
        made["count"] = np.bincount(numbers, minlength=len(firsts)).astype("u8")
    values = np.empty(len(firsts), [(name, each.dtype, each.shape[1:])
                                    for name, each in made.items()])
    for name, each in made.items():
        values[name] = each
    keys = taken(rows, firsts)
    if isinstance(fields, str) and keys.dtype.names is not None:
        keys = np.ascontiguousarray(keys[keys.dtype.names[0]])
    return Batch(keys, values, complete=batch.complete, started_ns=batch.started_ns,
                 ended_ns=batch.ended_ns, owned=True,
                 layouts=_layouts(batch, names_of(fields), keys.dtype))


def _layouts(batch: Batch, paths: Sequence[str], dtype: np.dtype[Any]) -> dict[str, Layout]:
    """Return what is known of groups' keys: the enums among the columns that they are made of."""
    enums = {}
    for path in paths:
        side, rest = split_column(path)
        layout = batch.layouts.get(side)
        if layout is not None and rest in layout.enums:
            enums["" if dtype.names is None else rest or path] = layout.enums[rest]
    return {"key": Layout(dtype, enums)} if enums else {}


def top(batch: Batch, n: int, by: str) -> Batch:
    """Return the `n` rows of a batch whose column `by` is largest, the largest first.

    Parameters
    ----------
    batch : Batch
    n : int
        How many; all there are where they are fewer.
    by : str
        A column of numbers, such as ``"value.bytes"``. Rows of NaN come last.

    Returns
    -------
    Batch
        Of the batch's own class, with arrays of its own. Of a `DeltaBatch`, `new` and `reset` are
        those of the rows; `gone`, `resets` and `seconds` stay.

    Raises
    ------
    TypeError, ValueError
        There is no such column, it is no number, or has several CPUs: give ``reduce=`` to the read.
    """
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"n={n}: at least 0")
    given = summable(column(batch, by), by)
    if given.ndim != 1:
        raise ValueError(f"{by} has {given.shape[1:]} numbers a row: reduce= the read, or choose "
                         "one")
    if given.dtype.kind == "f":
        given = np.where(np.isnan(given), -np.inf, given)
    n = n if n < len(given) else len(given)
    rows = np.argpartition(given, len(given) - n)[len(given) - n:] if n else np.empty(0, np.intp)
    # The largest first, and of equal ones the first: sorted backwards, then turned around.
    rows = np.sort(rows)[::-1]
    rows = rows[np.argsort(given[rows], kind="stable")][::-1]
    return batch.take(rows)
