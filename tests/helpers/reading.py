"""What numpy alone makes of a read: the other half of the tests of reduce, fields and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def three_ways(m: Any, chunk: int | None = None, **options: Any) -> tuple[Array, Array]:
    """Read by snapshot, a reader, and in chunks; return keys and values, sorted, if all agree."""
    snapshot = m.snapshot(**options)
    reader = m.reader(chunk=chunk, **options)
    parts = [batch.copy() for batch in reader]
    chunked = (joined([p.keys for p in parts], snapshot.keys),
               joined([p.values for p in parts], snapshot.values))
    first = None
    for keys, values in (snapshot, reader.read(), chunked):
        order = np.argsort(keys)
        assert (np.diff(keys[order].astype("i8")) > 0).all(), "a key came twice"
        found = keys[order], values[order]
        if first is None:
            first = found
        assert (found[0] == first[0]).all()
        assert found[1].dtype == first[1].dtype and same_bytes(found[1], first[1])
    assert first is not None
    return first


def joined(parts: list[Array], like: Array) -> Array:
    """Concatenate, and keep the dtype: numpy itself makes native numbers of big-endian ones."""
    out = np.empty((sum(map(len, parts)), *like.shape[1:]), like.dtype)
    at = 0
    for part in parts:
        assert part.dtype == like.dtype
        out[at:at + len(part)] = part
        at += len(part)
    return out


def same_bytes(a: Array, b: Array) -> bool:
    """Compare field by field, bit by bit; what lies between the fields does not count."""
    if a.dtype.names:
        return a.dtype.names == b.dtype.names and all(
            same_bytes(a[name], b[name]) for name in a.dtype.names)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def alive(values: Array) -> npt.NDArray[np.bool_]:
    """Return where, in (n, cpus), a CPU wrote anything: bytes other than zeros."""
    n, cpus = values.shape[:2]
    packed = np.ascontiguousarray(values)
    flags: npt.NDArray[np.bool_] = packed.reshape(n, -1).view("u1").reshape(n, cpus, -1).any(axis=2)
    return flags


def widened(dtype: np.dtype[Any], op: str) -> np.dtype[Any]:
    """Return the dtype of a reduction of plain numbers."""
    if op != "sum":
        return dtype
    return np.dtype({"i": "i8", "u": "u8", "b": "u8", "f": "f8"}[dtype.kind])


def numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iufb"


def reduced(values: Array, op: str, live: npt.NDArray[np.bool_]) -> Array:
    """Reduce (n, cpus, ...) of one field, or of records, as `reduce` promises."""
    if values.dtype.names and values.ndim > 2:  # records in an array: each has fields of its own
        flat = values.reshape(*values.shape[:2], -1)
        each = [reduced(flat[:, :, i], op, live) for i in range(flat.shape[2])]
        together = np.empty((len(flat), len(each)), each[0].dtype)
        for i, part in enumerate(each):
            together[:, i] = part
        return together.reshape(values.shape[:1] + values.shape[2:])
    if values.dtype.names:
        parts = {name: reduced(values[name], op, live) for name in values.dtype.names}
        shape = values.shape[:1] + values.shape[2:]
        dtype = [(name, part.dtype, part.shape[len(shape):]) for name, part in parts.items()]
        out = np.zeros(shape, dtype)
        for name, part in parts.items():
            out[name] = part
        return out
    if op == "any" or not numeric(values.dtype):
        # Field by field, whatever the rest of the value holds.
        rows = [next((row[c] for c in np.flatnonzero(ok)), np.zeros_like(row[0]))
                for row, ok in zip(values, alive(values), strict=True)]
        return np.array(rows, values.dtype).reshape(values.shape[:1] + values.shape[2:])
    out_dtype = widened(values.dtype, op)
    native = values.astype(values.dtype.newbyteorder("="))
    if op == "or":
        whole = native if values.dtype.kind == "b" else native.view(f"u{native.dtype.itemsize}")
        folded = np.bitwise_or.reduce(whole, axis=1).view(native.dtype)
    elif op == "max":
        folded = native.max(axis=1)
    elif op == "min_nonzero":
        flat = native.reshape(*native.shape[:2], -1)
        least = [[min((each for each in column if each != 0), default=0) for column in row.T]
                 for row in flat]
        folded = np.array(least, native.dtype).reshape(values.shape[:1] + values.shape[2:])
    elif op == "min":
        rows = [row[ok].min(axis=0) if ok.any() else np.zeros_like(row[0])
                for row, ok in zip(native, live, strict=True)]
        folded = np.array(rows, native.dtype).reshape(values.shape[:1] + values.shape[2:])
    else:
        folded = np.zeros(values.shape[:1] + values.shape[2:], out_dtype)
        for cpu in range(values.shape[1]):
            folded = folded + native[:, cpu].astype(out_dtype)
    return folded.astype(out_dtype)
