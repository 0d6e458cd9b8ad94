"""BTF written: from numpy's dtypes, or type by type. The names for users are in `btf`."""

from __future__ import annotations

import enum
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastmap.btf.special import check_special, special_kind

DType: TypeAlias = "np.dtype[Any]"

HEADER = struct.Struct("=HBBIIIII")
MAGIC = 0xEB9F
# The kernel's own limits: the bytes of a blob, the members and the depth of a type, a name.
_MAX_BLOB = 16 << 20
_MAX_VLEN = 0xFFFF
MAX_DEPTH = 32
_IDENTIFIER = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]*")


class Kind(enum.IntEnum):
    """`BTF_KIND_*`."""

    VOID, INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE = range(10)
    CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = range(10, 17)
    DECL_TAG, TYPE_TAG, ENUM64 = range(17, 20)


QUALIFIERS = (Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_FREE_NAMES = (Kind.INT, Kind.FLOAT, Kind.DECL_TAG, Kind.TYPE_TAG)
SIGNED, CHAR, BOOL = 1, 2, 4


class Builder:
    """Builds a BTF blob type by type; every method returns the id of its type.

    A type that is there already is not added again: its id is returned.
    """

    SIGNED, CHAR, BOOL = SIGNED, CHAR, BOOL

    def __init__(self) -> None:
        self._types = bytearray()
        self._ids: dict[bytes, int] = {}
        self._strings = bytearray(1)
        self._name_offs = {"": 0}

    @property
    def next_id(self) -> int:
        """The id of the next new type, for a type that must name itself before it is there."""
        return len(self._ids) + 1

    def _string(self, name: str, *, checked: bool = True) -> int:
        if name in self._name_offs:
            return self._name_offs[name]
        if checked and not _IDENTIFIER.fullmatch(name):
            raise ValueError(f"BTF takes names of letters, digits, '_' and '.', not {name!r}")
        if "\0" in name:
            raise ValueError(f"a name cannot contain NUL: {name!r}")
        off = len(self._strings)
        self._strings += name.encode() + b"\0"
        self._name_offs[name] = off
        return off

    def _add(
        self,
        kind: Kind,
        name: str,
        size_or_type: int,
        extra: Iterable[tuple[int, ...]] = (),
        *,
        vlen: int | None = None,
        flag: bool = False,
    ) -> int:
        """One record: the three words all kinds share, then `extra`, rows of further words."""
        rows = list(extra)
        if vlen is None:
            vlen = len(rows)
        if vlen > _MAX_VLEN:
            raise ValueError(f"{kind.name} {name!r}: {vlen} members, BTF takes {_MAX_VLEN}")
        name_off = self._string(name, checked=kind not in _FREE_NAMES)
        words = [name_off, vlen | kind << 24 | flag << 31, size_or_type]
        for row in rows:
            words += row
        try:
            record = struct.pack(f"={len(words)}I", *words)
        except struct.error:
            raise ValueError(f"{kind.name} {name!r}: a number does not fit 32 bits") from None
        type_id = self._ids.get(record)
        if type_id is None:
            type_id = self.next_id
            self._ids[record] = type_id
            self._types += record
        return type_id

    def add_int(self, name: str, size: int, *, encoding: int = 0) -> int:
        """`encoding` is 0 or one of `SIGNED`, `CHAR`, `BOOL`."""
        if size not in (1, 2, 4, 8, 16):
            raise ValueError(f"an INT has 1, 2, 4, 8 or 16 bytes, not {size}")
        return self._add(Kind.INT, name, size, [(encoding << 24 | 8 * size,)], vlen=0)

    def add_float(self, name: str, size: int) -> int:
        """An IEEE number."""
        if size not in (2, 4, 8, 12, 16):
            raise ValueError(f"a FLOAT has 2, 4, 8, 12 or 16 bytes, not {size}")
        return self._add(Kind.FLOAT, name, size)

    def add_ref(self, kind: Kind, type_id: int, name: str = "") -> int:
        """PTR, CONST, VOLATILE, RESTRICT; with a name TYPEDEF, TYPE_TAG."""
        if kind not in (Kind.PTR, Kind.TYPEDEF, *QUALIFIERS):
            raise ValueError(f"{kind!r} is not made of another type alone")
        return self._add(kind, name, type_id)

    def add_array(self, type_id: int, nelems: int, index_type_id: int | None = None) -> int:
        """One dimension; of several, the outermost is added last."""
        if index_type_id is None:
            index_type_id = self.add_int("unsigned int", 4)
        return self._add(Kind.ARRAY, "", 0, [(type_id, index_type_id, nelems)], vlen=0)

    def add_struct(
        self,
        name: str,
        size: int,
        members: Iterable[tuple[str, int, int]],
        *,
        union: bool = False,
        bits: Mapping[str, tuple[int, int]] | None = None,
    ) -> int:
        """`members` are (name, type id, offset in bytes), in non-decreasing order of offset.

        Those in `bits` are bitfields: the bit they begin at in the struct, and how many they are.
        """
        rows = []
        last = 0
        bits = bits or {}
        for member, type_id, offset in members:
            if offset < last or (union and offset):
                raise ValueError(f"{name}.{member} at offset {offset} is out of order")
            last = offset
            at, width = bits.get(member, (offset * 8, 0))
            rows.append((self._string(member), type_id, width << 24 | at))
        return self._add(Kind.UNION if union else Kind.STRUCT, name, size, rows, flag=bool(bits))

    def add_enum(self, name: str, size: int, values: Iterable[tuple[str, int]]) -> int:
        """ENUM, or ENUM64 where `size` is 8; signed where a value is negative."""
        if size not in (1, 2, 4, 8):
            raise ValueError(f"an ENUM has 1, 2, 4 or 8 bytes, not {size}")
        pairs = list(values)
        signed = any(value < 0 for _, value in pairs)
        low, high = (-1 << 8 * size - 1, 1 << 8 * size - 1) if signed else (0, 1 << 8 * size)
        rows: list[tuple[int, ...]] = []
        for label, value in pairs:
            if not low <= value < high:
                raise OverflowError(f"enum {name}: {label} = {value} does not fit {size} bytes")
            words = (value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)
            rows.append((self._string(label), *(words if size == 8 else words[:1])))
        return self._add(Kind.ENUM64 if size == 8 else Kind.ENUM, name, size, rows, flag=signed)

    def add_fwd(self, name: str, *, union: bool = False) -> int:
        """A struct or union that is only declared."""
        return self._add(Kind.FWD, name, 0, flag=union)

    def add_func_proto(self, return_type_id: int, params: Iterable[tuple[str, int]] = ()) -> int:
        """`params` are (name, type id)."""
        rows = [(self._string(name), type_id) for name, type_id in params]
        return self._add(Kind.FUNC_PROTO, "", return_type_id, rows)

    def add_func(self, name: str, proto_type_id: int, *, static: bool = False) -> int:
        """A function, of linkage static or global."""
        return self._add(Kind.FUNC, name, proto_type_id, vlen=0 if static else 1)

    def add_var(self, name: str, type_id: int, *, static: bool = False) -> int:
        """A variable, of linkage static or global."""
        return self._add(Kind.VAR, name, type_id, [(0 if static else 1,)], vlen=0)

    def add_datasec(self, name: str, size: int, variables: Iterable[tuple[int, int, int]]) -> int:
        """`variables` are (id of a VAR, offset, size)."""
        return self._add(Kind.DATASEC, name, size, variables)

    def add_decl_tag(self, tag: str, type_id: int, component: int = -1) -> int:
        """Tags a type, or its member or parameter number `component`."""
        return self._add(Kind.DECL_TAG, tag, type_id, [(component & 0xFFFFFFFF,)], vlen=0)

    def build(self) -> bytes:
        """The blob BPF_BTF_LOAD takes."""
        if not self._types:
            raise ValueError("BTF without a type: the kernel refuses it")
        header = HEADER.pack(
            MAGIC, 1, 0, HEADER.size, 0, len(self._types), len(self._types), len(self._strings)
        )
        blob = header + self._types + self._strings
        if len(blob) > _MAX_BLOB:
            raise ValueError(f"{len(blob)} bytes of BTF, the kernel takes {_MAX_BLOB}")
        return bytes(blob)


# The names C gives to numpy's numbers, by size. The kernel asks nothing of them.
_UNSIGNED_NAMES = {
    1: "unsigned char",
    2: "unsigned short",
    4: "unsigned int",
    8: "unsigned long long",
}
_SIGNED_NAMES = {1: "signed char", 2: "short", 4: "int", 8: "long long"}
_FLOAT_NAMES = {2: "_Float16", 4: "float", 8: "double", 12: "long double", 16: "long double"}
_FOREIGN_ORDER = "be" if sys.byteorder == "little" else "le"


def encode(
    key: DType | None,
    value: DType | None,
    *,
    bpftool_safe: bool = False,
    key_name: str = "key",
    value_name: str = "value",
) -> tuple[bytes, int, int]:
    """The BTF of a map's key and value, for BPF_MAP_CREATE.

    Parameters
    ----------
    key, value : numpy.dtype or None
        None where the map has none; not both.
    bpftool_safe : bool
        `bpftool map dump` stops at a FLOAT: write floats as unsigned integers with a DECL_TAG,
        which `Btf.dtype` reads as floats again.
    key_name, value_name : str
        Names of the structs, where key or value is one.

    Returns
    -------
    blob : bytes
    key_id, value_id : int
        Type ids of exactly the dtypes' sizes; 0 for None.

    Raises
    ------
    TypeError, ValueError
        A dtype has no BTF; or it has a lock (`fastmap.spin_lock`) where the kernel takes or sees
        none: in a key, not aligned, a second one, not in a record.

    Notes
    -----
    `Btf.dtype` gives back the same fields, offsets and sizes, with these exceptions: fields come in
    the order of their offsets, those of no bytes are gone, names that BTF does not take are changed
    (to unique ones), void bytes come back as `u1` arrays, U strings as `u4` arrays and complex
    numbers as records of `real` and `imag`.
    """
    if key is None and value is None:
        raise ValueError("neither key nor value: there is nothing to describe")
    check_special(key, value)
    encoder = _Encoder(bpftool_safe)
    key_id = 0 if key is None else encoder.type(key, _struct_name(key_name))
    value_id = 0 if value is None else encoder.type(value, _struct_name(value_name))
    return encoder.builder.build(), key_id, value_id


def _safe(name: str) -> str:
    """`name` in the letters BTF takes, and with room left for a suffix."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", name[:100])
    return name if _IDENTIFIER.fullmatch(name) else f"_{name}"


def _struct_name(name: str) -> str:
    # bpf_spin_lock, bpf_timer and their kind change what the kernel does with the map.
    name = _safe(name)
    return f"_{name}" if name.startswith("bpf_") else name


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """`names`, each that is taken already with a number behind it."""
    seen = set(taken)
    counts: dict[str, int] = {}
    result = []
    for name in names:
        unique = name
        while unique in seen:
            counts[name] = counts.get(name, 1) + 1
            unique = f"{name}_{counts[name]}"
        seen.add(unique)
        result.append(unique)
    return result


def _safe_names(names: Sequence[str]) -> dict[str, str]:
    """Every name's safe form; those that are safe keep their own, whatever the others become."""
    kept = [name for name in names if _IDENTIFIER.fullmatch(name) and len(name) <= 127]
    safe = set(kept)
    changed = [name for name in names if name not in safe]
    fresh = unique(map(_safe, changed), kept)
    return dict(zip(kept, kept, strict=True)) | dict(zip(changed, fresh, strict=True))


class _Encoder:
    def __init__(self, bpftool_safe: bool) -> None:
        self.builder = Builder()
        self._bpftool_safe = bpftool_safe

    def type(self, dtype: DType, name: str = "", offset: int = 0, depth: int = 1) -> int:
        """The id of `dtype`, at `offset` of the struct it is directly a member of."""
        if dtype.itemsize == 0:
            raise ValueError(f"{dtype!r} has no bytes to describe")
        if dtype.subdtype is not None:
            base, shape = dtype.subdtype
            return self._array(self.type(base, name, 0, depth + len(shape)), *shape)
        if depth + (dtype.names is None and dtype.kind in "SVUc") > MAX_DEPTH:
            raise ValueError(f"a dtype nested deeper than {MAX_DEPTH} has no BTF")
        if dtype.names is not None:
            return self._struct(dtype, name, depth)
        size = dtype.itemsize
        if dtype.kind == "S":
            return self._array(self.builder.add_int("char", 1, encoding=CHAR), size)
        if dtype.kind == "V":
            return self._array(self._int(1), size)
        if dtype.kind == "U":
            unit = self._ordered(np.dtype("u4").newbyteorder(dtype.byteorder), self._int(4))
            return self._array(unit, size // 4)
        if dtype.kind == "c":
            part = np.zeros((), dtype).real.dtype
            half = self.type(part, depth=depth + 1)
            members = [("real", half, 0), ("imag", half, part.itemsize)]
            return self.builder.add_struct(dtype.name, size, members)
        return self._ordered(dtype, self._number(dtype, offset))

    def _array(self, type_id: int, *shape: int) -> int:
        for nelems in reversed(shape):
            type_id = self.builder.add_array(type_id, nelems)
        return type_id

    def _int(self, size: int, signed: bool = False) -> int:
        names = _SIGNED_NAMES if signed else _UNSIGNED_NAMES
        return self.builder.add_int(names[size], size, encoding=SIGNED if signed else 0)

    def _number(self, dtype: DType, offset: int) -> int:
        size = dtype.itemsize
        if dtype.kind in "iu":
            return self._int(size, dtype.kind == "i")
        if dtype.kind == "b":
            return self.builder.add_int("_Bool", 1, encoding=BOOL)
        if dtype.kind in "mM":
            return self._tagged(dtype, self._int(8, signed=True))
        if dtype.kind != "f":
            raise TypeError(
                f"{dtype!r} does not lie in the item's own bytes: it cannot be in a map"
            )
        # The kernel takes no FLOAT that is not aligned within its struct.
        if not self._bpftool_safe and offset % min(size, 8) == 0:
            return self.builder.add_float(_FLOAT_NAMES[size], size)
        return (
            self._tagged(dtype, self._int(size)) if size <= 8 else self._array(self._int(1), size)
        )

    def _tagged(self, dtype: DType, type_id: int) -> int:
        typedef = self.builder.add_ref(Kind.TYPEDEF, type_id, _safe(dtype.name))
        self.builder.add_decl_tag(dtype.name, typedef)
        return typedef

    def _ordered(self, dtype: DType, type_id: int) -> int:
        """BTF has no byte order: the kernel's own typedefs tell it, `__be32` and the like."""
        if dtype.isnative or dtype.itemsize > 8:
            return type_id
        name = f"__{_FOREIGN_ORDER}{8 * dtype.itemsize}"
        return self.builder.add_ref(Kind.TYPEDEF, type_id, name)

    def _struct(self, dtype: DType, name: str, depth: int) -> int:
        assert dtype.fields is not None and dtype.names is not None
        name = special_kind(dtype) or name
        safe = _safe_names(dtype.names)
        fields = [(dtype.fields[n][1], safe[n], dtype.fields[n][0]) for n in dtype.names]
        members = [
            (label, self.type(sub, "", offset, depth + 1), offset)
            for offset, label, sub in sorted(fields, key=lambda f: f[0])
            if sub.itemsize
        ]
        union = len(members) > 1 and not any(offset for *_, offset in members)
        return self.builder.add_struct(name, dtype.itemsize, members, union=union)
