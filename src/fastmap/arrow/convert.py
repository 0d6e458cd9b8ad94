"""Arrays of keys, values and records as Arrow, for pyarrow, polars, duckdb and pandas.

What a column comes to:

==============================  ===========================================================
integers, floats, bool          the same, in native byte order
``S16`` (C's ``char[16]``)      string, cut at the first NUL; what is no UTF-8 is ``\\xff``
void ``V16``                    fixed_size_binary(16)
sub-arrays, values of each CPU  fixed_size_list
nested records                  struct; padding and the kernel's own (locks) are left out
datetime64, timedelta64         timestamp, duration (of s, ms, us, ns; NaT is null); or int64
complex                         struct of real and imag
==============================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core.rows.columns import copy_columns, cut
from fastmap.arrow.writer import pyarrow
from fastmap.btf.layout import Layout
from fastmap.btf.special import special_kind
from fastmap.dtypes import locate
from fastmap.text.decoders import DECODERS, check_how, decode

Array: TypeAlias = npt.NDArray[Any]
#: What a column means, by its dotted path: see `record_batch`.
Annotations: TypeAlias = Mapping[str, "str | Mapping[Any, Any] | Layout"]
# Makes the Arrow array of a column, when all bytes are where they shall be.
_Build: TypeAlias = Callable[[], Any]

_MOST_TEXT = 0x7FFFFFFF


def record_batch(
    arrays: Mapping[str, Array], *, annotations: Annotations | None = None, copy: bool = True
) -> Any:
    """Return arrays of one length as a `pyarrow.RecordBatch`.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Each ``(n, ...)``. The fields of an array of records are columns of their own, by their own
        names; where several arrays have a field of one name, it is called ``"key.port"`` and
        ``"value.port"``. An array of anything else is a column by the array's name.
    annotations : mapping, optional
        What columns mean, by dotted paths such as ``"key.saddr"``:

        - "ipv4", "ipv6", "ip", "mac", "comm", "syscall", "errno", "interface", "hex": text, as
          `fastmap.text.decoders.decode` makes it. Arrays of bytes are taken whole.
        - a mapping of numbers to names, or of names to numbers as `btf_layout` has it for an enum:
          a dictionary column. What has no name is its number.
        - what `fastmap.btf_layout` returns, for an array (or field) of its dtype: its enums become
          dictionary columns, its bitfields columns in place of the integers they lie in. A layout
          without bitfields also serves where `reduce=` or `fields=` has changed the dtype.
    copy : bool
        Whether all columns are copied; False leaves those where they are that lie in one piece
        (the batch holds a reference to the array then, and shows what is written to it later).

    Returns
    -------
    pyarrow.RecordBatch

    Raises
    ------
    ValueError, TypeError
        An annotation names no column, or does not suit its dtype. Nothing has been copied then.
    OverflowError
        A column of text of over 2 GiB: take it in parts.
    ImportError
        pyarrow is not there.

    Notes
    -----
    Columns that are copied are copied in one pass over the rows, without the GIL.
    """
    pa = pyarrow()
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) != 1:
        raise ValueError(f"arrays of one length, not of {sorted(lengths)}")
    work = _Conversion(pa, annotations or {}, copy)
    columns = []
    for side, array in arrays.items():
        work.settle(side, array)
        if array.dtype.names is not None and side not in work.notes:
            columns += [(side, name, build) for name, build in work.fields(array, side, 1)]
        elif array.dtype.itemsize:
            columns.append((side, side, work.column(array, side, 1)))
    work.check_all_used()
    copy_columns(work.sources, work.outs)
    taken = [name for _, name, _ in columns]
    names = [name if taken.count(name) == 1 or name == side else f"{side}.{name}"
             for side, name, _ in columns]
    return pa.RecordBatch.from_arrays([build() for _, _, build in columns], names)


def stream(batch: Any, requested_schema: Any = None) -> Any:
    """Return a RecordBatch as the capsule of a stream, for ``__arrow_c_stream__``."""
    return pyarrow().Table.from_batches([batch]).__arrow_c_stream__(requested_schema)


class _Conversion:
    """One call of `record_batch`: what is to be copied, and what the columns mean."""

    def __init__(self, pa: Any, annotations: Annotations, copy: bool) -> None:
        if not isinstance(annotations, Mapping):
            raise TypeError("annotations is a dict such as {'key.saddr': 'ipv4'}, not "
                            f"{annotations!r}")
        self.pa = pa
        self.copy = copy
        self.layouts = {path: note for path, note in annotations.items()
                        if isinstance(note, Layout)}
        self.notes: dict[str, Any] = {
            path: note if isinstance(note, str) else _numbered(note)
            for path, note in annotations.items() if not isinstance(note, Layout)}
        for note in self.notes.values():
            check_how(note)
        self.unused = set(annotations)
        self.seen: list[str] = []
        # Of records with bitfields, by path: what gets each out of the array it belongs to.
        self.bitfields: dict[str, list[tuple[str, str, Callable[[], Array]]]] = {}
        self.sources: list[Array] = []
        self.outs: list[Array] = []

    def settle(self, path: str, array: Array) -> None:
        """Take in what the layout of `array` says, where it has one."""
        layout = self.layouts.pop(path, None)
        if layout is None:
            return
        self.unused.discard(path)
        # A reduced batch has wider fields, or fewer: its enums are still known by their paths.
        if layout.dtype != array.dtype and (
                layout.bitfields or not any(_has(array.dtype, inner) for inner in layout.enums)):
            raise ValueError(f"the layout of {path} is of {layout.dtype}, not {array.dtype}")
        for inner, names in layout.enums.items():
            self.notes.setdefault(_joined(path, inner), _numbered(names))
        for inner, bitfield in layout.bitfields.items():
            parent, _, name = inner.rpartition(".")
            self.bitfields.setdefault(_joined(path, parent), []).append(
                (name, bitfield.container[-1], partial(bitfield.extract, array)))

    def check_all_used(self) -> None:
        if self.unused:
            raise ValueError(f"annotations of {', '.join(sorted(self.unused))}: no such column; "
                             f"there are: {', '.join(self.seen)}")

    def fields(self, array: Array, path: str, outer: int) -> list[tuple[str, _Build]]:
        """Return the names and makers of the columns of an array of records."""
        bitfields = self.bitfields.get(path, [])
        containers = {container for _, container, _ in bitfields}
        found = [
            (name, self.column(array[name], f"{path}.{name}", outer))
            for name in array.dtype.names or ()
            if name not in containers and _shown(array.dtype[name])]
        found += [(name, self.column(extract(), f"{path}.{name}", outer))
                  for name, _, extract in bitfields]
        return found

    def column(self, array: Array, path: str, outer: int) -> _Build:
        """Return the maker of a column, of as many elements as the first `outer` axes have.

        The other axes become lists.
        """
        pa, dtype = self.pa, array.dtype
        self.seen.append(path)
        self.unused.discard(path)
        self.settle(path, array)
        note = self.notes.get(path)
        if note is not None:
            return self.annotated(array, path, note, outer)
        if dtype.names is not None:
            children = self.fields(array, path, array.ndim)
            return self.listed(array.shape, outer, lambda: pa.StructArray.from_arrays(
                [build() for _, build in children], [name for name, _ in children]))
        if dtype.kind in "SU":
            return self.text(array, outer)
        if dtype.kind == "c":
            parts = [self.column(part, f"{path}.{name}", array.ndim)
                     for name, part in (("real", array.real), ("imag", array.imag))]
            return self.listed(array.shape, outer, lambda: pa.StructArray.from_arrays(
                [build() for build in parts], ["real", "imag"]))
        if dtype.kind == "b":
            flags = self.moved(array.view("u1"))
            return self.listed(array.shape, outer, lambda: pa.Array.from_buffers(
                pa.bool_(), flags.size,
                [None, pa.py_buffer(np.packbits(flags.reshape(-1), bitorder="little"))]))
        if dtype.kind in "mM":
            unit, count = np.datetime_data(dtype)
            moved = self.moved(array)
            told = unit in ("s", "ms", "us", "ns") and count == 1
            return self.listed(array.shape, outer, lambda: pa.array(
                moved.reshape(-1) if told else moved.reshape(-1).view("i8")))
        if dtype.kind not in "iuf" or dtype.itemsize > 8:  # void; and a long double has no type
            array = array.view(f"V{dtype.itemsize}")
            kind = pa.binary(dtype.itemsize)
        else:
            kind = pa.from_numpy_dtype(dtype.newbyteorder("="))
        plain = self.moved(array)
        return self.listed(array.shape, outer, lambda: pa.Array.from_buffers(
            kind, plain.size, [None, pa.py_buffer(plain.reshape(-1).view("u1"))]))

    def moved(self, array: Array) -> Array:
        """Return the array, C-contiguous and native: itself, or one that is filled later."""
        if not self.copy and array.dtype.isnative and array.flags.c_contiguous:
            return array
        out = np.empty(array.shape, array.dtype.newbyteorder("="))
        self.sources.append(array)
        self.outs.append(out)
        return out

    def listed(self, shape: tuple[int, ...], outer: int, build: _Build) -> _Build:
        """Return what wraps the elements that `build` makes in lists, for the axes past `outer`."""
        pa = self.pa

        def wrapped() -> Any:
            made = build()
            for axis in range(len(shape) - 1, outer - 1, -1):
                made = pa.Array.from_buffers(pa.list_(made.type, shape[axis]), prod(shape[:axis]),
                                             [None], children=[made])
            return made

        return wrapped if len(shape) > outer else build

    def text(self, array: Array, outer: int) -> _Build:
        """Text up to the first NUL, of bytes or of UTF-32."""
        pa, width = self.pa, array.dtype.itemsize
        if array.size * width > _MOST_TEXT:
            raise OverflowError(f"{array.size} texts of {width} bytes are over 2 GiB: take the map "
                                "in parts, for batch in map.reader()")
        flat = array.reshape(-1)
        if array.dtype.kind == "U":
            codec = "utf-32-le" if flat.dtype.newbyteorder("<") == flat.dtype else "utf-32-be"
            raw = np.ascontiguousarray(flat).view(f"V{width}").tolist() if width else []
            return self.listed(array.shape, outer, lambda: pa.array(
                [_cut(row.decode(codec, "backslashreplace")) for row in raw], pa.string()))

        def build() -> Any:
            ends, data = np.empty(len(flat) + 1, "i4"), np.empty(len(flat) * width, "u1")
            ascii = cut(flat, ends, data)
            made = pa.StringArray.from_buffers(
                len(flat), pa.py_buffer(ends), pa.py_buffer(data[:ends[-1]]))
            if not ascii:
                try:
                    made.validate(full=True)
                except pa.ArrowInvalid:
                    rows = made.cast(pa.binary()).to_pylist()
                    made = pa.array([row.decode(errors="backslashreplace") for row in rows],
                                    pa.string())
            return made

        return self.listed(array.shape, outer, build)

    def annotated(self, array: Array, path: str, note: str | dict[int, str],
                  outer: int) -> _Build:
        """A column whose annotation is a word, or a map of numbers to names."""
        pa = self.pa
        if not isinstance(note, str):
            if array.dtype.kind not in "iub" or array.dtype.names is not None:
                raise TypeError(f"{path}: a map of numbers to names goes with integers, not "
                                f"{array.dtype}")
            numbers = self.moved(array.view("u1") if array.dtype.kind == "b" else array)
            return self.listed(array.shape, outer, lambda: _dictionary(
                pa, numbers.reshape(-1), note))
        widths = DECODERS[note].widths
        whole = widths is not None and array.ndim > outer and array.dtype.names is None and (
            array.dtype.itemsize not in widths if widths else array.dtype.itemsize == 1)
        shape = array.shape[:-1] if whole else array.shape
        if note == "comm" and array.dtype.kind in "SVu" and array.dtype.names is None:
            if whole:
                array = np.ascontiguousarray(array).view(f"V{array.shape[-1]}").reshape(shape)
            if whole or array.dtype.kind != "u":
                return self.text(array, outer)
        try:
            decode(np.empty((0, *array.shape[array.ndim - whole:]), array.dtype), note)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None
        rows = array.reshape(-1, array.shape[-1]) if whole else array.reshape(-1)
        width = array.dtype.itemsize * (array.shape[-1] if whole else 1)
        if note == "mac" or width == 4 and note in ("ipv4", "ip"):
            return self.listed(shape, outer, lambda: _byte_by_byte(pa, rows, width, note))
        return self.listed(shape, outer, lambda: pa.array(decode(rows, note), pa.string()))


def _byte_by_byte(pa: Any, rows: Array, width: int, note: str) -> Any:
    """IPv4 and MAC addresses as `decode` has them: a million that differ in 0.07 s, not in 2."""
    from pyarrow import compute
    octets = np.ascontiguousarray(rows).reshape(-1).view("u1").reshape(len(rows), width)
    count, each, between = (6, "{:02x}", ":") if note == "mac" else (4, "{}", ".")
    texts = pa.array([each.format(i) for i in range(256)], pa.string())
    parts = [texts.take(pa.array(np.ascontiguousarray(octets[:, i]))) for i in range(count)]
    return compute.binary_join_element_wise(*parts, between)


def _joined(path: str, inner: str) -> str:
    return f"{path}.{inner}" if inner else path


def _has(dtype: np.dtype[Any], path: str) -> bool:
    """Tell whether there is a field of that path."""
    try:
        locate(dtype, path)
    except ValueError:
        return False
    return True


def _cut(text: str) -> str:
    return text.partition("\0")[0]


def _numbered(names: Any) -> Any:
    """Return numbers with their names, also of names with their numbers, as BTF has enums."""
    if isinstance(names, Mapping) and names and all(isinstance(each, str) for each in names):
        turned: dict[Any, str] = {}
        for name, number in names.items():
            turned.setdefault(number, name)  # of several names of a number, the first
        return turned
    return names


def _shown(dtype: np.dtype[Any]) -> bool:
    """Tell whether a field has anything to show: it is no lock or the like, and has bytes."""
    base = dtype.subdtype[0] if dtype.subdtype is not None else dtype
    if base.names is None:
        return base.itemsize > 0
    return not special_kind(base) and any(_shown(base[name]) for name in base.names)


def _dictionary(pa: Any, numbers: Array, names: dict[int, str]) -> Any:
    """Numbers as a dictionary column: all names, then those numbers that have none."""
    limits = np.iinfo(numbers.dtype)
    known = np.array(sorted(n for n in names if limits.min <= n <= limits.max), numbers.dtype)
    texts = [names[n] for n in known.tolist()]
    if not len(known):
        at, named = np.zeros(len(numbers), "i8"), np.zeros(len(numbers), bool)
    else:
        at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        named = known[at] == numbers
    if not named.all():
        others, where = np.unique(numbers[~named], return_inverse=True)
        at[~named] = len(known) + where
        texts += [str(n) for n in others.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(at.astype("i4")), pa.array(texts, pa.string()))
