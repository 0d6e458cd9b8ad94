"""reduce=, fields= and where=, against numpy on the whole (n, cpus) array."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import alive, reduced, same_bytes, three_ways
from support import examples

import fastmap

Make = Callable[..., Any]

CPUS = len(fastmap.possible_cpus())
OPS = ("sum", "max", "min", "min_nonzero", "or", "any")
INTEGERS = [order + kind + size for kind in "iu" for size in "1248" for order in "<>"]
FLOATS = ["<f4", ">f4", "<f8", ">f8"]
COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
           ">": operator.gt, ">=": operator.ge}  # fmt: skip


def random_values(dtype: np.dtype[Any], shape: tuple[int, ...], rng: Any) -> Any:
    """Return random numbers in every field: all bits of integers, no NaN, no padding set."""
    out = np.zeros(shape, dtype)
    if dtype.names:
        for name in dtype.names:
            field = out[name]
            field[...] = random_values(field.dtype, field.shape, rng)
    elif dtype.kind in "iu":
        out = np.frombuffer(bytearray(rng.bytes(out.nbytes)), dtype).reshape(shape)
    elif dtype.kind == "f":
        out[...] = (rng.standard_normal(shape) * 1e6).astype(dtype)
    elif dtype.kind == "b":
        out[...] = rng.integers(0, 2, shape)
    else:
        raw = rng.integers(1, 255, (*shape, dtype.itemsize), "u1")
        out = raw.view(dtype).reshape(shape)
    return out


def per_cpu(make: Make, dtype: Any, rows: int = 40, seed: int = 0) -> tuple[Any, Any]:
    """Return a per-CPU map with random values, some CPUs all zeros, and the values by key."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    m = make("percpu_hash", key="u4", value=dtype, max_entries=2 * rows)
    values = random_values(dtype.base, (rows, CPUS, *dtype.shape), rng)
    blank = rng.random((rows, CPUS)) < 0.3
    blank[0] = True
    values[blank] = np.zeros((), dtype.base)
    m.update_many(np.arange(rows), values)
    return m, values


# ---- reduce ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "?"])
@pytest.mark.parametrize("op", OPS)
def test_plain_numbers(make: Make, dtype: str, op: str) -> None:
    m, values = per_cpu(make, dtype)
    if op == "or" and np.dtype(dtype).kind == "f":
        with pytest.raises(TypeError, match="or"):
            m.snapshot(reduce=op)
        return
    _, found = three_ways(m, 7, reduce=op)
    expected = reduced(values, op, alive(values))
    assert found.dtype == expected.dtype and same_bytes(found, expected)
    assert same_bytes(m.lookup_many(np.arange(40), reduce=op)[0], expected)


@pytest.mark.quick
def test_sums_widen_and_wrap(make: Make) -> None:
    m = make("percpu_array", value=[("a", "u1"), ("b", "i8"), ("c", "u8"), ("d", "f4")],
             max_entries=1)
    m[0] = (255, 2**63 - 1, 2**64 - 1, 0.1)
    total = m.snapshot(reduce="sum").values[0]
    assert [total.dtype[n].str[1:] for n in "abcd"] == ["u8", "i8", "u8", "f8"]
    assert total["a"] == 255 * CPUS and total["c"] == (2**64 - 1) * CPUS % 2**64
    assert int(total["b"]) % 2**64 == (2**63 - 1) * CPUS % 2**64
    assert total["d"] == sum([float(np.float32(0.1))] * CPUS)


def test_cpus_that_never_wrote(make: Make) -> None:
    m = make("percpu_array", value=[("least", "i4"), ("what", "S2")], max_entries=3)
    m[0] = [(0, b"")] * (CPUS - 1) + [(7, b"ab")]
    m[1] = [(0, b"xy")] * CPUS  # a zero beside other bytes is a zero
    values = m.snapshot(reduce="min").values
    assert values.tolist() == [(7, b"ab"), (0, b"xy"), (0, b"")]
    assert m.snapshot(reduce="any").values.tolist() == values.tolist()
    assert m.snapshot(reduce="max").values["least"].tolist() == [7, 0, 0]


@pytest.mark.quick
def test_a_field_that_one_cpu_wrote(make: Make) -> None:
    """The kernel zeroes the values of the other CPUs, which then count on their own."""
    m = make("percpu_hash", key="u4", value=[("comm", "S8"), ("n", "u8"), ("first", "u4")],
             max_entries=1)
    m[1] = [(b"", 5, 0)] * (CPUS - 1) + [(b"python", 451, 70)]
    assert m.snapshot(reduce="sum").values.tolist() == [(b"python", 5 * (CPUS - 1) + 451, 70)]
    assert m.snapshot(reduce="any").values.tolist() == [(b"python", 5 if CPUS > 1 else 451, 70)]
    assert m.snapshot(reduce="min").values["first"] == (0 if CPUS > 1 else 70)
    assert m.snapshot(reduce="min_nonzero").values["first"] == 70
    where = ("value.comm", "==", b"python")
    assert len(m.snapshot(reduce="any", where=where)) == 1


PACKED = np.dtype([("tag", "u1"), ("n", ">u4"), ("x", "f8"), ("deep", [("i", "i2"), ("ok", "?")]),
                   ("many", ">i4", (3,)), ("name", "S5"), ("raw", "V3")])  # fmt: skip
ALIGNED = np.dtype([("tag", "u1"), ("x", "f8"), ("pairs", [("a", "u2"), ("b", "i8")], (2, 2))],
                   align=True)  # fmt: skip


@pytest.mark.parametrize("dtype", (PACKED, ALIGNED, ("i4", (2, 3)), (PACKED, (2,))), ids=str)
@pytest.mark.parametrize("op", ("sum", "max", "min", "min_nonzero", "any"))
def test_records(make: Make, dtype: Any, op: str) -> None:
    m, values = per_cpu(make, dtype)
    keys, found = three_ways(m, 3, reduce=op)
    expected = reduced(values, op, alive(values))
    assert found.shape == expected.shape and same_bytes(found, expected)
    assert keys.tolist() == list(range(40))


def test_reduce_by_field(make: Make) -> None:
    m, values = per_cpu(make, PACKED)
    live = alive(values)
    ops = {"n": "sum", "x": "min", "deep.i": "max", "many": "or", "deep.ok": "sum"}
    _, found = three_ways(m, reduce=ops)
    for name in ("tag", "n", "x", "many", "name", "raw"):
        assert same_bytes(found[name], reduced(values[name], ops.get(name, "any"), live))
    assert same_bytes(found["deep"]["i"], reduced(values["deep"]["i"], "max", live))
    assert same_bytes(found["deep"]["ok"], reduced(values["deep"]["ok"], "sum", live))
    _, whole = three_ways(m, reduce={"deep": "sum"})
    assert same_bytes(whole["deep"], reduced(values["deep"], "sum", live))


def leaves() -> st.SearchStrategy[Any]:
    return st.sampled_from([*INTEGERS, *FLOATS, "?", "S3", "V5"])


def records(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return records of up to three fields, packed or aligned, some of them sub-arrays."""
    shapes = st.sampled_from([(), (), (2,), (2, 2)])
    fields = st.lists(st.tuples(inner, shapes), min_size=1, max_size=3)
    return st.tuples(fields, st.booleans()).map(lambda given: np.dtype(
        [(f"f{i}", dtype, shape) for i, (dtype, shape) in enumerate(given[0])], align=given[1]))


@settings(max_examples=examples(120), deadline=None)
@given(st.recursive(leaves(), records, max_leaves=5),
       st.sampled_from([op for op in OPS if op != "or"]), st.sampled_from([1, 3, None]),
       st.integers(0, 1000))
def test_any_dtype(dtype: Any, op: str, chunk: int | None, seed: int) -> None:
    dtype = np.dtype(dtype)
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        made.append(fastmap.create(*args, **options))
        return made[-1]

    try:
        m, values = per_cpu(make, dtype, 6, seed)
        if dtype.kind in "SV" and not dtype.names and op != "any":
            with pytest.raises(TypeError, match="no number"):
                m.snapshot(reduce=op)
            return
        _, found = three_ways(m, chunk, reduce=op)
        assert same_bytes(found, reduced(values, op, alive(values)))
    finally:
        for each in made:
            each.close()


REFUSED: list[tuple[Any, Any, type[Exception]]] = [
    ("u8", "mean", ValueError), ("u8", "", ValueError), ("u8", "copy", ValueError),
    ("u8", 5, TypeError), ("u8", ["sum"], TypeError), ("u8", {"x": "sum"}, TypeError),
    (PACKED, {"nope": "sum"}, ValueError), (PACKED, {"n": "mean"}, ValueError),
    (PACKED, {"name": "sum"}, TypeError), (PACKED, {"x": "or"}, TypeError),
    (PACKED, {"n.m": "sum"}, ValueError), ("f4", "or", TypeError), ("S4", "sum", TypeError),
    ("f2", "sum", TypeError), ([("a", "u4"), ("h", "f2")], "sum", TypeError),
    ("c8", "max", TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "reduce", "error"), REFUSED, ids=lambda x: str(x)[:30])
def test_reductions_that_are_refused(make: Make, dtype: Any, reduce: Any, error: Any) -> None:
    m = make("percpu_hash", key="u4", value=dtype, max_entries=4)
    with pytest.raises(error):
        m.reader(reduce=reduce)
    with pytest.raises(ValueError, match="per-CPU"):
        make("hash", key="u4", value=dtype, max_entries=4).reader(reduce="any")


# ---- where -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*INTEGERS, "?"])
@settings(max_examples=examples(25), deadline=None)
@given(data=st.data())
def test_where_on_integers(dtype: str, data: st.DataObject) -> None:
    limits = np.iinfo(dtype if dtype != "?" else "u1")
    low, high = int(limits.min), int(limits.max) if dtype != "?" else 1
    few = st.sampled_from([low, low + 1, 0, 1, high - 1, high])
    numbers = data.draw(st.lists(few | st.integers(low, high), max_size=12))
    bound = data.draw(few | st.sampled_from([low - 1, high + 1, -(2**80), 2**80]))
    word = data.draw(st.sampled_from(sorted(COMPARE)))
    values = np.array(numbers, dtype)
    with fastmap.create("hash", key="u4", value=[("x", "u1"), ("y", dtype)], max_entries=64) as m:
        rows = np.zeros(len(numbers), m.value_dtype)
        rows["y"] = values
        m.update_many(np.arange(len(numbers)), rows)
        keys, found = three_ways(m, 3, where=("value.y", word, bound))
        passing = [i for i, n in enumerate(numbers) if COMPARE[word](n, bound)]
        assert keys.tolist() == passing and found["y"].tolist() == values[passing].tolist()
    with fastmap.create("hash", key=dtype, value="u1", max_entries=64) as m:
        m.update_many(values, 1)
        found = m.snapshot(where=("key", word, bound)).keys
        assert sorted(found.tolist()) == sorted(n for n in {*numbers} if COMPARE[word](n, bound))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("word", COMPARE)
def test_where_on_floats(make: Make, dtype: str, word: str) -> None:
    m = make("array", value=dtype, max_entries=8)
    values = np.array([0.1, -0.0, 0.0, 1.5, -1e30, np.inf, -np.inf, np.nan], dtype)
    m.update_many(np.arange(8), values)
    for bound in (0.1, 0, -1.5, 1.5, 2, np.inf, -np.inf, np.nan, np.float64(0.1), np.float32(0.1)):
        keys, _ = three_ways(m, 3, where=("value", word, bound))
        assert keys.tolist() == np.flatnonzero(COMPARE[word](values, bound)).tolist(), bound


@pytest.mark.parametrize("word", COMPARE)
def test_where_on_bytes(make: Make, word: str) -> None:
    names = [b"", b"a", b"ab", b"abc", b"b", b"\xff", b"a\0b", b"\0\0b"]
    m = make("hash", key="S3", value="u4", max_entries=16)
    m.update_many(np.array(names), np.arange(8))
    for bound in (*names, bytearray(b"ab"), np.bytes_(b"b")):
        batch = m.snapshot(where=("key", word, bound))
        passing = COMPARE[word](np.array(names), bytes(bound))
        assert sorted(batch.keys.tolist()) == sorted(np.array(names)[passing].tolist())


def test_where_after_reduce(make: Make) -> None:
    m, values = per_cpu(make, PACKED)
    live = alive(values)
    for op, path, word, bound in (
        ("sum", "n", ">", 2**32), ("sum", "n", "<=", 2**32), ("sum", "deep.i", "<", 0),
        ("max", "x", ">", 0), ("min", "x", "<", 0), ("any", "tag", ">=", 128),
        ("min", "deep.i", "==", 0), ("sum", "deep.ok", ">=", 2), ("sum", "name", "!=", b""),
    ):  # fmt: skip
        field = values
        for name in path.split("."):
            field = field[name]
        passing = COMPARE[word](reduced(field, op, live), bound)
        keys, found = three_ways(m, 7, reduce=op, where=(f"value.{path}", word, bound))
        assert keys.tolist() == np.flatnonzero(passing).tolist() and len(keys) < 40
        assert same_bytes(found, reduced(values, op, live)[passing])
    keys, found = three_ways(m, reduce={"n": "sum"}, where=("value.n", ">", 2**32))
    assert keys.tolist() == np.flatnonzero(reduced(values["n"], "sum", live) > 2**32).tolist()


def test_where_on_keys_of_a_per_cpu_map(make: Make) -> None:
    m, values = per_cpu(make, "u4")
    keys, found = three_ways(m, 7, where=("key", ">=", 30))
    assert keys.tolist() == list(range(30, 40)) and same_bytes(found, values[30:])


# ---- fields ------------------------------------------------------------------------------------


def test_fields(make: Make) -> None:
    m, values = per_cpu(make, PACKED)
    _, found = three_ways(m, 7, fields=["value.x", "value.deep.i", "value.many"])
    assert found.dtype.names == ("x", "deep.i", "many") and found.shape == (40, CPUS)
    assert same_bytes(found["x"], values["x"]) and same_bytes(found["many"], values["many"])
    assert same_bytes(found["deep.i"], values["deep"]["i"])
    _, found = three_ways(m, fields=["key", "value.n"], reduce="sum")
    assert same_bytes(found["n"], reduced(values["n"], "sum", alive(values)))
    _, found = three_ways(m, fields=["value.tag"], where=("value.n", ">", 2**32), reduce="sum")
    assert 0 < len(found) < 40 and found.dtype.names == ("tag",)
    assert len(m.drain(fields=["value.n"])) == 40 and not m


def test_fields_of_a_plain_map(make: Make) -> None:
    m = make("hash", key="u4", value=PACKED, max_entries=64)
    values = random_values(PACKED, (20,), np.random.default_rng(1))
    m.update_many(np.arange(20), values)
    for chunk in (1, 7, None):
        _, found = three_ways(m, chunk, fields=["value.name", "value.n"])
        assert same_bytes(found["name"], values["name"]) and same_bytes(found["n"], values["n"])
    keys, nothing = three_ways(m, fields=["key"], where=("value.n", "!=", int(values["n"][3])))
    assert keys.tolist() == [k for k in range(20) if k != 3] and nothing.dtype.itemsize == 0
    assert same_bytes(three_ways(m, fields=["value"])[1], values)


@pytest.mark.parametrize("options", [
    {"where": ("value.nope", "==", 1)}, {"where": ("nope", "==", 1)}, {"where": ("value", "==", 1)},
    {"where": ("value.n", "=", 1)}, {"where": ("value.n", "==", 1.5)}, {"where": ("value.n", "==")},
    {"where": ("value.n", "==", "1")}, {"where": 5}, {"where": ()}, {"where": (1, "==", 1)},
    {"where": ("value.name", "==", 5)}, {"where": ("value.name", "==", 7)},
    {"where": ("value.name", "==", b"123456")}, {"where": ("value.raw", "==", b"12")},
    {"where": ("value.many", "==", 1)}, {"where": ("value.x", "==", b"1")}, {"fields": []},
    {"fields": "value.n"}, {"fields": ["n"]}, {"fields": ["value.nope"]}, {"fields": [1]},
    {"fields": ["key.a"]}, {"fields": 5}], ids=str)  # fmt: skip
def test_columns_that_are_refused(make: Make, options: Any) -> None:
    for kind in ("hash", "percpu_hash"):
        m = make(kind, key="u4", value=PACKED, max_entries=4)
        with pytest.raises((TypeError, ValueError)):
            m.snapshot(**options, reduce="any" if m.per_cpu else None)
    with pytest.raises((TypeError, ValueError)):
        m.snapshot(**options)
