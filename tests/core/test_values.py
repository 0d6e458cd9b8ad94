"""Keys and values: from Python objects to the kernel's bytes and back, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import raw
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

import fastmap
from fastmap._core.rows.convert import padding_of
from fastmap.errors import PermissionDenied

Make = Callable[..., Any]

INTEGERS = [order + kind + size for kind in "iu" for size in "1248" for order in "<>"]
FLOW = [("src", "u4"), ("port", "u2"), ("proto", "u1")]
NESTED = [("id", "u8"), ("flow", FLOW), ("name", "S4")]
HOLES = np.dtype([("a", "u1"), ("b", "u4"), ("c", "u1")], align=True)


def table(dtype: npt.DTypeLike) -> Any:
    return fastmap.create("hash", key=dtype, value=dtype, max_entries=64)


# ---- what goes in comes out --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=examples(30), deadline=None)
@given(data=st.data())
def test_integers(dtype: str, data: st.DataObject) -> None:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    edges = st.sampled_from([low, low + 1, 0, high // 2 + 1, high - 1, high])
    key, value = (data.draw(st.integers(low, high) | edges) for _ in range(2))
    order = "big" if dtype[0] == ">" else "little"
    size, signed = int(dtype[2]), dtype[1] == "i"
    with table(dtype) as m, raw.as_bytes(m) as plain:
        m[key] = value
        encoded = [n.to_bytes(size, order, signed=signed) for n in (key, value)]
        assert list(plain.items()) == [tuple(encoded)]
        assert m[key] == value and type(m[key]) is int and list(m.items()) == [(key, value)]
        assert m[np.array(key, dtype)] == m[np.int64(key) if low <= key < 2**63 else key] == value
        for beyond in (low - 1, high + 1, -(2**70), 2**70):
            with pytest.raises(OverflowError, match=str(low)):
                m[beyond] = value
            with pytest.raises(OverflowError):
                m[key] = beyond
        assert list(m.items()) == [(key, value)]


@pytest.mark.parametrize("code", ("<f4", ">f4", "<f8", ">f8", "<f2"))
@settings(max_examples=examples(30), deadline=None)
@given(data=st.data())
def test_floats(code: str, data: st.DataObject) -> None:
    value = data.draw(st.floats(width=8 * int(code[2]), allow_nan=False))  # type: ignore[arg-type]
    with fastmap.create("hash", key="u4", value=code, max_entries=4) as m:
        m[1] = value
        assert m[1] == value and type(m[1]) is float
        packed = struct.pack(code[0] + {"2": "e", "4": "f", "8": "d"}[code[2]], value)
        assert raw.peek(m, struct.pack("=I", 1), int(code[2])) == packed
        m[2] = 3  # an integer is a float as well
        assert m[2] == 3.0 and dict(m.items()) == {1: value, 2: 3.0}


KINDS: list[tuple[Any, Any, Any]] = [
    ("S4", b"ab", b"ab"), ("S4", b"abcd", b"abcd"), ("S4", b"", b""), ("S4", b"a\0b", b"a\0b"),
    ("S4", np.bytes_(b"ab"), b"ab"), ("V2", np.bytes_(b"ab"), b"ab"),
    ("S4", "abé", "abé".encode()), ("S4", bytearray(b"ab"), b"ab"),
    ("S4", memoryview(b"a-b-")[::2], b"ab"),
    ("V4", b"ab\0\0", b"ab\0\0"), ("V4", memoryview(b"abcd"), b"abcd"),
    ("V4", np.void(b"abcd"), b"abcd"),
    ("?", True, True), ("?", False, False), ("?", np.bool_(True), True), ("u4", True, 1),
    ("U3", "né", "né"), ("c8", 1 + 2j, 1 + 2j),
    ("M8[ns]", np.datetime64("2024-01-01", "ns"), np.datetime64("2024-01-01", "ns")),
    (FLOW, (1, 2, 3), (1, 2, 3)), (FLOW, struct.pack("<IHB", 1, 2, 3), (1, 2, 3)),
    (FLOW, np.array((1, 2, 3), FLOW), (1, 2, 3)), (FLOW, np.array((1, 2, 3), FLOW)[()], (1, 2, 3)),
    (FLOW, np.array((1, 2, 3), [("src", ">i8"), ("port", "u1"), ("proto", "i4")])[()], (1, 2, 3)),
    (NESTED, (9, (1, 2, 3), b"ab"), (9, (1, 2, 3), b"ab")),
    ([("a", ">u4"), ("b", "<f8")], (258, 0.5), (258, 0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "value", "expected"), KINDS)
def test_kinds(dtype: Any, value: Any, expected: Any) -> None:
    with table(dtype) as m:
        m[value] = value
        assert value in m and len(m) == 1
        read = m[value]
        for each in (read, *m.values(), *m.keys()):
            if isinstance(expected, tuple):
                assert isinstance(each, np.void) and each.item() == expected
            else:
                assert each == expected and type(each) is type(expected)
        assert read in m and m.pop(next(iter(m))) == read


def test_sub_arrays() -> None:
    with table(("u8", (2,))) as m:
        m[1, 2] = [3, 2**63]  # which numpy alone would make floats of
        m[np.array([3, 4], ">i2")] = (5, 6)
        m[struct.pack("=QQ", 7, 8)] = struct.pack("=QQ", 9, 10)
        found = {tuple(k.tolist()): v.tolist() for k, v in m.items()}
        assert found == {(1, 2): [3, 2**63], (3, 4): [5, 6], (7, 8): [9, 10]}
        assert m[1, 2].dtype == "u8" and not m[1, 2].flags.writeable
    with table([("prefix", "u4"), ("addr", "u1", (4,))]) as m:
        m[8, [10, 0, 0, 0]] = 24, b"\x0a\0\0\0"
        assert m[8, b"\x0a\0\0\0"].item()[0] == 24
        assert m[8, (10, 0, 0, 0)]["addr"].tolist() == [10, 0, 0, 0]


def test_sub_arrays_of_records(make: Make) -> None:
    """Lists of tuples, which numpy itself would take for one more axis."""
    m = make("hash", key="u4", value=[("spans", FLOW, (2, 2))], max_entries=4)
    rows = [[(1, 2, 3), (4, 5, 6)], [(7, 8, 9), (10, 11, 12)]]
    m[1] = (rows,)
    assert m[1]["spans"].tolist() == rows
    m[2] = (tuple(tuple(row) for row in rows),)
    m[3] = (np.array(rows, FLOW),)
    assert m[2] == m[1] == m[3]
    for wrong, error in ((rows[:1], ValueError), ([rows[0], rows[1] * 2], ValueError),
                         ([[(1, 2, 3), (1, 2)], rows[1]], ValueError),
                         ([[(1, 2, 3), (1, 2, 300)], rows[1]], OverflowError),
                         ([[(1, 2, 3), 5], rows[1]], TypeError), (5, TypeError)):
        with pytest.raises(error):
            m[4] = (wrong,)
    assert 4 not in m


@pytest.mark.parametrize("dtype", (FLOW, NESTED, HOLES), ids=str)
def test_records_are_read_only_and_hash(make: Make, dtype: Any) -> None:
    m = make("hash", key=dtype, value=dtype, max_entries=8)
    zeros = bytes(np.dtype(dtype).itemsize)
    keys = np.zeros(2, dtype)
    keys[keys.dtype.names[0]] = 0, 7
    m.update_many(keys, zeros)
    counted: dict[Any, int] = {}
    for _ in range(2):
        for key in m:
            counted[key] = counted.get(key, 0) + 1
        for key, value in m.items():
            counted[key] += 1
            assert hash(value) == hash(m[key])
    assert len(counted) == 2 and set(counted.values()) == {4}
    for record in (m[keys[0]], next(iter(m)), next(iter(m.values())), m.popitem()[0]):
        with pytest.raises(ValueError, match="read-only"):
            record[0] = 1


# ---- padding -----------------------------------------------------------------------------------

DEEP = np.dtype([("head", "u1"), ("parts", HOLES, (2,)), ("tail", "u2")], align=True)


def dirty(dtype: np.dtype[Any], fill: int) -> npt.NDArray[Any]:
    """Return a 0-d record with the same field values each time, and `fill` in its padding."""
    record = np.frombuffer(bytearray([fill]) * dtype.itemsize, dtype).reshape(())
    set_ones(record)
    return record


def set_ones(array: npt.NDArray[Any]) -> None:
    """Set field by field: numpy itself copies whole records with their padding."""
    for name in array.dtype.names or ():
        set_ones(array[name])
    if not array.dtype.names:
        array[...] = 1


@pytest.mark.parametrize("dtype", (HOLES, DEEP), ids=("holes", "deep"))
@pytest.mark.parametrize("kind", ("hash", "percpu_hash"))
def test_padding_never_makes_a_key_miss(make: Make, dtype: np.dtype[Any], kind: str) -> None:
    """A record's padding is zeroed where the map has no such key: numpy leaves anything there."""
    m = make(kind, key=dtype, value="u4", max_entries=64)
    clean = dirty(dtype, 0)
    fields = clean.item() if dtype is HOLES else None
    for fill in (0x00, 0xFF, 0x5A):
        key = dirty(dtype, fill)
        assert fill == 0 or key.tobytes() != clean.tobytes()
        for form in [key, key[()]] + ([fields] if fields else []):
            m[form] = fill
            assert len(m) == 1 and form in m and np.all(m[clean] == fill)
            assert np.all(m.pop(form) == fill) and not m
        many = np.frombuffer(key.tobytes() * 3, dtype)  # np.stack would not copy the padding
        for rows in (many, many[::-1], [key[()]]):
            assert m.update_many(rows, fill) == len(rows) and len(m) == 1 and clean in m
            assert m.lookup_many(rows)[1].all() and m.delete_many(rows) == 1


@pytest.mark.parametrize("dtype", (HOLES, DEEP), ids=("holes", "deep"))
def test_bytes_are_meant_as_they_are(make: Make, dtype: np.dtype[Any]) -> None:
    m = make("hash", key=dtype, value=dtype, max_entries=64)
    clean, junk = (dirty(dtype, fill).tobytes() for fill in (0, 0xFF))
    void = np.frombuffer(junk * 2, f"V{dtype.itemsize}")
    for one, many in ((junk, [junk, junk]), (bytearray(junk), void), (void[0], list(void))):
        m[one] = one
        assert raw.peek(m, junk, dtype.itemsize) == junk and len(m) == 1
        assert clean not in m and one in m and m.lookup_many(many)[1].all()
        assert m.delete_many(many) == 1 and not m
        assert m.update_many(many, many) == 2 and len(m) == 1 and m[one].tobytes() == junk
        del m[one]
        assert not m


def test_padding_of_values_is_zeroed_and_the_callers_array_left_alone(make: Make) -> None:
    m = make("hash", key="u4", value=HOLES, max_entries=4)
    kept = dirty(HOLES, 0xFF).tobytes() * 2
    rows = np.frombuffer(bytearray(kept), HOLES)
    m[0], m[1] = rows[0], rows[0].copy()
    m.update_many(np.arange(2, 4, dtype="u4"), rows)
    clean = dirty(HOLES, 0).tobytes()
    assert [raw.peek(m, struct.pack("=I", k), 12) for k in range(4)] == [clean] * 4
    assert rows.tobytes() == kept


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("via", ("syscall", "auto"))
@pytest.mark.parametrize("kind", ("hash", "lru_hash", "percpu_hash"))
def test_keys_that_came_out_of_a_map_go_back_in(
        make: Make, kind: str, via: str, threads: int) -> None:
    """C programs leave what was on the stack in the padding: the map has such keys, and others."""
    m = make(kind, key=HOLES, value="u4", max_entries=4096)
    plain = np.zeros(1000, HOLES)
    plain[plain.dtype.names[0]] = np.arange(1000) % 200
    plain[plain.dtype.names[1]] = np.arange(1000)
    junk = plain.view(f"V{HOLES.itemsize}").copy()
    bits = junk.view(np.uint8).reshape(1000, -1)
    for offset, length in padding_of(HOLES):
        bits[1::2, offset:offset + length] = 0xA5
    assert m.update_many(junk, 1) == 1000
    options = {"via": via, "threads": threads}
    batch = m.snapshot()
    mask = np.arange(1000) % 3 == 0
    assert len(batch.keys[mask]) == mask.sum()
    for keys in (batch.keys, batch.keys[::2], batch.keys[mask], batch.keys[np.flatnonzero(mask)],
                 batch.keys.copy(), batch.copy().keys, batch.take(mask).keys, list(batch.keys)):
        assert m.lookup_many(keys, **options)[1].all()
        assert m.update_many(keys, 7, **options) == len(keys)
        assert len(m) == 1000  # none came a second time
        assert np.all(m.lookup_many(keys, **options)[0] == 7)
    found = m.lookup_many(plain, **options)[1]
    assert found[::2].all() and not found[1::2].any()
    assert m.delete_many(batch.keys[mask], **options) == mask.sum()
    rest = m.snapshot()
    assert len(rest) == 1000 - mask.sum()
    for key in rest.keys[:20]:
        assert key in m and key.tobytes() in m and m.next_key(key) != m.next_key()
        m[key] = 9
        assert np.all(m[key] == 9) and np.all(m.lookup_and_delete(key) == 9)
    for key in list(m)[:20]:
        del m[key]
    left = len(rest) - 40
    assert len(m) == left and m.delete_many(m.snapshot().keys, **options) == left and not m


def test_a_key_is_taken_with_its_padding_only_where_the_map_has_it_so(make: Make) -> None:
    m = make("hash", key=HOLES, value="u4", max_entries=4)
    key = dirty(HOLES, 0xFF)
    raw.put(m, key.tobytes(), struct.pack("=I", 7))
    m[key] = 8
    assert len(m) == 1 and m[key] == m[key.tobytes()] == 8 and dirty(HOLES, 0) not in m
    with raw.as_bytes(m) as plain:
        assert plain[key.tobytes()] == struct.pack("=I", 8) and list(plain) == [key.tobytes()]
    other = dirty(HOLES, 0x11)  # no entry: it stands for the one with zeros
    m[other] = 3
    assert len(m) == 2 and m[dirty(HOLES, 0)] == m[other] == 3 and m[key] == 8


# ---- what does not fit is refused before the kernel is asked -----------------------------------

BAD: list[tuple[Any, Any, Any]] = [
    ("u4", 1.0, TypeError), ("u4", np.float64(1), TypeError), ("u4", "1", TypeError),
    ("u4", b"\1\0\0\0", TypeError), ("u4", None, TypeError), ("u4", [1], TypeError),
    ("u4", (1,), TypeError), ("u4", np.array([1, 2, 3]), TypeError), ("u4", 1j, TypeError),
    ("u4", -1, OverflowError), ("u4", 2**32, OverflowError), ("i1", 128, OverflowError),
    (">u2", 65536, OverflowError), ("u8", np.int64(-1), OverflowError),
    ("f8", "1", TypeError), ("f8", None, TypeError), ("f4", b"1234", TypeError),
    ("f8", 1j, TypeError), (">f8", "1", TypeError), (">f8", None, TypeError),
    ("?", 2, TypeError), ("?", None, TypeError), ("?", "x", TypeError),
    ("S4", "abcdé", ValueError), ("S4", b"abcde", ValueError), ("S4", 5, TypeError),
    ("S4", None, TypeError), ("V4", b"abc", ValueError), ("V4", b"abcde", ValueError),
    ("V4", "abcd", TypeError), ("V4", 5, TypeError), ("V4", np.void(b"abc"), ValueError),
    (FLOW, (1, 2), ValueError), (FLOW, (1, 2, 3, 4), ValueError), (FLOW, [1, 2, 3], TypeError),
    (FLOW, 5, TypeError), (FLOW, None, TypeError), (FLOW, b"1234567890", ValueError),
    (FLOW, (1, 2.0, 3), TypeError), (FLOW, (1, 65536, 3), OverflowError),
    (FLOW, (1, None, 3), TypeError), (FLOW, (1, "x", 3), TypeError), (FLOW, "1234567", TypeError),
    (FLOW, np.array((1, 2), "u4,u2")[()], TypeError),
    (FLOW, np.array((1, -2, 3), [("src", "i4"), ("port", "i4"), ("proto", "i4")]), OverflowError),
    (NESTED, (9, (1, 2), b"ab"), ValueError), (NESTED, (9, (1, 2, 3), 7), TypeError),
    (("u2", (2,)), [1], ValueError), (("u2", (2,)), [1, 2, 3], ValueError),
    (("u2", (2,)), [[1, 2]], ValueError), (("u2", (2,)), [1.0, 2.0], TypeError),
    (("u2", (2,)), [1, 65536], OverflowError), (("u2", (2,)), [1, 2**70], OverflowError),
    (("u2", (2,)), [1, None], TypeError), (("u2", (2,)), ["1", "2"], TypeError),
    (("u2", (2,)), b"12345", ValueError), (("u2", (2,)), 5, ValueError),
    (("u2", (2,)), [], TypeError),
]  # fmt: skip


@contextmanager
def deaf_handles(dtype: Any) -> Iterator[tuple[Any, Any]]:
    """Open a read-only and a write-only handle of a map of `dtype` to `dtype`."""
    with (
        table(dtype) as m,
        fastmap.open(id=m.id, key=dtype, value=dtype, readonly=True) as readonly,
        fastmap.open(id=m.id, key=dtype, value=dtype, writeonly=True) as writeonly,
    ):
        yield readonly, writeonly


@pytest.mark.parametrize(("dtype", "bad", "error"), BAD)
def test_bad_input(dtype: Any, bad: Any, error: type[Exception]) -> None:
    """On handles that may not: the kernel, had it been asked, would have said EPERM."""
    with deaf_handles(dtype) as (readonly, writeonly):
        good = readonly.key.unpack(b"\1" * readonly.key_dtype.itemsize)
        with pytest.raises(PermissionDenied):
            readonly[good] = good
        for call in (
            lambda: readonly.update(bad, good), lambda: readonly.update(good, bad),
            lambda: readonly.delete(bad), lambda: readonly.lookup_and_delete(bad),
            lambda: writeonly[bad], lambda: writeonly.get(bad), lambda: bad in writeonly,
            lambda: readonly.update_many([bad], [good]), lambda: readonly.pop(bad, None),
            lambda: readonly.update_many([good], [bad]), lambda: readonly.delete_many([bad]),
            lambda: writeonly.lookup_many([bad]),
        ):  # fmt: skip
            with pytest.raises(error) as caught:
                call()
            assert not isinstance(caught.value, OSError)


def test_messages_name_what_was_given(make: Make) -> None:
    m = make("hash", key="u4", value=FLOW, max_entries=4)
    for call, words in (
        (lambda: m[1.5], "key is uint32, not float .1.5"), (lambda: m[-3], "-3 does not fit uint"),
        (lambda: m.update(1, 5), "value is a record of src, port, proto, not int"),
        (lambda: m.update(1, (1, 2)), "3 fields, not 2"), (lambda: m[77], "key 77"),
        (lambda: m.update(1, (1, -2, 3)), "value.port -2"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, OverflowError, KeyError), match=words):
            call()


def test_an_index_that_closes_the_map(make: Make) -> None:
    """The descriptor is asked for when the key is bytes already."""
    m = make("hash", key="u4", value="u4", max_entries=4)

    class Sly:
        def __index__(self) -> int:
            m.close()
            return 1

    with pytest.raises(ValueError, match="closed"):
        m[Sly()]


# ---- dicts, and members that lie over each other -------------------------------------------------

EITHER = np.dtype({"names": ["v4", "v6", "port"], "formats": ["u4", ("u1", (16,)), "u2"],
                   "offsets": [0, 0, 16], "itemsize": 20})
UNION_FLOW = np.dtype([("addr", EITHER), ("proto", "u1")])


def test_a_tuple_for_a_union_is_refused_and_a_dict_tells(make: Make) -> None:
    m = make("hash", key=UNION_FLOW, value=[("n", "u8"), ("x", "u4")], max_entries=8)
    for both in (((1, (0,) * 16, 80), 6), ((1, 2, 3), 6)):
        with pytest.raises(ValueError, match=r"v4 and v6 of a key.addr lie over each other"):
            m[both] = {"n": 1}
    with pytest.raises(ValueError, match="give one of them"):
        m[{"addr": {"v4": 1, "v6": (0,) * 16}, "proto": 6}] = {"n": 1}
    with pytest.raises(ValueError, match="it has no 'prot'"):
        m[{"addr": {"v4": 1}, "prot": 6}] = {"n": 1}
    with pytest.raises(OverflowError, match=r"key\.addr\.port"):
        m[{"addr": {"v4": 1, "port": 1 << 16}, "proto": 6}] = {"n": 1}
    assert not m
    four = {"addr": {"v4": 0x01020304, "port": 80}, "proto": 6}
    six = {"addr": {"v6": tuple(range(16)), "port": 443}, "proto": 17}
    m[four], m[six] = {"n": 5}, {"n": 7, "x": 1}
    assert raw.peek(m, struct.pack("=I12xH2xB", 0x01020304, 80, 6), 12) == struct.pack("=QI", 5, 0)
    assert raw.peek(m, bytes(range(16)) + struct.pack("=H2xB", 443, 17), 12) == struct.pack(
        "=QI", 7, 1)
    assert m[six].item() == (7, 1) and m.lookup_many([four, six])[0]["n"].tolist() == [5, 7]
    assert m.update_many([four, six], {"n": 9}) == 2
    assert m.update_many([four, six], [{"n": 9}, {"x": 2}]) == 2 and m[six].item() == (0, 2)
    assert m.delete_many([four, six]) == 2


def test_bytes_without_types_say_who_tells_them(make: Callable[..., Any]) -> None:
    m = make("hash", key="V8", value="V4", max_entries=4)
    for key in ((1, 2), {"a": 1}, 5):
        with pytest.raises(TypeError, match="key= and value= of open"):
            m[key]
    with pytest.raises(TypeError, match=r"not str \('x'\)$"):
        m["x"]


def test_text_that_is_none(make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="U2", max_entries=4)
    m[0] = "ab"
    m.update_many(np.array([1], "u4"), np.array([[0xFFFFFFFF, 0]], "u4").view("U2").reshape(1))
    assert m[0] == "ab"
    with pytest.raises(ValueError, match="no text"):
        m[1]
