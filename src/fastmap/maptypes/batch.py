"""`Batch`: what a read returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core.rows.convert import copied, taken
from fastmap.btf.described import NO_LAYOUTS, described
from fastmap.btf.layout import Layout

Array: TypeAlias = npt.NDArray[Any]


class Batch:
    """Entries that one read returned: an array of keys, an array of values.

    Unpacks as ``keys, values = batch``. What takes Arrow takes it as it is (`to_arrow`):
    ``pyarrow.table(batch)``, ``polars.DataFrame(batch)``, ``duckdb.sql("... FROM batch")``.

    Attributes
    ----------
    keys : ndarray
        Shape ``(n,)``, of the map's key dtype.
    values : ndarray
        Shape ``(n,)``; ``(n, cpus)`` for a per-CPU map that was not reduced.
    complete : bool
        Whether every entry that was in the map during the whole read is here, once. False for a
        part of a map, or where the kernel cannot promise it.
    started_ns, ended_ns : int
        When the read began and ended, in nanoseconds of the monotonic clock.
    layouts : mapping of str to Layout
        What BTF says of "key" and "value" beside their dtypes: names of enums, bitfields. Of what
        it says nothing it has no entry.
    """

    __slots__ = ("complete", "ended_ns", "key_objects", "keys", "layouts", "owned", "started_ns",
                 "values")

    def __init__(self, keys: Array, values: Array, *, complete: bool, started_ns: int,
                 ended_ns: int, key_objects: Callable[[Array], list[Any]] | None = None,
                 owned: bool = False, layouts: Mapping[str, Layout] = NO_LAYOUTS) -> None:
        self.keys = keys
        self.values = values
        self.key_objects = key_objects or elements
        self.complete = complete
        self.started_ns = started_ns
        self.ended_ns = ended_ns
        self.owned = owned  # no read overwrites the arrays
        self.layouts = layouts

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Array]:
        yield self.keys
        yield self.values

    def copy(self) -> Batch:
        """Return a batch that owns copies: it stays as it is when a reader reads on."""
        return Batch(copied(self.keys), copied(self.values), complete=self.complete,
                     started_ns=self.started_ns, ended_ns=self.ended_ns,
                     key_objects=self.key_objects, owned=True, layouts=self.layouts)

    def described(self, *, names: bool = True, raw: Collection[str] = ()) -> Batch:
        """Return the entries as people read them, by what the map's BTF says.

        Parameters
        ----------
        names : bool
            Whether enums become their names, text (``S``); a value without one is its number.
        raw : collection of str
            Columns that stay numbers: ``["key.proto"]``.

        Returns
        -------
        Batch
            With bitfields as fields of their own, in place of those they lie in. The batch itself
            where BTF says nothing, or the map has none.
        """
        sides = {"key": self.keys, "value": self.values}
        for side, layout in self.layouts.items():
            at = f"{side}."
            inner = [path.removeprefix(at) if path.startswith(at) else "" for path in raw
                     if path == side or path.startswith(at)]
            sides[side] = described(sides[side], layout, names=names, raw=inner)
        if sides["key"] is self.keys and sides["value"] is self.values:
            return self
        return Batch(sides["key"], sides["value"], complete=self.complete,
                     started_ns=self.started_ns, ended_ns=self.ended_ns,
                     key_objects=self.key_objects, owned=self.owned)

    def to_arrow(self, *, annotations: Mapping[str, Any] | None = None,
                 copy: bool = False, names: bool = True) -> Any:
        """Return the entries as a `pyarrow.RecordBatch` (``pip install 'fastmap-bpf[arrow]'``).

        Each field of key and value is a column: nested records are structs, the values of each CPU
        and sub-arrays fixed-size lists, ``S16`` is text up to the first NUL, void binary; padding
        and locks are left out. A key or value that is no record is the column "key" or "value".

        Parameters
        ----------
        annotations : mapping, optional
            What columns mean, ``{"key.saddr": "ipv4", "value": btf_layout("value", m)}``: see
            `fastmap.arrow.record_batch`.
        copy : bool
            Whether to copy also what need not be.
        names : bool
            Whether enums of the map's BTF are dictionary columns of their names. Its bitfields are
            columns of their own either way.

        Returns
        -------
        pyarrow.RecordBatch
            Of a reader's batch, a copy. Of one that owns its arrays (`snapshot`, `drain`, `copy`)
            columns that lie in one piece are not copied: they show what is written to them later.
        """
        from fastmap.arrow.convert import record_batch  # late: not part of `import fastmap`
        arrays = {"key": self.keys, "value": self.values}
        told = {side: layout if names else replace(layout, enums={})
                for side, layout in self.layouts.items() if layout.dtype == arrays[side].dtype}
        if told and (annotations is None or isinstance(annotations, Mapping)):
            annotations = {**told, **(annotations or {})}
        return record_batch(arrays, annotations=annotations,
                            copy=copy or not self.owned)

    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]:
        columns: tuple[Any, Any] = self.to_arrow().__arrow_c_array__(requested_schema)
        return columns

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        from fastmap.arrow.convert import stream
        return stream(self.to_arrow(), requested_schema)

    def take(self, rows: npt.ArrayLike) -> Batch:
        """Return a batch of the `rows` alone, an index array or a mask, with copies of its own."""
        return Batch(taken(self.keys, rows), taken(self.values, rows),
                     complete=self.complete, started_ns=self.started_ns, ended_ns=self.ended_ns,
                     key_objects=self.key_objects, owned=True, layouts=self.layouts)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over ``(key, value)`` as Python objects."""
        return zip(self.key_objects(self.keys), elements(self.values), strict=True)

    def __repr__(self) -> str:
        return (f"<fastmap.Batch of {len(self)}: {self.keys.dtype} to {self.values.dtype}"
                f"{'' if self.complete else ', part of a map'}>")


class Keys(np.ndarray[Any, Any]):
    """Keys with padding, which counts: all bytes of them come along.

    A mask or an index array of a plain structured array has anything in its padding, for numpy
    copies the fields alone; and the kernel would not find the key.
    """

    def __getitem__(self, which: Any) -> Any:
        if self.dtype.names is None or isinstance(which, (int, np.integer, slice)):
            return super().__getitem__(which)
        if isinstance(which, str) or (isinstance(which, list) and which
                                      and isinstance(which[0], str)):
            return super().__getitem__(which).view(np.ndarray)
        return taken(self, which)

    def copy(self, order: Any = "C") -> Any:
        """Return a copy, all bytes of it."""
        return super().copy(order) if self.dtype.names is None else copied(self)


def elements(array: Array) -> list[Any]:
    """Return the elements as `Map` hands out single ones: Python's own, or read-only records."""
    if array.ndim == 1 and array.dtype.names is None and array.dtype.kind not in "mM":
        return as_list(array)
    owned = copied(array)
    owned.flags.writeable = False
    return list(owned)


def as_list(array: Array) -> list[Any]:
    """Return ``array.tolist()``; `ValueError` where text of UCS4 holds what is no character."""
    try:
        plain: list[Any] = array.tolist()
    except SystemError as error:  # numpy hands Python any 32 bits as a character
        raise ValueError(f"{array.dtype}: not every element is text ({error}); as u4 they are "
                         "numbers") from None
    return plain
