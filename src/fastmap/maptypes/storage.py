"""Local storage: values that belong to a socket, an inode, a task or a cgroup, and go with it."""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastmap._core.rows.rows import rows_of
from fastmap.dtypes import slots
from fastmap.enums import ANY, Command, MapType
from fastmap.errors import KeyNotFound, NotSupported
from fastmap.maptypes.batch import Array
from fastmap.maptypes.handle import Map
from fastmap.maptypes.keyed import KeyedMap
from fastmap.maptypes.rules import fixed
from fastmap.maptypes.table import PerCpu, Table

# Of pidfd_open: a thread that does not lead its process (Linux 6.9).
_PIDFD_THREAD = os.O_EXCL
#: More cgroups than a machine has: bounds the walk over a map that has no `max_entries`.
_MOST_CGROUPS = 1 << 17


class PidFd(NamedTuple):
    """A pidfd as a key of `TaskStorage`, where a plain integer is the number of a process."""

    number: int

    def fileno(self) -> int:
        """Return the descriptor, which stays the caller's."""
        return self.number


class LocalStorage(KeyedMap):
    """A value for each owner. Owners are told to the kernel by a descriptor, open for the call.

    An owner's value is there from the first update on, by user space or a program, and goes with
    the owner. The map cannot be walked: the kernel keeps no list of the owners.
    """

    keys_are = fixed("i4")
    #: What the owners are, for messages.
    owners: ClassVar[str] = "anything with fileno(), or a descriptor"

    @contextmanager
    def _descriptor(self, owner: Any) -> Iterator[int]:
        """Give the descriptor of an owner: its own, or one that is open inside the ``with``."""
        if hasattr(owner, "fileno"):
            yield operator.index(owner.fileno())
            return
        if isinstance(owner, (int, np.integer)) and not isinstance(owner, bool):
            with self._numbered(int(owner)) as number:
                yield number
            return
        if not isinstance(owner, (str, os.PathLike)):
            raise self._refused(owner)
        number = self._at(owner)
        try:
            yield number
        finally:
            os.close(number)

    @contextmanager
    def _numbered(self, number: int) -> Iterator[int]:
        yield number

    def _at(self, path: str | os.PathLike[str]) -> int:
        raise self._refused(path)

    def _refused(self, owner: Any) -> TypeError:
        return TypeError(f"a key of a {self.type.name} map is {self.owners}, not {owner!r}")

    def lookup(self, key: Any, *, flags: int = 0) -> Any:
        """Return the value of an owner; the keys of each class are named there.

        Raises
        ------
        KeyNotFound
            The owner has no value here, or is gone.
        BpfError
            EBADF, ENOTSOCK: the descriptor is closed, or of something else.
        """
        with self._descriptor(key) as number:
            return self.lookup_elem(number, flags)

    def update(self, key: Any, value: Any, *, flags: int = ANY) -> None:
        """Set the value of an owner; the flags are those of `Map.update`."""
        with self._descriptor(key) as number:
            self.update_elem(number, value, flags)

    def delete(self, key: Any) -> None:
        """Delete the value of an owner."""
        with self._descriptor(key) as number:
            super().__delitem__(number)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of an owner, or `default` where there is none."""
        try:
            return self.lookup(key)
        except KeyError:
            return default

    def __getitem__(self, key: Any, /) -> Any:
        return self.lookup(key)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        self.update(key, value)

    def __delitem__(self, key: Any, /) -> None:
        self.delete(key)

    def __contains__(self, key: Any, /) -> bool:
        try:
            with self._descriptor(key) as number:
                return self.holds(number)
        except KeyNotFound:  # the owner itself is gone
            return False

    # ---- many owners ---------------------------------------------------------------------------

    @contextmanager
    def _descriptors(self, owners: Iterable[Any]) -> Iterator[Array]:
        with ExitStack() as stack:
            numbers = [stack.enter_context(self._descriptor(owner)) for owner in owners]
            yield np.array(numbers, "i4")

    def lookup_many(self, keys: Iterable[Any]) -> tuple[Array, Array]:
        """Look up many owners.

        Parameters
        ----------
        keys : iterable
            Owners, as for `lookup`. Those given by path or number need a descriptor each for
            the call.

        Returns
        -------
        values : ndarray
            ``(n,)``; zeros where there is none.
        found : ndarray of bool
            ``(n,)``.
        """
        with self._descriptors(keys) as numbers:
            rows = rows_of(numbers, self.key)
            raw = np.zeros((rows.count, self.value.size), np.uint8)
            found = np.zeros(rows.count, np.bool_)
            self.lookup_rows(rows, raw, found, None, Command.MAP_LOOKUP_ELEM)
        return slots(raw.reshape(-1), self.value_dtype, self.value.size, rows.count), found

    def update_many(self, keys: Any, values: Any, **options: Any) -> Any:
        """Set the values of many owners; see `Map.update_many`."""
        with self._descriptors(keys) as numbers:
            return super().update_many(numbers, values, **options)

    def delete_many(self, keys: Any, **options: Any) -> Any:
        """Delete the values of many owners; see `Map.delete_many`."""
        with self._descriptors(keys) as numbers:
            return super().delete_many(numbers, **options)


class SkStorage(LocalStorage):
    """SK_STORAGE: values of sockets. Keys are sockets, or their descriptors."""

    owners = "a socket, or its descriptor"


class InodeStorage(LocalStorage):
    """INODE_STORAGE: values of files. Keys are paths, open files, or descriptors."""

    owners = "a path, an open file, or a descriptor"

    def _at(self, path: str | os.PathLike[str]) -> int:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)


class TaskStorage(LocalStorage):
    """TASK_STORAGE: values of tasks. Keys are numbers of processes, or pidfds as `PidFd`.

    From Linux 6.9 also numbers of threads.
    """

    owners = "the number of a process or thread, or a PidFd"

    @contextmanager
    def _numbered(self, number: int) -> Iterator[int]:
        pidfd = _pidfd(number)
        try:
            yield pidfd
        finally:
            os.close(pidfd)


def _pidfd(number: int) -> int:
    if number < 1:
        raise ValueError(f"{number} is no number of a process")
    try:
        return os.pidfd_open(number)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise KeyNotFound(errno.ESRCH, f"there is no process {number}") from None
        # EINVAL, or ENOENT on newer kernels: a thread that does not lead its process.
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    try:
        return os.pidfd_open(number, _PIDFD_THREAD)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise KeyNotFound(errno.ESRCH, f"there is no thread {number}") from None
        if error.errno != errno.EINVAL:
            raise
    raise NotSupported(errno.EINVAL, f"{number} is a thread that does not lead its process: a "
                                     "key since Linux 6.9")


class CgrpStorage(LocalStorage):
    """CGRP_STORAGE: values of cgroups. Keys are folders of cgroups (v1 or v2), or descriptors."""

    owners = "the folder of a cgroup, or its descriptor"

    def _at(self, path: str | os.PathLike[str]) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class CgroupStorage(Table):
    """CGROUP_STORAGE: a value for each cgroup that a program with this map is attached to.

    Entries come with the attachment of a program, and stay until their cgroup is removed: user
    space reads and overwrites.
    Keys are ``(cgroup_inode_id, attach_type)``, or with ``key="u8"`` the inode's number alone; in
    place of that number may stand the cgroup's folder.

    Notes
    -----
    Linux calls this type deprecated: CGRP_STORAGE (6.2) serves most purposes better.
    """

    keys_are = fixed(np.dtype({"names": ["cgroup_inode_id", "attach_type"],
                               "formats": ["u8", "u4"], "itemsize": 16}), "u8")

    @property
    def most_entries(self) -> int:
        return _MOST_CGROUPS

    def _entry(self, key: Any) -> Any:
        """Return a key as the kernel knows it: a folder's inode in place of the folder."""
        if isinstance(key, (str, os.PathLike)):
            number = os.stat(key).st_ino
            if self.key_dtype.names is not None:
                raise TypeError(f"a key is (folder, attach_type) here, not {key!r} alone")
            return number
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], (str, os.PathLike)):
            return (os.stat(key[0]).st_ino, key[1])
        return key

    def lookup_elem(self, key: Any, flags: int) -> Any:
        return super().lookup_elem(self._entry(key), flags)

    def __delitem__(self, key: Any, /) -> None:
        super().__delitem__(self._entry(key))

    def update_elem(self, key: Any, value: Any, flags: int) -> None:
        super().update_elem(self._entry(key), value, flags)

    def __getitem__(self, key: Any, /) -> Any:
        return self.lookup_elem(key, 0)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        self.update_elem(key, value, ANY)

    def __contains__(self, key: Any, /) -> bool:
        return self.holds(self._entry(key))

    def __bool__(self) -> bool:
        return self.next_key() is not None


class PerCpuCgroupStorage(PerCpu, CgroupStorage):
    """PERCPU_CGROUP_STORAGE: a value of each CPU for each such cgroup."""


CLASSES: dict[MapType, type[Map]] = {
    MapType.SK_STORAGE: SkStorage,
    MapType.INODE_STORAGE: InodeStorage,
    MapType.TASK_STORAGE: TaskStorage,
    MapType.CGRP_STORAGE: CgrpStorage,
    MapType.CGROUP_STORAGE: CgroupStorage,
    MapType.PERCPU_CGROUP_STORAGE: PerCpuCgroupStorage,
}
