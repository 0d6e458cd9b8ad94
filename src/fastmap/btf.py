"""BTF, the kernel's description of types: made from numpy's dtypes, and read as them.

`encode` makes what BPF_MAP_CREATE takes along, `Builder` any other BTF, `Btf` reads the BTF of a
map, a program, a module or the whole kernel. What is read may be hostile: `ValueError` says where
it is broken, and no blob costs more than a bounded amount of time and memory.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmap.btf_build import (
    BOOL,
    HEADER,
    MAGIC,
    MAX_DEPTH,
    QUALIFIERS,
    SIGNED,
    Builder,
    DType,
    Kind,
    encode,
    unique,
)

__all__ = ["Bitfield", "Btf", "Builder", "Kind", "Member", "Variable", "encode"]

# The kernel's limit of a name.
_MAX_NAME = 511
# numpy's: the bytes of an item are a C int.
_MAX_ITEMSIZE = 0x7FFFFFFF
# Ours: the fields of one dtype, nested ones counted wherever they are used (numpy walks them all
# to compare or hash it), and the members looked at to make it.
_MAX_FIELDS = 1 << 17
_MAX_WORK = 1 << 19
# Words of a record beyond the three that all kinds have: once, and for each of its members.
_EXTRA = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_EACH = {
    Kind.STRUCT: 3, Kind.UNION: 3, Kind.ENUM: 2, Kind.FUNC_PROTO: 2, Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}  # fmt: skip
# What is read as a number, by which letter of numpy's, in which sizes.
_NUMBERS = {
    Kind.INT: ("u", (1, 2, 4, 8, 16)),
    Kind.ENUM: ("u", (1, 2, 4, 8)),
    Kind.ENUM64: ("u", (1, 2, 4, 8)),
    Kind.PTR: ("u", (8,)),
    Kind.FLOAT: ("f", (2, 4, 8, np.dtype("g").itemsize)),
}
_RECORDS = (Kind.STRUCT, Kind.UNION, Kind.DATASEC)
# What BTF itself cannot say: the kernel's typedefs tell a byte order, our tags a dtype.
_ORDER_TYPEDEF = re.compile(r"__([bl]e)(16|32|64)")
_DTYPE_TAG = re.compile(
    r"float(16|32|64)|(datetime|timedelta)64(\[([1-9]\d{0,8})?[A-Za-z]{1,2}\])?"
)


class Member(NamedTuple):
    """A member of a struct or union; `bit_size` is 0 where it is no bitfield."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


class Variable(NamedTuple):
    """A variable of a DATASEC, `offset` and `size` in bytes."""

    name: str
    type_id: int
    offset: int
    size: int


@dataclass(frozen=True)
class Bitfield:
    """How to get a bitfield, for which numpy has no type, out of the field it lies in.

    Attributes
    ----------
    container : str
        The field in `Btf.dtype`'s result: an unsigned integer, or single bytes where the bits lie
        across the units of their type.
    shift, width : int
        The bits, counted from the container's least significant one.
    dtype : numpy.dtype
        What `extract` returns.
    """

    container: str
    shift: int
    width: int
    dtype: DType

    def extract(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The bitfield of every record, in a fresh array."""
        data = records[self.container]
        if data.ndim == records.ndim:
            words = data.astype("u8") >> np.uint64(self.shift)
        else:
            # Up to nine bytes: each is moved to its place in the bitfield.
            words = np.zeros(records.shape, "u8")
            count = data.shape[-1]
            for index in range(count):
                place = index if sys.byteorder == "little" else count - 1 - index
                byte, bits = data[..., index].astype("u8"), 8 * place - self.shift
                words |= byte << np.uint64(bits) if bits >= 0 else byte >> np.uint64(-bits)
        unused = 64 - self.width
        words = words << np.uint64(unused)
        if self.dtype.kind == "i":
            return np.asarray((words.view("i8") >> np.int64(unused)).astype(self.dtype))
        return np.asarray((words >> np.uint64(unused)).astype(self.dtype))


class _Type(NamedTuple):
    """A record: the words all kinds share, taken apart, and where its further words begin."""

    kind: int
    name_off: int
    vlen: int
    flag: int
    value: int
    words: memoryview
    at: int


class _Field(NamedTuple):
    name: str
    dtype: DType
    bit_offset: int
    bit_size: int


class _Built(NamedTuple):
    """A dtype with its number of fields and levels; of a record also what it is made of."""

    dtype: DType
    weight: int = 1
    depth: int = 1
    fields: Sequence[_Field] | None = None
    bitfields: dict[str, Bitfield] | None = None


class _Walk:
    """One call of `Btf.dtype`: what is made, what is being made, what work is left."""

    def __init__(self) -> None:
        self.built: dict[int, _Built] = {}
        self.path: list[int] = []
        self.left = _MAX_WORK

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise ValueError(f"BTF asks for a dtype of over {_MAX_WORK} members")


class Btf:
    """Reads BTF.

    Parameters
    ----------
    data : bytes
        The blob of a map or program, `/sys/kernel/btf/vmlinux`, an object file's section.
    base : Btf or None
        What a split BTF continues: vmlinux's, for a module's.

    Raises
    ------
    ValueError
        Here and in every method, where the bytes are not what they should be or no type has the id.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < HEADER.size:
            raise ValueError(f"{len(data)} bytes are too few for a BTF header")
        header = HEADER.unpack_from(data)
        magic, version, flags, hdr_len, type_off, type_len, str_off, str_len = header
        if magic != MAGIC:
            other = " is that of the other byte order" if magic == 0x9FEB else ""
            raise ValueError(f"BTF begins with {MAGIC:#06x}, {magic:#06x} at byte 0{other}")
        if version != 1 or flags or hdr_len < HEADER.size:
            raise ValueError(f"BTF {version=} {flags=} {hdr_len=} at byte 2 is not known")

        def section(what: str, off: int, length: int, unit: int) -> bytes:
            if off % unit or length % unit or hdr_len + off + length > len(data):
                at = f"{length} bytes at byte {hdr_len + off}"
                raise ValueError(f"BTF {what}, {at}: not aligned, or not within {len(data)}")
            return bytes(data[hdr_len + off : hdr_len + off + length])

        strings = section("strings", str_off, str_len, 1)
        if strings[-1:] != b"\0" or (base is None and strings[0]):
            raise ValueError(f"BTF strings at byte {hdr_len + str_off} do not begin and end in NUL")
        types = section("types", type_off, type_len, 4)
        if not types:
            raise ValueError(f"BTF without a type at byte {hdr_len + type_off}")
        self._base = base
        self._first_id = 1 if base is None else len(base)
        self._strings: bytes = strings if base is None else base._strings + strings
        self._layout: dict[int, tuple[int, ...]] = {} if base is None else base._layout
        if hdr_len >= HEADER.size + 8 and any(data[HEADER.size : HEADER.size + 8]):
            layout_off, layout_len = struct.unpack_from("=II", data, HEADER.size)
            layout = section("layout", layout_off, layout_len, 4)[: 4 * 128]
            self._layout = dict(enumerate(struct.iter_unpack("=BBH", layout)))
        self._types_at = hdr_len + type_off
        self._words = memoryview(types).cast("I")
        self._starts = array("I")
        self._index()
        words, starts = np.frombuffer(types, "u4"), np.frombuffer(self._starts, "u4")
        self._name_offs, self._kinds = words[starts], words[starts + 1] >> 24 & 0x7F
        if (outside := np.flatnonzero(self._name_offs >= len(self._strings))).size:
            raise self._bad(self._first_id + int(outside[0]), "its name lies outside the strings")
        self._tags: dict[int, DType] | None = None

    def _index(self) -> None:
        """Finds where each record begins. No more of them is read before it is asked for."""
        once, each = [0] * 128, [0] * 128
        for kind, (info_size, elem_size, _) in self._layout.items():
            # Kinds of the future can be stepped over where the blob says how.
            if info_size % 4 == elem_size % 4 == 0:
                once[kind], each[kind] = 3 + info_size // 4, elem_size // 4
        for known in list(Kind)[1:]:
            once[known], each[known] = 3 + _EXTRA.get(known, 0), _EACH.get(known, 0)
        once[Kind.VOID] = 0
        words, starts, at, end = self._words, self._starts, 0, len(self._words)
        while at < end:
            starts.append(at)
            info = words[at + 1] if at + 3 <= end else 0
            step = once[info >> 24 & 0x7F]
            at += step + (info & 0xFFFFFF) * each[info >> 24 & 0x7F]
            if not step or at > end:
                kind = info >> 24 & 0x7F
                raise self._bad(len(self) - 1, f"cut off, or of kind {kind} that is not known")

    def _bad(self, type_id: int, what: str) -> ValueError:
        if type_id < self._first_id:
            if self._base is not None:
                return self._base._bad(type_id, what)
            return ValueError(f"BTF type {type_id}, void: {what}")
        at = self._types_at + 4 * self._starts[type_id - self._first_id]
        return ValueError(f"BTF type {type_id} at byte {at}: {what}")

    def _type(self, type_id: int) -> _Type:
        if not 0 <= type_id < len(self):
            raise ValueError(f"there is no BTF type {type_id}: ids are below {len(self)}")
        if type_id < self._first_id:
            if self._base is not None:
                return self._base._type(type_id)
            return _Type(Kind.VOID, 0, 0, 0, 0, self._words, 0)
        at = self._starts[type_id - self._first_id]
        name_off, info, value = self._words[at : at + 3]
        vlen = info & 0xFFFFFF
        return _Type(info >> 24 & 0x7F, name_off, vlen, info >> 31, value, self._words, at + 3)

    def _string(self, off: int) -> str:
        end = self._strings.find(0, off, off + _MAX_NAME + 1)
        if end < 0:
            raise ValueError(f"BTF string {off} lies outside, or is over {_MAX_NAME} bytes long")
        return self._strings[off:end].decode(errors="backslashreplace")

    def __len__(self) -> int:
        """One more than the highest id; id 0 is void."""
        return self._first_id + len(self._starts)

    def kind(self, type_id: int) -> Kind:
        """What the type is; ValueError for a kind this library does not know."""
        return Kind(self._type(type_id).kind)

    def name(self, type_id: int) -> str:
        """Its name, "" where it has none."""
        return self._string(self._type(type_id).name_off)

    def find(self, name: str, kind: Kind | None = None) -> int:
        """The lowest id of that name (and kind); a split BTF's own types come first.

        Raises
        ------
        KeyError
            There is none.
        """
        text = name.encode(errors="surrogateescape") + b"\0"
        strings = np.frombuffer(self._strings, "u1")
        there = self._name_offs + np.uint64(len(text)) <= strings.size
        ids = np.flatnonzero(there if kind is None else there & (self._kinds == kind))
        # All names at once, from the NUL at their ends backwards: few are left after one step.
        for place in reversed(range(len(text))):
            ids = ids[strings[self._name_offs[ids] + np.uint64(place)] == text[place]]
        if ids.size and name and "\0" not in name:
            return self._first_id + int(ids[0])
        if self._base is None:
            raise KeyError(name)
        return self._base.find(name, kind)

    def resolve(self, type_id: int) -> int:
        """The type behind typedefs, qualifiers and type tags."""
        return self._resolve(type_id)[0]

    def _resolve(self, type_id: int) -> tuple[int, list[int]]:
        typedefs = []
        first = type_id
        for _ in range(MAX_DEPTH):
            found = self._type(type_id)
            if found.kind == Kind.TYPEDEF:
                typedefs.append(type_id)
            elif found.kind not in QUALIFIERS:
                return type_id, typedefs
            type_id = found.value
        raise self._bad(first, f"behind {MAX_DEPTH} typedefs and qualifiers, or in a circle")

    def size(self, type_id: int) -> int:
        """Its size in bytes; a variable has that of its type."""
        count, inner = 1, type_id
        for _ in range(MAX_DEPTH):
            found = self._type(self.resolve(inner))
            if found.kind == Kind.ARRAY:
                inner, _, nelems = found.words[found.at : found.at + 3]
                count *= nelems
            elif found.kind == Kind.VAR:
                inner = found.value
            elif found.kind in _NUMBERS or found.kind in _RECORDS:
                size = count * (8 if found.kind == Kind.PTR else found.value)
                if size > 0xFFFFFFFF:
                    raise self._bad(type_id, f"{size} bytes are too many")
                return size
            else:
                raise self._bad(type_id, f"kind {found.kind} has no size")
        raise self._bad(type_id, f"nested deeper than {MAX_DEPTH}")

    def _rows(self, type_id: int, *kinds: Kind) -> tuple[_Type, list[tuple[str, list[int]]]]:
        """The type behind `type_id`, one of `kinds`, and its members' names and words."""
        found = self._type(self.resolve(type_id))
        if found.kind not in kinds:
            raise self._bad(type_id, f"no {' or '.join(kind.name for kind in kinds)}")
        if found.vlen > _MAX_FIELDS:
            raise self._bad(type_id, f"{found.vlen} members, over {_MAX_FIELDS}")
        rows, width, text = [], _EACH[Kind(found.kind)], 0
        for at in range(found.at, found.at + found.vlen * width, width):
            row = found.words[at : at + width].tolist()
            name = self.name(row[0]) if found.kind == Kind.DATASEC else self._string(row[0])
            rows.append((name, row))
            # The names of one scope differ, so the strings hold them all (but for ends that some
            # share). Hostile ones could each be a long part of the same long string.
            text += len(name)
            if text > len(self._strings) + (1 << 20):
                raise self._bad(type_id, "its members' names overlap")
        return found, rows

    def members(self, type_id: int) -> list[Member]:
        """The members of a struct or union; anonymous ones have the name ""."""
        found, rows = self._rows(type_id, Kind.STRUCT, Kind.UNION)
        members = []
        for name, (_, member_id, offset) in rows:
            bits, offset = (offset >> 24, offset & 0xFFFFFF) if found.flag else (0, offset)
            inner = self._type(self.resolve(member_id))
            if inner.kind == Kind.INT and not bits:
                # Old compilers' bitfields: an INT of fewer bits than its bytes have.
                word = inner.words[inner.at]
                if 0 < word & 0xFF < 8 * inner.value:
                    bits, offset = word & 0xFF, offset + (word >> 16 & 0xFF)
            members.append(Member(name, member_id, offset, bits))
        return members

    def parts(self, type_id: int) -> list[int]:
        """The types that a type's own bytes are made of; of a pointer, the tag on its target."""
        found = self._type(type_id)
        if found.kind in (Kind.STRUCT, Kind.UNION):
            return [member.type_id for member in self.members(type_id)]
        if found.kind == Kind.ARRAY:
            return [found.words[found.at]]
        if found.kind == Kind.PTR and found.value:
            return [found.value] if self._type(found.value).kind == Kind.TYPE_TAG else []
        return [found.value] if found.kind in (Kind.TYPEDEF, *QUALIFIERS) else []

    def enum(self, type_id: int) -> dict[str, int]:
        """The names of an ENUM or ENUM64, and their values."""
        found, rows = self._rows(type_id, Kind.ENUM, Kind.ENUM64)
        wide = found.kind == Kind.ENUM64
        sign = found.flag << (63 if wide else 31)
        values = [row[1] | row[2] << 32 if wide else row[1] for _, row in rows]
        return {name: (value ^ sign) - sign for (name, _), value in zip(rows, values, strict=True)}

    def datasec(self, type_id: int) -> list[Variable]:
        """The variables of a section such as `.bss`."""
        _, rows = self._rows(type_id, Kind.DATASEC)
        return [Variable(name, *row) for name, row in rows]

    def dtype(self, type_id: int) -> DType:
        """The dtype of a type, with its very size and offsets.

        Enums are integers (`enum` has their names), and so are pointers. Members of anonymous
        structs and unions stand among their parent's, members of no bytes are left out, doubled
        names get a number. In place of bitfields stand the fields they lie in, named `bits0` and
        so on by their offset; `bitfields` gets them out. A DATASEC is a record of its variables,
        void bytes where their type has no dtype.

        Raises
        ------
        ValueError
            The type is void, a function or a forward declaration, or has one in it; it is
            inconsistent, deeper than 32 levels or of more than 2 ** 17 fields.
        """
        return self._build(type_id, _Walk()).dtype

    def bitfields(self, type_id: int) -> dict[str, Bitfield]:
        """The bitfields of a struct or union by name, for records of its dtype."""
        return self._build(type_id, _Walk()).bitfields or {}

    def _build(self, type_id: int, walk: _Walk) -> _Built:
        if type_id in walk.built:
            return walk.built[type_id]
        if type_id in walk.path or len(walk.path) >= MAX_DEPTH:
            raise self._bad(type_id, f"it contains itself, or is nested deeper than {MAX_DEPTH}")
        walk.spend(1)
        walk.path.append(type_id)
        try:
            built = self._make(type_id, walk)
        finally:
            walk.path.pop()
        if built.weight > _MAX_FIELDS or built.depth > MAX_DEPTH:
            raise self._bad(type_id, f"over {_MAX_FIELDS} fields, or deeper than {MAX_DEPTH}")
        walk.built[type_id] = built
        return built

    def _make(self, type_id: int, walk: _Walk) -> _Built:
        real_id, typedefs = self._resolve(type_id)
        found = self._type(real_id)
        if found.kind in (Kind.STRUCT, Kind.UNION):
            return self._struct(real_id, found.value, walk)
        if found.kind == Kind.DATASEC:
            return self._section(real_id, found.value, walk)
        if found.kind == Kind.VAR:
            return self._build(found.value, walk)
        if found.kind == Kind.ARRAY:
            return self._array(real_id, found, walk)
        if found.kind not in _NUMBERS:
            raise self._bad(real_id, f"kind {found.kind} has no dtype")
        letter, sizes = _NUMBERS[Kind(found.kind)]
        size = 8 if found.kind == Kind.PTR else found.value
        if size not in sizes:
            raise self._bad(real_id, f"kind {found.kind} of {size} bytes has no dtype")
        if found.kind == Kind.INT:
            encoding = found.words[found.at] >> 24
            letter = "V" if size == 16 else "i" if encoding & SIGNED else "u"
            if encoding & BOOL and size == 1:
                return _Built(np.dtype("?"))
        elif found.flag and letter == "u":
            letter = "i"
        return _Built(self._told(np.dtype(f"{letter}{size}"), typedefs))

    def _told(self, dtype: DType, typedefs: Sequence[int]) -> DType:
        """`dtype` with what the typedefs on the way to it tell."""
        order: Literal["<", ">"] | None = None
        for type_id in typedefs:
            if told := _ORDER_TYPEDEF.fullmatch(self.name(type_id)):
                fits = int(told[2]) == 8 * dtype.itemsize
                order = (">" if told[1] == "be" else "<") if fits else None
            tag = self._tag(type_id)
            if tag is not None and tag.itemsize == dtype.itemsize:
                dtype = tag
        return dtype.newbyteorder(order) if order and dtype.kind in "iufmM" else dtype

    def _tag(self, type_id: int) -> DType | None:
        """The dtype that a DECL_TAG on this typedef names."""
        if type_id < self._first_id and self._base is not None:
            return self._base._tag(type_id)
        if self._tags is None:
            tags = {}
            for index in np.flatnonzero(self._kinds == Kind.DECL_TAG).tolist():
                found = self._type(self._first_id + index)
                # A tag of any length is legal, a unit of time that numpy does not know possible.
                with suppress(TypeError, ValueError):
                    text = self._string(found.name_off)
                    if found.words[found.at] == 0xFFFFFFFF and _DTYPE_TAG.fullmatch(text):
                        tags[found.value] = np.dtype(text)
            self._tags = tags
        return self._tags.get(type_id)

    def _array(self, type_id: int, found: _Type, walk: _Walk) -> _Built:
        elem_id, _, nelems = found.words[found.at : found.at + 3]
        part = self._build(elem_id, walk)
        size = nelems * part.dtype.itemsize
        if size > _MAX_ITEMSIZE:
            raise self._bad(type_id, f"{size} bytes are more than numpy holds in an item")
        elem = self._type(self.resolve(elem_id))
        if not size:
            dtype: DType = np.dtype("V0")
        elif elem.kind == Kind.INT and elem.value == 1 and self._string(elem.name_off) == "char":
            # By name: gcc gives the encoding CHAR to unsigned char, too, and clang to neither.
            dtype = np.dtype(f"S{nelems}")
        else:
            base, shape = part.dtype.subdtype or (part.dtype, ())
            dtype = np.dtype((base, (nelems, *shape)))
        return _Built(dtype, part.weight + 1, part.depth + 1)

    def _section(self, type_id: int, size: int, walk: _Walk) -> _Built:
        walk.spend(self._type(type_id).vlen)
        fields, parts = [], []
        for variable in self.datasec(type_id):
            if variable.offset + variable.size > size or size > _MAX_ITEMSIZE:
                raise self._bad(type_id, f"{variable.name!r} lies beyond its {size} bytes")
            part = _Built(np.dtype(f"V{variable.size}"))
            try:
                built = self._build(variable.type_id, walk)
            except ValueError:
                walk.spend(1)
            else:
                part = built if built.dtype.itemsize == variable.size else part
            parts.append(part)
            fields.append(_Field(variable.name, part.dtype, 8 * variable.offset, 0))
        return self._record(type_id, size, fields, parts)

    def _struct(self, type_id: int, size: int, walk: _Walk) -> _Built:
        walk.spend(self._type(type_id).vlen)
        fields, parts, weight = [], [], 0
        for name, member_id, offset, bits in self.members(type_id):
            part = self._build(member_id, walk)
            parts.append(part)
            weight += part.weight
            if weight > _MAX_FIELDS:
                raise self._bad(type_id, f"over {_MAX_FIELDS} fields")
            if name or part.fields is None:
                walk.spend(len(name) // 64)
                fields.append(_Field(name, part.dtype, offset, bits))
            else:
                walk.spend(len(part.fields))
                fields += [f._replace(bit_offset=f.bit_offset + offset) for f in part.fields]
        return self._record(type_id, size, fields, parts)

    def _record(
        self, type_id: int, size: int, fields: Sequence[_Field], parts: Sequence[_Built]
    ) -> _Built:
        if size > _MAX_ITEMSIZE:
            raise self._bad(type_id, f"{size} bytes are more than numpy holds in an item")
        columns: dict[tuple[int, DType], int] = {}
        formats: list[tuple[str, DType, int]] = []
        inside: list[tuple[str, int, int, int, DType]] = []
        for name, dtype, bit_offset, bits in fields:
            offset, rest = divmod(bit_offset, 8)
            if not bits:
                if rest or offset + dtype.itemsize > size:
                    raise self._bad(type_id, f"member {name!r} at bit {bit_offset} of {size} bytes")
                if dtype.itemsize:
                    formats.append((name or "anonymous", dtype, offset))
                continue
            if dtype.kind not in "biu" or bits > 8 * dtype.itemsize or bit_offset + bits > 8 * size:
                raise self._bad(type_id, f"bitfield {name!r}: {bits} bits at bit {bit_offset}")
            # The unit of its type that holds it, as compilers do it; else the bytes it touches.
            offset = offset // dtype.itemsize * dtype.itemsize
            box: DType = np.dtype(f"u{dtype.itemsize}")
            if bit_offset + bits > 8 * (offset + box.itemsize) or offset + box.itemsize > size:
                offset = bit_offset // 8
                box = np.dtype(("u1", ((rest + bits + 7) // 8,)))
            column = columns.setdefault((offset, box), len(formats))
            if column == len(formats):
                formats.append((f"bits{offset}", box, offset))
            shift = bit_offset - 8 * offset
            if sys.byteorder == "big":
                shift = 8 * box.itemsize - shift - bits
            if name:
                inside.append((name, column, shift, bits, dtype))
        names = unique(name for name, _, _ in formats)
        dtype = np.dtype(
            {
                "names": names,
                "formats": [dtype for _, dtype, _ in formats],
                "offsets": [offset for _, _, offset in formats],
                "itemsize": size,
            }
        )
        labels = unique(name for name, *_ in inside)
        bitfields = {
            label: Bitfield(names[column], shift, width, kind)
            for label, (_, column, shift, width, kind) in zip(labels, inside, strict=True)
        }
        weight = 1 + sum(part.weight for part in parts)
        depth = 1 + max((part.depth for part in parts), default=0)
        return _Built(dtype, weight, depth, fields, bitfields)
