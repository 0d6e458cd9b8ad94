"""BTF read: blobs by hand, broken and hostile ones, and all of vmlinux."""

from __future__ import annotations

import contextlib
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import steps
from support import examples
from test_btf import INT32, UNSIGNED_CHAR, blob, dtypes, info

from fastmap._core.btf_scan import record_starts
from fastmap.btf import Btf, Kind, Layout, encode

VMLINUX = Path("/sys/kernel/btf/vmlinux")
DType = np.dtype[Any]


@pytest.fixture(scope="module")
def kernel() -> Btf:
    return Btf(VMLINUX.read_bytes())


# --- where the records begin ----------------------------------------------------------------------


def by_hand(words: list[int], once: list[int], each: list[int]) -> tuple[list[int], bool]:
    """What `record_starts` finds, in Python."""
    starts, at = [], 0
    while at < len(words):
        starts.append(at)
        told = words[at + 1] if at + 3 <= len(words) else 0
        if not once[told >> 24 & 0x7F]:
            return starts, False
        at += once[told >> 24 & 0x7F] + (told & 0xFFFFFF) * each[told >> 24 & 0x7F]
    return starts, at == len(words)


SMALL = st.integers(0, 7) | st.integers(0, 0xFFFFFFFF)


@given(words=st.lists(SMALL, max_size=40), kinds=st.lists(st.sampled_from([0, 3, 4, 20000]),
                                                          min_size=128, max_size=128))
@settings(max_examples=examples(300), deadline=None)
def test_records_are_found_as_by_hand(words: list[int], kinds: list[int]) -> None:
    """Also where they are cut off, or say that they have sixteen million members."""
    each = [*kinds[7:], *kinds[:7]]
    starts, whole = record_starts(np.array(words, "u4"), kinds, each)
    assert (starts.tolist(), whole) == by_hand(words, kinds, each)


# --- reading --------------------------------------------------------------------------------------


def test_typedefs_and_qualifiers_are_seen_through() -> None:
    types = Btf(
        blob(
            INT32,
            (1, info(8), 1), (0, info(10), 2), (0, info(9), 3), (0, info(11), 4),
            (1, info(18), 5), (0, info(2), 6),
            strings=b"\0t\0",
        )
    )  # fmt: skip
    assert types.resolve(6) == 1
    assert types.dtype(6) == np.dtype("u4")
    assert types.dtype(7) == np.dtype("u8")
    assert types.size(6) == 4
    assert [types.size(i) for i in (1, 7)] == [4, 8]


@pytest.mark.parametrize(
    ("size", "word", "expected"),
    [
        (1, 8, "u1"), (1, 1 << 24 | 8, "i1"), (1, 4 << 24 | 8, "?"), (4, 4 << 24 | 32, "u4"),
        (2, 1 << 24 | 16, "i2"), (8, 64, "u8"), (16, 128, "V16"), (16, 1 << 24 | 128, "V16"),
    ],
)  # fmt: skip
def test_integers(size: int, word: int, expected: str) -> None:
    assert Btf(blob((0, info(1), size, word))).dtype(1) == np.dtype(expected)


def test_byte_orders_of_the_kernels_typedefs() -> None:
    strings = b"\0__be32\0__le32\0__be16\0"
    records = [INT32, (1, info(8), 1), (8, info(8), 1), (15, info(8), 1), (0, info(3), 0, 2, 1, 4)]
    types = Btf(blob(*records, strings=strings))
    assert types.dtype(2) == np.dtype(">u4")
    assert types.dtype(3) == np.dtype("<u4")
    assert types.dtype(4) == np.dtype("u4"), "a name that lies about its size says nothing"
    assert types.dtype(5) == np.dtype((">u4", (4,)))


def test_arrays() -> None:
    strings = b"\0char\0signed char\0"
    records = [
        (1, info(1), 1, 8), (0, info(3), 0, 1, 1, 16), (0, info(3), 0, 2, 1, 3),
        (6, info(1), 1, 1 << 24 | 8), (0, info(3), 0, 4, 1, 16),
        INT32, (0, info(3), 0, 6, 1, 3), (0, info(3), 0, 7, 1, 2), (0, info(3), 0, 6, 1, 0),
    ]  # fmt: skip
    types = Btf(blob(*records, strings=strings))
    assert types.dtype(2) == np.dtype("S16")
    assert types.dtype(3) == np.dtype(("S16", (3,)))
    assert types.dtype(5) == np.dtype(("i1", (16,)))
    assert types.dtype(8) == np.dtype(("u4", (2, 3))), "outermost dimension first"
    assert types.size(8) == 24
    assert types.dtype(9).itemsize == types.size(9) == 0


def test_anonymous_members_padding_and_arrays_of_nothing() -> None:
    strings = b"\0a\0b\0c\0d\0"
    records = [
        INT32,
        (0, info(5, 2), 4, 1, 1, 0, 3, 1, 0),  # union { u32 a; u32 b; }
        (0, info(4, 2), 12, 5, 1, 32, 0, 2, 64),  # struct { pad; u32 c; union {...}; }
        (0, info(3), 0, 1, 1, 0),
        (7, info(4, 4), 24, 1, 1, 0, 0, 3, 32, 7, 2, 128, 5, 4, 192),
    ]
    dtype = Btf(blob(*records, strings=strings)).dtype(5)
    assert dtype == np.dtype(
        {
            "names": ["a", "c", "a_2", "b", "d"],
            "formats": ["u4", "u4", "u4", "u4", Btf(blob(*records, strings=strings)).dtype(2)],
            "offsets": [0, 8, 12, 12, 16],
            "itemsize": 24,
        }
    )


def test_bitfields() -> None:
    strings = b"\0a\0b\0c\0d\0e\0"
    signed = (0, info(1), 4, 1 << 24 | 32)
    # struct { u32 a:3, b:7; s32 c:5; u64 d:40 at bit 56, packed; u8 e; }
    record = (
        0, info(4, 5, 1), 14,
        1, 1, 3 << 24 | 0, 3, 1, 7 << 24 | 3, 5, 2, 5 << 24 | 10,
        7, 3, 60 << 24 | 36, 9, 4, 104,
    )  # fmt: skip
    types = Btf(blob(INT32, signed, (0, info(1), 8, 64), UNSIGNED_CHAR, record, strings=strings))
    dtype, bits = types.dtype(5), types.bitfields(5)
    assert dtype.names == ("bits0", "bits4", "e")
    assert list(bits) == ["a", "b", "c", "d"]
    rows = [(5, 99, -9, 0xFEDCBA987654321, 1), (0, 127, 15, 0, 255), (7, 0, -16, (1 << 60) - 1, 0)]
    data = b""
    for a, b, c, d, e in rows:
        whole = a | b << 3 | (c & 31) << 10 | d << 36 | e << 104
        data += whole.to_bytes(14, "little")
    if sys.byteorder == "little":
        records = np.frombuffer(data, dtype)
        assert records["e"].tolist() == [1, 255, 0]
        for column, name in enumerate("abcd"):
            assert bits[name].extract(records).tolist() == [row[column] for row in rows], name
            assert bits[name].extract(records[1]).tolist() == rows[1][column], name
        assert bits["c"].extract(records).dtype == np.dtype("i4")


def test_bitfields_as_compilers_wrote_them_before_kind_flag() -> None:
    strings = b"\0a\0b\0"
    five = (0, info(1), 4, 5)
    four_up = (0, info(1), 4, 3 << 16 | 4)
    types = Btf(blob(five, four_up, (0, info(4, 2), 4, 1, 1, 0, 3, 2, 5), strings=strings))
    bits = types.bitfields(3)
    assert [(f.container, f.shift, f.width) for f in bits.values()] == [
        (("bits0",), 0, 5), (("bits0",), 8, 4),
    ]  # fmt: skip
    records = np.array([(0b1001_000_10110,)], types.dtype(3))
    assert [int(f.extract(records)[0]) for f in bits.values()] == [0b10110, 0b1001]


def test_a_section_with_variables_numpy_has_no_type_for() -> None:
    strings = b"\0.bss\0x\0y\0"
    records = [
        INT32, (6, info(14), 1, 1), (0, info(7), 0), (8, info(14), 3, 1),
        (1, info(15, 2), 16, 2, 0, 4, 4, 8, 8),
    ]  # fmt: skip
    types = Btf(blob(*records, strings=strings))
    assert [tuple(v) for v in types.datasec(5)] == [("x", 2, 0, 4), ("y", 4, 8, 8)]
    assert types.dtype(5) == np.dtype(
        {"names": ["x", "y"], "formats": ["u4", "V8"], "offsets": [0, 8], "itemsize": 16}
    )


def test_split_btf() -> None:
    base = Btf(blob((1, info(1), 4, 32), (1, info(8), 1), strings=b"\0int\0"))
    own = blob((5, info(4, 1), 4, 7, 1, 0), (1, info(10), 3), strings=b"\0s\0m\0".lstrip(b"\0"))
    types = Btf(own, base)
    assert (len(base), len(types)) == (3, 5)
    assert types.name(3) == "s" and types.name(1) == "int"
    assert types.find("s") == 3
    assert types.find("int", Kind.TYPEDEF) == 2
    assert types.dtype(4) == np.dtype([("m", "u4")])
    with pytest.raises(KeyError):
        types.find("none")
    with pytest.raises(ValueError, match="ids are below 5"):
        types.kind(5)


def test_find_wants_the_whole_name() -> None:
    # "b" begins within "ab"; "int" stands twice, "x" names only the second type
    strings = b"\0ab\0int\0x\0"
    types = Btf(blob((4, info(1), 4, 32), (4, info(8), 1), (2, info(8), 1), (8, info(8), 1),
                     strings=strings))  # fmt: skip
    assert [types.find(n) for n in ("int", "b", "x")] == [1, 3, 4]
    assert types.find("int", Kind.TYPEDEF) == 2
    for name in ("ab", "in", "nt\0x", "", "nt\0", "int\0", "x" * 99, "é", "\udc80"):
        with pytest.raises(KeyError):
            types.find(name)


def test_kinds_of_the_future_are_stepped_over_by_the_layout() -> None:
    future = (0, info(30, 2), 0, 7, 8, 8)  # one word, and one for each of two members
    records = [INT32, future, (1, info(8), 1)]
    layout = b"".join(struct.pack("=BBH", 4 * (k == 30), 4 * (k == 30), 0) for k in range(31))
    types = b"".join(struct.pack(f"={len(r)}I", *r) for r in records)
    header = struct.pack(
        "=HBBIIIIIII", 0xEB9F, 1, 0, 32, 0, len(types), len(types) + len(layout), 3, len(types),
        len(layout),
    )  # fmt: skip
    parsed = Btf(header + types + layout + b"\0t\0")
    assert (len(parsed), parsed.find("t"), parsed.dtype(3)) == (4, 3, np.dtype("u4"))
    for call in (parsed.kind, parsed.dtype, parsed.size, parsed.members):
        with pytest.raises(ValueError):
            call(2)
    with pytest.raises(ValueError, match="type 2 at byte 40.*kind 30"):
        Btf(blob(*records, strings=b"\0t\0"))


@pytest.mark.native("a struct of 70000 members, for a parser that asks no kernel")
def test_longer_headers_and_wider_member_counts() -> None:
    members = [word for i in range(70000) for word in (1, 1, 8 * i)]
    record = (0, info(4, 70000), 70000, *members)
    types = Btf(blob(UNSIGNED_CHAR, record, strings=b"\0m\0", header=bytes(40)))
    dtype = types.dtype(2)
    assert dtype.names is not None
    assert (len(dtype.names), dtype.itemsize) == (70000, 70000)
    assert dtype.names[:3] == ("m", "m_2", "m_3")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes"),
        (bytes(23), "23 bytes"),
        (bytes(24), "0x0000 at byte 0"),
        (struct.pack("=H", 0x9FEB) + bytes(30), "other byte order"),
        (blob(INT32)[:2] + b"\2" + blob(INT32)[3:], "version=2"),
        (blob(INT32)[:3] + b"\1" + blob(INT32)[4:], "flags=1"),
        (blob(INT32, hdr_len=20), "hdr_len=20"),
        (blob(INT32, hdr_len=1 << 31), "not within 41"),
        (blob(INT32)[:-1], "not within 40"),
        (blob(), "without a type"),
        (blob(INT32, strings=b""), "NUL"),
        (blob(INT32, strings=b"\0a"), "NUL"),
        (blob(INT32, strings=b"a\0"), "NUL"),
        (blob((0, info(1), 4)), "type 1 at byte 24: cut off"),
        (blob((0, 0)), "type 1 at byte 24: cut off"),
        (blob(INT32, (0, info(4, 9), 4, 0, 1, 0)), "type 2 at byte 40: cut off"),
        (blob((0, info(0), 0)), "kind 0"),
        (blob((0, info(20), 0)), "kind 20"),
        (blob((0, info(127, 0xFFFFFF), 0)), "kind 127"),
        (blob(INT32, (1, info(1), 4, 32)), "type 2 at byte 40.*strings"),
    ],
)
def test_broken_blobs_say_where(data: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Btf(data)


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([(0, info(8), 9)], "no BTF type 9"),
        ([(0, info(8), 1)], "type 1 at byte 24.*circle"),
        ([(0, info(8), 2), (0, info(10), 1)], "circle"),
        ([(0, info(4, 1), 8, 0, 1, 0)], "type 1 at byte 24: it contains itself"),
        ([(0, info(3), 0, 1, 1, 1)], "contains itself"),
        ([(0, info(14), 1, 0)], "contains itself"),
        ([(0, info(7), 0)], "kind 7"),
        ([(0, info(13), 0)], "kind 13"),
        ([(0, info(1), 3, 24)], "of 3 bytes"),
        ([(0, info(6), 3)], "of 3 bytes"),
        ([(0, info(16), 1)], "of 1 bytes"),
        ([(0, info(4, 1), 2, 0, 2, 0), INT32], "at bit 0 of 2 bytes"),
        ([(0, info(4, 1), 8, 0, 2, 40), INT32], "at bit 40 of 8 bytes"),
        ([(0, info(4, 1), 8, 0, 2, 4), INT32], "at bit 4 of 8 bytes"),
        ([(0, info(4, 1), 8, 0, 2, 0xFFFFFFF8), INT32], "of 8 bytes"),
        ([(0, info(4, 1, 1), 4, 0, 2, 33 << 24), INT32], "33 bits at bit 0"),
        ([(0, info(4, 1, 1), 4, 0, 2, 30 << 24 | 3), INT32], "30 bits at bit 3"),
        ([(0, info(4, 1, 1), 8, 0, 2, 3 << 24), (0, info(16), 8)], "3 bits"),
        ([(0, info(4), 1 << 31)], "more than numpy"),
        ([(0, info(3), 0, 2, 2, 1 << 29), INT32], "2147483648 bytes are more"),
        ([(0, info(15, 1), 4, 2, 2, 4), (0, info(14), 3, 0), INT32], "beyond its 4 bytes"),
    ],
)
def test_broken_types_say_where(records: list[Any], text: str) -> None:
    types = Btf(blob(*records))
    with pytest.raises(ValueError, match=text):
        types.dtype(1)


def test_void_and_wrong_kinds() -> None:
    types = Btf(blob(INT32))
    for call in (types.dtype, types.size, types.enum, types.members, types.datasec):
        with pytest.raises(ValueError):
            call(0)
    for call in (types.enum, types.members, types.datasec):
        with pytest.raises(ValueError, match="type 1 at byte 24: no "):
            call(1)
    for number in (-1, 2, 1 << 40):
        with pytest.raises(ValueError, match="no BTF type"):
            types.dtype(number)
    assert (types.kind(0), types.name(0)) == (Kind.VOID, "")


# --- hostile --------------------------------------------------------------------------------------


def within(seconds: float, call: Callable[[], object]) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError):
        call()
    assert time.perf_counter() - started < 60 * seconds  # against hanging alone


def doubling(kind: int, levels: int, name: int) -> bytes:
    """Each type twice the one before, without being any larger."""
    records: list[tuple[int, ...]] = [UNSIGNED_CHAR]
    for number in range(1, levels + 1):
        records.append((0, info(kind, 2), 1, name, number, 0, name, number, 0))
    return blob(*records, strings=b"\0m\0")


@pytest.mark.native("megabytes of hostile BTF, for a parser that asks no kernel")
@pytest.mark.parametrize("kind", [4, 5])
@pytest.mark.parametrize("name", [0, 1], ids=["anonymous", "named"])
def test_doubling_types_do_not_explode(kind: int, name: int) -> None:
    types = Btf(doubling(kind, 30, name))
    within(30, lambda: types.dtype(31))
    dtype = types.dtype(11)
    hash(dtype)
    assert dtype == types.dtype(11)


def test_depth_is_the_same_however_one_gets_there() -> None:
    records: list[tuple[int, ...]] = [INT32]
    for number in range(1, 2000):
        records.append((0, info(4, 1), 4, 1, number, 0))
    types = Btf(blob(*records, strings=b"\0m\0"))
    assert types.dtype(32).itemsize == 4
    for number in (33, 40, 2000):
        with pytest.raises(ValueError, match="32"):
            types.dtype(number)
    assert types.dtype(32).itemsize == 4
    arrays = Btf(blob(INT32, *[(0, info(3), 0, n, 1, 1) for n in range(1, 100)]))
    assert arrays.dtype(32).shape == (1,) * 31
    with pytest.raises(ValueError, match="32"):
        arrays.dtype(33)
    with pytest.raises(ValueError, match="deeper"):
        arrays.size(90)


def test_sizes_do_not_overflow() -> None:
    for nelems in (0x3FFFFFFF, 0x40000000):
        types = Btf(blob(INT32, (0, info(3), 0, 1, 1, nelems)))
        if nelems == 0x3FFFFFFF:
            assert types.size(2) == 0xFFFFFFFC
        else:
            with pytest.raises(ValueError, match="4294967296 bytes"):
                types.size(2)
    types = Btf(blob(INT32, *[(0, info(3), 0, n, 1, 0xFFFFFFFF) for n in range(1, 20)]))
    for number in range(2, 21):
        within(5, lambda number=number: types.dtype(number))  # type: ignore[misc]
        within(5, lambda number=number: types.size(number))  # type: ignore[misc]


@pytest.mark.native("megabytes of hostile BTF, for a parser that asks no kernel")
def test_overlapping_names_do_not_eat_memory() -> None:
    strings = b"\0" + b"x" * 500 + b"\0"
    values = [word for _ in range(200000) for word in (1, 0)]
    types = Btf(blob((0, info(6, 200000), 4, *values), strings=strings))
    within(30, lambda: types.enum(1))
    for length in (511, 512):
        types = Btf(blob((1, info(1), 4, 32), strings=b"\0" + b"x" * length + b"\0"))
        if length == 511:
            assert types.name(1) == "x" * 511
        else:
            with pytest.raises(ValueError, match="over 511 bytes"):
                types.name(1)


@pytest.mark.native("megabytes of hostile BTF, for a parser that asks no kernel")
def test_variables_that_all_fail_late_do_not_hang() -> None:
    # Each variable's type is a large struct whose last member has no dtype.
    count = 60000
    members = [word for _ in range(count) for word in (0, 1, 0)]
    variables = [word for n in range(count) for word in (3, 0, 1)]
    types = Btf(
        blob(
            UNSIGNED_CHAR,
            (0, info(4, count + 1), 1, *members, 0, 0, 0),
            (0, info(14), 2, 0),
            (0, info(15, count), 8, *variables),
        )
    )
    with steps(80 * count):
        dtype = types.dtype(4)
    assert dtype.names is not None
    assert (len(dtype.names), dtype[0]) == (count, np.dtype("V1"))


CALLS: list[Callable[[Btf, int], object]] = [
    Btf.kind, Btf.name, Btf.resolve, Btf.size, Btf.dtype, Btf.members, Btf.enum, Btf.datasec,
    Btf.layout, Btf.variables,
]  # fmt: skip


def exercise(data: bytes) -> None:
    try:
        types = Btf(data)
    except ValueError:
        return
    for number in range(min(len(types) + 1, 40)):
        for call in CALLS:
            try:
                result = call(types, number)
            except ValueError:
                continue
            if isinstance(result, np.dtype):
                assert result.itemsize == types.size(number)
                hash(result)
            elif isinstance(result, Layout) and result.dtype.itemsize < 1 << 20:
                records = np.zeros(1, result.dtype)
                for bits in result.bitfields.values():
                    assert not bits.extract(records).any()
                for path in [*result.enums, *result.special]:
                    assert isinstance(path, str)
    for name in ("", "a", "value", "x\0", "é"):
        with contextlib.suppress(KeyError):
            assert 0 < types.find(name) < len(types)
        with contextlib.suppress(KeyError, ValueError):
            assert types.dtype(types.named(name)) is not None


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=examples(300))
def test_random_bytes(data: bytes) -> None:
    exercise(data)
    exercise(blob(strings=b"\0")[:12] + data)


infos = [info(k, v, f) for k in range(20) for v in (0, 1, 2) for f in (0, 1)]
words = st.integers(0, 40) | st.sampled_from(infos) | st.integers(0, 0xFFFFFFFF)


@given(st.lists(words, min_size=3, max_size=60), st.binary(max_size=20))
@settings(deadline=None, max_examples=examples(300))
def test_random_types(record: list[int], text: bytes) -> None:
    exercise(blob(record, strings=b"\0" + text + b"\0"))


records = st.one_of(
    st.builds(lambda size, word: (1, info(1), size, word), st.sampled_from([1, 2, 4, 8, 16]),
              st.sampled_from([8, 32, 5, 1 << 24 | 64, 4 << 24 | 8, 3 << 16 | 4])),
    st.builds(lambda kind, to: (1, info(kind), to), st.sampled_from([2, 8, 9, 10, 11, 14, 18]),
              st.integers(0, 12)),
    st.builds(lambda to, n: (0, info(3), 0, to, 1, n), st.integers(0, 12), st.integers(0, 5)),
    st.builds(
        lambda kind, flag, size, members: (1, info(kind, len(members), flag), size,
                                           *(w for m in members for w in m)),
        st.sampled_from([4, 5, 15]), st.integers(0, 1), st.integers(0, 64),
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12),
                           st.integers(0, 255) | st.integers(0, 1 << 30)), max_size=5)),
)  # fmt: skip


@given(st.lists(records, min_size=1, max_size=12))
@settings(deadline=None, max_examples=examples(300))
def test_random_records(rows: list[tuple[int, ...]]) -> None:
    exercise(blob(*rows, strings=b"\0ab\0char\0"))


@given(dtypes, st.data())
@settings(deadline=None, max_examples=examples(300))
def test_mutated_blobs(dtype: DType, data: st.DataObject) -> None:
    good = bytearray(encode(dtype, dtype, value_name="a", bpftool_safe=data.draw(st.booleans()))[0])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    exercise(
        bytes(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    )


# --- all of vmlinux -------------------------------------------------------------------------------


@pytest.mark.native("timed")
def test_vmlinux_is_indexed_quickly() -> None:
    data = VMLINUX.read_bytes()
    started = time.perf_counter()
    types = Btf(data)
    types.find("task_struct", Kind.STRUCT)
    assert time.perf_counter() - started < 60
    assert len(types) > 10000


def test_vmlinux_has_what_every_kernel_has(kernel: Btf) -> None:
    node = np.dtype([("next", "u8"), ("prev", "u8")])
    assert kernel.dtype(kernel.find("list_head", Kind.STRUCT)) == node
    commands = kernel.enum(kernel.find("bpf_cmd", Kind.ENUM))
    assert (commands["BPF_MAP_CREATE"], commands["BPF_BTF_LOAD"]) == (0, 18)
    insn = kernel.find("bpf_insn", Kind.STRUCT)
    assert list(kernel.bitfields(insn)) == ["dst_reg", "src_reg"]
    assert kernel.dtype(insn).itemsize == 8
    header = kernel.dtype(kernel.find("tcphdr", Kind.STRUCT))
    assert header.fields is not None
    assert header.fields["source"] == (np.dtype(">u2"), 0)
    task = kernel.find("task_struct", Kind.STRUCT)
    dtype = kernel.dtype(task)
    assert dtype.fields is not None
    assert dtype["comm"] == np.dtype("S16")
    assert {"pid", "tgid", "mm"} <= dtype.fields.keys()


@pytest.mark.slow
def test_every_type_of_vmlinux_reads(kernel: Btf) -> None:
    fields = 0
    for number in range(1, len(kernel)):
        kind = kernel.kind(number)
        kernel.name(number)
        if kind in (Kind.STRUCT, Kind.UNION):
            dtype = kernel.dtype(number)
            assert dtype.itemsize == kernel.size(number)
            for member in kernel.members(number):
                if member.name and not member.bit_size and kernel.size(member.type_id):
                    assert dtype.fields is not None
                    inner, offset = dtype.fields[member.name][:2]
                    assert 8 * offset == member.bit_offset
                    assert inner.itemsize == kernel.size(member.type_id)
                    fields += 1
        elif kind in (Kind.ENUM, Kind.ENUM64):
            assert kernel.enum(number) is not None
        elif kind is Kind.DATASEC:
            assert kernel.datasec(number)
    assert fields > 10000


def test_a_module_continues_vmlinux(kernel: Btf) -> None:
    # Its strings and ids begin where those of vmlinux end.
    strings = struct.unpack_from("=I", VMLINUX.read_bytes(), 20)[0]
    node = kernel.find("list_head", Kind.STRUCT)
    record = (strings, info(4, 1), 16, strings + 2, node, 0)
    module = Btf(blob(record, strings=b"s\0m\0"), kernel)
    assert (module.find("s"), module.find("list_head", Kind.STRUCT)) == (len(kernel), node)
    assert module.dtype(len(kernel)) == np.dtype([("m", kernel.dtype(node))])
    for path in VMLINUX.parent.iterdir():
        types = Btf(path.read_bytes(), kernel if path != VMLINUX else None)
        assert types.name(len(types) - 1) is not None
