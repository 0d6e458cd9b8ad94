"""BTF written: against the kernel, and read back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import examples

import fastmap
from fastmap._core.system import syscall
from fastmap.btf import Btf, Builder, Kind, encode

newest_kinds = pytest.mark.needs("BTF FLOAT", "BTF DECL_TAG", "BTF TYPE_TAG", "BTF ENUM64")
DType = np.dtype[Any]


def info(kind: int, vlen: int = 0, flag: int = 0) -> int:
    return flag << 31 | kind << 24 | vlen


def blob(
    *records: Iterable[int], strings: bytes = b"\0", header: bytes = b"", hdr_len: int | None = None
) -> bytes:
    """BTF by hand, from the words of its records."""
    types = b"".join(struct.pack(f"={len(list(r))}I", *r) for r in records)
    length = 24 + len(header) if hdr_len is None else hdr_len
    fixed = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, length, 0, len(types), len(types), len(strings))
    return fixed + header + types + strings


INT32 = (0, info(1), 4, 32)
UNSIGNED_CHAR = (0, info(1), 1, 8)


def loaded(data: bytes) -> None:
    """Has the kernel check it."""
    syscall.btf_load(data).close()


# --- writing --------------------------------------------------------------------------------------


def test_the_bytes_of_a_struct() -> None:
    data, key_id, value_id = encode(np.dtype("u4"), np.dtype([("a", "u4"), ("b", "i8")]))
    assert (key_id, value_id) == (1, 3)
    assert encode(np.dtype("u4"), None)[1:] == (1, 0)
    strings = b"\0unsigned int\0long long\0a\0b\0value\0"
    a, b, value = strings.index(b"a\0b"), strings.index(b"b\0v"), strings.index(b"value")
    assert data == blob(
        (1, info(1), 4, 32),
        (14, info(1), 8, 1 << 24 | 64),
        (value, info(4, 2), 12, a, 1, 0, b, 2, 32),
        strings=strings,
    )


DTYPES: list[Any] = [
    "?", "u1", "i1", "u2", "i4", "u8", "i8", "f2", "f4", "f8", "g", "c8", "c16", ">u2", ">u4",
    ">i8", ">f8", "<u8", "S1", "S16", "V7", "U3", ">U2", "M8[ns]", "m8[25us]",
    ("u4", (3,)), ("u2", (2, 3, 4)), ("S8", (5,)), ("V3", (2,)),
    [("a", "u4"), ("b", "u8")],
    np.dtype([("a", "u1"), ("b", "u8")], align=True),
    [("x", [("y", "u2"), ("z", "f4", (2,))]), ("w", "?")],
    [("a", "u1"), ("f", "f8"), ("g", ">f4"), ("h", "f2"), ("l", "g"), ("c", "c8"), ("t", "M8[D]")],
    {"names": ["lo", "hi", "all"], "formats": ["u4", "u4", "u8"], "offsets": [0, 4, 0]},
    {"names": ["a", "b"], "formats": ["u4", "f4"], "offsets": [0, 0], "itemsize": 16},
    {"names": ["b", "a"], "formats": ["u4", "u4"], "offsets": [12, 4], "itemsize": 24},
    {"names": [], "formats": [], "offsets": [], "itemsize": 8},
    [("a-b", "u4"), ("a_b", "u4"), ("a b", "u4"), ("", "u4"), ("1x", "u4"), ("é", "u4")],
    [("n" * 300, "u2"), ("n" * 299, "u2"), ("bpf_spin_lock", "u4")],
    [("e", "u4", (0,)), ("k", "u1"), ("s", "S0")],
    [(f"f{i}", "u1") for i in range(1000)],
    [("a", [("b", [("c", [("d", [("e", "S3")])])])])],
]  # fmt: skip


@newest_kinds
@pytest.mark.parametrize("bpftool_safe", [False, True])
def test_maps_take_the_btf_of_dtypes(bpftool_safe: bool) -> None:
    for spec in DTYPES:
        dtype = np.dtype(spec)
        data, key_id, value_id = encode(
            dtype, dtype, bpftool_safe=bpftool_safe, key_name="bpf_timer"
        )
        types = syscall.btf_load(data)
        try:
            syscall.map_create(
                fastmap.MapType.HASH, dtype.itemsize, dtype.itemsize, 4, btf_fd=types.fileno(),
                btf_key_type_id=key_id, btf_value_type_id=value_id,
            ).close()  # fmt: skip
        finally:
            types.close()


@pytest.mark.parametrize(
    ("type", "key", "value", "flags"),
    [
        ("ARRAY", "u4", [("a", "u8"), ("b", "f8")], 0),
        ("PERCPU_ARRAY", "u4", "u8", 0),
        ("LPM_TRIE", [("prefixlen", "u4"), ("addr", "u1", (4,))], "u8", 1),
        ("LRU_HASH", [("a", "u8")], "S5", 0),
        ("PERCPU_HASH", "V3", "V7", 0),
        ("BLOOM_FILTER", None, "u8", 0),
        ("TASK_STORAGE", "i4", [("x", "u8")], 1),
    ],
)
def test_map_types_that_look_into_the_btf(type: str, key: Any, value: Any, flags: int) -> None:
    key, value = (None if spec is None else np.dtype(spec) for spec in (key, value))
    data, key_id, value_id = encode(key, value)
    assert (key is None) == (key_id == 0)
    types = syscall.btf_load(data)
    try:
        syscall.map_create(
            fastmap.MapType[type], key.itemsize if key else 0, value.itemsize,
            0 if type == "TASK_STORAGE" else 4, flags, btf_fd=types.fileno(),
            btf_key_type_id=key_id, btf_value_type_id=value_id,
        ).close()  # fmt: skip
    finally:
        types.close()


@newest_kinds
def test_every_kind_that_can_be_built() -> None:
    b = Builder()
    number = b.add_int("int", 4, encoding=b.SIGNED)
    pointer = b.add_ref(Kind.PTR, number)
    const = b.add_ref(Kind.CONST, number)
    b.add_ref(Kind.VOLATILE, const)
    b.add_ref(Kind.RESTRICT, pointer)
    b.add_ref(Kind.TYPE_TAG, number, "user")
    named = b.add_ref(Kind.TYPEDEF, pointer, "int_ptr")
    b.add_array(named, 7)
    small = b.add_enum("small", 4, [("A", 1), ("B", -1)])
    wide = b.add_enum("wide", 8, [("C", 1 << 63), ("D", 5)])
    signed_wide = b.add_enum("signed_wide", 8, [("E", -(1 << 63))])
    byte = b.add_enum("byte", 1, [("F", 255)])
    this = b.add_ref(Kind.PTR, b.next_id + 1)
    node = b.add_struct("node", 24, [("next", this, 0), ("e", small, 8), ("v", wide, 16)])
    union = b.add_struct("both", 8, [("a", number, 0), ("b", wide, 0)], union=True)
    double = b.add_float("double", 8)
    b.add_fwd("later")
    b.add_fwd("later_union", union=True)
    proto = b.add_func_proto(number, [("x", number), ("y", pointer)])
    func = b.add_func("func", proto)
    b.add_func("static_func", proto, static=True)
    variables = [(b.add_var("v", number), 0, 4), (b.add_var("w", double, static=True), 8, 8)]
    section = b.add_datasec(".bss", 16, variables)
    b.add_decl_tag("tagged", node)
    b.add_decl_tag("argument", func, 1)
    data = b.build()
    loaded(data)
    types = Btf(data)
    assert types.enum(small) == {"A": 1, "B": -1}
    assert types.enum(wide) == {"C": 1 << 63, "D": 5}
    assert types.enum(signed_wide) == {"E": -(1 << 63)}
    assert types.enum(byte) == {"F": 255}
    assert [types.dtype(i).str for i in (small, wide, signed_wide, byte)] == [
        "<i4", "<u8", "<i8", "|u1",
    ]  # fmt: skip
    assert types.dtype(node) == np.dtype(
        {"names": ["next", "e", "v"], "formats": ["u8", "i4", "u8"], "offsets": [0, 8, 16]}
    )
    assert types.members(node)[0].type_id == this
    assert types.resolve(named) == pointer
    assert types.kind(union) is Kind.UNION
    assert types.dtype(union).fields is not None
    assert [(v.name, v.offset, v.size) for v in types.datasec(section)] == [
        ("v", 0, 4), ("w", 8, 8),
    ]  # fmt: skip
    assert types.dtype(section) == np.dtype(
        {"names": ["v", "w"], "formats": ["i4", "f8"], "offsets": [0, 8], "itemsize": 16}
    )
    assert [types.name(types.find(n)) for n in ("func", "static_func")] == ["func", "static_func"]


def test_a_type_or_string_is_there_once() -> None:
    b = Builder()
    assert b.add_int("x", 4) == b.add_int("x", 4) == 1
    assert b.add_float("x", 4) == 2 == b.next_id - 1
    assert b.build().count(b"x\0") == 1


def test_what_the_builder_refuses() -> None:
    b = Builder()
    with pytest.raises(ValueError, match="without a type"):
        b.build()
    number = b.add_int("any name at all", 4)
    refusals: list[Callable[[], int]] = [
        lambda: b.add_struct("a-b", 4, []),
        lambda: b.add_struct("a", 4, [("1x", number, 0)]),
        lambda: b.add_struct("a", 8, [("x", number, 4), ("y", number, 0)]),
        lambda: b.add_struct("a", 8, [("x", number, 4)], union=True),
        lambda: b.add_struct("a", 1 << 30, [("x", number, 1 << 29)]),
        lambda: b.add_struct("a", 4, [(f"m{i}", number, 0) for i in range(65536)]),
        lambda: b.add_ref(Kind.TYPEDEF, number, "é"),
        lambda: b.add_ref(Kind.INT, number),
        lambda: b.add_int("x\0", 4),
        lambda: b.add_int("x", 3),
        lambda: b.add_int("x", 17),
        lambda: b.add_float("x", 1),
        lambda: b.add_enum("x", 3, []),
    ]
    for refused in refusals:
        with pytest.raises(ValueError):
            refused()
    with pytest.raises(OverflowError):
        b.add_enum("e", 1, [("x", 256)])
    with pytest.raises(OverflowError):
        b.add_enum("e", 4, [("x", 1 << 31), ("y", -1)])


def test_what_encode_refuses() -> None:
    deep: DType = np.dtype("u4")
    for _ in range(31):
        deep = np.dtype([("x", deep)])
    data, _, value_id = encode(None, deep)
    assert Btf(data).dtype(value_id) == deep
    with pytest.raises(ValueError, match="deeper"):
        encode(None, np.dtype([("x", deep)]))
    for dtype in (np.dtype("S0"), np.dtype([]), np.dtype(("u4", (0,)))):
        with pytest.raises(ValueError, match="no bytes"):
            encode(None, dtype)
    with pytest.raises(ValueError, match="nothing to describe"):
        encode(None, None)
    with pytest.raises(ValueError, match="65536 members"):
        encode(None, np.dtype([(f"f{i}", "u1") for i in range(65536)]))
    with pytest.raises(ValueError, match="32 bits"):
        encode(None, np.dtype([("big", "V", 1 << 29), ("beyond", "u1")]))
    for spec in ("O", [("x", "O")]):
        with pytest.raises(TypeError, match="cannot be in a map"):
            encode(None, np.dtype(spec))


def test_names_are_made_safe_and_stay_apart() -> None:
    names = ["a b", "a_b", "a-b", "a_b_2", "", "9", "é", "é_", "n" * 128, "n" * 127, "\udc80"]
    data, _, value_id = encode(None, np.dtype([(name, "u1") for name in names]), value_name="x y")
    loaded(data)
    back = Btf(data).dtype(value_id)
    assert back.names is not None and len(set(back.names)) == len(names)
    kept = {old: new for old, new in zip(names, back.names, strict=True) if old == new}
    assert set(kept) == {"a_b", "a_b_2", "n" * 127}
    assert Btf(data).name(value_id) == "x_y"


def test_a_struct_never_has_a_name_the_kernel_acts_on() -> None:
    dtype = np.dtype([("x", "u8"), ("y", "u8")])
    data, key_id, value_id = encode(dtype, dtype, key_name="bpf_timer", value_name="bpf_spin_lock")
    types = Btf(data)
    assert [types.name(i) for i in (key_id, value_id)] == ["_bpf_timer", "_bpf_spin_lock"]


def test_floats_without_a_float() -> None:
    dtype = np.dtype([("a", "f2"), ("b", ">f4"), ("c", "f8", (3,)), ("d", [("e", "f8")])])
    plain, _, value_id = encode(None, dtype)
    assert Btf(plain).find("double", Kind.FLOAT)
    assert Btf(plain).dtype(value_id) == dtype
    safe, _, value_id = encode(None, dtype, bpftool_safe=True)
    types = Btf(safe)
    assert Kind.FLOAT not in {types.kind(i) for i in range(1, len(types))}
    assert types.dtype(value_id) == dtype


# --- there and back -------------------------------------------------------------------------------

scalars = st.sampled_from([
    "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">u2", ">i4", ">u8",
    ">f4", "c8", ">c16", "M8[ns]", "m8[D]", ">M8[s]", "S1", "S7", "V1", "V16", "U2", ">U3",
]).map(np.dtype)  # fmt: skip
names = st.one_of(st.sampled_from(["a", "b", "a_b", "a-b", "value"]), st.text(max_size=6))


@st.composite
def structs(draw: st.DrawFn, inner: st.SearchStrategy[DType]) -> DType:
    members = draw(st.lists(st.tuples(names, inner), max_size=5, unique_by=lambda m: m[0]))
    offsets = [draw(st.integers(0, 24)) for _ in members]
    end = max((o + d.itemsize for o, (_, d) in zip(offsets, members, strict=True)), default=1)
    return np.dtype(
        {
            "names": [name for name, _ in members],
            "formats": [dtype for _, dtype in members],
            "offsets": offsets,
            "itemsize": end + draw(st.integers(0, 9)),
        }
    )


def arrays(inner: st.SearchStrategy[DType]) -> st.SearchStrategy[DType]:
    shapes = hnp.array_shapes(max_dims=3, max_side=4)
    return st.tuples(inner, shapes).map(np.dtype)


dtypes = st.recursive(scalars, lambda inner: structs(inner) | arrays(inner), max_leaves=8)


def normal(dtype: DType) -> Any:
    """What `encode` promises to keep of a dtype, in a form that can be compared."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        inner = normal(base)
        return (inner[0], shape + inner[1]) if inner[0] is not dict else (inner, shape)
    if dtype.names is not None:
        assert dtype.fields is not None
        fields = [dtype.fields[name] for name in dtype.names]
        members = sorted(
            ((f[1], normal(f[0])) for f in fields if f[0].itemsize), key=lambda m: m[0]
        )
        return dict, dtype.itemsize, members
    order = dtype.byteorder if dtype.byteorder != "=" else "<"
    size = dtype.itemsize
    if dtype.kind == "V":
        return "|u1", (size,)
    if dtype.kind == "U":
        return f"{order}u4", (size // 4,)
    if dtype.kind == "c":
        part = (f"{order}f{size // 2}", ())
        return dict, size, [(0, part), (size // 2, part)]
    return dtype.str, ()


@pytest.mark.native("hundreds of dtypes, and asks no kernel")
@given(dtypes, st.booleans())
@settings(deadline=None, max_examples=300)
def test_round_trip(dtype: DType, bpftool_safe: bool) -> None:
    data, _, value_id = encode(None, dtype, bpftool_safe=bpftool_safe)
    types = Btf(data)
    back = types.dtype(value_id)
    assert types.size(value_id) == back.itemsize == dtype.itemsize
    assert normal(back) == normal(dtype)
    if dtype.names is not None and all(f[0].itemsize for f in (dtype.fields or {}).values()):
        kept = {name for name in dtype.names if name in ("a", "b", "a_b", "value")}
        assert kept <= set(back.names or ())
        for name in kept:
            assert dtype.fields is not None and back.fields is not None
            assert dtype.fields[name][1] == back.fields[name][1]


@newest_kinds
@given(st.lists(dtypes, min_size=2, max_size=2), st.booleans())
@settings(
    deadline=None, max_examples=examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_kernel_takes_what_encode_makes(pair: list[DType], bpftool_safe: bool) -> None:
    data, key_id, value_id = encode(pair[0], pair[1], bpftool_safe=bpftool_safe)
    types = syscall.btf_load(data)
    try:
        syscall.map_create(
            fastmap.MapType.HASH, pair[0].itemsize, pair[1].itemsize, 4, flags=1,
            btf_fd=types.fileno(), btf_key_type_id=key_id, btf_value_type_id=value_id,
        ).close()  # fmt: skip
    finally:
        types.close()


@newest_kinds
def test_a_map_brings_its_dtypes_along(make: Callable[..., Any]) -> None:
    key = np.dtype([("address", ">u4"), ("port", "u2"), ("pad", "u1", (2,))])
    value = np.dtype([("packets", "u8"), ("share", "f8"), ("name", "S16"), ("seen", "M8[ns]")])
    made = make("hash", key=key, value=value, max_entries=8)
    with fastmap.open(id=made.id) as opened:
        assert (opened.key_dtype, opened.value_dtype) == (key, value)
        assert opened.dtype_source == "btf"
