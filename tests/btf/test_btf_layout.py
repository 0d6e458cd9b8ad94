"""What a compiler says of its types, against a record as it lays it out; names and bitfields."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import numpy as np
import pytest
from clang_types import OBJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_btf import INT32, blob, info
from test_btf_reading import within

from fastmap.btf import Bitfield, Btf, Builder, Kind, Layout, elf

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the object is little-endian")


def part(name: str) -> bytes:
    found = elf.section(io.BytesIO(OBJECT), name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def clang() -> Btf:
    return Btf(part(".BTF"))


@pytest.fixture(scope="module")
def layout(clang: Btf) -> Layout:
    return clang.layout(clang.named("struct everything"))


@pytest.fixture(scope="module")
def sample(layout: Layout) -> Any:
    return np.frombuffer(part(".rodata.sample"), layout.dtype)


SAMPLE: dict[str, Any] = {
    "name": b"a name", "raw": [1, 2, 255], "small": -1, "flag": True, "qualified": 0xFEDCBA98,
    "address": 0x01020304, "port": 0x0102, "wide_address": 0x0102030405060708, "single": 1.5,
    "matrix": [[1, 2, 3], [4, 5, 6]],
    "cube": [[[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]],
             [[100, 101, 102, 103], [110, 111, 112, 113], [120, 121, 122, -123]]],
    "names": [b"one", b"two", b"three", b"fourfour"], "pointer": 0xFFFF888000000000,
    "self": 0, "later": 0, "call": 0, "state": 0x80000000, "levels": [1, -1], "wide": 1 << 32,
    "negative": -1 << 32, "nested": (7, 0x123456789A, -1),
    "many": [(1, 2, 1), (3, 4, -1), (5, 6, 1)],
    "choice": (0x3F800000, [0, 0, 0x80, 0x3F], 0, 0x3F80, 1.0), "anonymous_a": 9 << 32 | 8,
    "anonymous_b": 8, "anonymous_c": 9,
}  # fmt: skip


def plain(value: Any) -> Any:
    """Return a field's value without numpy's types."""
    value = value.tolist()
    return tuple(map(plain, map(np.asarray, value))) if isinstance(value, tuple) else value


@pytest.mark.quick
def test_a_record_as_the_compiler_lays_it_out(sample: Any) -> None:
    assert sample.dtype.names == (*SAMPLE, "packed", "bits", "huge")
    assert {name: plain(sample[name][0]) for name in SAMPLE} == SAMPLE
    assert int.from_bytes(sample["huge"][0].tobytes(), "little") == (1 << 100) + 1
    packed = sample["packed"][0]
    assert (packed["a"], packed["b"], packed["e"], packed["f"]) == (
        1, 0x1122334455667788, -2.5, 0xFFFFFFFF)  # fmt: skip
    assert sample["bits"]["tail"].tolist() == [[200, 100]]


BITS: dict[str, Any] = {
    "packed.c": [5], "packed.d": [0x1EDCBA9876543210], "bits.low": [[5, 2]],
    "bits.sign": [[-16, 15]], "bits.big": [[0xABCDEF0123, 1]], "bits.state": [[5, 0]],
    "bits.yes": [[True, False]],
}  # fmt: skip


@pytest.mark.quick
def test_bitfields_of_nested_records_and_arrays(layout: Layout, sample: Any) -> None:
    assert {path: bits.extract(sample).tolist() for path, bits in layout.bitfields.items()} == BITS
    assert layout.bitfields["packed.d"].extract(sample[0]).tolist() == BITS["packed.d"][0]
    again = np.zeros_like(sample)
    for path, bits in layout.bitfields.items():
        bits.store(again, BITS[path])
    assert {path: bits.extract(again).tolist() for path, bits in layout.bitfields.items()} == BITS
    again["packed"]["b"] = 0xFFFFFFFFFFFFFFFF
    layout.bitfields["packed.c"].store(again, 0)
    assert again["packed"]["b"][0] == 0xFFFFFFFFFFFFFFFF, "the container shares a byte with it"


def test_names_of_enums(layout: Layout) -> None:
    level = {"LOW": -1, "HIGH": 1}
    state = {"IDLE": 0, "RUNNING": 5, "DEAD": 0x80000000}
    assert layout.enums == {
        "state": state, "levels": level, "wide": {"SMALL": 1, "LARGE": 1 << 32},
        "negative": {"MINUS": -1 << 32, "PLUS": 1}, "nested.level": level, "many.level": level,
        "bits.state": state,
    }  # fmt: skip


def test_an_enum_alone(clang: Btf) -> None:
    layout = clang.layout(clang.named("enum level"))
    assert (layout.dtype, layout.enums) == (np.dtype("i4"), {"": {"LOW": -1, "HIGH": 1}})


def test_what_the_kernel_acts_on(clang: Btf) -> None:
    locked = clang.named("locked")
    assert clang.special(locked) == {
        "lock": "bpf_spin_lock", "timer": "bpf_timer", "object": "kptr", "deep.user": "uptr",
    }  # fmt: skip
    assert clang.special(clang.named("bpf_timer")) == {"": "bpf_timer"}
    assert not clang.special(clang.named("everything"))
    lookalike = Builder()
    union = lookalike.add_struct("bpf_spin_lock", 4, [("val", lookalike.add_int("u", 4), 0)],
                                 union=True)  # fmt: skip
    assert not Btf(lookalike.build()).special(union), "the kernel takes structs only"


def test_an_anonymous_member_keeps_what_it_is() -> None:
    b = Builder()
    lock = b.add_struct("bpf_spin_lock", 4, [("val", b.add_int("u", 4), 0)])
    outer = b.add_struct("outer", 4, [("", lock, 0)])
    layout = Btf(b.build()).layout(outer)
    assert layout.special == {"anonymous": "bpf_spin_lock"}
    assert layout.dtype.names == ("anonymous",)


# --- names ----------------------------------------------------------------------------------------


def test_a_type_by_its_name(clang: Btf) -> None:
    everything = clang.find("everything", Kind.STRUCT)
    for name in ("everything", "struct everything", " struct  everything "):
        assert clang.named(name) == everything
    assert clang.dtype(clang.named("__be32")) == np.dtype(">u4")
    assert clang.dtype(clang.named("unsigned int")) == np.dtype("u4")
    assert clang.dtype(clang.named("union both")) == np.dtype([("x", "u4")])
    with pytest.raises(KeyError, match="near: everything"):
        clang.named("struct everythink")
    with pytest.raises(KeyError, match="only declared"):
        clang.named("later")
    with pytest.raises(KeyError):
        clang.named("union everything")
    for name in ("", "struct", "struct ", "use", "nothing like it at all"):
        with pytest.raises(KeyError):
            clang.named(name)


def test_several_types_of_one_name(clang: Btf) -> None:
    with pytest.raises(ValueError, match=r"2 types .*'both'.*struct both \(id \d+, 8 bytes\)"
                                         r".*union both \(id \d+, 4 bytes\).*say 'struct'"):
        clang.named("both")
    b = Builder()
    number = b.add_int("u", 4)
    one = b.add_struct("s", 8, [("x", number, 0)])
    b.add_ref(Kind.TYPEDEF, one, "s")
    assert Btf(b.build()).named("s") == one, "a typedef of itself is no other type"
    b.add_struct("s", 8, [("x", number, 0), ("", b.add_struct("", 4, []), 8)])
    assert Btf(b.build()).named("s") == one, "equal dtypes are one type"
    b.add_struct("s", 8, [("x", number, 4)])
    for name in ("s", "struct s"):
        with pytest.raises(ValueError, match=r"named '(struct )?s'.*by its id"):
            Btf(b.build()).named(name)


def test_a_crowd_of_one_name_is_not_compared() -> None:
    b = Builder()
    number = b.add_int("u", 4)
    for size in range(4, 2000):
        b.add_struct("s", size, [("x", number, 0)])
    with pytest.raises(ValueError, match="1996 types.*and 1988 more"):
        Btf(b.build()).named("s")


# --- sections -------------------------------------------------------------------------------------


def test_variables_of_a_section() -> None:
    b = Builder()
    number = b.add_int("int", 4, encoding=Builder.SIGNED)
    proto = b.add_func("f", b.add_func_proto(0))
    pair = b.add_struct("pair", 8, [("x", number, 0), ("y", number, 4)])
    placed = [(b.add_var("n", number), 0, 4), (b.add_var("pairs", b.add_array(pair, 3)), 8, 24),
              (b.add_var("fn", proto), 32, 8)]  # fmt: skip
    section = b.add_datasec(".bss", 40, placed)
    types = Btf(b.build())
    pairs = np.dtype((np.dtype([("x", "i4"), ("y", "i4")]), (3,)))
    assert types.variables(section) == {
        "n": (0, np.dtype("i4")), "pairs": (8, pairs), "fn": (32, np.dtype("V8")),
    }  # fmt: skip
    assert types.named(".bss") == section
    with pytest.raises(ValueError, match="no DATASEC"):
        types.variables(pair)


def test_a_section_before_linking_says_so(clang: Btf) -> None:
    with pytest.raises(ValueError, match="no linker has filled in"):
        clang.variables(clang.named(".data.both"))


# --- bitfields ------------------------------------------------------------------------------------


@st.composite
def bitfields(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[int, int, bool, int, int]]]:
    """A struct's BTF, its bytes, and (offset, width, signed, type's size, value) by member."""
    b, members, at = Builder(), [], draw(st.integers(0, 20))
    for index in range(draw(st.integers(1, 6))):
        size, signed = draw(st.sampled_from([1, 2, 4, 8])), draw(st.booleans())
        width = draw(st.integers(1, 8 * size))
        low, high = (-1 << width - 1, (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
        value = draw(st.integers(low, high))
        b.add_int(f"t{size}{signed}", size, encoding=signed * Builder.SIGNED)
        members.append((at, width, signed, size, value))
        at += width + draw(st.integers(0, 9)) * (index % 2)
    bytes_ = (at + 7) // 8
    strings = b"\0" + b"".join(b"m%d\0" % i for i in range(len(members)))
    records = [(0, info(1), size, signed << 24 | 8 * size) for _, _, signed, size, _ in members]
    words = [w for i, (offset, width, *_) in enumerate(members)
             for w in (strings.index(b"m%d\0" % i), i + 1, width << 24 | offset)]  # fmt: skip
    records.append((0, info(4, len(members), 1), bytes_, *words))  # type: ignore[arg-type]
    return blob(*records, strings=strings), bytes_, members


@given(bitfields(), st.binary(min_size=8, max_size=8))
@settings(deadline=None, max_examples=150)
def test_bitfields_are_read_and_written_as_integers_are(
    case: tuple[bytes, int, list[tuple[int, int, bool, int, int]]], noise: bytes
) -> None:
    data, size, members = case
    types = Btf(data)
    type_id = len(types) - 1
    dtype, bits = types.dtype(type_id), types.bitfields(type_id)
    assert (dtype.itemsize, list(bits)) == (size, [f"m{i}" for i in range(len(members))])
    whole = before = int.from_bytes((noise * size)[:size], "little")
    for offset, width, _, _, value in members:
        mask = (1 << width) - 1
        whole = whole & ~(mask << offset) | (value & mask) << offset
    records = np.frombuffer(whole.to_bytes(size, "little"), dtype)
    values = [member[4] for member in members]
    assert [bits[f"m{i}"].extract(records).tolist() for i in range(len(members))] == [
        [value] for value in values
    ]
    written = np.frombuffer(bytearray(before.to_bytes(size, "little")), dtype)
    for index, value in enumerate(values):
        bits[f"m{index}"].store(written, [value])
    assert written.tobytes() == records.tobytes()


def test_what_a_bitfield_refuses() -> None:
    one = Bitfield(("x",), 2, 3, np.dtype("u4"))
    signed = Bitfield(("x",), 2, 3, np.dtype("i4"))
    records = np.zeros(2, [("x", "u4")])
    for bits, values in ((one, 8), (one, -1), (one, [0, 9]), (signed, 4), (signed, -5)):
        with pytest.raises(OverflowError, match="3 bits"):
            bits.store(records, values)
    with pytest.raises(TypeError, match="integers"):
        one.store(records, 1.0)
    with pytest.raises(TypeError, match="copy"):
        one.store(records[0], 1)  # type: ignore[arg-type]
    assert not records["x"].any()


# --- hostile --------------------------------------------------------------------------------------


def test_layouts_are_bounded_where_dtypes_are_not() -> None:
    # One enum of very many names, used very often: its names are there once.
    values = [word for n in range(5000) for word in (1, n)]
    members = [word for n in range(5000) for word in (1, 1, 32 * n)]
    types = Btf(blob((0, info(6, 5000), 4, *values), (0, info(4, 5000), 20000, *members),
                     strings=b"\0m\0"))  # fmt: skip
    layout = types.layout(2)
    assert len(layout.enums) == 5000
    assert len({id(names) for names in layout.enums.values()}) == 1

    # Long names, nested deep, at the head of many paths.
    strings = b"\0" + b"x" * 500 + b"\0" + b"".join(b"%04x\0" % n for n in range(4000))
    wide = [w for n in range(4000) for w in (502 + 5 * n, 1, 0)]
    records: list[Any] = [(0, info(6), 1), (0, info(5, 4000), 1, *wide)]
    records += [(0, info(4, 1), 1, 1, number, 0) for number in range(2, 31)]
    deep = Btf(blob(*records, strings=strings))
    assert deep.dtype(31).itemsize == 1
    within(60, lambda: deep.layout(31))


def test_names_of_special_structs_with_other_members() -> None:
    # The kernel goes by name and size alone; a first member of the same name is no obstacle.
    strings = b"\0bpf_spin_lock\0"
    types = Btf(blob(INT32, (1, info(4, 1), 4, 1, 1, 0), strings=strings))
    assert types.special(2) == {"": "bpf_spin_lock"}
    assert types.dtype(2).itemsize == 4
    assert not Btf(blob(INT32, (1, info(4, 1), 8, 1, 1, 0), strings=strings)).special(2)


def test_names_alike_do_not_hang() -> None:
    b = Builder()
    number = b.add_int("int", 4)
    for index in range(6000):
        b.add_ref(Kind.TYPEDEF, number, "x" * 50 + f"{index:06}")
    types = Btf(b.build())
    started = time.process_time()
    with pytest.raises(KeyError, match="near: xxx"):
        types.named("x" * 60)
    assert time.process_time() - started < 30
