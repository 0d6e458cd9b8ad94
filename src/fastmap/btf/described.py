"""What BTF knows of records beside their dtype: names of enums, bitfields, conditions in words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap.btf.layout import Bitfield, Btf, Layout
from fastmap.dtypes import Where, locate, split_column

Array: TypeAlias = npt.NDArray[Any]

#: Bytes of a name that are shown: BTF of anybody may have longer ones.
LONGEST_NAME = 255


class Layouts(Mapping[str, Layout]):
    """The layouts of a map's "key" and "value", where they say more than the dtype.

    Parameters
    ----------
    types : Btf, optional
    ids : mapping, optional
        Of "key" and "value": the id of their type in `types`. Nothing is looked up before the
        first question.
    """

    def __init__(self, types: Btf | None = None, ids: Mapping[str, int] | None = None) -> None:
        self._types = types
        self._ids = dict(ids or {})
        self._found: dict[str, Layout] | None = None if self._ids else {}

    def _all(self) -> dict[str, Layout]:
        types = self._types  # first: another thread takes it away once it has found all
        if self._found is None:
            found = {}
            for side, number in self._ids.items():
                try:
                    layout = types.layout(number) if types is not None else None
                except ValueError as error:  # more of it than one call may do; the dtype stands
                    warnings.warn(f"the {side}'s enums and bitfields are not told: {error}",
                                  stacklevel=4)
                    continue
                if layout is not None and (layout.enums or layout.bitfields):
                    found[side] = layout
            self._found, self._types = found, None
        return self._found

    def __getitem__(self, side: str) -> Layout:
        return self._all()[side]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


#: Of maps without BTF.
NO_LAYOUTS: Mapping[str, Layout] = Layouts()


def described(array: Array, layout: Layout, *, names: bool = True,
              raw: Collection[str] = ()) -> Array:
    """Return records as people read them.

    Parameters
    ----------
    array : ndarray
        Of the layout's dtype, or of one that a read has made of it, with any number of axes. What
        a sum has widened is no value of an enum any more, and stays a number.
    layout : Layout
    names : bool
        Whether enums become their names, text (``S``); a value without one its number.
    raw : collection of str
        Dotted paths of enums that stay numbers.

    Returns
    -------
    ndarray
        Of the same shape: the array itself where the layout says nothing of it, otherwise a copy
        without padding, in which bitfields stand as integers in place of the fields they lie in.
    """
    enums = {path: each for path, each in layout.enums.items() if path not in raw} if names else {}
    return _Description(layout, enums).of(array, "")


class _Description:
    """One call of `described`."""

    def __init__(self, layout: Layout, enums: Mapping[str, Mapping[str, int]]) -> None:
        self._layout = layout
        self._enums = enums
        # By the path of a record: looked up once for each, however many there are.
        self._bitfields: dict[str, dict[str, Bitfield]] = {}
        for path, each in layout.bitfields.items():
            parent, _, name = path.rpartition(".")
            self._bitfields.setdefault(parent, {})[name] = each

    def of(self, array: Array, path: str) -> Array:
        if path in self._enums and array.dtype == self._dtype(path):
            return _named(array, self._enums[path])
        if array.dtype.names is None:
            return array
        inside: dict[str, dict[str, Bitfield]] = {}
        for label, bits in self._bitfields.get(path, {}).items():
            last = bits.container[-1]
            if last in array.dtype.names and array.dtype[last] == _at(
                    self._layout.dtype, ".".join(bits.container)):
                inside.setdefault(last, {})[label] = replace(bits, container=(last,))
        columns: dict[str, Array] = {}
        changed = bool(inside)
        for name in array.dtype.names:
            found = {label: bits.extract(array) for label, bits in inside.get(name, {}).items()}
            for label, column in (found or {name: array[name]}).items():
                columns[label] = self.of(column, f"{path}.{label}" if path else label)
                changed |= columns[label] is not column
        if not changed:
            return array
        out = np.zeros(array.shape, [(name, column.dtype, column.shape[array.ndim:])
                                     for name, column in columns.items()])
        for name, column in columns.items():
            out[name] = column
        return out

    def _dtype(self, path: str) -> np.dtype[Any] | None:
        """Return what an enum's numbers are in BTF."""
        bits = self._layout.bitfields.get(path)
        found = _at(self._layout.dtype, path) if bits is None else bits.dtype
        return None if found is None else found.base


def _at(dtype: np.dtype[Any], path: str) -> np.dtype[Any] | None:
    """Return the dtype at a dotted path, through arrays, too; None where there is none."""
    while path:
        names = dtype.base.names or ()
        # The columns of groups keep their dots.
        name = path if path in names else path.partition(".")[0]
        if name not in names:
            return None
        dtype, path = dtype.base[name], path[len(name) + 1:]
    return dtype


def _named(array: Array, names: Mapping[str, int]) -> Array:
    """Return numbers as the names that an enum has for them; of several, the first."""
    texts: dict[int, bytes] = {}
    for name, number in names.items():
        texts.setdefault(number, name.encode(errors="replace")[:LONGEST_NAME])
    # One width for all reads of a map, whatever is in it.
    width = max(20 if array.dtype.itemsize == 8 else 11, *map(len, texts.values()), 1)
    values, which = np.unique(array, return_inverse=True)
    known = np.array([texts.get(value) or b"%d" % value for value in values.tolist()], f"S{width}")
    out: Array = known[which].reshape(array.shape)
    return out


def bitfield(array: Array, layout: Layout | None, path: str) -> Array | None:
    """Return the bitfield of that dotted path in records; None where there is none."""
    if layout is None or path not in layout.bitfields or array.dtype != layout.dtype:
        return None
    return layout.bitfields[path].extract(array)


def condition(where: Where, key: np.dtype[Any], value: np.dtype[Any],
              layouts: Mapping[str, Layout]) -> Where:
    """Return `where` with the constant that the kernel's bytes are compared with.

    The name of an enum becomes its number; an address the number or the bytes that it is in memory,
    in network byte order; ``"in"`` a network the comparison of its first bytes.

    Raises
    ------
    ValueError
        The enum has no such name, or what is no address is compared with one.
    """
    if not isinstance(where, (tuple, list)) or len(where) != 3:
        return where
    path, compare, said = where
    if compare == "in" and not isinstance(said, str):
        raise TypeError(f"where {path}: in a network, such as '10.0.0.0/8', not {said!r}")
    if not isinstance(said, str):
        return where
    side, rest = split_column(path)
    dtype = key if side == "key" else value
    dtype = locate(dtype, rest)[0] if rest else dtype
    layout = layouts.get(side)
    names = layout.enums.get(rest) if layout is not None else None
    if names is not None and dtype.kind in "iu":
        if said in names:
            return path, compare, names[said]
        from difflib import get_close_matches  # late: for errors alone

        near = get_close_matches(said, names, 3) or list(names)[:8]
        raise ValueError(f"where {path}: no value of the enum is named {said!r}; there are "
                         f"{', '.join(near)}")
    if dtype.kind == "S" and compare != "in":
        return path, compare, said.encode()
    return _address(where, dtype)


def _address(where: Any, dtype: np.dtype[Any]) -> Where:
    path, compare, said = where
    plain = dtype.kind in "iuV" and dtype.names is None and (
        dtype.subdtype is None or dtype.base == np.uint8)
    if not plain or dtype.itemsize not in (4, 16):
        if compare == "in":
            raise ValueError(f"where {path} in {said!r}: a column of addresses, of 4 or 16 bytes, "
                             f"not {dtype}")
        return path, compare, said
    from ipaddress import ip_network  # late: it is long to import

    try:
        network = ip_network(said, strict=compare == "in")
    except ValueError as error:
        raise ValueError(f"where {path}: {said!r} is no address, and {dtype} is compared with no "
                         f"other text ({error})") from None
    packed = network.network_address.packed
    if len(packed) != dtype.itemsize:
        raise ValueError(f"where {path}: {said} has {len(packed)} bytes, the column "
                         f"{dtype.itemsize}")
    if compare == "in":
        if network.prefixlen % 8:
            raise ValueError(f"where {path} in {said}: prefixes of whole bytes, /8, /16, /24 and "
                             "so on")
        return path, "in", packed[:network.prefixlen // 8]
    if network.prefixlen != 8 * len(packed):
        raise ValueError(f"where {path}: {said} is a network: 'in' compares with one")
    if dtype.kind != "V" and dtype.subdtype is None:
        big = dtype.byteorder == ">" or (dtype.isnative and sys.byteorder == "big")
        if not big and compare not in ("==", "!="):
            raise ValueError(f"where {path}: addresses in the byte order of this machine's numbers "
                             "have no order: == or !=")
        return path, compare, int.from_bytes(packed, "big" if big else "little")
    return path, compare, packed
