"""BTF taken apart: types, their names and members. What a type is as a dtype stands in `btf`."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fastmap._core.btf_scan import record_starts
from fastmap.btf.encoder import HEADER, MAGIC, MAX_DEPTH, QUALIFIERS, DType, Kind

# The kernel's limit of a name.
_MAX_NAME = 511
# Ours: the fields of one dtype, nested ones counted wherever they are used (numpy walks them all
# to compare or hash it); and so the members of a type.
MAX_FIELDS = 1 << 17
# Words of a record beyond the three that all kinds have: once, and for each of its members.
_EXTRA = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_EACH = {
    Kind.STRUCT: 3, Kind.UNION: 3, Kind.ENUM: 2, Kind.FUNC_PROTO: 2, Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}  # fmt: skip
# What is read as a number, by which letter of numpy's, in which sizes.
NUMBERS = {
    Kind.INT: ("u", (1, 2, 4, 8, 16)),
    Kind.ENUM: ("u", (1, 2, 4, 8)),
    Kind.ENUM64: ("u", (1, 2, 4, 8)),
    Kind.PTR: ("u", (8,)),
    Kind.FLOAT: ("f", (2, 4, 8, np.dtype("g").itemsize)),
}
_RECORDS = (Kind.STRUCT, Kind.UNION, Kind.DATASEC)
# The kinds that a name can mean, by the word that C puts before it.
NAMED = {
    "struct": (Kind.STRUCT,),
    "union": (Kind.UNION,),
    "enum": (Kind.ENUM, Kind.ENUM64),
    "": (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF, Kind.INT, Kind.FLOAT,
         Kind.DATASEC),
}  # fmt: skip
# Among how many names a near one is looked for: comparing takes up to 0.4 ms each.
_MAX_NAMES = 1 << 17
_MAX_COMPARED = 4000
# Our tags: the dtype that stands in the form of an integer.
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


class Record(NamedTuple):
    """A record: the words all kinds share, taken apart, and where its further words begin."""

    kind: int
    name_off: int
    vlen: int
    flag: int
    value: int
    words: memoryview
    at: int


class Types:
    """The types of a BTF blob by their ids; made as `Btf`, which has more to say about them.

    Raises
    ------
    ValueError
        Here and in every method, where the bytes are not what they should be or no type has the id.
    """

    def __init__(self, data: bytes, base: Self | None = None) -> None:
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
        words = np.frombuffer(types, np.uint32)
        starts = self._index(words)
        self._name_offs, self._kinds = words[starts], words[starts + 1] >> 24 & 0x7F
        if (outside := np.flatnonzero(self._name_offs >= len(self._strings))).size:
            raise self.bad(self._first_id + int(outside[0]), "its name lies outside the strings")
        self._tags: dict[int, DType] | None = None
        self._behind: dict[int, tuple[int, int]] = {}

    def _index(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Finds where each record begins. No more of them is read before it is asked for."""
        once, each = [0] * 128, [0] * 128
        for kind, (info_size, elem_size, _) in self._layout.items():
            # Kinds of the future can be stepped over where the blob says how.
            if info_size % 4 == elem_size % 4 == 0:
                once[kind], each[kind] = 3 + info_size // 4, elem_size // 4
        for known in list(Kind)[1:]:
            once[known], each[known] = 3 + _EXTRA.get(known, 0), _EACH.get(known, 0)
        once[Kind.VOID] = 0
        starts, whole = record_starts(words, once, each)
        self._starts = starts.data  # whose elements are ints
        if not whole:
            at = self._starts[-1]
            kind = self._words[at + 1] >> 24 & 0x7F if at + 3 <= len(words) else 0
            raise self.bad(len(self) - 1, f"cut off, or of kind {kind} that is not known")
        return starts

    def bad(self, type_id: int, what: str) -> ValueError:
        if type_id < self._first_id:
            if self._base is not None:
                return self._base.bad(type_id, what)
            return ValueError(f"BTF type {type_id}, void: {what}")
        at = self._types_at + 4 * self._starts[type_id - self._first_id]
        return ValueError(f"BTF type {type_id} at byte {at}: {what}")

    def record(self, type_id: int) -> Record:
        if not 0 <= type_id < len(self):
            raise ValueError(f"there is no BTF type {type_id}: ids are below {len(self)}")
        if type_id < self._first_id:
            if self._base is not None:
                return self._base.record(type_id)
            return Record(Kind.VOID, 0, 0, 0, 0, self._words, 0)
        at = self._starts[type_id - self._first_id]
        name_off, info, value = self._words[at : at + 3]
        vlen = info & 0xFFFFFF
        return Record(info >> 24 & 0x7F, name_off, vlen, info >> 31, value, self._words, at + 3)

    def string(self, off: int) -> str:
        end = self._strings.find(0, off, off + _MAX_NAME + 1)
        if end < 0:
            raise ValueError(f"BTF string {off} lies outside, or is over {_MAX_NAME} bytes long")
        return self._strings[off:end].decode(errors="backslashreplace")

    def __len__(self) -> int:
        """One more than the highest id; id 0 is void."""
        return self._first_id + len(self._starts)

    def kind(self, type_id: int) -> Kind:
        """What the type is; ValueError for a kind this library does not know."""
        return Kind(self.record(type_id).kind)

    def name(self, type_id: int) -> str:
        """Its name, "" where it has none."""
        return self.string(self.record(type_id).name_off)

    def find(self, name: str, kind: Kind | None = None) -> int:
        """The lowest id of that name (and kind); a split BTF's own types come first.

        Raises
        ------
        KeyError
            There is none.
        """
        ids = self.find_all(name, None if kind is None else (kind,))
        if not ids.size:
            raise KeyError(name)
        return int(ids[0])

    def find_all(self, name: str, kinds: Collection[Kind] | None = None) -> npt.NDArray[Any]:
        """All ids of that name (and kinds), ascending; of a split BTF its own, if it has one."""
        text = name.encode(errors="surrogateescape") + b"\0"
        strings = np.frombuffer(self._strings, "u1")
        there = self._name_offs + np.uint64(len(text)) <= strings.size
        ids = np.flatnonzero(there if kinds is None else there & self._of_kinds(kinds))
        # All names at once, from the NUL at their ends backwards: few are left after one step.
        for place in reversed(range(len(text))):
            ids = ids[strings[self._name_offs[ids] + np.uint64(place)] == text[place]]
        if not name or "\0" in name:
            ids = ids[:0]
        if ids.size or self._base is None:
            return ids + self._first_id
        return self._base.find_all(name, kinds)

    def _of_kinds(self, kinds: Collection[Kind]) -> npt.NDArray[np.bool_]:
        wanted = np.zeros(128, "?")
        wanted[list(kinds)] = True
        chosen: npt.NDArray[np.bool_] = wanted[self._kinds]
        return chosen

    def near(self, name: str, kinds: Collection[Kind]) -> list[str]:
        """Names that resemble one that is not there; of many, those that begin as it does."""
        names = self._names(kinds)
        if len(names) > _MAX_COMPARED:
            names = [each for each in names if each[:1] == name[:1]][:_MAX_COMPARED]
        from difflib import get_close_matches  # importing it is dear, few need it
        return get_close_matches(name[:64], names, 5)

    def _names(self, kinds: Collection[Kind]) -> list[str]:
        offs = np.unique(self._name_offs[self._of_kinds(kinds)])[:_MAX_NAMES]
        names = [self._strings[off : self._strings.find(0, off, off + 64)].decode(errors="replace")
                 for off in offs.tolist()]  # fmt: skip
        return names if self._base is None else names + self._base._names(kinds)

    def resolve(self, type_id: int) -> int:
        """The type behind typedefs, qualifiers and type tags."""
        # Long chains with ends in common are gone along once.
        behind, steps = self._behind, 0
        way: list[int] = []
        while True:
            if type_id in behind:
                type_id, steps = behind[type_id]
                break
            found = self.record(type_id)
            if found.kind != Kind.TYPEDEF and found.kind not in QUALIFIERS:
                break
            way.append(type_id)
            if len(way) >= MAX_DEPTH:
                break
            type_id = found.value
        if len(way) + steps >= MAX_DEPTH:
            what = f"behind {MAX_DEPTH} typedefs and qualifiers, or in a circle"
            raise self.bad(way[0], what)
        if len(behind) > MAX_FIELDS:
            behind = self._behind = {}
        for each in reversed(way):
            steps += 1
            behind[each] = type_id, steps
        return type_id

    def typedefs(self, type_id: int) -> tuple[int, list[int]]:
        """The steps to the type that `resolve` finds, and those of them that are typedefs."""
        typedefs = []
        steps = 0
        while steps < MAX_DEPTH:
            found = self.record(type_id)
            if found.kind == Kind.TYPEDEF:
                typedefs.append(type_id)
            elif found.kind not in QUALIFIERS:
                break
            type_id = found.value
            steps += 1
        return steps, typedefs

    def size(self, type_id: int) -> int:
        """Its size in bytes; a variable has that of its type."""
        count, inner = 1, type_id
        for _ in range(MAX_DEPTH):
            found = self.record(self.resolve(inner))
            if found.kind == Kind.ARRAY:
                inner, _, nelems = found.words[found.at : found.at + 3]
                count *= nelems
            elif found.kind == Kind.VAR:
                inner = found.value
            elif found.kind in NUMBERS or found.kind in _RECORDS:
                size = count * (8 if found.kind == Kind.PTR else found.value)
                if size > 0xFFFFFFFF:
                    raise self.bad(type_id, f"{size} bytes are too many")
                return size
            else:
                raise self.bad(type_id, f"kind {found.kind} has no size")
        raise self.bad(type_id, f"nested deeper than {MAX_DEPTH}")

    def member_rows(self, type_id: int, *kinds: Kind) -> tuple[Record, list[tuple[str, list[int]]]]:
        """The type behind `type_id`, one of `kinds`, and its members' names and words."""
        found = self.record(self.resolve(type_id))
        if found.kind not in kinds:
            raise self.bad(type_id, f"no {' or '.join(kind.name for kind in kinds)}")
        if found.vlen > MAX_FIELDS:
            raise self.bad(type_id, f"{found.vlen} members, over {MAX_FIELDS}")
        rows, width, text = [], _EACH[Kind(found.kind)], 0
        for at in range(found.at, found.at + found.vlen * width, width):
            row = found.words[at : at + width].tolist()
            name = self.name(row[0]) if found.kind == Kind.DATASEC else self.string(row[0])
            rows.append((name, row))
            # The names of one scope differ, so the strings hold them all (but for ends that some
            # share). Hostile ones could each be a long part of the same long string.
            text += len(name)
            if text > len(self._strings) + (1 << 20):
                raise self.bad(type_id, "its members' names overlap")
        return found, rows

    def members(self, type_id: int) -> list[Member]:
        """The members of a struct or union; anonymous ones have the name ""."""
        found, rows = self.member_rows(type_id, Kind.STRUCT, Kind.UNION)
        members = []
        narrow: dict[int, tuple[int, int]] = {}
        for name, (_, member_id, offset) in rows:
            bits, offset = (offset >> 24, offset & 0xFFFFFF) if found.flag else (0, offset)
            if not bits:
                if member_id not in narrow:
                    narrow[member_id] = self._narrow(member_id)
                bits, shift = narrow[member_id]
                offset += shift
            members.append(Member(name, member_id, offset, bits))
        return members

    def _narrow(self, type_id: int) -> tuple[int, int]:
        """Old compilers' bitfields: an INT of fewer bits than its bytes have, and which of them."""
        found = self.record(self.resolve(type_id))
        word = found.words[found.at] if found.kind == Kind.INT else 0
        return (word & 0xFF, word >> 16 & 0xFF) if 0 < word & 0xFF < 8 * found.value else (0, 0)

    def enum(self, type_id: int) -> dict[str, int]:
        """The names of an ENUM or ENUM64, and their values.

        Compilers before clang 16 do not say that an enum is signed: -1 is 4294967295 then.
        """
        found, rows = self.member_rows(type_id, Kind.ENUM, Kind.ENUM64)
        wide = found.kind == Kind.ENUM64
        sign = found.flag << (63 if wide else 31)
        values = [row[1] | row[2] << 32 if wide else row[1] for _, row in rows]
        return {name: (value ^ sign) - sign for (name, _), value in zip(rows, values, strict=True)}

    def datasec(self, type_id: int) -> list[Variable]:
        """The variables of a section such as `.bss`."""
        _, rows = self.member_rows(type_id, Kind.DATASEC)
        return [Variable(name, *row) for name, row in rows]

    def tagged(self, type_id: int) -> DType | None:
        """The dtype that a DECL_TAG on this typedef names."""
        if type_id < self._first_id and self._base is not None:
            return self._base.tagged(type_id)
        if self._tags is None:
            tags = {}
            for index in np.flatnonzero(self._kinds == Kind.DECL_TAG).tolist():
                found = self.record(self._first_id + index)
                # A tag of any length is legal, a unit of time that numpy does not know possible.
                with suppress(TypeError, ValueError):
                    text = self.string(found.name_off)
                    if found.words[found.at] == 0xFFFFFFFF and _DTYPE_TAG.fullmatch(text):
                        tags[found.value] = np.dtype(text)
            self._tags = tags
        return self._tags.get(type_id)
