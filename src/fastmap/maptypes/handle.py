"""`Map`: what all map types share, whether they have keys or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fastmap._core.maps.batch_reader import BatchReader
from fastmap._core.maps.map import MapCore
from fastmap._core.rows.codec import PerCpuCodec, codec_of
from fastmap._core.rows.columns import Columns
from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.btf.described import NO_LAYOUTS
from fastmap.btf.layout import Layout
from fastmap.btf.special import special_fields
from fastmap.enums import MapFlag, MapType, UpdateFlag
from fastmap.inkernel.operations import counters
from fastmap.inkernel.routes import InKernel
from fastmap.inkernel.whole_reads import Walks
from fastmap.kernel.inventory import MapInfo
from fastmap.kernel.map_facts import FACTS
from fastmap.maptypes.batch import Array
from fastmap.maptypes.rules import GIVEN, Shape, Side

#: The routes that a call can be told to take.
VIAS = ("auto", "syscall", "kernel")


if TYPE_CHECKING:
    _Core = MapCore
else:
    # At run time a mix-in: what is compiled comes in beside it, with `m[key]` (KeyedCore) or
    # without (MapCore), which a queue does not have.
    _Core = object


class Map(_Core):
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
    layouts : mapping of str to Layout
        What BTF says of "key" and "value" beside their dtypes: names of enums, bitfields.
    """

    #: Whether a value is one for every possible CPU.
    per_cpu: ClassVar[bool] = False
    #: What the kernel fixes about keys and values.
    keys_are: ClassVar[Side] = GIVEN
    values_are: ClassVar[Side] = GIVEN
    #: How whole reads walk the map.
    reads_by: ClassVar[type[BatchReader]] = BatchReader
    #: What makes Python objects of an array of keys; None: `elements`.
    key_objects: Callable[[Array], list[Any]] | None = None
    # What more `open` needs to make the like of this handle.
    _given: Mapping[str, Any] = MappingProxyType({})

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
        self.layouts: Mapping[str, Layout] = NO_LAYOUTS
        self.resizes = FACTS[self.type].resizes
        self.default_via = check_via(via)
        self._in_kernel: InKernel | None = None
        if locked(value):
            self.lock_flag = int(UpdateFlag.LOCK)

    @property
    def most_entries(self) -> int:
        """How many entries the map can have: more than that, no walk looks at."""
        return self.max_entries

    # ---- the handle ----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the handle is closed."""
        return self.fd.closed

    def fileno(self) -> int:
        """Return the descriptor; it is close-on-exec, and stays this object's own."""
        return self.fd.fileno()

    def info(self) -> MapInfo:
        """Ask the kernel about the map now.

        Returns
        -------
        MapInfo
            Linux 4.13.
        """
        return MapInfo.of(self.fd)

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
        syscall.map_freeze(self.fd, self.type)

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
        syscall.obj_pin(self.fd, path)

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Remove the pin of this map at `path`. Other pins of it stay.

        Raises
        ------
        ObjectNotFound
            Nothing is pinned there.
        ValueError
            Another map is pinned there; it is left alone.
        """
        self.fd.fileno()  # a closed map is an error, not a file that goes
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
        self.fd.close()
        if self._in_kernel is not None:
            self._in_kernel.close()

    def __enter__(self) -> Self:
        self.fd.fileno()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Hand the descriptor over to a process that multiprocessing spawns; refuse all else."""
        context = sys.modules.get("multiprocessing.context")
        if context is None or context.get_spawning_popen() is None:
            raise TypeError(f"a {type(self).__name__} holds a descriptor of this process, which a "
                            "pickle cannot: give its pin or id, and open it there; arguments of a "
                            "multiprocessing.Process may be maps")
        from multiprocessing.reduction import DupFd  # late: not part of `import fastmap`

        given = {what: dtype for what, dtype in (("key", self.key_dtype),
                                                 ("value", self.value_dtype))
                 if dtype is not None and self.dtype_source == "given"}
        return reopened, (DupFd(self.fileno()), {**given, **self._given,
                                                 "via": self.default_via})

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"id {self.id}"
        sides = " to ".join(str(d) for d in (self.key_dtype, self.value_dtype) if d is not None)
        return (f"<fastmap.{type(self).__name__} {self.name!r} {state}: "
                f"{sides + ', ' if sides else ''}{self.max_entries} entries>")

    # ---- routes -----------------------------------------------------------------------------

    def in_kernel(self) -> InKernel:
        self.fileno()  # not for a closed map
        if self._in_kernel is None:
            self._in_kernel = InKernel(
                self, self.flags, self.max_entries, counters(self.value_dtype))
        return self._in_kernel

    def whole_reads(self, via: str | None, exact: bool, columns: Columns | None) -> Walks | None:
        """Return what reads the whole map in the kernel, where its rule lets it."""
        via = self.default_via if via is None else check_via(via)
        if via == "syscall":
            return None
        path = self.in_kernel()
        return Walks(path.policy, path.pool, self, self.max_entries, columns, via, exact)

    def prepare(self, *, threads: int = 1) -> tuple[str, ...]:
        """Load now what the in-kernel path needs: running it later takes no capability.

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
        return self.in_kernel().prepare(self, threads)


def reopened(duplicate: Any, options: dict[str, Any]) -> Any:
    """Open a map of another process's, whose descriptor multiprocessing has handed over."""
    from fastmap.maptypes.open import open as open_map  # late: it imports this module

    fd = duplicate.detach()
    try:
        return open_map(fd=fd, **options)
    finally:
        os.close(fd)


def locked(value: np.dtype[Any] | None) -> bool:
    """Tell whether values of this dtype hold a `fastmap.spin_lock`."""
    return value is not None and any(
        place.kind == "bpf_spin_lock" for place in special_fields(value).values())


def check_via(via: str) -> str:
    """Return `via` if it names a way; the environment's FASTMAP_VIA stands behind "auto"."""
    if via == "kernel" or via == "syscall":
        return via
    if via == "auto":
        via = os.environ.get("FASTMAP_VIA", "auto")
    if via not in VIAS:
        raise ValueError(f"via={via!r}: one of {', '.join(VIAS)}")
    return via
