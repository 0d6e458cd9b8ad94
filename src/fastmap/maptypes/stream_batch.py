"""`StreamBatch`: the records of a ring, as arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core.streams.ring import gather, gather_all
from fastmap.dtypes import locate, parse, slots

Array: TypeAlias = npt.NDArray[Any]
#: A dtype for all records, or one for each kind of them.
Record: TypeAlias = npt.DTypeLike | Mapping[int, npt.DTypeLike] | None


class Kinds:
    """What the records of a stream are: one dtype, or one for each value of a tag.

    Parameters
    ----------
    record : dtype_like or mapping or None
    tag : str, optional
        The field that tells the kind: of the same dtype, at the same place in all of them.
    """

    def __init__(self, record: Record, tag: str | None) -> None:
        self.one: np.dtype[Any] | None = None
        self.each: dict[int, np.dtype[Any]] = {}
        if not isinstance(record, Mapping):
            if tag is not None:
                raise ValueError("tag= goes with a dict of records")
            self.one = None if record is None else parse(record, "record")
            return
        if tag is None or not record:
            raise ValueError("a dict of records goes with tag=, the field that tells them apart")
        given: Mapping[int, Any] = record  # type: ignore[assignment]  # not a dict of "names"
        self.each = {operator.index(kind): parse(spec, f"record {kind}")
                     for kind, spec in given.items()}
        places = {kind: locate(dtype, tag) for kind, dtype in self.each.items()}
        self.tag_dtype, self.tag_offset = next(iter(places.values()))
        if self.tag_dtype.kind not in "iub":
            raise TypeError(f"the tag {tag!r} is {self.tag_dtype}, no integer")
        if len(set(places.values())) > 1:
            raise ValueError(f"the tag {tag!r} is not the same field in all records: {places}")


class StreamBatch:
    """Records of a ring or perf buffer.

    ``len(batch)`` is how many there are, ``batch[i]`` one of them, a memoryview of its bytes.

    Attributes
    ----------
    nbytes : int
        Of all records together.
    cpu : ndarray or None
        Perf buffers: the CPU of each record.
    lost : int
        Perf buffers: how many records the kernel dropped meanwhile.
    """

    __slots__ = ("_count", "data", "_first", "_kinds", "_length", "_lengths", "_offsets",
                 "_slack", "_step", "cpu", "lost")

    def __init__(self, kinds: Kinds, data: Array, count: int, *, first: int = 0, length: int = 0,
                 step: int = 0, offsets: Array | None = None, lengths: Array | None = None,
                 slack: int = 0, cpu: Array | None = None, lost: int = 0) -> None:
        self._kinds = kinds
        self.data = data  # bytes: of the ring itself, or a copy
        self._count = count
        self._first, self._length, self._step = first, length, step
        self._offsets, self._lengths = offsets, lengths
        self._slack = slack
        self.cpu = cpu
        self.lost = lost

    @classmethod
    def empty(cls, kinds: Kinds) -> StreamBatch:
        """Return a batch of no records."""
        length = 0 if kinds.one is None else kinds.one.itemsize
        return cls(kinds, np.empty(0, np.uint8), 0, length=length, step=length)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> memoryview:
        i = operator.index(index)
        if not -self._count <= i < self._count:
            raise IndexError(f"record {index} of {self._count}")
        i %= self._count
        if self._offsets is None or self._lengths is None:
            start, length = self._first + i * self._step, self._length
        else:
            start, length = int(self._offsets[i]), int(self._lengths[i])
        return memoryview(self.data[start:start + length])  # type: ignore[arg-type]

    @property
    def offsets(self) -> Array:
        """Where each record begins, in bytes, int64."""
        if self._offsets is not None:
            return self._offsets
        return self._first + self._step * np.arange(self._count, dtype=np.int64)

    @property
    def lengths(self) -> Array:
        """How many bytes each record has, uint32."""
        if self._lengths is not None:
            return self._lengths
        return np.full(self._count, self._length, np.uint32)

    @property
    def nbytes(self) -> int:
        """Bytes of all records together."""
        if self._lengths is not None:
            return int(self._lengths.sum())
        return self._count * self._length

    @property
    def records(self) -> Array:
        """The records as one array of the stream's dtype (void bytes without one).

        A strided view where they lie one behind the other, which records of one size do unless
        some were discarded in between; a copy otherwise.

        Raises
        ------
        ValueError
            They have several sizes, or another one than the dtype.
        """
        if self._kinds.each:
            raise ValueError("records of several kinds: batch.split() has an array for each")
        size = self._length
        if self._lengths is not None and self._count:
            size = int(self._lengths[0])
            if (self._lengths != size).any():
                raise ValueError("records of several sizes, "
                                 f"{self._lengths.min()} to {self._lengths.max()} bytes: take "
                                 "them one by one, batch[i], or declare kinds and split()")
        dtype = self._kinds.one if self._kinds.one is not None else np.dtype(f"V{size}")
        if self._count == 0:
            return np.empty(0, dtype)
        if not dtype.itemsize <= size <= dtype.itemsize + self._slack:
            self.check_size(dtype, np.array([size]))
        if self._offsets is not None:
            return self._gathered(self._offsets, dtype)
        if dtype.itemsize == 0:
            return np.empty(self._count, dtype)
        span = self.data[self._first:self._first + self._count * self._step]
        return slots(span, dtype, self._step, self._count)

    def split(self) -> dict[int, Array | list[memoryview]]:
        """Return an array of its dtype for each kind of record, in order of arrival.

        Kinds that were not declared are there too, as lists of memoryviews.
        """
        kinds = self._kinds
        if not kinds.each:
            raise ValueError("one kind of record: declare record={tag: dtype, ...} and tag=")
        offsets, lengths = self.offsets, self.lengths
        found: dict[int, Array | list[memoryview]] = {
            kind: np.empty(0, dtype) for kind, dtype in kinds.each.items()}
        if not self._count:
            return found
        end = kinds.tag_offset + kinds.tag_dtype.itemsize
        if lengths.min() < end:
            raise ValueError(f"a record of {lengths.min()} bytes has no tag, which ends at {end}")
        tags = self._gathered(offsets + kinds.tag_offset, kinds.tag_dtype)
        for tag in np.unique(tags).tolist():
            which = np.flatnonzero(tags == tag)
            dtype = kinds.each.get(tag)
            if dtype is None:
                found[tag] = [self[i] for i in which.tolist()]
            else:
                self.check_size(dtype, lengths[which])
                found[tag] = self._gathered(offsets[which], dtype)
        return found

    def to_arrow(self, *, annotations: Mapping[str, Any] | None = None, copy: bool = True) -> Any:
        """Return copies of the records as a `pyarrow.RecordBatch`; see `Batch.to_arrow`.

        Parameters
        ----------
        annotations : mapping, optional
            By paths such as ``"record.comm"``.
        copy : bool
            As for `Batch.to_arrow`; records are always copied.

        Raises
        ------
        ValueError
            As `records`. Of several kinds, each array of `split` has columns of its own:
            ``fastmap.arrow.record_batch({"record": batch.split()[kind]})``.
        """
        from fastmap.arrow.convert import record_batch  # late: not part of `import fastmap`
        if self._kinds.each:
            raise ValueError("records of several kinds have several sorts of columns: take those "
                             "of one, fastmap.arrow.record_batch({'record': batch.split()[kind]})")
        sides = {"record": self.records}
        if self.cpu is not None:
            sides["cpu"] = self.cpu
        return record_batch(sides, annotations=annotations)

    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]:
        columns: tuple[Any, Any] = self.to_arrow().__arrow_c_array__(requested_schema)
        return columns

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        from fastmap.arrow.convert import stream
        return stream(self.to_arrow(), requested_schema)

    def copy(self) -> StreamBatch:
        """Return a batch that owns copies: it stays as it is when the ring goes on."""
        if self._offsets is None and self._length % 8 == 0:
            out = np.empty(self._count * self._length, np.uint8)
            if out.size:
                gather(self.data, self.offsets, self._length, out)
            return StreamBatch(self._kinds, out, self._count, length=self._length,
                               step=self._length, slack=self._slack, cpu=self.cpu, lost=self.lost)
        # At multiples of 8: what a record holds is aligned then.
        lengths = self.lengths
        ends = np.cumsum((lengths.astype(np.int64) + 7) & ~7)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
        out = np.empty(int(ends[-1]) if self._count else 0, np.uint8)
        gather_all(self.data, self.offsets, lengths, out, starts)
        if self._offsets is None:
            return StreamBatch(self._kinds, out, self._count, length=self._length,
                               step=(self._length + 7) & ~7, slack=self._slack, cpu=self.cpu,
                               lost=self.lost)
        return StreamBatch(self._kinds, out, self._count, length=-1, offsets=starts,
                           lengths=lengths, slack=self._slack, cpu=self.cpu, lost=self.lost)

    def check_size(self, dtype: np.dtype[Any], lengths: Array) -> None:
        wrong = (lengths < dtype.itemsize) | (lengths > dtype.itemsize + self._slack)
        if wrong.any():
            raise ValueError(f"a record has {lengths[wrong][0]} bytes, the dtype "
                             f"{dtype.itemsize}: {dtype}")

    def _gathered(self, offsets: Array, dtype: np.dtype[Any]) -> Array:
        out = np.empty(len(offsets), dtype)
        if out.nbytes:
            gather(self.data, offsets, dtype.itemsize, out.view(np.uint8))
        return out

    def __repr__(self) -> str:
        return f"<fastmap.StreamBatch of {self._count}, {self.nbytes} bytes>"
