"""JSON of entries: what the compiled writer makes of every dtype, against Python's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from fastmap._core.rows.jsonrows import JsonRows
from fastmap.text.json import JsonWriter, json_lines

pytestmark = pytest.mark.quick


def plain(item: Any, dtype: np.dtype[Any]) -> Any:
    """Return what JSON must say of an element: the rules, written down a second time."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        if base == np.uint8 and len(shape) == 1:
            return bytes(item.tolist()).hex()
        inner = np.dtype((base, shape[1:])) if shape[1:] else base
        return [plain(each, inner) for each in item]
    if dtype.names is not None:
        return {name: plain(item[name], dtype[name]) for name in dtype.names}
    if dtype.kind == "S":
        return bytes(item).partition(b"\0")[0].decode(errors="replace")
    if dtype.kind == "b":
        return bool(item)
    if dtype.kind in "iu":
        return int(item)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return float(item) if math.isfinite(item) else None
    return item.tobytes().hex()


def parsed(keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any], per_cpu: bool = False) -> Any:
    writer = JsonWriter(per_cpu)
    text = b"".join(bytes(piece) for piece in writer.text(keys, values)) + writer.end()
    return json.loads(text.decode())


NESTED = np.dtype([
    ("addr", "u1", (4,)), ("port", ">u2"), ("big", "u8"), ("small", "i1"), ("signed", ">i8"),
    ("flag", "?"), ("comm", "S16"), ("half", "f2"), ("single", ">f4"), ("double", "f8"),
    ("opaque", "V3"), ("slots", "u4", (3,)), ("grid", "i2", (2, 2)), ("bytes", "u1", (2, 3)),
    ("inner", [("a", "u4"), ("b", [("c", "S2")])]), ("each", [("x", "u1"), ("y", "i4")], (2,)),
    ("complex", "c8"), ("none", "u4", (0,)), ('quo"ted', "u1"),
], align=True)


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(min_size=NESTED.itemsize, max_size=3 * NESTED.itemsize))
def test_whatever_the_bytes_are(data: bytes) -> None:
    """Any bytes: numbers to the last digit, text that is no UTF-8, NaN."""
    count = len(data) // NESTED.itemsize
    records = np.frombuffer(data, NESTED, count)
    expected = [{"key": plain(each, NESTED), "value": plain(each, NESTED)} for each in records]
    assert parsed(records, records) == expected
    lines = json_lines(records).split(b"\n")[:-1]
    assert [json.loads(line) for line in lines] == [each["key"] for each in expected]


@given(st.binary(max_size=24) | st.text(max_size=6).map(str.encode))
def test_text(data: bytes) -> None:
    """Quotes, controls, broken and overlong sequences: as Python decodes them."""
    array = np.frombuffer(data.ljust(24, b"\0"), "S24")
    assert parsed(array, array)[0]["key"] == data.partition(b"\0")[0].decode(errors="replace")


@pytest.mark.parametrize("number", [0, 9, 10, 99, 100, 12345, 2 ** 32, 2 ** 63, 2 ** 64 - 1])
def test_integers(number: int) -> None:
    keys, values = np.array([number], "u8"), np.array([number], "u8").view("i8")
    signed = number if number < 2 ** 63 else number - 2 ** 64
    assert parsed(keys, values) == [{"key": number, "value": signed}]


@pytest.mark.parametrize("number", [0.1, -0.0, 1e300, 5e-324, 1.7976931348623157e308])
def test_floats_are_the_shortest_that_mean_it(number: float) -> None:
    array = np.array([number])
    assert parsed(array, array)[0]["value"] == number
    assert json_lines(array) == f"{number!r}\n".encode()


def test_strides_and_cpus() -> None:
    values = np.arange(24, dtype="u4").reshape(4, 6)[:, ::2]
    keys = np.arange(8, dtype="u2")[::-2]
    said = parsed(keys, values, per_cpu=True)
    assert said == [{"key": int(k), "value": v} for k, v in zip(keys, values.tolist(), strict=True)]
    assert parsed(keys, values[:, 0]) == [{"key": int(k), "value": int(v)}
                                          for k, v in zip(keys, values[:, 0], strict=True)]
    records = np.zeros((2, 3), [("a", "u4"), ("b", "S4")])
    records["a"] = [[1, 2, 3], [4, 5, 6]]
    assert parsed(keys[:2], records, per_cpu=True)[1]["value"] == [
        {"a": n, "b": ""} for n in (4, 5, 6)]


def test_nothing_is_an_empty_array() -> None:
    assert parsed(np.empty(0, "u4"), np.empty(0, NESTED)) == []


def test_many_pieces_and_rows_larger_than_a_piece() -> None:
    keys = np.arange(200_000, dtype="u4")
    assert [each["key"] for each in parsed(keys, keys)] == keys.tolist()
    wide = np.full(3, b"\x01" * 300_000)
    assert [len(each["value"]) for each in parsed(keys[:3], wide)] == [300_000] * 3


@pytest.mark.parametrize(("piece", "sizes"), [
    ((b"", "unsigned", True, False, 1, 4, -1, 0), (4, 4)),
    ((b"", "unsigned", False, False, 0, 4, 2, 4), (4, 8)),
    ((b"", "text", True, False, -1, 4, -1, 0), (4, 8)),
    ((b"", "unsigned", True, False, 0, 3, -1, 0), (4, 8)),
    ((b"", "float", True, False, 0, 1, -1, 0), (4, 8)),
])
def test_pieces_stay_inside(piece: Any, sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="piece 0"):
        JsonRows([piece], b"", *sizes)


@pytest.mark.parametrize("call", [
    lambda rows, a: rows.write(a, a[:1], 0),
    lambda rows, a: rows.write(a, a, 3),
    lambda rows, a: rows.write(a.astype("u2"), a, 0),
    lambda rows, a: rows.write(np.broadcast_to(a[:1], (2,)), a, 0),
])
def test_rows_that_do_not_fit(call: Callable[[JsonRows, Any], Any]) -> None:
    rows = JsonRows([(b"", "unsigned", False, False, 0, 4, -1, 0)], b"", 4, 4)
    with pytest.raises(ValueError):
        call(rows, np.arange(2, dtype="u4"))
