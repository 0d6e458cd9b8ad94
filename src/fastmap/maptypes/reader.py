"""`Reader`: whole reads of a map into buffers that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastmap._core.rows.codec import PerCpuCodec
from fastmap._core.rows.columns import Columns
from fastmap._core.rows.convert import copied
from fastmap._core.rows.rows import keys_of
from fastmap._core.system.syscall import rescue
from fastmap.btf.described import condition
from fastmap.dtypes import Reduce, Where, plan, slots
from fastmap.maptypes.batch import Batch, Keys
from fastmap.maptypes.handle import Map

if TYPE_CHECKING:
    from fastmap._core.maps.batch_reader import BatchReader
    from fastmap._core.maps.walker import Walker
    from fastmap._core.system.memory import Mapping


#: A batch of up to so many bytes is copied sooner than new buffers are found for the next.
SMALL_BYTES = 64 << 10


class Reader:
    """Reads a whole map, again and again, into buffers made once. Made by ``map.reader()``.

    The arrays of a batch are views of the reader's buffers: its next read overwrites them, and
    they stay valid memory for as long as they live, also after ``close()`` of the map.
    ``batch.copy()`` keeps what they show. As a context it gives up its own views at the end of the
    block, so that memory that no batch shows any more is free.

    A reader belongs to one thread at a time: a second one inside it gets `RuntimeError`. The GIL
    is released once for each read.
    """

    def __init__(self, source: Map, *, is_array: bool, chunk: int | None = None,
                 reduce: Reduce = None, fields: Sequence[str] | None = None,
                 where: Where = None, exact: bool = True, via: str | None = "syscall") -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk}: at least one entry")
        self.source = source
        #: What it was made with: see `like`.
        self.options: dict[str, Any] = {
            "is_array": is_array, "chunk": chunk, "reduce": reduce, "fields": fields,
            "where": where, "exact": exact, "via": via}
        if where is not None:
            where = condition(where, source.key_dtype, source.value_dtype, source.layouts)
        row = source.value
        cpus, stride = (row.cpus, row.stride) if isinstance(row, PerCpuCodec) else (0, row.size)
        columns, self._dtype, self._wide = plan(
            source.key_dtype, source.value_dtype, cpus, stride,
            reduce=reduce, fields=fields, where=where)
        # Bytes from one value to the next: as the kernel writes them, or side by side.
        self._stride = stride if columns is None else self._dtype.itemsize
        self._cpus = cpus
        self._key_dtype = source.key_dtype
        self._core: BatchReader | Walker
        self._core = self._batches = source.reads_by(
            source, source.most_entries, is_array, columns, chunk or 0)
        self._in_kernel = source.whole_reads(via, exact, columns)
        self.key_objects = source.key_objects
        self._layouts = source.layouts
        self._filtered = where is not None
        # The number of the walk that goes on: a loop over chunks tells it from a later one's.
        self._walk = 0
        #: Whether batches of few bytes are copies, so that the buffers serve the next read.
        self.copies = False
        #: Whether the last batch was such a copy.
        self.copied = False
        self._mapped: Mapping | None = None
        self._views()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def like(self, **changes: Any) -> Reader:
        """Return another reader of the same map and options, with buffers of its own."""
        return Reader(self.source, **{**self.options, **changes})

    def empty(self) -> Batch:
        """Return a batch of no entries, of the dtypes that entries have."""
        self._views()
        return Batch(self._keys[:0], self._values[:0], complete=False, started_ns=0, ended_ns=0,
                     layouts=self._layouts)

    def _views(self) -> None:
        """Make the arrays over all of the buffers; a read returns slices of them."""
        core = self._core  # what the last read filled: that of the batches, or of the programs
        if self._mapped is core.keys:
            return
        rows = core.capacity
        self._keys = slots(core.keys, self._key_dtype, self._key_dtype.itemsize, rows)
        if self.source.key.padding:
            self._keys = self._keys.view(Keys)
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
        """Whether no view of the buffers is left but the reader's own."""
        return self.copied or self._core.exports == self._batches.exports == 0

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
        if self._mapped is not core.keys:
            self._views()
        keys, values = self._keys[:core.filled], self._values[:core.filled]
        self.copied = self.copies and keys.nbytes + values.nbytes <= SMALL_BYTES
        if self.copied:
            keys, values = copied(keys), copied(values)
        return Batch(keys, values, complete=complete and core.exact,
                     started_ns=core.started_ns, ended_ns=core.ended_ns,
                     key_objects=self.key_objects, owned=self.copied, layouts=self._layouts)

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
        self._walk += 1
        return self._walk

    def _unfinished(self, walk: int) -> bool:
        if walk != self._walk:
            raise RuntimeError("the reader has begun another read meanwhile")
        return not self._batches.ended

    def _drained(self, whole: bool) -> Batch:
        if self._filtered:
            raise ValueError("a drain takes no where=: what it drops would be lost")
        try:
            self._batches.fill(True, whole)
            return self._batch(whole)
        except BaseException as error:
            rescue(error, lambda: self._batch(False))
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
    core = source.reads_by(source, source.most_entries, False, _nothing(source), 0)
    total = 0
    while not core.ended:
        total += core.fill(False, False)
    return total


def padded_keys(source: Map, chunks: int | None = None) -> int:
    """Count the keys whose padding is not zero, in so many chunks of a read, or in all."""
    if not source.key.padding:
        return 0
    found = (keys_of(batch.keys, source.key)[1]
             for batch in islice(Reader(source, is_array=False), chunks))
    return sum(len(each) for each in found if each is not None)


def sweep(source: Map) -> None:
    """Delete the entries of a map in one bounded walk."""
    core = source.reads_by(source, source.most_entries, False, _nothing(source), 0)
    while not core.ended:
        core.fill(True, False)


def _nothing(source: Map) -> Columns:
    return Columns((), 1, source.value.size, source.value.size, 0)
