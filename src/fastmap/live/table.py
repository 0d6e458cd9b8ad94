"""`LiveTable`: counters by key that programs update without a lock, read from memory."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastmap._core.live.table import LiveCore
from fastmap._core.rows.codec import codec_of
from fastmap._core.rows.rows import rows_of
from fastmap._core.system import syscall
from fastmap._core.system.memory import Mapping as MemoryMapping
from fastmap._core.system.syscall import Fd
from fastmap.dtypes import Reduce, Where, parse, plan, slots
from fastmap.enums import MapFlag
from fastmap.errors import KeyNotFound, ObjectNotFound
from fastmap.live import layout
from fastmap.live.batch import LiveBatch
from fastmap.live.expiry import Expiry
from fastmap.live.found import dtype_of, found
from fastmap.live.reader import LiveReader, row_maker
from fastmap.live.views import view
from fastmap.maptypes.batch import Array
from fastmap.maptypes.create import create as create_map

Keys = npt.ArrayLike | Sequence[Any]


class _Open:
    """The memory of a table that is open; gone with `close`, but for the views that live."""

    def __init__(self, head: MemoryMapping, core: LiveCore, keys: Array, born: Array,
                 values: Array) -> None:
        self.head, self.core = head, core
        self.keys, self.born, self.values = keys, born, values
        for array in (keys, born, values):
            array.flags.writeable = False
        self.expiry: Expiry | None = None
        self.differences: LiveReader | None = None
        #: What the last `read` used.
        self.spare: list[LiveReader] = []


class LiveTable:
    """Counters by key in mmapable arrays: programs count, user space reads without a system call.

    Made by `create` and `open`. Programs use it through ``fastmap.bpf.h`` (``python -m fastmap
    include``) or `fastmap.live.program`.

    Attributes
    ----------
    name : str
    id : int
        The kernel's number of its head, the map ``NAME_h``.
    capacity : int
        Keys that it has room for.
    columns : int
        Values of a key: one for each possible CPU, or fewer, which programs add to atomically.
    key_dtype, value_dtype : numpy.dtype

    Notes
    -----
    Linux 5.12 on x86-64, 5.18 on arm64. The live views change while numpy looks at them: functions
    of two passes (``np.nonzero``, boolean indices) need a copy first; `read` makes one.
    """

    def __init__(self, name: str, fds: dict[str, Fd], key: np.dtype[Any],
                 value: np.dtype[Any]) -> None:
        infos = {letter: syscall.map_info(fd) for letter, fd in fds.items()}
        capacity, columns = layout.check(name, infos)
        layout.checked_dtypes(key, value)
        sizes = layout.expected(name, key.itemsize, value.itemsize, capacity, columns)
        memory = {letter: layout.mapped(fd, *sizes[letter]) for letter, fd in fds.items()}
        head = memory["h"]
        if not view(head, "u8", 1)[0]:
            layout.checked(capacity, columns)
            layout.set_up(head, key.itemsize, value.itemsize, capacity, columns,
                          [infos[letter]["id"] for letter in layout.LETTERS])
        layout.check_head(head, name, key.itemsize, value.itemsize, capacity, columns)
        self.name = name
        self.id: int = infos["h"]["id"]
        self.capacity, self.columns = capacity, columns
        self.key_dtype, self.value_dtype = key, value
        self._fds = fds
        self._key = codec_of(key, "key")
        stride = (key.itemsize + 7) // 8 * 8
        values = slots(memory["v"], value, value.itemsize, columns * capacity)
        self._open: _Open | None = _Open(
            head, LiveCore(head, memory["x"], memory["k"], memory["b"], memory["v"], memory["f"],
                           key.itemsize, value.itemsize),
            slots(memory["k"], key, stride, capacity), view(memory["b"], "u8", capacity),
            values.reshape(columns, capacity, *values.shape[1:]))

    # ---- made and opened -----------------------------------------------------------------------

    @classmethod
    def create(cls, *, key: npt.DTypeLike, value: npt.DTypeLike, capacity: int,
               columns: int | None = None, name: str = "live",
               pin: str | os.PathLike[str] | None = None) -> Self:
        """Create a live table.

        Parameters
        ----------
        key, value : dtype_like
            A key has up to 64 bytes; a value a multiple of 8, of counters of programs.
        capacity : int
            Keys it has room for, up to 2**30.
        columns : int, optional
            Values of each key: one for each possible CPU where it is not given, 1 or another power
            of two where programs add atomically (FASTMAP_LIVE_SHARED).
        name : str
            At most 13 letters; the maps are NAME_h, _x, _k, _b, _v and _f.
        pin : path, optional
            Pin the maps at ``pin + "_h"`` and so on, on a bpffs; the name is its last part then. A
            loader puts them in the places of a program's maps: ``bpftool prog loadall X DIR map
            name flows_h pinned /sys/fs/bpf/flows_h ...``, or libbpf's LIBBPF_PIN_BY_NAME.

        Returns
        -------
        LiveTable

        Raises
        ------
        TypeError, ValueError
            An argument does not fit; the kernel was not asked.
        KeyExists
            Something is pinned there.
        PermissionDenied
            CAP_BPF is missing.
        BpfError
            No memory (ENOMEM).
        """
        key, value = parse(key, "key"), parse(value, "value")
        layout.checked_dtypes(key, value)
        capacity, columns = layout.checked(capacity, columns)
        name = layout.checked_name(name if pin is None else os.path.basename(os.fspath(pin)))
        sizes = layout.expected(name, key.itemsize, value.itemsize, capacity, columns)
        dtypes = {"h": layout.HEAD, "x": layout.LINE, "k": key, "b": np.dtype("u8"), "v": value,
                  "f": layout.TWO}
        fds: dict[str, Fd] = {}
        pinned: list[str] = []
        try:
            for letter in layout.LETTERS:
                with create_map("array", value=dtypes[letter], max_entries=sizes[letter][1],
                                flags=MapFlag.MMAPABLE, name=f"{name}_{letter}") as made:
                    fds[letter] = syscall.duplicate(made.fileno())
            table = cls(name, fds, key, value)
            if pin is not None:  # set up by now: who opens it finds it whole
                for letter in layout.LETTERS:
                    path = f"{os.fspath(pin)}_{letter}"
                    syscall.obj_pin(fds[letter], path)
                    pinned.append(path)
        except BaseException:
            for path in pinned:
                os.unlink(path)
            for fd in fds.values():
                fd.close()
            raise
        return table

    @classmethod
    def open(cls, pin: str | os.PathLike[str] | None = None, *, name: str | None = None,
             id: int | None = None, key: npt.DTypeLike | None = None,
             value: npt.DTypeLike | None = None) -> Self:
        """Open a live table, and set it up if its programs were just loaded.

        Parameters
        ----------
        pin : path, optional
            As given to `create`: without the last two letters of the maps.
        name : str, optional
            That of FASTMAP_LIVE. Needs CAP_SYS_ADMIN, as does `id`.
        id : int, optional
            The kernel's number of one of its maps.
        key, value : dtype_like, optional
            Override what BTF says; must match the sizes.

        Returns
        -------
        LiveTable

        Raises
        ------
        ObjectNotFound
            There is no such table.
        ValueError
            The maps are no live table, one of another version, or several have the name.
        """
        if sum(given is not None for given in (pin, name, id)) != 1:
            raise TypeError("open takes one of a path, name= and id=")
        if pin is not None:
            path = os.fspath(pin)
            fds = cls._gathered({letter: (syscall.obj_get, f"{path}_{letter}")
                                 for letter in layout.LETTERS})
            name = os.path.basename(path)
        else:
            name, ids = found(name, id)
            fds = cls._gathered({letter: (syscall.map_get_fd_by_id, number)
                                 for letter, number in zip(layout.LETTERS, ids, strict=True)})
        try:
            return cls(name, fds, dtype_of(fds["k"], key, "key"), dtype_of(fds["v"], value,
                                                                              "value"))
        except BaseException:
            for fd in fds.values():
                fd.close()
            raise

    @staticmethod
    def _gathered(how: dict[str, Any]) -> dict[str, Fd]:
        fds: dict[str, Fd] = {}
        try:
            for letter, (get, what) in how.items():
                fds[letter] = get(what)
        except BaseException:
            for fd in fds.values():
                fd.close()
            raise
        return fds

    def map_fds(self) -> dict[str, int]:
        """Return the descriptors of the maps by their names, for a loader; they stay this table's.

        ``{"flows_h": 5, "flows_x": 6, ...}``: for libbpf's ``bpf_map__reuse_fd``.
        """
        _ = self._there
        return {f"{self.name}_{letter}": fd.fileno() for letter, fd in self._fds.items()}

    def map(self, letter: str) -> Fd:
        """Return the descriptor's owner of one map: "h", "x", "k", "b", "v" or "f"."""
        _ = self._there
        return self._fds[letter]

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of a key and of a value."""
        return self.key_dtype.itemsize, self.value_dtype.itemsize

    def unpin(self, pin: str | os.PathLike[str]) -> None:
        """Remove the pins of this table at `pin`; those that are missing are passed over."""
        for letter in layout.LETTERS:
            path = Path(f"{os.fspath(pin)}_{letter}")
            with suppress(ObjectNotFound):
                there = syscall.obj_get(path)
                try:
                    other = syscall.map_info(there)["id"] != syscall.map_info(
                        self._fds[letter])["id"]
                finally:
                    there.close()
                if other:
                    raise ValueError(f"{path} is the pin of another map")
                path.unlink()

    def close(self) -> None:
        """Close the handles. Views and batches stay valid; programs count on."""
        there, self._open = self._open, None
        for fd in self._fds.values():
            fd.close()
        if there is not None and there.expiry is not None:
            there.expiry.close()

    @property
    def closed(self) -> bool:
        """Whether the table is closed."""
        return self._open is None

    @property
    def _there(self) -> _Open:
        if self._open is None:
            raise ValueError("the live table is closed")
        return self._open

    def __enter__(self) -> Self:
        _ = self._there
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"id {self.id}"
        return (f"<fastmap.LiveTable {self.name!r} {state}: {self.key_dtype} to "
                f"{self.value_dtype}, {self.capacity} keys, {self.columns} columns>")

    # ---- live ----------------------------------------------------------------------------------

    @property
    def keys(self) -> Array:
        """The keys by slot, live and read-only: ``(capacity,)``; one is a key where born is odd."""
        return self._there.keys

    @property
    def values(self) -> Array:
        """The counters by column and slot, live and read-only: ``(columns, capacity)``.

        ``t.values["bytes"].sum(axis=0)`` are sums by slot.
        """
        return self._there.values

    @property
    def born(self) -> npt.NDArray[np.uint64]:
        """When each slot's key was inserted, live and read-only, ``(capacity,)``.

        Odd nanoseconds of the monotonic clock; even where there is no key.
        """
        return self._there.born

    # ---- counters of the table itself ----------------------------------------------------------

    def _word(self, name: str) -> Any:
        return view(self._there.head, layout.HEAD, 1)[0][name]

    @property
    def used(self) -> int:
        """Slots that programs ever took, at most the capacity; those given back count, too."""
        return self._there.core.used

    @property
    def full(self) -> int:
        """Events that found no room and were not counted, or came before the table was set up."""
        return int(self._word("full"))

    @property
    def races(self) -> int:
        """How often two CPUs brought the same new key, and one gave way. Nothing was lost."""
        return int(self._word("races"))

    @property
    def own_columns(self) -> bool:
        """Whether each possible CPU has its own column: programs need no atomics then."""
        return self.columns >= layout.own_columns()

    @property
    def per_cpu(self) -> bool:
        """True: a key has a value in each column."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the six maps."""
        sizes = layout.expected(self.name, self.key_dtype.itemsize, self.value_dtype.itemsize,
                                self.capacity, self.columns)
        return sum((size + 7) // 8 * 8 * entries for size, entries in sizes.values())

    def __len__(self) -> int:
        """Count the keys that are there."""
        return int(np.count_nonzero(self.born[:self.used] & 1))

    # ---- reads ---------------------------------------------------------------------------------

    def reader(self, *, reduce: Reduce = "sum", fields: Sequence[str] | None = None,
               where: Where = None) -> LiveReader:
        """Return a reader, whose buffers and keys are kept from read to read.

        Parameters
        ----------
        reduce : str or dict, optional
            What is made of a key's columns, as in `PerCpuHashMap.reader`. None: all of them, values
            are ``(n, columns)``.
        fields : sequence of str, optional
            Keep only these columns of the value: ``["value.bytes"]``.
        where : tuple, optional
            Keep only the rows that pass: ``("value.bytes", ">=", 4096)``.

        Returns
        -------
        LiveReader
        """
        return LiveReader(self._there.core, self.key_dtype, self.value_dtype, self.columns,
                          reduce=reduce, fields=fields, where=where)

    def read(self, *, reduce: Reduce = "sum", fields: Sequence[str] | None = None,
             where: Where = None) -> LiveBatch:
        """Read the whole table: keys, and values summed over the columns, as arrays of their own.

        Parameters
        ----------
        reduce, fields, where
            As for `reader`.

        Returns
        -------
        LiveBatch
            Every key that was there during the whole read, once; with ``born`` and ``slots``.

        Notes
        -----
        No system call. A word of 8 bytes is read whole; the counters of one key are not read at
        one instant. The memory of a batch of which no array is left is used again.
        """
        if not (reduce == "sum" and fields is None and where is None):
            return self.reader(reduce=reduce, fields=fields, where=where).owned()
        there = self._there
        # Memory that nobody has an array of any more is there, and its keys are right already.
        try:
            reader = there.spare.pop()  # at once: another thread may read, too
        except IndexError:
            reader = self.reader()
        if not reader.idle:
            reader = self.reader()
        batch = reader.owned()
        there.spare = [reader]
        return batch

    def delta(self) -> LiveBatch:
        """Read by how much each key's sums grew since the last call; the first tells all of it.

        Returns
        -------
        LiveBatch
            Keys that are there, with differences of whole 8-byte counters, and ``new``. Views: the
            next call overwrites them. What a key counted between the last call and its expiry is
            in what the expiry returned, as part of its last counts.

        Raises
        ------
        TypeError
            The value holds other numbers than 8-byte integers.
        """
        there = self._there
        if there.differences is None:
            there.differences = LiveReader(there.core, self.key_dtype, self.value_dtype,
                                           self.columns, differences=True)
        return there.differences.read()

    # ---- lookups -------------------------------------------------------------------------------

    def _key_array(self, keys: Keys) -> Array:
        return np.ascontiguousarray(rows_of(keys, self._key).owner, self.key_dtype)

    def find_many(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return the slot of each key, -1 for those that are not there.

        Parameters
        ----------
        keys : array_like
            ``(n,)``, of the key dtype, or a sequence of keys.

        Returns
        -------
        ndarray of int64
            ``(n,)``: ``t.values["bytes"][:, slots]``. They hold until the key is expired.
        """
        array = self._key_array(keys)
        return view(self._there.core.find(array), np.int64, len(array))

    def lookup_many(self, keys: Keys, *, reduce: Reduce = "sum") -> tuple[Array, Array]:
        """Look up many keys, in memory.

        Parameters
        ----------
        keys : array_like
            ``(n,)``, of the key dtype, or a sequence of keys.
        reduce : str or dict, optional
            As for `reader`.

        Returns
        -------
        values : ndarray
            ``(n,)``, or ``(n, columns)`` without `reduce`. Rows of missing keys are zeros.
        found : ndarray of bool
            ``(n,)``.
        """
        where = self.find_many(keys)
        columns, dtype, wide = plan(self.key_dtype, self.value_dtype, self.columns,
                                    self.value_dtype.itemsize, reduce=reduce)
        one, size = row_maker(self.value_dtype, columns, reduce, dtype, wide, self.columns)
        out, found = self._there.core.rows(where, one, size)
        n = len(where)
        values = slots(out, dtype, dtype.itemsize, n * (self.columns if wide else 1))
        if wide:
            values = values.reshape(n, self.columns, *values.shape[1:])
        return values, view(found, bool, n)

    def lookup(self, key: Any) -> Any:
        """Return the sums of a key: a number or a read-only record.

        Raises
        ------
        KeyNotFound
            No such key (also a `KeyError`).
        """
        values, found = self.lookup_many(self._one(key))
        if not found[0]:
            raise KeyNotFound(2, f"no key {key!r}")
        if values.dtype.names is None and values.ndim == 1:
            return values[0].item()
        value = values[0]
        values.flags.writeable = False
        return value

    def _one(self, key: Any) -> Array:
        return np.frombuffer(self._key.pack(key), self.key_dtype, 1)

    __getitem__ = lookup

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the sums of a key, or `default`."""
        try:
            return self.lookup(key)
        except KeyNotFound:
            return default

    def __contains__(self, key: object) -> bool:
        return bool(view(self._there.core.find(self._one(key)), np.int64, 1)[0] >= 0)

    # ---- expiry --------------------------------------------------------------------------------

    def expire(self, keys: Keys | None = None, *, idle: float | None = None) -> LiveBatch:
        """Take keys out while programs count on; return their exact last counts.

        Parameters
        ----------
        keys : array_like, optional
            These; those that are not there are passed over.
        idle : float, optional
            Those that this object saw count nothing for so many seconds: from call to call, so
            that the first call only looks.

        Returns
        -------
        LiveBatch
            What left, each with its sums: every event is in here, or in the table (where the key
            may be again, counting from 0), or was counted in ``full``. Also what a collector left
            behind that was killed in the middle of an expiry.

        Raises
        ------
        NotSupported
            No way to wait for the programs that run (see Notes); nothing has happened.
        RuntimeError
            Another process is inside an expiry.

        Notes
        -----
        Waits for a grace period of RCU once, some milliseconds asleep. One process at a time, of
        one PID namespace. Programs that are sleepable must hold ``bpf_rcu_read_lock()`` while they
        use a value: the grace period does not wait for others.
        """
        if (keys is None) == (idle is None):
            raise TypeError("expire takes keys, or idle=")
        expiry = self._expiring()
        if idle is not None:
            if not idle >= 0:
                raise ValueError(f"idle={idle!r}: seconds, not negative")
            return expiry.run(lambda: expiry.idle_slots(float(idle)))
        array = self._key_array(keys)  # type: ignore[arg-type]

        def of_keys() -> Array:
            where = np.unique(view(self._there.core.find(array), np.int64, len(array)))
            return where[where >= 0].astype(np.uint32)

        return expiry.run(of_keys)

    def evict(self, keep: float = 0.8) -> LiveBatch:
        """Make room: take those out that were idle longest, until `keep` of the capacity is left.

        Parameters
        ----------
        keep : float
            0 to 1. Nothing leaves where there are no more keys than that.

        Returns
        -------
        LiveBatch
            As of `expire`. Idle is what this object saw, at its calls of `expire` and `evict`;
            among those that it saw last at the same time, the older keys leave.
        """
        if not 0 <= operator.mul(keep, 1.0) <= 1:
            raise ValueError(f"keep={keep!r}: 0 to 1")
        expiry = self._expiring()
        return expiry.run(lambda: expiry.oldest_slots(int(keep * self.capacity)))

    def _expiring(self) -> Expiry:
        there = self._there
        if there.expiry is None:
            there.expiry = Expiry(there.core, there.head, self.id, there.born, self.key_dtype,
                                  self.value_dtype, self.columns)
        return there.expiry
