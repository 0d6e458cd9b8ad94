"""BTF, the kernel's description of types: made from numpy's dtypes, and read as them.

`encode` makes what BPF_MAP_CREATE takes along, `Builder` any other BTF, `Btf` reads the BTF of a
map, a program, a module or the whole kernel. What is read may be hostile: `ValueError` says where
it is broken, and no blob costs more than a bounded amount of time and memory.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmap.btf.encoder import BOOL, MAX_DEPTH, SIGNED, DType, Kind, unique
from fastmap.btf.parse import MAX_FIELDS, NAMED, NUMBERS, Record, Types
from fastmap.btf.special import SPECIAL_POINTERS, marked

# numpy's: the bytes of an item are a C int.
_MAX_ITEMSIZE = 0x7FFFFFFF
# Ours: the members and typedefs looked at to make a dtype, those of what it contains counted
# wherever it is contained. (Made they are once: this makes what is refused depend on the type
# alone, not on what was read before.) And so what one call does at most.
MAX_WORK = 1 << 19
# Of how many types of one name the dtypes are compared.
_MAX_NAMESAKES = 32
_ENDLESS = f"it contains itself, or is nested deeper than {MAX_DEPTH}"
# What BTF itself cannot say: the kernel's typedefs tell a byte order.
_ORDER_TYPEDEF = re.compile(r"__([bl]e)(16|32|64)")


@dataclass(frozen=True)
class Bitfield:
    """How to get a bitfield, for which numpy has no type, out of the field it lies in.

    Attributes
    ----------
    container : tuple of str
        The field in `Btf.dtype`'s result, with those it is nested in before it: an unsigned
        integer, or single bytes where the bits lie across the units of their type.
    shift, width : int
        The bits, counted from the container's least significant one.
    dtype : numpy.dtype
        What `extract` returns.
    across : int
        The number of single bytes; 0 where the container is an integer.
    """

    container: tuple[str, ...]
    shift: int
    width: int
    dtype: DType
    across: int = 0

    def extract(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The bitfield of every record, in a fresh array."""
        data = self._data(records)
        if not self.across:
            words = data.astype("u8") >> np.uint64(self.shift)
        else:
            # Up to nine bytes: each is moved to its place in the bitfield.
            words = np.zeros(data.shape[:-1], "u8")
            for index, bits in self._places():
                byte = data[..., index].astype("u8")
                words |= byte << np.uint64(bits) if bits >= 0 else byte >> np.uint64(-bits)
        unused = 64 - self.width
        words = words << np.uint64(unused)
        if self.dtype.kind == "i":
            return np.asarray((words.view("i8") >> np.int64(unused)).astype(self.dtype))
        return np.asarray((words >> np.uint64(unused)).astype(self.dtype))

    def store(self, records: npt.NDArray[Any], values: npt.ArrayLike) -> None:
        """Sets the bitfield of every record, and nothing beside it.

        Raises
        ------
        OverflowError
            A value has more bits than the bitfield; nothing is set.
        """
        if not isinstance(records, np.ndarray):
            raise TypeError("store needs an array of records: a single record is a copy")
        given = np.asarray(values)
        if given.dtype.kind not in "biu":
            raise TypeError(f"a bitfield takes integers, not {given.dtype}")
        signed = self.dtype.kind == "i"
        low, high = (-1 << self.width - 1, 1 << self.width - 1) if signed else (0, 1 << self.width)
        if given.size and (int(given.min()) < low or int(given.max()) >= high):
            raise OverflowError(f"a bitfield of {self.width} bits takes {low} to {high - 1}")
        data, mask = self._data(records), (1 << self.width) - 1
        words = given.astype("u8") & np.uint64(mask)
        if not self.across:
            keep = data.dtype.type(~(mask << self.shift) & (1 << 8 * data.itemsize) - 1)
            data[...] = data & keep | (words << np.uint64(self.shift)).astype(data.dtype)
            return
        for index, bits in self._places():
            part = words >> np.uint64(bits) if bits >= 0 else words << np.uint64(-bits)
            keep = np.uint8(~(mask >> bits if bits >= 0 else mask << -bits) & 0xFF)
            data[..., index] = data[..., index] & keep | part.astype("u1")

    def _data(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        data = records
        for name in self.container:
            data = data[name]
        return data

    def _places(self) -> list[tuple[int, int]]:
        """The bytes, and for each which bit of the bitfield its lowest one is."""
        last = self.across - 1
        return [(index, 8 * (index if sys.byteorder == "little" else last - index) - self.shift)
                for index in range(self.across)]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A dtype, and what else its BTF says. Dotted paths name nested fields, "" the type itself.

    Attributes
    ----------
    dtype : numpy.dtype
    enums : mapping
        Of each enum, also one that is a bitfield: its names and their values.
    bitfields : mapping
        Of each bitfield: how to get it.
    special : mapping
        Of what the kernel itself acts on: "bpf_spin_lock", "bpf_timer", "kptr" and their kind.
    """

    dtype: DType
    enums: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bitfields: Mapping[str, Bitfield] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)


class _Field(NamedTuple):
    name: str
    part: _Built
    bit_offset: int
    bit_size: int


class _Built(NamedTuple):
    """A dtype with its number of fields and levels; of a record also what it is made of.

    `work` is what `MAX_WORK` bounds. `fields` are its members as they stand in BTF, for a parent
    whose anonymous member it is; `parts` the fields of the dtype that `Layout` says something
    about, `bits` the bitfields in them. An array has those of its elements.
    """

    dtype: DType
    weight: int = 1
    depth: int = 1
    work: int = 1
    fields: Sequence[_Field] | None = None
    parts: Sequence[tuple[str, _Built]] = ()
    bits: Sequence[tuple[str, Bitfield, _Built]] = ()
    enum_id: int = 0
    special: str = ""


class _Kept:
    """What a `Btf` has made, so that no call makes it again; other threads may use it as well.

    `refused` has the levels below which a type was not found to end, and the words of the refusal:
    one that has a mistake in it ends nowhere.
    """

    def __init__(self) -> None:
        self.built: dict[int, _Built] = {}
        self.refused: dict[int, tuple[int, str]] = {}
        self.work = 0


class _TooDeep(ValueError):
    """A type that is not as deep by itself may well have a dtype."""


class _TooMuch(ValueError):
    """The call has done all it may; of the type it was at this says nothing."""


class _Walk:
    """One call of `Btf.dtype`: what is there, what is being made, what work is left."""

    def __init__(self, kept: _Kept) -> None:
        self.built = kept.built
        self.refused = kept.refused
        self.path: list[int] = []
        self.left = MAX_WORK
        self._kept = kept

    def spend(self, work: int) -> None:
        self.left -= work
        self._kept.work += work
        if self.left < 0:
            raise _TooMuch(f"BTF asks for a dtype of over {MAX_WORK} members")


class Btf(Types):
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

    _kept: _Kept | None = None

    def dtype(self, type_id: int) -> DType:
        """The dtype of a type, with its very size and offsets.

        Enums are integers, and so are pointers. Members of anonymous structs and unions stand
        among their parent's, members of no bytes are left out, doubled names get a number. In
        place of bitfields stand the fields they lie in, named `bits0` and so on by their offset.
        `layout` has the enums' names and gets the bitfields out. A DATASEC is a record of its
        variables, void bytes where their type has no dtype. The structs that the kernel acts on
        are marked, as `fastmap.spin_lock` is.

        Raises
        ------
        ValueError
            The type is void, a function or a forward declaration, or has one in it; it is
            inconsistent, deeper than 32 levels, of more than 2 ** 17 fields (nested ones counted
            wherever they are), or of more than 2 ** 19 members and typedefs on the way to them.
        """
        return self._build(type_id, self._walk()).dtype

    def _walk(self) -> _Walk:
        # A program that reads type after type has, of what they share, the last ones there.
        if self._kept is None or self._kept.work > MAX_WORK:
            self._kept = _Kept()
        return _Walk(self._kept)

    def layout(self, type_id: int) -> Layout:
        """The dtype of a type, with what a dtype cannot hold; raises as `dtype` does."""
        top = self._build(type_id, self._walk())
        walk = self._walk()
        enums: dict[str, Mapping[str, int]] = {}
        bitfields: dict[str, Bitfield] = {}
        special: dict[str, str] = {}
        labels: dict[int, Mapping[str, int]] = {}

        def note(path: tuple[str, ...], built: _Built) -> None:
            at = ".".join(path)
            walk.spend(1 + len(at) // 64)
            if built.special:
                special[at] = built.special
            if built.enum_id:
                if built.enum_id not in labels:
                    names = self.enum(built.enum_id)
                    walk.spend(len(names) + sum(map(len, names)) // 64)
                    labels[built.enum_id] = names
                enums[at] = labels[built.enum_id]
            for name, part in built.parts:
                note((*path, name), part)
            for name, bitfield, part in built.bits:
                inner = (*path, name)
                bitfields[".".join(inner)] = Bitfield(
                    (*path, *bitfield.container), bitfield.shift, bitfield.width, bitfield.dtype,
                    bitfield.across,
                )  # fmt: skip
                note(inner, part)

        note((), top)
        return Layout(top.dtype, enums, bitfields, special)

    def bitfields(self, type_id: int) -> Mapping[str, Bitfield]:
        """The bitfields of a struct or union by their dotted paths, for records of its dtype."""
        return self.layout(type_id).bitfields

    def special(self, type_id: int) -> Mapping[str, str]:
        """What the kernel itself acts on in a type, by dotted paths; "bpf_spin_lock", "kptr"."""
        return self.layout(type_id).special

    def variables(self, type_id: int) -> dict[str, tuple[int, DType]]:
        """The variables of a section such as `.bss`: offset in bytes, and dtype.

        Raises
        ------
        ValueError
            The type is no DATASEC, or one whose offsets no linker has filled in.
        """
        self.member_rows(type_id, Kind.DATASEC)
        dtype = self.dtype(type_id)
        fields: Any = dtype.fields
        return {name: (fields[name][1], fields[name][0]) for name in dtype.names or ()}

    def declared(self) -> list[str]:
        """The names of the maps that an object file declares: the variables of its ``.maps``."""
        return [variable.name for number in self.find_all(".maps", (Kind.DATASEC,)).tolist()
                for variable in self.datasec(number)]

    def named(self, name: str) -> int:
        """The id of the one type of that name.

        Parameters
        ----------
        name : str
            As C says it: "task_struct", or where several kinds have the name, "struct
            task_struct". Types of one name with equal dtypes are one.

        Raises
        ------
        KeyError
            There is none; the message has names that resemble it.
        ValueError
            There are several: the message has their ids.
        """
        word, _, rest = name.strip().rpartition(" ")
        kinds = NAMED.get(word.strip())
        if kinds is None:
            word, rest, kinds = "", name, NAMED[""]
        ids = self.find_all(rest, kinds).tolist()
        if not ids:
            raise KeyError(self._not_there(name, rest, kinds))
        real = list({self.resolve(type_id): type_id for type_id in ids[:_MAX_NAMESAKES]})
        if len(ids) <= _MAX_NAMESAKES:
            walk = self._walk()  # one for all: together they cost no more than one type may
            if len(real) == 1 or len({self._told_apart(each, walk) for each in real}) == 1:
                return int(ids[0])
        shown = ", ".join(
            f"{self.kind(each).name.lower()} {self.name(each) or rest} (id {each}, "
            f"{self.record(each).value} bytes)"
            for each in real[:8]
        )
        more = f", and {len(ids) - 8} more" if len(ids) > 8 else ""
        say = "say 'struct', 'union' or 'enum' before it, or " if not word else ""
        raise ValueError(
            f"{len(ids)} types are named {name!r}: {shown}{more}; {say}take one by its id: "
            "read_btf(source).dtype(id)"
        )

    def _told_apart(self, type_id: int, walk: _Walk) -> DType | int:
        try:
            return self._build(type_id, walk).dtype
        except ValueError:
            return type_id

    def _not_there(self, name: str, rest: str, kinds: Sequence[Kind]) -> str:
        if self.find_all(rest, (Kind.FWD,)).size:
            return f"{name!r} is only declared in this BTF, not defined"
        near = self.near(rest, kinds)
        return f"no type is named {name!r}" + (f"; near: {', '.join(near)}" if near else "")

    def _build(self, type_id: int, walk: _Walk) -> _Built:
        built = walk.built.get(type_id)
        if built is not None:
            return built
        above = len(walk.path)
        levels, why = walk.refused.get(type_id, (1, ""))
        if type_id in walk.path or levels > MAX_DEPTH:
            raise self.bad(type_id, _ENDLESS) if not why else ValueError(why)
        if above + levels > MAX_DEPTH:
            raise _TooDeep(str(self.bad(type_id, _ENDLESS)))
        real_id = self.resolve(type_id)
        found = self.record(real_id)
        # Only so is what has no dtype here without one everywhere: a section's variables may.
        if above and found.kind == Kind.DATASEC:
            raise self.bad(type_id, "a section within a type")
        walk.spend(1)
        walk.path.append(type_id)
        try:
            built = self._make(type_id, real_id, found, walk)
            if built.weight > MAX_FIELDS or built.depth > MAX_DEPTH or built.work > MAX_WORK:
                raise self.bad(type_id, self._over(built.weight, built.depth))
        except _TooMuch:
            raise
        except ValueError as error:
            levels = MAX_DEPTH + 1 - (above if isinstance(error, _TooDeep) else 0)
            walk.refused[type_id] = levels, str(error)
            raise
        finally:
            walk.path.pop()
        walk.built[type_id] = built
        return built

    def _over(self, weight: int, depth: int = 0) -> str:
        if depth > MAX_DEPTH:
            return f"deeper than {MAX_DEPTH}"
        if weight > MAX_FIELDS:
            return f"over {MAX_FIELDS} fields, nested ones counted wherever they are"
        return f"over {MAX_WORK} members and typedefs to look at"

    def _make(self, type_id: int, real_id: int, found: Record, walk: _Walk) -> _Built:
        if found.kind in (Kind.STRUCT, Kind.UNION):
            return self._struct(real_id, found, walk)
        if found.kind == Kind.DATASEC:
            return self._section(real_id, found.value, walk)
        if found.kind == Kind.VAR:
            return self._build(found.value, walk)
        if found.kind == Kind.ARRAY:
            return self._array(real_id, found, walk)
        if found.kind not in NUMBERS:
            raise self.bad(real_id, f"kind {found.kind} has no dtype")
        letter, sizes = NUMBERS[Kind(found.kind)]
        size = 8 if found.kind == Kind.PTR else found.value
        if size not in sizes:
            raise self.bad(real_id, f"kind {found.kind} of {size} bytes has no dtype")
        enum_id = real_id if found.kind in (Kind.ENUM, Kind.ENUM64) else 0
        if found.kind == Kind.INT:
            encoding = found.words[found.at] >> 24
            letter = "V" if size == 16 else "i" if encoding & SIGNED else "u"
            if encoding & BOOL and size == 1:
                return _Built(np.dtype("?"))
        elif found.flag and letter == "u":
            letter = "i"
        special = self._pointer(found.value) if found.kind == Kind.PTR else ""
        dtype: DType = np.dtype(f"{letter}{size}")
        steps = 0
        if real_id != type_id:
            steps, typedefs = self.typedefs(type_id)
            walk.spend(steps)
            dtype = self._told(dtype, typedefs)
        return _Built(dtype, work=1 + steps, enum_id=enum_id, special=special)

    def _pointer(self, type_id: int) -> str:
        """The kernel's tag of what a pointer points to."""
        found = self.record(type_id)
        name = self.string(found.name_off) if found.kind == Kind.TYPE_TAG else ""
        return name if name in SPECIAL_POINTERS else ""

    def _told(self, dtype: DType, typedefs: Sequence[int]) -> DType:
        """`dtype` with what the typedefs on the way to it tell."""
        order: Literal["<", ">"] | None = None
        for type_id in typedefs:
            if told := _ORDER_TYPEDEF.fullmatch(self.name(type_id)):
                fits = int(told[2]) == 8 * dtype.itemsize
                order = (">" if told[1] == "be" else "<") if fits else None
            tag = self.tagged(type_id)
            if tag is not None and tag.itemsize == dtype.itemsize:
                dtype = tag
        return dtype.newbyteorder(order) if order and dtype.kind in "iufmM" else dtype

    def _array(self, type_id: int, found: Record, walk: _Walk) -> _Built:
        elem_id, _, nelems = found.words[found.at : found.at + 3]
        part = self._build(elem_id, walk)
        size = nelems * part.dtype.itemsize
        if size > _MAX_ITEMSIZE:
            raise self.bad(type_id, f"{size} bytes are more than numpy holds in an item")
        elem = self.record(self.resolve(elem_id))
        if not size:
            return _Built(np.dtype("V0"), part.weight + 1, part.depth + 1, part.work + 1)
        if elem.kind == Kind.INT and elem.value == 1 and self.string(elem.name_off) == "char":
            # By name: gcc gives the encoding CHAR to unsigned char, too, and clang to neither.
            dtype: DType = np.dtype(f"S{nelems}")
        else:
            base, shape = part.dtype.subdtype or (part.dtype, ())
            dtype = np.dtype((base, (nelems, *shape)))
        return part._replace(
            dtype=dtype, weight=part.weight + 1, depth=part.depth + 1, work=part.work + 1,
            fields=None,
        )

    def _section(self, type_id: int, size: int, walk: _Walk) -> _Built:
        walk.spend(self.record(type_id).vlen)
        fields: list[_Field] = []
        if not size and self.record(type_id).vlen:
            raise self.bad(type_id, "a section whose size and offsets no linker has filled in")
        for variable in self.datasec(type_id):
            if variable.offset + variable.size > size or size > _MAX_ITEMSIZE:
                raise self.bad(type_id, f"{variable.name!r} lies beyond its {size} bytes")
            part = _Built(np.dtype(f"V{variable.size}"))
            try:
                built = self._build(variable.type_id, walk)
            except ValueError:
                walk.spend(1)
            else:
                part = built if built.dtype.itemsize == variable.size else part
            fields.append(_Field(variable.name, part, 8 * variable.offset, 0))
        return self._record(type_id, size, fields, [each.part for each in fields])

    def _struct(self, type_id: int, found: Record, walk: _Walk) -> _Built:
        walk.spend(found.vlen)
        members = self.members(type_id)
        parts, weight, work = [], 0, found.vlen
        for name, member_id, _, _ in members:
            part = self._build(member_id, walk)
            parts.append(part)
            inner = () if name or part.special else part.fields or ()
            weight += part.weight
            work += part.work + len(inner) + len(name) // 64
            if weight > MAX_FIELDS or work > MAX_WORK:
                raise self.bad(type_id, self._over(weight))
        fields: list[_Field] = []
        for (name, _, offset, bits), part in zip(members, parts, strict=True):
            if name or part.fields is None or part.special:
                walk.spend(len(name) // 64)
                fields.append(_Field(name, part, offset, bits))
            else:
                walk.spend(len(part.fields))
                fields += [f._replace(bit_offset=f.bit_offset + offset) for f in part.fields]
        built = self._record(type_id, found.value, fields, parts)._replace(work=work + 1)
        known = marked(self.name(type_id), found.value) if found.kind == Kind.STRUCT else None
        if known is None:
            return built
        return built._replace(dtype=known, parts=(), bits=(), special=self.name(type_id))

    def _record(
        self, type_id: int, size: int, fields: Sequence[_Field], parts: Sequence[_Built]
    ) -> _Built:
        if size > _MAX_ITEMSIZE:
            raise self.bad(type_id, f"{size} bytes are more than numpy holds in an item")
        columns: dict[tuple[int, DType], int] = {}
        formats: list[tuple[str, _Built, int]] = []
        inside: list[tuple[str, int, int, int, _Built]] = []
        for name, part, bit_offset, bits in fields:
            dtype = part.dtype
            offset, rest = divmod(bit_offset, 8)
            if not bits:
                if rest or offset + dtype.itemsize > size:
                    raise self.bad(type_id, f"member {name!r} at bit {bit_offset} of {size} bytes")
                if dtype.itemsize:
                    formats.append((name or "anonymous", part, offset))
                continue
            if dtype.kind not in "biu" or bits > 8 * dtype.itemsize or bit_offset + bits > 8 * size:
                raise self.bad(type_id, f"bitfield {name!r}: {bits} bits at bit {bit_offset}")
            # The unit of its type that holds it, as compilers do it; else the bytes it touches.
            offset = offset // dtype.itemsize * dtype.itemsize
            box: DType = np.dtype(f"u{dtype.itemsize}")
            if bit_offset + bits > 8 * (offset + box.itemsize) or offset + box.itemsize > size:
                offset = bit_offset // 8
                box = np.dtype(("u1", ((rest + bits + 7) // 8,)))
            column = columns.setdefault((offset, box), len(formats))
            if column == len(formats):
                formats.append((f"bits{offset}", _Built(box), offset))
            shift = bit_offset - 8 * offset
            if sys.byteorder == "big":
                shift = 8 * box.itemsize - shift - bits
            if name:
                inside.append((name, column, shift, bits, part))
        names = unique(name for name, _, _ in formats)
        dtype = np.dtype(
            {
                "names": names,
                "formats": [part.dtype for _, part, _ in formats],
                "offsets": [offset for _, _, offset in formats],
                "itemsize": size,
            }
        )
        labels = unique((name for name, *_ in inside), names)
        bitfields = []
        for label, (_, column, shift, width, part) in zip(labels, inside, strict=True):
            shape = formats[column][1].dtype.shape
            one = Bitfield((names[column],), shift, width, part.dtype, shape[0] if shape else 0)
            bitfields.append((label, one, part))
        weight = 1 + sum(part.weight for part in parts)
        depth = 1 + max((part.depth for part in parts), default=0)
        telling = [(name, part) for name, (_, part, _) in zip(names, formats, strict=True)
                   if part.parts or part.bits or part.enum_id or part.special]
        return _Built(dtype, weight, depth, 1, fields, telling, bitfields)
