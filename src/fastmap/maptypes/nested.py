"""Maps whose values are maps."""

from __future__ import annotations

import errno
from collections.abc import Callable, ItemsView, Iterator, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.dtypes import Reduce, Where
from fastmap.enums import ANY, Command, MapFlag, MapType, running_kernel
from fastmap.errors import ObjectNotFound, PermissionDenied
from fastmap.kernel.map_facts import FACTS
from fastmap.maptypes.batch import Array, Batch
from fastmap.maptypes.handle import Map
from fastmap.maptypes.kernel_values import Referring, Slots
from fastmap.maptypes.keyed import Keys
from fastmap.maptypes.rules import fixed
from fastmap.maptypes.table import MISSING, DictMap, Table, pop


def check_inner(kind: MapType) -> None:
    """Refuse a type that no map of maps takes."""
    if not FACTS[kind].may_be_inner:
        raise ValueError(f"a map of maps takes no {kind.name} maps")


@dataclass(frozen=True)
class Inner:
    """What all maps in a map of maps have in common, and the dtypes they are read with."""

    type: MapType
    key: np.dtype[Any] | None
    value: np.dtype[Any] | None
    max_entries: int
    flags: MapFlag
    #: Whether BTF says that the value is a struct.
    struct: bool

    @classmethod
    def of(cls, like: Map) -> Self:
        """Describe the map that a map of maps is created with."""
        return cls(like.type, like.key_dtype, like.value_dtype, like.max_entries, like.flags,
                   getattr(like.value_dtype, "names", None) is not None
                   and syscall.map_info(like.fd)["btf_id"] != 0)

    def differences(self, other: Map) -> list[str]:
        """Say in what `other` differs so that the kernel would not take it."""
        theirs = Inner.of(other)
        fields: dict[str, tuple[Any, ...]] = {
            "type": (theirs.type.name, self.type.name),
            "key size": (_size(theirs.key), _size(self.key)),
            "value size": (_size(theirs.value), _size(self.value)),
            "flags": (_names(theirs.flags), _names(self.flags)),
        }
        # The kernel makes lookups in arrays into instructions with their length in them.
        if FACTS[self.type].fixed_length and not self.flags & MapFlag.INNER_MAP:
            fields["max_entries"] = (theirs.max_entries, self.max_entries)
        if running_kernel() < (6, 2):
            # There a struct is known to hold no spin lock; of other values nothing is known.
            fields["BTF of a struct as value"] = tuple(
                "there" if each.struct else "missing" for each in (theirs, self))
        found = [f"{what} is {there}, not {asked}"
                 for what, (there, asked) in fields.items() if there != asked]
        if FACTS[self.type].family == "array" and any(
                each.startswith("max_entries") for each in found):
            found.append("arrays created with MapFlag.INNER_MAP may differ in max_entries")
        return found


def _size(dtype: np.dtype[Any] | None) -> int:
    return 0 if dtype is None else dtype.itemsize


def _names(flags: MapFlag) -> str:
    return " | ".join(flag.name or "" for flag in MapFlag if flag in flags) or "0"


class MapOfMaps(Referring, Table):
    """What both share: a map is put in, and a map is read.

    A map that is read is opened by the id that the kernel gives, which takes CAP_SYS_ADMIN;
    `lookup_id`, `lookup_many` and `snapshot` give the ids alone, and need no capability. Its
    dtypes are those of its BTF; where it has none, those of the `inner` map or specification that
    this map was created with. Each read opens the map anew: it is the reader's to close.

    A write of a single element waits until no program uses what was there before: 5 to 16 ms
    (least and median) on the machine this was written on. `update_many` waits once for all of its
    keys (Linux 5.19): 18 and 105 ms for 256 maps there, a fortieth of one by one. The GIL is
    released meanwhile. With NOEXIST or EXIST it goes one by one.
    """

    values_are = fixed("u4")
    waits = True

    def __init__(self, fd: Fd, key: np.dtype[Any] | None, value: np.dtype[Any] | None, *,
                 opener: Callable[[int, Inner | None, str], Map], inner: Inner | None = None,
                 **more: Any) -> None:
        super().__init__(fd, key, value, **more)
        #: What maps in this one are like; None where the map was not created here.
        self.inner = inner
        self._opener = opener

    # ---- writing -------------------------------------------------------------------------------

    def update(self, key: Any, value: Any, *, flags: int = ANY) -> None:
        """Put a map under `key`.

        Parameters
        ----------
        key : object
        value : Map
            Like the inner map this one was created with: of its type, its sizes of key and value,
            its flags; for arrays without MapFlag.INNER_MAP (5.10) of its max_entries too. Before
            Linux 6.2 both have BTF that calls the value a struct, or neither.
        flags : UpdateFlag
            NOEXIST and EXIST only for a HASH_OF_MAPS.

        Raises
        ------
        ValueError
            The map is not like the inner map: the message tells each difference.
        TypeError
            It is not a Map.
        """
        self.update_elem(key, value, flags)

    def _raw(self, value: Any, held: list[Fd]) -> int:
        if not isinstance(value, Map):
            raise TypeError(f"a value of a {self.type.name} map is a Map, not {value!r:.60}")
        if self.inner is not None and (found := self.inner.differences(value)):
            raise ValueError(f"{value!r} is not like the maps in this one: {'; '.join(found)}")
        check_inner(value.type)
        held.append(value.fd)
        return value.fileno()

    def __delitem__(self, key: Any, /) -> None:
        self.apply_one(Command.MAP_DELETE_BATCH, Command.MAP_DELETE_ELEM, key, None, ANY)

    # ---- reading -------------------------------------------------------------------------------

    def __getitem__(self, key: Any, /) -> Any:
        return self.lookup_elem(key, 0)

    def lookup(self, key: Any, *, flags: int = 0) -> Any:
        """Return the map under `key`, opened anew.

        Raises
        ------
        KeyNotFound
            There is none.
        PermissionDenied
            CAP_SYS_ADMIN is missing: opening a map by its id takes it; `lookup_id` does not.
        """
        return self.lookup_elem(key, flags)

    def lookup_elem(self, key: Any, flags: int) -> Map:
        last = None
        while True:
            number = super().lookup_elem(key, flags)
            try:
                return self._opened(number)
            except ObjectNotFound:
                if number == last:
                    raise
                last = number  # replaced, and gone, since: look again

    def _opened(self, number: int) -> Map:
        try:
            return self._opener(number, self.inner, self.default_via)
        except PermissionDenied as error:
            denied = PermissionDenied(
                error.errno or 0, f"opening map {number} by its id needs CAP_SYS_ADMIN; lookup_id, "
                "lookup_many and snapshot give ids without it")
            denied.command = error.command
            raise denied from None

    def lookup_id(self, key: Any) -> int:
        """Return the id of the map under `key`; this needs no capability."""
        number: int = super().lookup_elem(key, 0)
        return number

    def lookup_many(self, keys: Keys, *, out: Array | None = None, reduce: Reduce = None,
                    via: str | None = None, threads: int = 1) -> tuple[Array, Array]:
        """Return the ids of the maps under many keys (u4, 0 where none is), and found."""
        return super().lookup_many(keys, out=out, reduce=reduce, via=via, threads=threads)

    def snapshot(self, *, reduce: Reduce = None, fields: Sequence[str] | None = None,
                 where: Where = None, exact: bool = True, via: str | None = None) -> Batch:
        """Read the whole map; the values are the ids of the maps, u4. See `Table.snapshot`."""
        return super().snapshot(reduce=reduce, fields=fields, where=where, exact=exact, via=via)

    def values(self) -> ValuesView[Any]:
        """Return a view of the maps; each is opened when the iteration comes to it."""
        return _Maps(self)  # type: ignore[arg-type]

    def items(self) -> ItemsView[Any, Any]:
        """Return a view of keys and maps; each map is opened when the iteration comes to it."""
        return _KeysAndMaps(self)  # type: ignore[arg-type]

    def _each_opened(self) -> Iterator[tuple[Any, Map]]:
        for batch in self.reader():
            for key, number in batch.copy().items():
                try:
                    yield key, self._opened(number)
                except ObjectNotFound:
                    continue  # taken out, and gone, since

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Return the map under `key`, opened, and take it out; `default` where there is none.

        Two steps: the kernel has no single one.
        """
        return pop(self, key, default)


class _Maps(ValuesView[Any]):
    _mapping: MapOfMaps

    def __iter__(self) -> Iterator[Any]:
        return (each for _, each in self._mapping._each_opened())


class _KeysAndMaps(ItemsView[Any, Any]):
    _mapping: MapOfMaps

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._each_opened()


class ArrayOfMaps(MapOfMaps, Slots):
    """ARRAY_OF_MAPS: a map, or none, under each index.

    Iteration, ``len()`` and whole reads are about the indices that hold a map. `delete_many` and
    `clear` wait for each map that they take out: the kernel has no batch command for it.
    """

    nothing_there: ClassVar[frozenset[int]] = frozenset({errno.E2BIG})


class HashOfMaps(MapOfMaps, DictMap):
    """HASH_OF_MAPS: maps under keys of any bytes. A `collections.abc.MutableMapping`."""

    def update(self, *given: Any, flags: int = ANY) -> None:
        """Put a map under a key, ``update(key, map)``, or many, ``update({key: map})``.

        With a mapping, all are written in batches: see `update_many`, and `MapOfMaps`.
        """
        DictMap.update(self, *given, flags=flags)

    def drain(self, *, reduce: Reduce = None, fields: Sequence[str] | None = None,
              via: str | None = None) -> Batch:
        """Take all maps out and return their ids; see `Reader.drain`.

        A map that nothing else holds, no handle, pin or program, is gone with its entry: hold
        the maps first, ``list(m.values())``, where they are to be read afterwards.
        """
        return super().drain(reduce=reduce, fields=fields, via=via)


CLASSES: dict[MapType, type[Map]] = {
    MapType.ARRAY_OF_MAPS: ArrayOfMaps,
    MapType.HASH_OF_MAPS: HashOfMaps,
}
