"""What a dtype is in JSON, worked out once: the pieces that `JsonRows` writes for each entry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core.rows.jsonrows import JsonRows

_DType: TypeAlias = np.dtype[Any]
_Piece: TypeAlias = tuple[bytes, str, bool, bool, int, int, int, int]

#: The bytes of numbers; others, of complex or of 16-byte floats, are written as hexadecimal.
_KINDS = {"b": ("boolean", (1,)), "u": ("unsigned", (1, 2, 4, 8)), "i": ("signed", (1, 2, 4, 8)),
          "f": ("float", (2, 4, 8))}


class _Pieces:
    """Collects pieces; text that no field follows yet is kept for the next one."""

    def __init__(self) -> None:
        self.made: list[_Piece] = []
        self.text = b""

    def add(self, dtype: _DType, on_value: bool, src: int) -> None:
        """Add what `dtype` is at the byte `src` of the key or the value."""
        base, shape = dtype.subdtype if dtype.subdtype is not None else (dtype, ())
        if shape:
            self._array(base, shape, on_value, src)
        elif base.names is not None and base.fields is not None:
            for number, name in enumerate(base.names):
                self.text += b"{" if not number else b","
                self.text += json.dumps(name).encode() + b":"
                field, offset = base.fields[name][:2]
                self.add(field, on_value, src + offset)
            self.text += b"}" if base.names else b"{}"
        else:
            self._leaf(base, on_value, src, -1, 0)

    def _leaf(self, base: _DType, on_value: bool, src: int, count: int, step: int) -> None:
        kind, sizes = _KINDS.get(base.kind, ("hex", ()))
        if base.kind == "S":
            kind = "text"
        elif base.itemsize not in sizes:
            kind = "hex"
        swapped = not base.isnative
        self.made.append(
            (self.text, kind, on_value, swapped, src, base.itemsize, count, step))
        self.text = b""

    def _array(self, base: _DType, shape: tuple[int, ...], on_value: bool, src: int) -> None:
        if len(shape) == 1 and base.names is None:
            if base == np.uint8:  # an address, a hash: bytes
                self._leaf(np.dtype(f"V{shape[0]}"), on_value, src, -1, 0)
            else:
                self._leaf(base, on_value, src, shape[0], base.itemsize)
            return
        inner = np.dtype((base, shape[1:])) if shape[1:] else base
        self.listed(inner, on_value, src, shape[0], inner.itemsize)

    def listed(self, inner: _DType, on_value: bool, src: int, count: int, step: int) -> None:
        """Add a list of `count` items that are `step` bytes apart."""
        if inner.names is None and inner.subdtype is None:
            self._leaf(inner, on_value, src, count, step)
            return
        self.text += b"["
        for number in range(count):
            self.text += b"," if number else b""
            self.add(inner, on_value, src + number * step)
        self.text += b"]"


def json_rows(key: _DType, value: _DType, cpus: int = 0, stride: int = 0) -> JsonRows:
    """Return what writes entries of these dtypes, ``{"key": ..., "value": ...}`` and a line's end.

    Numbers are numbers (NaN and the infinities null), text (``S``) is a string up to its first
    NUL, other bytes, arrays of u1 among them, are hexadecimal, records objects, arrays lists.

    Parameters
    ----------
    key, value : dtype
    cpus : int
        Values of an entry, where they are a list, `stride` bytes apart; 0 where it is one.
    """
    pieces = _Pieces()
    pieces.text = b',\n{"key":'
    pieces.add(key, False, 0)
    pieces.text += b',"value":'
    if cpus:
        pieces.listed(value, True, 0, cpus, stride)
    else:
        pieces.add(value, True, 0)
    size = value.itemsize if not cpus else (cpus - 1) * stride + value.itemsize
    return JsonRows(pieces.made, pieces.text + b"}", key.itemsize, size)


class JsonWriter:
    """Writes the chunks of a read as one JSON array, an entry on a line.

    Parameters
    ----------
    per_cpu : bool
        Whether the values have a further dimension, that of the CPUs: they become lists.
    """

    def __init__(self, per_cpu: bool = False) -> None:
        self._per_cpu = per_cpu
        self._rows: JsonRows | None = None
        self._begun = False

    def text(self, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> Iterator[memoryview]:
        """Yield the text of a chunk in pieces of about 1 MiB; the next one overwrites it.

        The chunks of a writer are of the same dtypes and strides, as those of a reader are.
        """
        if self._rows is None:
            key = np.dtype((keys.dtype, keys.shape[1:]))
            value = np.dtype((values.dtype, values.shape[1 + self._per_cpu:]))
            cpus = (values.shape[1], values.strides[1]) if self._per_cpu else (0, 0)
            self._rows = json_rows(key, value, *cpus)
        at = 0
        while at < len(keys):
            at, text = self._rows.write(keys, values, at)
            # The first entry has no comma before it.
            yield text if self._begun else memoryview(b"[" + bytes(text[1:]))
            self._begun = True

    def end(self) -> bytes:
        """Return what ends the array."""
        return b"\n]\n" if self._begun else b"[]\n"


def json_lines(records: npt.NDArray[Any]) -> bytes:
    """Return each record of an array as JSON on a line of its own."""
    dtype = np.dtype((records.dtype, records.shape[1:]))
    pieces = _Pieces()
    pieces.add(dtype, False, 0)
    rows = JsonRows(pieces.made, pieces.text + b"\n", dtype.itemsize, 0)
    found, at = b"", 0
    while at < len(records):
        at, text = rows.write(records, records, at)
        found += text
    return found
