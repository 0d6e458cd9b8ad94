"""Keys and values as text for people, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap.cli.shared.output import Column
from fastmap.maptypes.batch import Batch, as_list
from fastmap.text.decoders import decode
from fastmap.text.visible import visible

Array = npt.NDArray[Any]


def text_columns(batch: Batch, per_cpu: bool,
                 as_objects: bool = False,
                 notes: Mapping[str, str] | None = None) -> list[tuple[Column, list[str]]]:
    """Return each field of keys and values as a column of text.

    Parameters
    ----------
    batch : Batch
    per_cpu : bool
        Whether the values' second dimension is that of the CPUs: a cell lists them.
    as_objects : bool
        Whether keys are shown as the map hands them out: as networks, say.
    notes : mapping, optional
        How columns are decoded: ``{"key.saddr": "ip"}``, in the words of `fastmap.text.decoders`.

    Raises
    ------
    ValueError, TypeError
        A note names no column, or does not suit it.
    """
    left = dict(notes or {})
    if as_objects:
        found = [(Column("key"), [visible(str(key)) for key, _ in batch.items()])]
    else:
        found = list(_columns("key", batch.keys, 1, left))
    found += _columns("value", batch.values, 1 + per_cpu, left)
    if left:
        raise ValueError(f"no column {min(left)!r}; there are: "
                         f"{', '.join(column.heading for column, _ in found)}")
    return found


def _columns(name: str, array: Array, lead: int,
             notes: dict[str, str]) -> Iterator[tuple[Column, list[str]]]:
    if name in notes:
        yield Column(name), [visible(text) for text in decode(array, notes.pop(name))]
        return
    if array.dtype.names is None:
        yield Column(name, array.ndim == 1 and array.dtype.kind in "iuf"), cells(array, lead)
        return
    for field in array.dtype.names:
        yield from _columns(f"{name}.{field}", array[field], lead, notes)


def cells(array: Array, lead: int = 1) -> list[str]:
    """Return one text for each row of an array, whose first `lead` dimensions are no bytes'.

    >>> cells(np.array([[192, 0], [2, 1]], "u1")), cells(np.array([b"a", b"b"]))
    (['c000', '0201'], ['a', 'b'])
    """
    if array.dtype == np.uint8 and array.ndim == lead + 1:
        array = np.ascontiguousarray(array)
        array = (array.view(f"V{array.shape[-1]}")[..., 0] if array.shape[-1]
                 else np.zeros(array.shape[:-1], "S1"))
    return [_cell(item, array.dtype) for item in as_list(array)]


def _cell(item: Any, dtype: np.dtype[Any]) -> str:
    if isinstance(item, list):
        return f"[{', '.join([_cell(each, dtype.base) for each in item])}]"
    if isinstance(item, tuple) and dtype.names is not None:  # a record within an array
        return "{" + ", ".join(f"{name}={_cell(each, dtype[name])}"
                               for name, each in zip(dtype.names, item, strict=True)) + "}"
    if isinstance(item, bytes):
        if dtype.base.kind != "S":
            return item.hex()
        return visible(item.partition(b"\0")[0].decode(errors="backslashreplace"))
    return visible(item) if isinstance(item, str) else str(item)
