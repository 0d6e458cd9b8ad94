"""`Reader`: whole reads of a map into buffers that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmap._core.codec import PerCpuCodec
from fastmap._core.columns import Columns
from fastmap.dtypes import Reduce, Where, plan, slots
from fastmap.maps.base import Map
from fastmap.maps.batch import Batch

if TYPE_CHECKING:
    from fastmap._core.batch import BatchReader
    from fastmap._core.memory import Mapping
    from fastmap._core.walk import Walker


class Reader:
    """Reads a whole map, again and again, into buffers made once. Made by ``map.reader()``.

    The arrays of a batch are views of the reader's buffers: its next read overwrites them, and
    they stay valid memory for as long as they live, also after ``close()`` of the map.
    ``batch.copy()`` keeps what they show.

    A reader belongs to one thread at a time: a second one inside it gets `RuntimeError`. The GIL
    is released once for each read.
    """

    def __init__(self, source: Map, *, is_array: bool, chunk: int | None = None,
                 reduce: Reduce = None, fields: Sequence[str] | None = None,
                 where: Where = None, exact: bool = True, via: str | None = "syscall") -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk}: at least one entry")
        # What makes another one like it, with buffers of its own.
        self._source = source
        self._options: dict[str, Any] = {
            "is_array": is_array, "chunk": chunk, "reduce": reduce, "fields": fields,
            "where": where, "exact": exact, "via": via}
        row = source._value
        cpus, stride = (row.cpus, row.stride) if isinstance(row, PerCpuCodec) else (0, row.size)
        columns, self._dtype, self._wide = plan(
            source.key_dtype, source.value_dtype, cpus, stride,
            reduce=reduce, fields=fields, where=where)
        # Bytes from one value to the next: as the kernel writes them, or side by side.
        self._stride = stride if columns is None else self._dtype.itemsize
        self._cpus = cpus
        self._key_dtype = source.key_dtype
        self._core: BatchReader | Walker
        self._core = self._batches = source._reads_by(
            source, source._most, is_array, columns, chunk or 0)
        self._in_kernel = source._walks(via, exact, columns)
        self._key_objects = source._key_objects
        self._filtered = where is not None
        self._walks = 0
        self._mapped: Mapping | None = None
        self._views()

    def _views(self) -> None:
        """Make the arrays over all of the buffers; a read returns slices of them."""
        core = self._core  # what the last read filled: that of the batches, or of the programs
        if self._mapped is core.keys:
            return
        rows = core.capacity
        self._keys = slots(core.keys, self._key_dtype, self._key_dtype.itemsize, rows)
        if self._dtype.itemsize == 0:
            self._values = np.empty((rows,), self._dtype)
        elif self._wide:
            flat = slots(core.values, self._dtype, self._stride, rows * self._cpus)
            self._values = flat.reshape((rows, self._cpus, *flat.shape[1:]))
        else:
            self._values = slots(core.values, self._dtype, self._stride, rows)
        self._mapped = core.keys  # last: a Ctrl-C may come in between

    @property
    def idle(self) -> bool:
        """Whether no view of the buffers is left (after `release`)."""
        return self._core.exports == self._batches.exports == 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the last read filled; of a program's, all that it could fill."""
        core = self._core
        rows = core.filled if core is self._batches else core.capacity
        return rows * (self._key_dtype.itemsize + core.out_size)

    def release(self) -> None:
        """Give up the reader's own views: what is left are those in batches."""
        self._mapped = None
        del self._keys, self._values

    def _batch(self, complete: bool) -> Batch:
        core = self._core
        self._views()
        return Batch(self._keys[:core.filled], self._values[:core.filled],
                     complete=complete and core.exact,
                     started_ns=core.started_ns, ended_ns=core.ended_ns,
                     key_objects=self._key_objects)

    def read(self) -> Batch:
        """Read the whole map (BPF_MAP_LOOKUP_BATCH, or in the kernel where the rule says so).

        Returns
        -------
        Batch
            Every entry that was in the map during the whole read, once; entries that came or
            went meanwhile may or may not be there. Views, overwritten by the next read.
        """
        self._begin()
        walker = None if self._in_kernel is None else self._in_kernel.read()
        if walker is not None:
            self._core = walker
        else:
            self._batches.fill(False, True)
        if self._in_kernel is not None and not self._filtered:
            self._in_kernel.found = self._core.filled
        return self._batch(True)

    def drain(self) -> Batch:
        """Read the whole map and delete what was read (BPF_MAP_LOOKUP_AND_DELETE_BATCH).

        What the kernel deleted is returned. An increment that a program makes in place between
        the kernel's copy of an entry and its unlinking is lost by the kernel itself; where that
        matters, let the program write to one of two maps in turn, and read the other.

        Returns
        -------
        Batch
            Views, overwritten by the next read.

        Raises
        ------
        BaseException
            Whatever interrupts it, KeyboardInterrupt included, carries as ``.batch`` what was
            deleted until then.
        """
        self._begin()
        return self._drained(True)

    def _begin(self) -> int:
        """Start over at the map's first entry; return the number of this walk."""
        self._batches.rewind()
        self._core = self._batches
        self._walks += 1
        return self._walks

    def _unfinished(self, walk: int) -> bool:
        if walk != self._walks:
            raise RuntimeError("the reader has begun another read meanwhile")
        return not self._batches.ended

    def _drained(self, whole: bool) -> Batch:
        if self._filtered:
            raise ValueError("a drain takes no where=: what it drops would be lost")
        try:
            self._batches.fill(True, whole)
            return self._batch(whole)
        except BaseException as error:
            error.batch = self._batch(False)  # type: ignore[attr-defined]
            raise

    def __iter__(self) -> Iterator[Batch]:
        """Read the map chunk by chunk, in bounded memory.

        A chunk has about ``chunk`` entries: fewer where the kernel ends one early, more where so
        many share a bucket. Views, overwritten by the next chunk.
        """
        walk = self._begin()
        while self._unfinished(walk):
            self._batches.fill(False, False)
            if self._batches.filled:
                yield self._batch(False)

    def drain_chunks(self) -> Iterator[Batch]:
        """Like iteration, and the entries are gone from the map; see `drain`."""
        walk = self._begin()
        while self._unfinished(walk):
            batch = self._drained(False)
            if self._batches.filled:  # no call: a Ctrl-C in it would lose the batch
                yield batch


def count(source: Map) -> int:
    """Count the entries of a map by a walk, in bounded memory."""
    core = source._reads_by(source, source._most, False, _nothing(source), 0)
    total = 0
    while not core.ended:
        total += core.fill(False, False)
    return total


def sweep(source: Map) -> None:
    """Delete the entries of a map in one bounded walk."""
    core = source._reads_by(source, source._most, False, _nothing(source), 0)
    while not core.ended:
        core.fill(True, False)


def _nothing(source: Map) -> Columns:
    return Columns((), 1, source._value.size, source._value.size, 0)
