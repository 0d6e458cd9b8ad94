"""What collectors do with a map they read again and again: `Delta`, groups, histograms.

The counters of a map only grow; what a collector wants is by how much since it last looked, per
key. `Delta` reads a map and says so::

    delta = fastmap.collect.Delta(m)
    while True:
        time.sleep(1)
        batch = delta.read()
        rates = batch.values["packets"] / batch.seconds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap._core.delta.join import KINDS, Join
from fastmap._core.rows.codec import PerCpuCodec
from fastmap._core.rows.convert import copied, taken
from fastmap._core.system.syscall import rescue
from fastmap.btf.described import NO_LAYOUTS
from fastmap.btf.layout import Layout
from fastmap.dtypes import Reduce, locate, plan, slots
from fastmap.maptypes.batch import Array, Batch
from fastmap.maptypes.reader import Reader
from fastmap.maptypes.table import Table


class DeltaBatch(Batch):
    """What happened to the entries of a map between two reads.

    Attributes
    ----------
    keys, values : ndarray
        The keys that are there now, and by how much their counters grew. For a new key that is
        all that it counted; what is no counter stands as it is now.
    seconds : float
        The time between the two reads, from the middle of one to the middle of the other.
    new : ndarray of bool
        ``(n,)``: the key was not there at the last read.
    reset : ndarray of bool
        ``(n,)``: a counter of the key began anew in between; see `Delta`.
    resets : int
        For how many keys that is so.
    gone : ndarray
        ``(m,)``: the keys of the last read that are not there any more. What they counted since
        then nobody knows.
    complete : bool
        Whether both reads were.
    started_ns, ended_ns : int
        Of the later read.
    """

    __slots__ = ("gone", "new", "reset", "resets", "seconds")

    def __init__(self, keys: Array, values: Array, *, complete: bool, started_ns: int,
                 ended_ns: int, key_objects: Callable[[Array], list[Any]] | None = None,
                 seconds: float, new: Array, reset: Array, resets: int, gone: Array,
                 owned: bool = False, layouts: Mapping[str, Layout] = NO_LAYOUTS) -> None:
        super().__init__(keys, values, complete=complete, started_ns=started_ns,
                         ended_ns=ended_ns, key_objects=key_objects, owned=owned, layouts=layouts)
        self.seconds = seconds
        self.new = new
        self.reset = reset
        self.resets = resets
        self.gone = gone

    def take(self, rows: npt.ArrayLike) -> DeltaBatch:
        """Return a batch of the `rows` alone, an index array or a mask, with copies of its own.

        `gone` and `resets` are still those of the whole.
        """
        chosen = np.asarray(rows)
        return DeltaBatch(
            taken(self.keys, chosen), taken(self.values, chosen), complete=self.complete,
            started_ns=self.started_ns, ended_ns=self.ended_ns, key_objects=self.key_objects,
            seconds=self.seconds, new=self.new[chosen], reset=self.reset[chosen],
            resets=self.resets, gone=copied(self.gone), owned=True, layouts=self.layouts)

    def copy(self) -> DeltaBatch:
        """Return a batch that owns copies: it stays as it is when the map is read on."""
        return DeltaBatch(
            copied(self.keys), copied(self.values), complete=self.complete,
            started_ns=self.started_ns, ended_ns=self.ended_ns, key_objects=self.key_objects,
            seconds=self.seconds, new=self.new.copy(), reset=self.reset.copy(),
            resets=self.resets, gone=copied(self.gone), owned=True, layouts=self.layouts)

    def __repr__(self) -> str:
        return (f"<fastmap.DeltaBatch of {len(self)} over {self.seconds:.3f} s: "
                f"{np.count_nonzero(self.new)} new, {len(self.gone)} gone, {self.resets} reset>")


class Delta:
    """Reads a map again and again, and tells by how much its counters grew since the last time.

    The first read is made here, so that the first `read` has something to compare with.

    Parameters
    ----------
    source : map or Reader
        A hash, an array, an LPM trie, per-CPU ones too. Of a reader the ``chunk``, ``where``,
        ``exact`` and ``via`` are taken, and ``fields`` where they are not given here; the reader
        itself is not used, and keeps its arrays. An entry that a ``where`` on its values drops
        from one read is gone there, and new when it is back.
    fields : sequence of str, optional
        Keep only these columns of the value: ``["value.bytes"]``.
    reduce : str or dict, optional
        Per-CPU maps: reduce the differences of all CPUs to one, as `reader` reduces values. They
        are subtracted CPU by CPU before, each at its own width, so that one that wraps disturbs
        no sum. A CPU that counted nothing takes no part in "min".
    gauges : sequence of str, optional
        Numbers that are no counters, such as ``["value.last_seen"]``: they stay as they are.

    Attributes
    ----------
    resets : int
        How many resets there were in all reads.

    Raises
    ------
    TypeError
        The map has no entries with keys and values: a queue, a ring.
    ValueError
        The value has no numbers that are counters (of void bytes nobody knows: give `open` a
        ``value=``); a field does not exist; the reader reduces already.

    Notes
    -----
    All integers and floats of a value are counters, unless `gauges` names them. Their differences
    have their dtype, widened by "sum" alone. Bytes, booleans and times stay as they are.

    A counter that stands lower than before has wrapped or has begun anew (its key was deleted and
    made again, or a program or `update` set it back). The two values alone cannot always tell
    which; the rule is:

    - It wrapped where the way forward, over the end of its range, is shorter than half the range:
      then the difference is that way. It began anew otherwise: then the difference is its value.
      So an unsigned counter of 64 bits that stood below 2**63 can only have begun anew.
    - A counter at 0 began anew, unless it stood so near the end of its range (1/256) that one
      wraps there.
    - Where one counter of an entry surely began anew, on whatever CPU, those of the same entry
      that look wrapped did too: a key made again begins anew in all of them.
    - Floats do not wrap. What is not finite (NaN, infinity) has not grown: the difference is 0, and
      the next finite value has begun anew.

    What rose is taken to have risen: of a key deleted, made again and counted beyond where it was,
    nobody can tell. Signed counters are measured around their whole range, so that -1 to 2 is 3;
    what falls is no counter, and belongs into `gauges`.

    A key is one key whatever its padding holds: entries that differ in nothing else are counted
    together. A read that may repeat or miss entries (`Batch.complete` is False) counts each key
    once; one that it missed is ``gone``, and ``new`` with its whole value at the next read.

    Memory is that of two readers, which take turns, and one row of result for each entry; it is
    used again by each read. It belongs to one thread at a time: a second one inside gets
    `RuntimeError`. An exception that leaves a read, KeyboardInterrupt included, loses nothing: the
    next one tells what grew since the last that ended; where that one just had, the exception
    carries it as ``.batch``.
    """

    def __init__(self, source: Table | Reader, *, fields: Sequence[str] | None = None,
                 reduce: Reduce = None, gauges: Sequence[str] = ()) -> None:
        if isinstance(source, Reader):
            table, options = source.source, dict(source.options)
            if options["reduce"] is not None:
                raise ValueError("the reader reduces its values before they could be subtracted: "
                                 "give reduce= to Delta, and a reader without it")
            fields = options["fields"] if fields is None else fields
        elif isinstance(source, Table):
            table, options = source, {"is_array": source.indexed, "via": None}
        else:
            raise TypeError("source is a map of keys and values, or a reader of one, not "
                            f"{type(source).__name__}")
        # Rows come whole: fields and reduction are worked out of the differences.
        options |= {"fields": None, "reduce": None}
        dtype = table.value_dtype
        row = table.value
        cpus = row.cpus if isinstance(row, PerCpuCodec) else 0
        self._columns, self._dtype, self._wide = plan(
            table.key_dtype, dtype, cpus, dtype.itemsize, reduce=reduce, fields=fields)
        runs = _runs(dtype, fields, gauges)
        self._cpus = cpus
        self._key_dtype = table.key_dtype
        self._join = Join(
            table.key_dtype.itemsize, table.key.padding, dtype.itemsize, max(cpus, 1), runs,
            self._columns, options["is_array"] and options.get("where") is None)
        # One that its own thread may take again: a Ctrl-C can come just before it is given back.
        self._inside = RLock()
        self.resets = 0
        first = Reader(table, **options)
        # The reader that is next, the last read, and what keeps that: changed all at once.
        self._turn = (Reader(table, **options), self._read(first), first)

    def _read(self, reader: Reader) -> Batch:
        """Read the map; return what was read with each key once."""
        batch = reader.read()
        left = self._join.tidy(batch.keys, batch.values, not batch.complete)
        batch.keys, batch.values = batch.keys[:left], batch.values[:left]
        return batch

    def read(self) -> DeltaBatch:
        """Read the map; return by how much its counters grew since the last read.

        Returns
        -------
        DeltaBatch
            Views, overwritten by the next read; ``copy()`` keeps what they show.

        Raises
        ------
        BpfError
            As `Reader.read`.
        """
        if not self._inside.acquire(blocking=False):
            raise RuntimeError("the delta is in use by another thread")
        batch = None
        try:
            turn = reader, last, spare = self._turn
            # A signal handler comes in the thread that is inside: nothing may change below that.
            if self._join.busy:
                raise RuntimeError("the delta is in use by what a signal interrupted")
            now = self._read(reader)
            self._join.differences(now.keys, now.values, last.keys, last.values)
            batch = self._batch(now, last)
            if self._turn is not turn:
                raise RuntimeError("a signal handler has read the delta meanwhile")
            self._turn = (spare, now, reader)
            self.resets += batch.resets
            return batch
        except BaseException as error:
            rescue(error, lambda: batch if batch is not None and self._turn[1] is now else None)
            raise
        finally:
            self._inside.release()

    def _batch(self, now: Batch, last: Batch) -> DeltaBatch:
        join, rows = self._join, len(now)
        dtype, each = self._dtype, self._cpus if self._wide else 1
        values = slots(join.out, dtype, dtype.itemsize, rows * each)
        if self._wide:
            values = values.reshape((rows, each, *values.shape[1:]))
        return DeltaBatch(
            now.keys, values, complete=now.complete and last.complete,
            started_ns=now.started_ns, ended_ns=now.ended_ns, key_objects=now.key_objects,
            seconds=(now.started_ns + now.ended_ns - last.started_ns - last.ended_ns) / 2e9,
            new=_mask(join.new, rows), reset=_mask(join.restarted, rows), resets=join.restarts,
            gone=slots(join.gone, self._key_dtype, self._key_dtype.itemsize, join.gone_count),
            layouts={side: each for side, each in now.layouts.items() if side == "key"})

    def __iter__(self) -> Iterator[DeltaBatch]:
        """Read for ever: what lies between the reads is up to the loop."""
        while True:
            yield self.read()


def _mask(owner: Any, rows: int) -> Array:
    return np.frombuffer(owner, np.bool_, rows)


def _runs(value: np.dtype[Any], fields: Sequence[str] | None,
          gauges: Sequence[str]) -> list[tuple[str, bool, int, int]]:
    """Return ``(kind, swapped, offset, count)`` of the counters among `fields`, without gauges."""
    if isinstance(gauges, str):
        raise TypeError("gauges is a list of columns, such as ['value.last_seen']")
    wanted = ["value"] if fields is None else list(fields)
    for path in gauges:
        side, _, rest = path.partition(".")
        if side != "value":
            raise ValueError(f"gauges: 'value', or a field of it ('value.last_seen'), not {path!r}")
        if rest:
            locate(value, rest)
    found: list[tuple[str, bool, int, int]] = []
    taken: set[int] = set()
    for path, dtype, at, count in _leaves(value, "value", 0):
        place = set(range(at, at + count * dtype.itemsize))
        kind = f"{dtype.kind}{dtype.itemsize}"
        # Of a union's members, which share their bytes, the first counts.
        if (kind not in KINDS or not _within(path, wanted) or _within(path, gauges)
                or place & taken):
            continue
        taken |= place
        swapped = not dtype.isnative
        if found and found[-1][:2] == (kind, swapped) and (
                found[-1][2] + found[-1][3] * dtype.itemsize == at):
            found[-1] = (kind, swapped, found[-1][2], found[-1][3] + count)
        else:
            found.append((kind, swapped, at, count))
    if not found:
        raise ValueError(f"no counters in {value}" + ("" if value.kind != "V" or value.names else
                         ": give the map's dtype as value= to fastmap.open"))
    return found


def _within(path: str, paths: Sequence[str]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in paths)


def _leaves(dtype: np.dtype[Any], path: str,
            at: int) -> Iterator[tuple[str, np.dtype[Any], int, int]]:
    """Yield ``(path, dtype, offset, count)`` of each number of a value."""
    base, shape = dtype.subdtype or (dtype, ())
    if base.names is None or base.fields is None:
        yield path, base, at, prod(shape)
        return
    for i in range(prod(shape)):
        for name in base.names:
            field, offset = base.fields[name][:2]
            yield from _leaves(field, f"{path}.{name}", at + i * base.itemsize + offset)
