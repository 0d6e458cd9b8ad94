"""What users say about dtypes, worked out once: checked dtypes, and the columns of a read."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap._core.rows.columns import COMPARISONS, OPS, Columns
from fastmap._core.rows.convert import slot_dtype

Reduce: TypeAlias = str | Mapping[str, str] | None
Where: TypeAlias = tuple[str, str, Any] | None
_DType: TypeAlias = np.dtype[Any]

#: The words of `reduce`.
REDUCTIONS = tuple(op for op in OPS if op != "copy")
_NUMBERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")


class _Column(NamedTuple):
    op: str
    kind: str
    swapped: bool
    src: int
    dst: int
    length: int


def parse(spec: npt.DTypeLike | None, what: str) -> _DType:
    """Return the dtype that `spec` names, checked to be plain bytes of a fixed size."""
    if spec is None:
        raise TypeError(f"{what}= needs a dtype")
    dtype = np.dtype(spec)
    if dtype.hasobject:
        raise TypeError(f"{what} {dtype} holds Python objects; the kernel keeps plain bytes")
    if dtype.itemsize == 0:
        raise ValueError(f"{what} {dtype} has no bytes")
    return dtype


def fitting(spec: npt.DTypeLike, size: int, what: str) -> _DType:
    """Return the dtype of `spec`, which must have the `size` the kernel names."""
    dtype = parse(spec, what)
    if dtype.itemsize == size:
        return dtype
    hint = ""
    if dtype.names is not None and dtype.fields is not None:
        # Of a list of fields, also those of nested ones; of a dtype that is made, its own.
        aligned = np.dtype(spec, align=True)
        again = np.dtype([(name, dtype.fields[name][0]) for name in dtype.names], align=True)
        if size in (aligned.itemsize, again.itemsize):
            hint = "; np.dtype(..., align=True) would fit"
    raise ValueError(f"the map's {what} has {size} bytes, {dtype} has {dtype.itemsize}{hint}")


def slots(owner: Any, dtype: _DType, stride: int, count: int,
          offset: int = 0) -> np.ndarray[Any, Any]:
    """Return a view of `count` values of `dtype`, `stride` bytes apart, in `owner`'s memory."""
    array = np.frombuffer(owner, slot_dtype(dtype, stride), count, offset)
    view: np.ndarray[Any, Any] = array["value"]
    return view


def _leaf_kind(dtype: _DType) -> str | None:
    if dtype.kind == "b":
        return "u1"
    kind = f"{dtype.kind}{dtype.itemsize}"
    return kind if kind in _NUMBERS else None


def _base(dtype: _DType) -> tuple[_DType, tuple[int, ...]]:
    return dtype.subdtype if dtype.subdtype is not None else (dtype, ())


class _Reduction:
    """`reduce=` for one value dtype: which operation each field takes."""

    def __init__(self, dtype: _DType, reduce: str | Mapping[str, str]) -> None:
        self.word: str | None = None
        self.fields: dict[str, str] = {}
        if isinstance(reduce, str):
            self.word = reduce
            words = [reduce]
        elif isinstance(reduce, Mapping):
            if dtype.names is None:
                raise TypeError(f"reduce by field, but the value is {dtype}")
            self.fields = dict(reduce)
            words = list(self.fields.values())
            for path in self.fields:
                locate(dtype, path)
        else:
            raise TypeError(f"reduce is a word or a dict of fields, not {type(reduce).__name__}")
        for word in words:
            if word not in REDUCTIONS:
                raise ValueError(f"reduce={word!r}: one of {', '.join(REDUCTIONS)}")

    def op(self, path: str, kind: str | None) -> str:
        parts = path.split(".") if path else []
        asked = next(
            (self.fields[p] for n in range(len(parts), 0, -1)
             if (p := ".".join(parts[:n])) in self.fields), None)
        op = asked or self.word or "any"
        if kind is None and path not in self.fields and parts:
            return "any"
        if op != "any" and (kind is None or (op == "or" and kind[0] == "f")):
            raise TypeError(f"reduce={op!r} of {path or 'a value'} that is no "
                            f"{'integer' if op == 'or' else 'number'}")
        return op


def _widened(dtype: _DType, op: str) -> _DType:
    if op != "sum":
        return dtype
    return np.dtype("f8" if dtype.kind == "f" else "i8" if dtype.kind == "i" else "u8")


def _reduced(
    dtype: _DType, how: _Reduction | None, path: str, src: int
) -> tuple[_DType, list[_Column]]:
    """Return the result's dtype for the value (or field) at `src`, and its columns from 0 on."""
    if how is None:
        return dtype, [_Column("copy", "bytes", False, src, 0, dtype.itemsize)]
    base, shape = _base(dtype)
    count = prod(shape)
    if base.names is not None:
        return _reduced_record(base, shape, how, path, src)
    kind = _leaf_kind(base)
    op = how.op(path, kind)
    if op == "any" and base.kind in "fc" and kind is None and how.word not in (None, "any"):
        raise TypeError(f"reduce={how.word!r} of {path}: not for {base}; say 'any' for it")
    if op == "any":
        return dtype, [_Column("any", "bytes", False, src, 0, dtype.itemsize)]
    assert kind is not None  # how.op refuses anything else
    out = np.dtype((_widened(base, op), shape)) if shape else _widened(base, op)
    return out, [_Column(op, kind, not base.isnative, src, 0, count)]


def _reduced_record(
    base: _DType, shape: tuple[int, ...], how: _Reduction, path: str, src: int
) -> tuple[_DType, list[_Column]]:
    assert base.names is not None and base.fields is not None
    parts = {}
    for name in base.names:
        field, offset = base.fields[name][:2]
        parts[name] = (offset, *_reduced(field, how, f"{path}.{name}" if path else name, 0))
    if all(out == base.fields[name][0] for name, (_, out, _) in parts.items()):
        one = base  # nothing widened: the layout stays
    else:
        one = np.dtype([(name, out) for name, (_, out, _) in parts.items()], align=True)
    assert one.fields is not None
    columns = [
        column._replace(src=column.src + src + i * base.itemsize + offset,
                        dst=column.dst + i * one.itemsize + one.fields[name][1])
        for i in range(prod(shape))
        for name, (offset, _, own) in parts.items()
        for column in own
    ]
    return (np.dtype((one, shape)) if shape else one), columns


def locate(dtype: _DType, path: str) -> tuple[_DType, int]:
    """Return the dtype and the offset of the field that a dotted `path` names."""
    offset = 0
    for name in path.split("."):
        if dtype.names is None or name not in dtype.names:
            there = ", ".join(dtype.names) if dtype.names else f"none, it is {dtype}"
            raise ValueError(f"no field {name!r} (of {path!r}); there are: {there}")
        assert dtype.fields is not None
        dtype, step = dtype.fields[name][:2]
        offset += step
    return dtype, offset


def split_column(path: str) -> tuple[str, str]:
    """Split a column's path into its side, "key" or "value", and the rest, "" for the whole."""
    if not isinstance(path, str):
        raise TypeError(f"a column is a str, not {path!r}")
    side, _, rest = path.partition(".")
    if side not in ("key", "value"):
        raise ValueError(f"a column is 'key', 'value', or a field of one ('value.bytes'), "
                         f"not {path!r}")
    return side, rest


def _chosen(
    dtype: _DType, fields: Sequence[str], how: _Reduction | None
) -> tuple[_DType, list[_Column]]:
    """`fields=`: return the dtype of a row that holds only these, and its columns."""
    if isinstance(fields, str) or not fields:
        raise TypeError("fields is a list of columns, such as ['value.bytes']")
    parts: dict[str, tuple[_DType, list[_Column]]] = {}
    for path in fields:
        side, rest = split_column(path)
        if side == "key":
            if rest:
                raise ValueError(f"{path!r}: keys are always kept whole")
        elif not rest:
            return _reduced(dtype, how, "", 0)
        else:
            field, offset = locate(dtype, rest)
            parts[rest] = _reduced(field, how, rest, offset)
    one = np.dtype([(name, out) for name, (out, _) in parts.items()], align=True)
    assert one.fields is not None or not parts
    return one, [column._replace(dst=column.dst + one.fields[name][1])  # type: ignore[index]
                 for name, (_, own) in parts.items() for column in own]


_BEYOND = {"<": ("always", "never"), "<=": ("always", "never"), ">": ("never", "always"),
           ">=": ("never", "always"), "==": ("never", "never"), "!=": ("always", "always")}


def _condition(
    columns: Columns, key: _DType, value: _DType, how: _Reduction | None,
    where: tuple[str, str, Any],
) -> None:
    """`where=`: make `columns` keep only the rows that pass."""
    try:
        path, compare, bound = where
    except (TypeError, ValueError):
        raise TypeError("where is (column, comparison, constant), such as "
                        "('value.bytes', '>=', 4096)") from None
    if compare not in _BEYOND and compare != "in":
        raise ValueError(f"where compares with one of {', '.join(_BEYOND)}, in, not {compare!r}")
    side, rest = split_column(path)
    dtype, offset = locate(key if side == "key" else value, rest) if rest else (
        key if side == "key" else value, 0)
    if dtype.subdtype is not None and dtype.base == np.uint8 and len(dtype.shape) == 1:
        dtype = np.dtype(f"V{dtype.itemsize}")  # an address, a hash: bytes
    if dtype.subdtype is not None or dtype.names is not None:
        raise TypeError(f"where {path}: one number or bytes, not {dtype}")
    kind = None if compare == "in" else _leaf_kind(dtype)
    op = how.op(rest, kind) if how is not None and side == "value" else "copy"
    out = _widened(dtype, op)
    count = 1
    if compare == "in":  # the first bytes of an address: `fastmap.btf.described.condition`
        kind, count, compare = "bytes", len(bound), "==" if bound else "always"
    elif kind is not None and out.kind in "iub":
        if isinstance(bound, float) and bound.is_integer():
            bound = int(bound)
        try:
            bound = operator.index(bound)
        except TypeError:
            raise TypeError(f"where {path}: an integer ({out}), not {bound!r}") from None
        limits = np.iinfo("u1" if out.kind == "b" else out)
        if not limits.min <= bound <= limits.max:
            compare, bound = _BEYOND[compare][bound < limits.min], 0
    elif kind is not None:
        if not isinstance(bound, (int, float, np.number, np.bool_)):
            raise TypeError(f"where {path}: a number, not {bound!r}")
        narrow = out.itemsize == 4 and not isinstance(bound, np.generic)
        bound = float(bound)
        if narrow:  # compared in the field's precision, as numpy does
            with np.errstate(over="ignore"):
                bound = float(np.float32(bound))
    elif dtype.kind in "SV":
        kind, count = "bytes", dtype.itemsize
        try:
            bound = bytes(memoryview(bound))  # nothing but bytes: bytes(5) would be five of them
        except TypeError:
            hint = "; of a map without types, key= and value= of open tell them" * (
                dtype.kind == "V")
            raise TypeError(f"where {path}: bytes ({dtype}), not {bound!r}{hint}") from None
        if len(bound) > count or (dtype.kind == "V" and len(bound) != count):
            raise ValueError(f"where {path}: {count} bytes, not {len(bound)}")
        bound = bound.ljust(count, b"\0")
    else:
        raise TypeError(f"where {path}: cannot compare {dtype}")
    column = _Column(op, kind, not dtype.isnative, offset, 0, count)
    columns.keep(column, compare, side == "key", bound)


def plan(
    key: _DType, value: _DType, cpus: int, stride: int, *,
    reduce: Reduce = None, fields: Sequence[str] | None = None, where: Where = None,
) -> tuple[Columns | None, _DType, bool]:
    """Return what makes results out of the kernel's rows, the result's dtype, and its width.

    Parameters
    ----------
    key, value : dtype
    cpus : int
        Values in a row; 0 where the map is not per-CPU.
    stride : int
        Bytes from one CPU's value to the next.

    Returns
    -------
    columns : Columns or None
        None where the kernel's rows are the result as they are.
    dtype : dtype
        Of one value of the result.
    wide : bool
        Whether the result has one value for each CPU.
    """
    if reduce is not None and not cpus:
        raise ValueError("reduce is for per-CPU maps")
    if where and cpus and reduce is None and split_column(where[0])[0] == "value":
        raise ValueError("where on the values of a per-CPU map needs reduce")
    how = None if reduce is None else _Reduction(value, reduce)
    wide = bool(cpus) and how is None
    if how is None and fields is None and where is None:
        return None, value, wide
    out, own = _reduced(value, how, "", 0) if fields is None else _chosen(value, fields, how)
    if wide:
        own = [column._replace(src=column.src + cpu * stride, dst=column.dst + cpu * out.itemsize)
               for cpu in range(cpus) for column in own]
    columns = Columns(own, max(cpus, 1), stride, value.itemsize,
                      out.itemsize * (cpus if wide else 1))
    if where is not None:
        _condition(columns, key, value, how, where)
    return columns, out, wide


def unpacked(value: _DType, cpus: int, stride: int) -> Columns:
    """Return what turns a per-CPU row in 8-byte slots into `cpus` values side by side."""
    size = value.itemsize
    own = [_Column("copy", "bytes", False, cpu * stride, cpu * size, size) for cpu in range(cpus)]
    return Columns(own, cpus, stride, size, cpus * size)


assert set(_BEYOND) | {"always", "never"} == set(COMPARISONS)
