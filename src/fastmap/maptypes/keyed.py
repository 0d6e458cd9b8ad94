"""`KeyedMap`: keys with values, one or many at a time."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core.maps.map import KeyedCore
from fastmap._core.rows.rows import Rows, rows_of
from fastmap._core.system.threads import in_threads
from fastmap.enums import ANY, Command
from fastmap.errors import batch_error
from fastmap.inkernel.routes import Route
from fastmap.maptypes.handle import Map, check_via

Keys: TypeAlias = npt.ArrayLike | Sequence[Any]


class KeyedMap(Map, KeyedCore):
    """A map whose values are reached by keys."""

    #: What the kernel says to a delete where nothing is, beside ENOENT: of an index past the end.
    nothing_there: ClassVar[frozenset[int]] = frozenset()
    #: No walk over all keys; `Table` has one. (`m[key]` alone would make Python try 0, 1, 2, ...)
    __iter__: Any = None

    # ---- elements ------------------------------------------------------------------------------

    def lookup(self, key: Any, *, flags: int = 0) -> Any:
        """Return the value of `key` (BPF_MAP_LOOKUP_ELEM).

        Parameters
        ----------
        key : object
            A Python integer for an integer dtype; a record, tuple, dict or bytes for a structured
            one. Of a dict, members that are not named are zeros. Bytes are sent as they are; a
            record's padding is zeroed, unless the map has the key of these very bytes.
        flags : UpdateFlag
            LOCK, for values with a spin lock.

        Returns
        -------
        object
            An int, float or bytes for a plain dtype, a read-only record for a structured one, an
            array ``(cpus,)`` for a per-CPU map.

        Raises
        ------
        KeyNotFound
            No such key (also a `KeyError`).
        TypeError, ValueError, OverflowError
            The key does not fit the dtype; the kernel was not asked.
        """
        return self.lookup_elem(key, flags)

    def update(self, key: Any, value: Any, *, flags: int = ANY) -> None:
        """Set the value of `key` (BPF_MAP_UPDATE_ELEM).

        Parameters
        ----------
        key, value : object
            As for `lookup`; of a per-CPU map, ``(cpus,)`` values or one value for all CPUs.
        flags : UpdateFlag
            ANY; NOEXIST: only where the key is missing; EXIST: only where it is there.

        Raises
        ------
        MapFull
            The map has no room.
        KeyExists, KeyNotFound
            With NOEXIST, with EXIST; or the index is past the end of an array.
        TypeError, ValueError, OverflowError
            Key or value do not fit the dtype; the kernel was not asked.
        """
        self.update_elem(key, value, flags)

    def delete(self, key: Any) -> None:
        """Delete `key` (BPF_MAP_DELETE_ELEM).

        Raises
        ------
        KeyNotFound
            No such key.
        NotSupported
            An array's elements cannot be deleted.
        """
        del self[key]

    def lookup_and_delete(self, key: Any) -> Any:
        """Return the value of `key` and delete it, in one step (BPF_MAP_LOOKUP_AND_DELETE_ELEM).

        Raises
        ------
        KeyNotFound
            No such key.
        NotSupported
            Not there for this type, or before Linux 5.14 for hash maps.
        """
        return self.take_elem(key, 0)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of `key`, or `default` where there is none."""
        try:
            return self.lookup_elem(key, 0)
        except KeyError:
            return default

    # ---- many given keys -----------------------------------------------------------------------

    def route(self, via: str | None, work: str = "", count: int = 0,
              flags: int = 0) -> Route:
        """Return what does a call's `work` on `count` keys: programs, or the map by system calls.

        `fastmap.inkernel.policy` has the rule.
        """
        via = self.default_via if via is None else check_via(via)
        if via == "syscall" or (via == "auto" and not count):
            return self
        return self.in_kernel().route(self, work, via, count, flags) or self

    def update_many(self, keys: Keys, values: Any, *, flags: int = ANY, errors: str = "raise",
                    via: str | None = None, threads: int = 1) -> Any:
        """Set many values (BPF_MAP_UPDATE_BATCH; one by one with NOEXIST or EXIST).

        Parameters
        ----------
        keys : array_like
            ``(n,)``, of the key dtype and any strides, or a sequence of keys. Integers of another
            width or byte order are range-checked and converted.
        values : array_like
            ``(n,)`` of the value dtype, or one value for all. Of a per-CPU map ``(n, cpus)``,
            ``(n, 1)``, or one value for all keys and CPUs.
        flags : UpdateFlag
        errors : {"raise", "return"}
            "raise" stops at the first that fails; exactly the first ``.applied`` are applied.
            "return" attempts all and returns their errnos.
        threads : int
            Split the work over so many threads, all of which have ended when the call does, also
            where a Ctrl-C ends it. With "raise", each of them stops at its own first failure then,
            and ``.applied`` counts over all of them.

        Returns
        -------
        int or ndarray
            How many were applied; or with ``errors="return"`` an int32 array, 0 where applied.

        Raises
        ------
        BatchError
            Also of the class of the one failure: `MapFull`, `KeyExists`, `PermissionDenied`, ...

        Notes
        -----
        Linux 5.6 (per-CPU arrays 5.13); one element a system call before. The GIL is released.
        """
        rows = self.key_rows(keys)
        return self.apply_many(
            Command.MAP_UPDATE_BATCH, rows, rows_of(values, self.value, rows.count), flags, errors,
            ("raise", "return"), threads, self.route(via, "update", rows.count, flags))

    def delete_many(self, keys: Keys, *, errors: str = "ignore", via: str | None = None,
                    threads: int = 1) -> Any:
        """Delete many keys (BPF_MAP_DELETE_BATCH).

        Parameters
        ----------
        keys : array_like
            As for `update_many`.
        errors : {"ignore", "raise", "return"}
            "ignore" skips keys that are missing or given twice; "raise" stops at the first;
            "return" attempts all and returns their errnos.
        threads : int
            Split the work over so many threads; see `update_many`.

        Returns
        -------
        int or ndarray
            How many were deleted; or with ``errors="return"`` an int32 array, 0 where deleted.

        Raises
        ------
        BatchError
            Also of the class of the one failure: `KeyNotFound`, `PermissionDenied`, ...

        Notes
        -----
        Linux 5.6; one element a system call before. The GIL is released.
        """
        rows = self.key_rows(keys)
        if self.nothing_there and errors == "ignore":
            return self._delete_what_is_there(rows, via, threads)
        return self.apply_many(
            Command.MAP_DELETE_BATCH, rows, None, ANY, errors, ("ignore", "raise", "return"),
            threads, self.route(via, "delete", rows.count))

    def _delete_what_is_there(self, rows: Rows, via: str | None, threads: int) -> int:
        errnos = self.apply_many(
            Command.MAP_DELETE_BATCH, rows, None, ANY, "return", ("return",), threads,
            self.route(via, "delete", rows.count))
        failed = np.flatnonzero(~np.isin(errnos, [0, errno.ENOENT, *self.nothing_there]))
        deleted = int(np.count_nonzero(errnos == 0))
        if len(failed):
            index = int(failed[0])
            raise batch_error(int(errnos[index]), Command.MAP_DELETE_ELEM, self.kind, deleted,
                              index)
        return deleted

    def apply_many(self, command: Command, keys: Rows, values: Rows | None, flags: int,
                   errors: str, modes: tuple[str, ...], threads: int, route: Route) -> Any:
        """Apply a command to rows by a route; `errors` is one of `modes`."""
        if errors not in modes:
            raise ValueError(f"errors={errors!r}: one of {', '.join(modes)}")
        errnos = np.zeros(keys.count, np.int32) if errors == "return" else None
        if threads == 1:
            applied = route.apply_rows(command, keys, values, flags, errors, errnos)
            return applied if errnos is None else errnos

        def part(start: int, stop: int) -> int:
            # A part of the arrays as they are: `rows_of` has converted them already.
            some = keys.part(start, stop)
            data = None if values is None else values.part(start, stop)
            codes = None if errnos is None else errnos[start:stop]
            return route.apply_rows(command, some, data, flags, errors, codes)

        applied = in_threads(part, keys.count, threads)
        return applied if errnos is None else errnos
