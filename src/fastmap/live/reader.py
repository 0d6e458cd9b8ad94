"""`LiveReader`: whole reads of a live table into buffers that are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmap._core.live.table import LiveCore
from fastmap._core.live.table import LiveReader as Core
from fastmap._core.rows.columns import Columns
from fastmap.btf.described import NO_LAYOUTS, condition
from fastmap.dtypes import Reduce, Where, plan, slots
from fastmap.live.batch import LiveBatch
from fastmap.live.views import view
from fastmap.maptypes.batch import Array


def words_only(dtype: np.dtype[Any]) -> bool:
    """Return whether a value is 8-byte integers of this machine's order side by side."""
    if dtype.subdtype is not None:
        return words_only(dtype.subdtype[0])
    if dtype.names is not None:
        assert dtype.fields is not None
        fields = [dtype.fields[name][:2] for name in dtype.names]
        return (all(words_only(field) for field, _ in fields)
                and sum(field.itemsize for field, _ in fields) == dtype.itemsize
                and len({at for _, at in fields}) == len(fields))
    return dtype.kind in "iu" and dtype.itemsize == 8 and dtype.isnative


def row_maker(value: np.dtype[Any], columns: Columns | None, reduce: Reduce, dtype: np.dtype[Any],
              wide: bool, count: int) -> tuple[Columns | None, int]:
    """Return what makes a row of a key's columns, and its bytes; None: sums of 8-byte words."""
    if reduce == "sum" and words_only(value) and dtype.itemsize == value.itemsize:
        return None, value.itemsize
    if columns is None:  # all columns as they are
        own = [("copy", "bytes", False, 0, 0, count * value.itemsize)]
        columns = Columns(own, count, value.itemsize, value.itemsize, count * value.itemsize)
    return columns, dtype.itemsize * (count if wide else 1)


class LiveReader:
    """Reads a whole live table, again and again. Made by `LiveTable.reader`.

    The arrays of a batch are views of the reader's buffers: its next read overwrites them. Keys are
    copied only where they changed. It belongs to one thread at a time: a second one inside gets
    `RuntimeError`.
    """

    def __init__(self, core: LiveCore, key: np.dtype[Any], value: np.dtype[Any], columns: int, *,
                 reduce: Reduce = "sum", fields: Sequence[str] | None = None, where: Where = None,
                 differences: bool = False) -> None:
        if where is not None:
            where = condition(where, key, value, NO_LAYOUTS)
        made, dtype, wide = plan(key, value, columns, value.itemsize, reduce=reduce, fields=fields,
                                 where=where)
        if differences and not words_only(value):
            raise TypeError(f"differences are of 8-byte counters, and the value is {value}")
        if fields is None and where is None:
            made, size = row_maker(value, made, reduce, dtype, wide, columns)
        else:
            size = dtype.itemsize * (columns if wide else 1)
        self._core = Core(core, made, size, differences)
        self._last_ns = time.monotonic_ns()
        self._differences = differences
        self._key, self._dtype = key, dtype
        self._columns = columns if wide else 0

    def read(self) -> LiveBatch:
        """Read the whole table, without a system call and without the GIL.

        Returns
        -------
        LiveBatch
            Every key that was there during the whole read, once; keys that came or went meanwhile
            may or may not be there. Views, overwritten by the next read.
        """
        return self._batch(False)

    @property
    def idle(self) -> bool:
        """Whether no array shows what was read."""
        return self._core.idle

    def owned(self) -> LiveBatch:
        """Read once; the batch keeps the buffers: read on when this is `idle`."""
        return self._batch(True)

    def _batch(self, owned: bool) -> LiveBatch:
        core = self._core
        n = core.fill()
        seconds = (core.started_ns - self._last_ns) / 1e9
        self._last_ns = core.started_ns
        new = view(core.fresh, bool, n) if self._differences else None
        return LiveBatch(
            slots(core.keys, self._key, self._key.itemsize, n), self._values(n),
            born=view(core.born, "u8", n), slots=view(core.slots, "u4", n), new=new,
            seconds=seconds if self._differences else 0.0, complete=True,
            started_ns=core.started_ns, ended_ns=core.ended_ns, owned=owned)

    def _values(self, n: int) -> Array:
        if self._dtype.itemsize == 0:
            return np.empty(n, self._dtype)
        flat = slots(self._core.values, self._dtype, self._dtype.itemsize,
                     n * (self._columns or 1))
        return flat.reshape(n, self._columns, *flat.shape[1:]) if self._columns else flat
