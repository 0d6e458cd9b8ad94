"""Elements are moved as their bytes: padding, overlapping fields and records in arrays included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmap._core.rows.convert import contiguous, copied, joined, taken
from fastmap.collect import group_by, top

UNION = np.dtype({"names": ["p", "q"], "formats": ["u8", "u4"], "offsets": [0, 0], "itemsize": 8})
PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "u4"], "offsets": [0, 8],
                   "itemsize": 16})
NESTED = np.dtype({"names": ["x", "u"], "formats": ["u4", (UNION, (2,))], "offsets": [0, 8],
                   "itemsize": 24})
DTYPES = [UNION, PADDED, NESTED, np.dtype((PADDED, (3,))), np.dtype("V12"), np.dtype("u8"),
          np.dtype([("n", NESTED, (2, 2)), ("c", "S3")])]


def junk(dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    """Return elements of random bytes, those of the padding too."""
    raw = np.random.default_rng(1).bytes(dtype.itemsize * count)
    base, shape = dtype.subdtype or (dtype, ())
    return np.frombuffer(raw, base).reshape(count, *shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_byte_is_lost(dtype: np.dtype[Any]) -> None:
    array = junk(dtype, 60)
    rows = array.view(np.uint8).reshape(60, -1) if array.dtype.names is None else np.frombuffer(
        array.tobytes(), np.uint8).reshape(60, -1)
    assert copied(array).tobytes() == rows.tobytes()
    assert contiguous(array) is array
    assert contiguous(array[::3]).tobytes() == copied(array[::3]).tobytes() == rows[::3].tobytes()
    which = np.array([5, 3, 3, 59])
    assert taken(array, which).tobytes() == rows[which].tobytes()
    mask = np.arange(60) % 7 == 2
    assert taken(array, mask).tobytes() == rows[mask].tobytes()
    both = joined([array[::2], array[1::2], array[:0]])
    assert both.dtype == array.dtype
    assert both.tobytes() == rows[::2].tobytes() + rows[1::2].tobytes()


@pytest.mark.parametrize("key", [np.dtype("u4"), PADDED], ids=str)
def test_batches_keep_them(make: Callable[..., Any], key: np.dtype[Any]) -> None:
    m = make("hash", key=f"V{key.itemsize}", value=NESTED, max_entries=500)
    keys, values = junk(np.dtype(f"V{key.itemsize}"), 300), junk(NESTED, 300)
    m.update_many(keys, values)
    batch = m.snapshot()
    whole = {bytes(k): v.tobytes() for k, v in zip(batch.keys, batch.values, strict=True)}
    for other in (batch.copy(), batch.take(np.arange(len(batch))), top(batch, 300, "value.x")):
        assert {bytes(k): v.tobytes()
                for k, v in zip(other.keys, other.values, strict=True)} == whole
    groups = group_by(batch, "value.x", sum="value.x")
    assert groups.values["x"].tolist() == groups.keys.tolist()  # random: each is a group of one


def test_values_with_unions_in_arrays_are_dumped(make: Callable[..., Any]) -> None:
    """Chunk by chunk the largest are kept: joined as records, they were written past the end."""
    m = make("hash", key="u4", value=NESTED, max_entries=400_000, btf=True, name="unions")
    count = 400_000
    values = np.zeros(count, NESTED)
    values["x"] = np.arange(count)
    m.update_many(np.arange(count, dtype="u4"), values)
    done = subprocess.run(
        [sys.executable, "-m", "fastmap", "dump", str(m.id), "--top", "5", "--by", "value.x",
         "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and str(count - 1) in done.stdout
