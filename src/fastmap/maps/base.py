"""`Map`: what all map types share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from threading import Event
from time import monotonic
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core import syscall
from fastmap._core.batch import BatchReader
from fastmap._core.codec import PerCpuCodec, codec_of
from fastmap._core.columns import Columns
from fastmap._core.map import MapCore
from fastmap._core.rows import Rows, rows_of
from fastmap._core.syscall import Fd
from fastmap.accel import InKernel, Loops, Walks
from fastmap.btf_special import special_fields
from fastmap.enums import ANY, Command, MapFlag, MapType, UpdateFlag
from fastmap.inventory import MapInfo
from fastmap.maps.batch import Array
from fastmap.maps.rules import GIVEN, Described, Shape, Side

Keys: TypeAlias = npt.ArrayLike | Sequence[Any]

#: The fewest elements a thread of `in_threads` works through before it looks for a Ctrl-C.
SLICE = 16384
#: The ways a call can take.
WAYS = ("auto", "syscall", "kernel")


class Map(MapCore):
    """A BPF map of the kernel. Made by `fastmap.create` and `fastmap.open`.

    Attributes
    ----------
    type : MapType
    name : str
        At most 15 bytes.
    id : int
        The kernel's number of the map.
    max_entries : int
        As the kernel keeps it: it rounds up for some types.
    flags : MapFlag
    key_dtype, value_dtype : numpy.dtype
        Of one key and one value (of one CPU); None for a map that has no keys, or no values.
    dtype_source : str
        Where the dtypes come from: "given", "btf", or "none" (void bytes).
    """

    #: Whether a value is one for every possible CPU.
    per_cpu: ClassVar[bool] = False
    #: What the kernel fixes about keys and values.
    keys_are: ClassVar[Side] = GIVEN
    values_are: ClassVar[Side] = GIVEN
    #: The number of entries that the kernel demands; None where users choose it.
    entries_are: ClassVar[int | None] = None
    #: Flags that maps of this class always have: they need not be said.
    always: ClassVar[MapFlag] = MapFlag(0)
    #: Whether the dtypes may be told to the kernel as BTF.
    described: ClassVar[Described] = "may"
    #: How whole reads walk the map.
    _reads_by: ClassVar[type[BatchReader]] = BatchReader
    #: What makes Python objects of an array of keys; None: `elements`.
    _key_objects: Callable[[Array], list[Any]] | None = None

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Check what the kernel would refuse without a reason; complete what the type fixes."""

    @classmethod
    def untold(cls, kind: MapType, what: str, size: int) -> np.dtype[Any]:
        """Return the dtype of a key or value (`what`) that neither user nor BTF has told."""
        return np.dtype(f"V{size}")

    def __new__(cls, fd: Fd, key: np.dtype[Any] | None, value: np.dtype[Any] | None,
                **_: Any) -> Self:
        row = codec_of(value, "value")
        if cls.per_cpu:
            row = PerCpuCodec(row, len(syscall.possible_cpus()))
        return super().__new__(cls, fd, syscall.map_info(fd)["type"], codec_of(key, "key"), row)

    def __init__(self, fd: Fd, key: np.dtype[Any] | None, value: np.dtype[Any] | None, *,
                 dtype_source: str = "given", via: str = "auto") -> None:
        info = syscall.map_info(fd)
        self.type = MapType(info["type"])
        self.name: str = info["name"]
        self.id: int = info["id"]
        self.max_entries: int = info["max_entries"]
        self.flags = MapFlag(info["map_flags"])
        # None, for a map without them, is not said in the type: nearly all have both.
        self.key_dtype: np.dtype[Any] = key  # type: ignore[assignment]
        self.value_dtype: np.dtype[Any] = value  # type: ignore[assignment]
        self.dtype_source = dtype_source
        self._via = check_way(via)
        self._in_kernel: InKernel | None = None
        if locked(value):
            self._lock = int(UpdateFlag.LOCK)

    @property
    def _most(self) -> int:
        """How many entries the map can have: more than that, no walk looks at."""
        return self.max_entries

    # ---- the handle ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the handle is closed."""
        return self._fd.closed

    def fileno(self) -> int:
        """Return the descriptor; it is close-on-exec, and stays this object's own."""
        return self._fd.fileno()

    def info(self) -> MapInfo:
        """Ask the kernel about the map now.

        Returns
        -------
        MapInfo
            Linux 4.13.
        """
        return MapInfo.of(self._fd)

    def freeze(self) -> None:
        """Forbid writing by system calls, for every handle and for ever. Programs still write.

        Raises
        ------
        PermissionDenied
            The map is frozen already, or the handle is read-only (Linux 6.1 does not mind that).
        BpfError
            EBUSY: a writable mapping of the map is alive; or, on older kernels such as 6.1, the
            map is frozen already.

        Notes
        -----
        Linux 5.2.
        """
        syscall.map_freeze(self._fd, self.type)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the map at `path`, on a bpffs: it lives on when all handles are closed.

        A map may have several pins.

        Raises
        ------
        KeyExists
            Something is pinned there already (also a `FileExistsError`).
        PermissionDenied
            The path is not on a bpffs, or its name holds a dot.

        Notes
        -----
        Linux 4.4.
        """
        syscall.obj_pin(self._fd, path)

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Remove the pin of this map at `path`. Other pins of it stay.

        Raises
        ------
        ObjectNotFound
            Nothing is pinned there.
        ValueError
            Another map is pinned there; it is left alone.
        """
        self._fd.fileno()  # a closed map is an error, not a file that goes
        pinned = syscall.obj_get(path)
        try:
            there = syscall.map_info(pinned)["id"]
        finally:
            pinned.close()
        if there != self.id:
            raise ValueError(f"{os.fspath(path)} is a pin of map {there}, not of {self.id}")
        os.unlink(path)

    def close(self) -> None:
        """Close the handle, once calls of other threads are out of it. Views stay valid."""
        self._fd.close()
        if self._in_kernel is not None:
            self._in_kernel.close()

    def __enter__(self) -> Self:
        self._fd.fileno()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"id {self.id}"
        sides = " to ".join(str(d) for d in (self.key_dtype, self.value_dtype) if d is not None)
        return (f"<fastmap.{type(self).__name__} {self.name!r} {state}: "
                f"{sides + ', ' if sides else ''}{self.max_entries} entries>")

    # ---- elements ------------------------------------------------------------------------------

    def lookup(self, key: Any, *, flags: int = 0) -> Any:
        """Return the value of `key` (BPF_MAP_LOOKUP_ELEM).

        Parameters
        ----------
        key : object
            A Python integer for an integer dtype; a record, tuple or bytes for a structured one.
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
        return self._lookup(key, flags)

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
        self._update(key, value, flags)

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
        return self._lookup_and_delete(key, 0)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of `key`, or `default` where there is none."""
        try:
            return self._lookup(key, 0)
        except KeyError:
            return default

    # ---- many given keys -----------------------------------------------------------------------

    def _way(self, via: str | None, work: str = "", count: int = 0,
             flags: int = 0) -> MapCore | Loops:
        """Return the loops that do a call's `work` on `count` keys: the map's own, by system calls,
        or those in the kernel. `InKernel.takes` is the rule.
        """
        via = self._via if via is None else check_way(via)
        if via == "syscall" or (via == "auto" and not count):
            return self
        way = self._programs()
        return Loops(way, self, work, via == "kernel") if way.takes(
            self, work, via, count, flags) else self

    def _programs(self) -> InKernel:
        self.fileno()  # not for a closed map
        if self._in_kernel is None:
            self._in_kernel = InKernel(
                self, self.flags, self.max_entries, counters(self.value_dtype))
        return self._in_kernel

    def _walks(self, via: str | None, exact: bool, columns: Columns | None) -> Walks | None:
        """Return what reads the whole map in the kernel, where its rule lets it."""
        via = self._via if via is None else check_way(via)
        if via == "syscall":
            return None
        return Walks(self._programs(), self, self.max_entries, columns, via, exact)

    def prepare(self, *, threads: int = 1) -> tuple[str, ...]:
        """Load now what the in-kernel way needs: running it later takes no capability.

        Parameters
        ----------
        threads : int
            How many threads will be inside calls at once: each needs a buffer and programs of its
            own.

        Returns
        -------
        tuple of str
            What there are programs for now, such as ``("lookup", "update", "delete")``.

        Raises
        ------
        PermissionDenied
            CAP_BPF or CAP_PERFMON is missing.

        Notes
        -----
        Linux 5.17.
        """
        return self._programs().prepare(self, threads)

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
            Split the work over so many threads. With "raise", each of them stops at its own first
            failure then, and ``.applied`` counts over all of them.

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
        rows = rows_of(keys, self._key)
        return self._apply(Command.MAP_UPDATE_BATCH, rows, rows_of(values, self._value, rows.count),
                           flags, errors, ("raise", "return"), threads,
                           self._way(via, "update", rows.count, flags))

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
            Split the work over so many threads.

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
        rows = rows_of(keys, self._key)
        return self._apply(Command.MAP_DELETE_BATCH, rows, None, ANY, errors,
                           ("ignore", "raise", "return"), threads,
                           self._way(via, "delete", rows.count))

    def _apply(self, command: Command, keys: Rows, values: Rows | None, flags: int, errors: str,
               modes: tuple[str, ...], threads: int, way: MapCore | Loops | None = None) -> Any:
        if errors not in modes:
            raise ValueError(f"errors={errors!r}: one of {', '.join(modes)}")
        loops = self if way is None else way
        errnos = np.zeros(keys.count, np.int32) if errors == "return" else None

        def part(start: int, stop: int) -> int:
            # A part of the arrays as they are: `rows_of` has converted them already.
            some = Rows(keys.owner[start:stop], self._key)
            data = None if values is None else Rows(values.owner[start:stop], self._value)
            codes = None if errnos is None else errnos[start:stop]
            return loops._apply_rows(command, some, data, flags, errors, codes)

        if threads == 1:
            applied = loops._apply_rows(command, keys, values, flags, errors, errnos)
        else:
            applied = in_threads(part, keys.count, threads)
        return applied if errnos is None else errnos


def locked(value: np.dtype[Any] | None) -> bool:
    """Tell whether values of this dtype hold a `fastmap.spin_lock`."""
    return value is not None and any(
        place.kind == "bpf_spin_lock" for place in special_fields(value).values())


def check_way(via: str) -> str:
    """Return `via` if it names a way; the environment's FASTMAP_VIA stands behind "auto"."""
    if via == "auto":
        via = os.environ.get("FASTMAP_VIA", "auto")
    if via not in WAYS:
        raise ValueError(f"via={via!r}: one of {', '.join(WAYS)}")
    return via


def counters(dtype: np.dtype[Any] | None) -> tuple[tuple[int, int], ...]:
    """Return offset and bytes of each integer of a value that can be incremented in place.

    Empty where the value has anything else than integers of 4 and 8 bytes, each at a multiple of
    its size.
    """
    found: list[tuple[int, int]] = []
    todo = [] if dtype is None else [(dtype, 0)]
    while todo:
        each, at = todo.pop()
        base, shape = each.subdtype or (each, ())
        if shape:
            todo += [(base, at + i * base.itemsize) for i in range(each.itemsize // base.itemsize)]
        elif each.names is not None and each.fields is not None:
            todo += [(field[0], at + field[1]) for field in each.fields.values()]
        elif each.kind in "iu" and each.itemsize in (4, 8) and each.isnative \
                and at % each.itemsize == 0:
            found.append((at, each.itemsize))
        else:
            return ()
    return tuple(sorted(found))


def in_threads(part: Callable[[int, int], int], count: int, threads: int) -> int:
    """Call ``part(start, stop)`` over `count` elements in `threads` threads; add up the results.

    The first failure in the order of the elements is raised, when all parts have ended; its
    ``applied`` counts over all of them, its ``index`` from the first element.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: at least 1")
    # Here, where it is needed: importing it takes as long as a quarter of fastmap.
    from concurrent.futures import ThreadPoolExecutor, wait
    edges = [count * i // threads for i in range(threads + 1)]
    interrupted = Event()

    def work(start: int, stop: int) -> tuple[int, BaseException | None]:
        # In slices of about 0.1 s: only the main thread hears of a Ctrl-C, this one in between.
        done, at, step = 0, start, SLICE
        while not interrupted.is_set():
            began = monotonic()
            try:
                done += part(at, min(at + step, stop))
            except BaseException as error:
                if hasattr(error, "index"):
                    error.index += at
                return done + getattr(error, "applied", 0), error
            at += step
            if at >= stop:
                break
            step = 2 * step if monotonic() - began < 0.05 else max(step // 2, SLICE)
        return done, None

    with ThreadPoolExecutor(threads, "fastmap") as pool:
        futures = [pool.submit(work, start, stop) for start, stop in pairwise(edges)]
        failure: BaseException | None = None
        try:
            wait(futures)
        except BaseException as error:
            interrupted.set()
            failure = error
        results = [future.result() for future in futures]
    total = sum(done for done, _ in results)
    failure = failure or next((error for _, error in results if error is not None), None)
    if failure is not None:
        failure.applied = total  # type: ignore[attr-defined]
        raise failure
    return total
