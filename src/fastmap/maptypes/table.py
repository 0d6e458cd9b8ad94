"""Tables of keys with values, hash maps above all, per-CPU ones among them."""

from __future__ import annotations

import operator
from collections.abc import (
    Callable,
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from fastmap._core.rows.codec import PerCpuCodec
from fastmap._core.rows.columns import Columns
from fastmap._core.rows.convert import taken
from fastmap._core.rows.rows import rows_of
from fastmap._core.system.syscall import possible_cpus, rescue
from fastmap._core.system.threads import in_threads
from fastmap.dtypes import Reduce, Where, plan, slots, unpacked
from fastmap.enums import ANY, NOEXIST, Command, MapType, UpdateFlag, running_kernel
from fastmap.errors import KeyExists, KeyNotFound, PermissionDenied
from fastmap.maptypes.batch import Array, Batch, elements
from fastmap.maptypes.handle import Map
from fastmap.maptypes.keyed import KeyedMap, Keys
from fastmap.maptypes.reader import Reader, count, sweep
from fastmap.maptypes.rules import Shape

#: Stands for a default that is not given.
MISSING: Any = object()

#: Buffers up to this size are kept for the next `snapshot` or `drain`, until the map is closed.
KEPT_BYTES = 64 << 20

_LOOKUP = int(Command.MAP_LOOKUP_ELEM)


class Table(KeyedMap):
    """Keys with values: what hash maps and arrays share."""

    #: Whether the keys are the numbers from 0 on.
    indexed = False

    # ---- given keys ----------------------------------------------------------------------------

    def lookup_many(self, keys: Keys, *, out: Array | None = None, reduce: Reduce = None,
                    via: str | None = None, threads: int = 1) -> tuple[Array, Array]:
        """Look up many keys.

        Parameters
        ----------
        keys : array_like
            ``(n,)``, of the key dtype and any strides, or a sequence of keys.
        out : ndarray, optional
            Where the values go: C-contiguous, of the exact dtype and shape of the result.
        reduce : str or dict, optional
            Per-CPU maps: reduce the values of all CPUs to one; see `reader`.
        via : {"auto", "syscall", "kernel"}, optional
            The way; the map's where it is not given.
        threads : int
            Split the work over so many threads; see `update_many`.

        Returns
        -------
        values : ndarray
            ``(n,)``, or ``(n, cpus)`` for a per-CPU map without `reduce`. Rows of missing keys
            are zeros.
        found : ndarray of bool
            ``(n,)``.

        Raises
        ------
        BatchError
            Also of the class of the one failure, such as `PermissionDenied`.
        TypeError, ValueError, OverflowError
            Keys or `out` do not fit; the kernel was not asked.

        Notes
        -----
        The GIL is released once for all keys. Many of them go into the kernel at once, by a
        program made for the map (Linux 5.17): docs/inkernel.md tells when. A program's lookup
        refreshes an LRU entry, so that LRU maps take this path only where it is asked for.
        """
        if out is None and reduce is None and threads == 1 and not self.per_cpu:
            # What most calls are, kept short: those of few keys feel each step.
            rows = self.key_rows(keys)
            route = self.route(via, "lookup", rows.count)
            values = np.empty(rows.count, self.value_dtype)
            found = np.empty(rows.count, np.bool_)
            route.lookup_rows(rows, values, found, None, _LOOKUP)
            return values, found
        return self._look(Command.MAP_LOOKUP_ELEM, keys, out, reduce, threads, via, "lookup")

    def increment_many(self, keys: Keys, deltas: Any) -> Array:
        """Add to the values of many keys, atomically, where they lie: no other writer is lost.

        Parameters
        ----------
        keys : array_like
            As for `lookup_many`.
        deltas : array_like
            ``(n,)`` of the value dtype, or one for all. Every field is added to; modulo.

        Returns
        -------
        ndarray of bool
            ``(n,)``: which keys were there. Missing ones are skipped.

        Raises
        ------
        NotSupported
            The value has something else than integers of 4 and 8 bytes, each at a multiple of its
            size; the map is not HASH, LRU_HASH or ARRAY; or the in-kernel path cannot be had.

        Notes
        -----
        Linux 5.17, CAP_BPF and CAP_PERFMON (see `prepare`): there is no such system call.
        """
        rows = self.key_rows(keys)
        added = rows_of(deltas, self.value, rows.count)
        found = np.zeros(rows.count, np.bool_)
        route = self.in_kernel().route(self, "increment", "kernel", rows.count)
        if route is None:
            raise PermissionDenied(1, "increment_many needs a handle that may read and write, of "
                                      "a map that is not frozen")
        route.increment_rows(rows, added, found)
        return found

    def _look(self, command: Command, keys: Keys, out: Array | None, reduce: Reduce,
              threads: int, via: str | None, work: str) -> tuple[Array, Array]:
        rows = self.key_rows(keys)
        route = self.route(via, work, rows.count)
        columns, values, raw = self._result(rows.count, out, reduce)
        found = np.zeros(rows.count, np.bool_)
        try:
            if threads == 1:
                route.lookup_rows(rows, raw, found, columns, command)
            else:
                def part(start: int, stop: int) -> int:
                    some = rows.part(start, stop)
                    return route.lookup_rows(
                        some, raw[start:stop], found[start:stop], columns, command)
                in_threads(part, rows.count, threads)
        except BaseException as error:
            if command == Command.MAP_LOOKUP_AND_DELETE_ELEM:
                rescue(error, lambda: Batch(
                    taken(rows.owner, found), taken(values, found), complete=False,
                    started_ns=0, ended_ns=0))
            raise
        return values, found

    def _result(self, rows: int, out: Array | None,
                reduce: Reduce) -> tuple[Columns | None, Array, Array]:
        """Return what turns rows into values, the values, and their memory as ``(rows, bytes)``."""
        row = self.value
        per_cpu = isinstance(row, PerCpuCodec)
        if out is None and reduce is None and not per_cpu:
            values = np.empty(rows, self.value_dtype)
            return None, values, values
        cpus, stride = (row.cpus, row.stride) if isinstance(row, PerCpuCodec) else (0, row.size)
        columns, dtype, wide = plan(self.key_dtype, self.value_dtype, cpus, stride, reduce=reduce)
        lead = (rows, cpus) if wide else (rows,)
        if out is not None:
            base, shape = dtype.subdtype or (dtype, ())
            check_out(out, base, lead + shape)
            if per_cpu and wide and stride != dtype.itemsize:
                columns = unpacked(dtype, cpus, stride)
            return columns, out, out.reshape(rows, -1).view(np.uint8) if rows else out
        step = stride if columns is None else dtype.itemsize
        width = step * (cpus if wide else 1)
        raw = np.empty((rows, width), np.uint8)
        flat = slots(raw.reshape(-1), dtype, step, rows * (cpus if wide else 1))
        return columns, flat.reshape(lead + flat.shape[1:]), raw

    # ---- whole reads ---------------------------------------------------------------------------

    def reader(self, *, chunk: int | None = None, reduce: Reduce = None,
               fields: Sequence[str] | None = None, where: Where = None, exact: bool = True,
               via: str | None = None) -> Reader:
        """Return a `Reader`: buffers made once, for reading the whole map again and again.

        Parameters
        ----------
        chunk : int, optional
            Entries a system call asks for; what fits about 4 MiB, at least 256, by default.
        reduce : str or dict, optional
            Per-CPU maps: reduce the values of all CPUs to one, without the GIL, by "sum" (integers
            widened to 64 bits, modulo; floats to f8), "max", "min", "min_nonzero", "or", "any"; or
            by a dict of fields. "any" is the first CPU's whose field is not all zeros. In "min" a
            CPU whose whole value is zeros takes no part, in "min_nonzero" none whose field is 0:
            for a ``first_ns`` that only some CPUs wrote. For a record, one word applies to its
            numeric fields, the others take "any"; fields that a dict does not name take "any".
        fields : sequence of str, optional
            Keep only these columns of the value: ``["value.bytes"]``. Keys are kept whole.
        where : tuple, optional
            Keep only entries that pass, after `reduce`: ``("value.bytes", ">=", 4096)``, with one
            of == != < <= > >= and a field of key or value.
        exact : bool
            Whether each entry must come exactly once, also while the map changes. By system calls
            it does in any case; False lets a program in the kernel walk a hash, several times
            faster, which may repeat or miss an entry then (``complete`` says False).
        via : {"auto", "syscall", "kernel"}, optional
            The way; the map's where it is not given.

        Notes
        -----
        Linux 5.6 (per-CPU arrays 5.13).
        """
        return Reader(self, is_array=self.indexed, chunk=chunk, reduce=reduce, fields=fields,
                      where=where, exact=exact, via=via)

    def snapshot(self, *, reduce: Reduce = None, fields: Sequence[str] | None = None,
                 where: Where = None, exact: bool = True, via: str | None = None) -> Batch:
        """Read the whole map into fresh arrays; the parameters are those of `reader`.

        Returns
        -------
        Batch
            Every entry that was in the map during the whole read, once.
        """
        return self.fresh(Reader.read, reduce, fields, where, exact, via)

    def fresh(self, read: Callable[[Reader], Batch], reduce: Reduce,
               fields: Sequence[str] | None, where: Where, exact: bool = True,
               via: str | None = "syscall") -> Batch:
        """Return what `read` gives, in buffers that no living batch has.

        New memory costs a page fault for every 4 KiB, which is dear beside a batch command: the
        buffers of earlier batches that are gone serve again.
        """
        what = (exact, via) if reduce is fields is where is None else repr(
            (reduce, fields, where, exact, via))
        spares: list[tuple[Any, Reader]] = self.__dict__.pop("_spares", [])
        for made_for, reader in spares:
            if made_for == what and reader.idle:
                break
        else:
            reader = Reader(self, is_array=self.indexed, reduce=reduce, fields=fields,
                            where=where, exact=exact, via=via)
            reader.copies = True
        batch = None
        try:
            batch = read(reader)
            if reader.copied:
                self._spares = spares if spares and spares[0][1] is reader else [
                    (what, reader), *spares][:2]
                return batch
            batch.owned = True
            reader.release()
            if reader.nbytes <= KEPT_BYTES:
                # Two: `batch = m.drain()` still holds the last batch while it makes the next.
                self._spares = [(what, reader), *(s for s in spares if s[1] is not reader)][:2]
            return batch
        except BaseException as error:
            rescue(error, lambda: batch)  # a Ctrl-C on the way out: what was drained goes along
            raise

    def close(self) -> None:
        """Close the handle, once calls of other threads are out of it. Views stay valid."""
        super().close()
        self._spares = []

    # ---- the dict's habits ---------------------------------------------------------------------

    def keys(self) -> KeysView[Any]:
        """Return a view of the keys; it reads the map in batches when iterated."""
        return _Keys(self)  # type: ignore[arg-type]

    def values(self) -> ValuesView[Any]:
        """Return a view of the values; it reads the map in batches when iterated."""
        return _Values(self)  # type: ignore[arg-type]

    def items(self) -> ItemsView[Any, Any]:
        """Return a view of the entries; it reads the map in batches when iterated."""
        return _Items(self)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.reader():
            yield from (self.key_objects or elements)(batch.keys)


def pop(source: KeyedMap, key: Any, default: Any = MISSING) -> Any:
    """Look `key` up and delete it, for types without a command that does both."""
    try:
        value = source.lookup(key)
        source.delete(key)
    except KeyError:
        if default is MISSING:
            raise
        return default
    return value


def check_out(out: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Refuse an `out` that the kernel could not fill as it is."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is an ndarray, not {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out has the dtype {out.dtype}, not {dtype}")
    if out.shape != shape:
        raise ValueError(f"out has the shape {out.shape}, not {shape}")
    if not out.flags.c_contiguous:
        raise ValueError("out is not C-contiguous")
    if not out.flags.writeable:
        raise ValueError("out is read-only")


class DictMap(Table):
    """Tables whose keys come and go. A `collections.abc.MutableMapping`."""

    def update(self, *given: Any, flags: int = ANY) -> None:
        """Set the value of one key, ``update(key, value)``, or of many, ``update(mapping)``.

        With a mapping, or an iterable of pairs, the entries are written in batches; see
        `Map.update` and `update_many` for what is raised.
        """
        if len(given) == 2:
            self.update_elem(given[0], given[1], flags)
            return
        if len(given) != 1:
            raise TypeError("update takes a key and a value, or a mapping; "
                            f"given were {len(given)}")
        pairs = given[0].items() if isinstance(given[0], (Mapping, Table)) else given[0]
        keys, values = [], []
        for key, value in pairs:
            keys.append(key)
            values.append(value)
        if keys:
            self.update_many(keys, self._each(values), flags=flags)

    def _each(self, values: list[Any]) -> Any:
        """Return values that were given one by one as `update_many` takes them."""
        return values

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Return the value of `key` and delete it, in two steps; `default` where there is none."""
        return pop(self, key, default)

    def popitem(self) -> tuple[Any, Any]:
        """Delete an arbitrary entry and return it, in two steps; `KeyError`: there is none."""
        while (key := self.next_key()) is not None:
            with suppress(KeyError):  # someone else was faster
                return key, self.pop(key)
        raise KeyError("the map is empty")

    def setdefault(self, key: Any, default: Any) -> Any:
        """Return the value of `key`; where there is none, set it to `default` first."""
        try:  # first: an LRU makes room for an update before it finds that the key exists
            return self.lookup(key)
        except KeyNotFound:
            with suppress(KeyExists):  # someone else was faster
                self.update_elem(key, default, NOEXIST)
        return self.lookup(key)

    def clear(self) -> None:
        """Delete the entries, in one bounded walk: what is inserted meanwhile may stay."""
        sweep(self)

    def drain(self, *, reduce: Reduce = None, fields: Sequence[str] | None = None,
              via: str | None = None) -> Batch:
        """Read the whole map into fresh arrays and delete what was read; see `Reader.drain`."""
        self.route(via, "drain")
        return self.fresh(Reader.drain, reduce, fields, None)

    def __len__(self) -> int:
        known = self.in_kernel().count(self, self.default_via, self.max_entries)
        return count(self) if known is None else known

    def __bool__(self) -> bool:
        return self.next_key() is not None


class HashMap(DictMap):
    """HASH, LRU_HASH: keys of any bytes. A `collections.abc.MutableMapping`."""

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Delete `key` and return its value, in one step; `default` where there is none."""
        try:
            return self.lookup_and_delete(key)
        except KeyError:
            if default is MISSING:
                raise
            return default

    def popitem(self) -> tuple[Any, Any]:
        """Delete an arbitrary entry and return it, in one step; `KeyError`: there is none."""
        popped = self.pop_entry()
        if popped is None:
            raise KeyError("the map is empty")
        return popped

    def lookup_and_delete_many(self, keys: Keys, *, reduce: Reduce = None,
                               via: str | None = None) -> tuple[Array, Array]:
        """Look up many keys and delete them; returns values and found as `lookup_many` does.

        Notes
        -----
        Linux 5.14. Each key is taken in one step (with ``via="kernel"`` in two: a value that is
        written in between is lost). What interrupts it, KeyboardInterrupt included,
        carries as ``.batch`` what was deleted until then.
        """
        return self._look(Command.MAP_LOOKUP_AND_DELETE_ELEM, keys, None, reduce, 1, via, "take")


class PerCpu(Table):
    """What per-CPU maps have more: ``cpu=`` addresses the value of one CPU."""

    per_cpu = True

    def lookup(self, key: Any, *, cpu: int | None = None, flags: int = 0) -> Any:
        """Return the values of `key`, an array ``(cpus,)``; or the one of CPU number `cpu`.

        Raises
        ------
        ValueError
            `cpu` is not one of `possible_cpus()`; otherwise as `Map.lookup`.
        """
        column = _column(cpu)
        if column is not None and not flags and _cpus_alone():
            return self.lookup_elem_on(possible_cpus()[column], key)
        values = self.lookup_elem(key, flags)
        return values if column is None else elements(values[column:column + 1])[0]

    def update(self, *given: Any, cpu: int | None = None, flags: int = ANY) -> None:
        """Set the values of a key: ``(cpus,)`` values, or one for all CPUs; see `Map.update`.

        With `cpu`, one value for that CPU number; the others keep theirs, or are zero where the
        key is new. Before Linux 7.0, or with NOEXIST or EXIST, this reads the row and writes it
        back: what a program adds on another CPU in between is lost.
        """
        column = _column(cpu)
        if column is None:
            super().update(*given, flags=flags)
            return
        key, value = given
        if flags == ANY and _cpus_alone():  # the kernel does not heed NOEXIST beside a CPU
            self.update_elem_on(possible_cpus()[column], key, value)
            return
        row = self.value
        assert isinstance(row, PerCpuCodec)
        one = slots(row.one.pack(value), self.value_dtype, self.value_dtype.itemsize, 1)
        try:
            values = self.lookup_elem(key, 0)
        except KeyNotFound:
            values = slots(np.zeros(row.size, np.uint8), self.value_dtype, row.stride, row.cpus)
        values[column] = one[0]
        self.update_elem(key, values, flags)

    def _each(self, values: list[Any]) -> Any:
        row = self.value
        assert isinstance(row, PerCpuCodec)
        packed = b"".join(row.pack(value) for value in values)
        flat = slots(packed, self.value_dtype, row.stride, len(values) * row.cpus)
        return flat.reshape((len(values), row.cpus, *flat.shape[1:]))


@cache
def _cpus_alone() -> bool:
    """Tell whether the kernel reads and writes the value of one CPU alone."""
    return running_kernel() >= UpdateFlag.CPU.since


def _column(cpu: int | None) -> int | None:
    if cpu is None:
        return None
    try:
        return possible_cpus().index(operator.index(cpu))
    except ValueError:
        raise ValueError(f"cpu={cpu!r}: one of the possible CPUs {possible_cpus()}") from None


class PerCpuHashMap(PerCpu, HashMap):
    """PERCPU_HASH, LRU_PERCPU_HASH: a value is an array ``(cpus,)``."""


class _Keys(KeysView[Any]):
    _mapping: Table

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping)


class _Values(ValuesView[Any]):
    _mapping: Table

    def __iter__(self) -> Iterator[Any]:
        for batch in self._mapping.reader():
            yield from elements(batch.values)


class _Items(ItemsView[Any, Any]):
    _mapping: Table

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self._mapping.reader():
            yield from batch.items()


class ResizableHashMap(HashMap):
    """RHASH: a hash that grows and shrinks with its entries (Linux 7.2).

    ``map_extra`` is how many entries to make room for at first. While the map resizes, a read may
    repeat or miss an entry: a batch of it is never ``complete``.
    """


    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Check what the kernel would refuse without a reason."""
        if shape.key_size > 0xffff:
            raise ValueError(f"a key of {shape.key_size} bytes: RHASH takes 65535")
        if shape.map_extra > min(shape.max_entries, 0xffff):
            raise ValueError(f"map_extra={shape.map_extra}: room for at most max_entries, and for "
                             "65535, at first")


MutableMapping.register(DictMap)

CLASSES: dict[MapType, type[Map]] = {
    MapType.HASH: HashMap,
    MapType.PERCPU_HASH: PerCpuHashMap,
    MapType.LRU_HASH: HashMap,
    MapType.LRU_PERCPU_HASH: PerCpuHashMap,
    MapType.RHASH: ResizableHashMap,
}
