"""BTF made to keep its reader busy: what reading it costs is counted in calls, never timed."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clang_types import OBJECT
from steps import steps
from support import examples
from test_btf import DTYPES, INT32, UNSIGNED_CHAR, blob, info
from test_btf_reading import CALLS

from fastmap import read_btf
from fastmap.btf import Btf, Layout, elf, encode
from fastmap.btf.layout import MAX_WORK
from fastmap.btf.parse import MAX_FIELDS

Words = tuple[int, ...]
STRINGS = b"\0m\0"
VOID, NAMED = 0, 1
#: Calls for a member that is read, and for one that is made a field.
MEMBER = 40


def record(kind: int, size: int, members: Iterable[tuple[int, int, int]]) -> Words:
    """A struct, union or section by its members' words."""
    words = [word for member in members for word in member]
    return (0, info(kind, len(words) // 3), size, *words)


def nested(wide: int, levels: int, name: int = 0) -> list[Words]:
    """Unions of one byte, of which each has `wide` members of the one before."""
    return [UNSIGNED_CHAR,
            *(record(5, 1, [(name, below, 0)] * wide) for below in range(1, levels + 1))]


def all_types(types: Btf, call: Callable[[Btf, int], object]) -> int:
    """Call it for each type; return how many have an answer."""
    answers = 0
    for number in range(1, len(types)):
        try:
            call(types, number)
        except ValueError:
            continue
        answers += 1
    return answers


def test_a_type_is_made_once_whoever_asks_for_it() -> None:
    # Each as large as the ones before it together: all of them, or again and again the last.
    types = Btf(blob(*nested(2, 12)))
    with steps(MEMBER * 2 * 2 ** 12):
        assert all_types(types, Btf.dtype) == all_types(types, Btf.layout) == 13
        for _ in range(50):
            assert types.layout(13).dtype is types.dtype(13)


def test_types_of_one_name_are_compared_within_one_bound() -> None:
    # 32 structs named m, each of the same tens of thousands of fields.
    records = nested(2, 15)
    top = len(records)
    records += [(NAMED, info(4, 1), 1, 0, top, 0)] * 32
    types = Btf(blob(*records, strings=STRINGS))
    assert len(blob(*records)) < 1400
    with steps(MEMBER * MAX_WORK // 8), pytest.raises(ValueError, match="32 types are named"):
        types.named("m")


@pytest.mark.native("megabytes of hostile BTF, for a parser that asks no kernel")
@pytest.mark.parametrize("call", [Btf.dtype, Btf.members])
def test_long_ways_to_a_type_are_gone_once(call: Callable[[Btf, int], object]) -> None:
    # Each member its own typedef, and the same 29 others behind it.
    count = 20000
    chain = [(NAMED, info(8), below) for below in range(1, 30)]
    own = [(NAMED, info(8), 30)] * count
    members = [(0, 31 + n, 0) for n in range(count)]
    types = Btf(blob(INT32, *chain, *own, record(5, 4, members), strings=STRINGS))
    if call is Btf.members:
        with steps(MEMBER * count):
            assert len(types.members(len(types) - 1)) == count
    else:
        with steps(MEMBER * MAX_WORK), pytest.raises(ValueError, match=f"over {MAX_WORK} mem"):
            call(types, len(types) - 1)


def test_fields_of_anonymous_members_count_at_every_level() -> None:
    # The same 60,000 fields, taken over by one struct after the other.
    wide = record(5, 1, [(0, 1, 0)] * 60000)
    chain = [record(4, 1, [(0, below, 0)]) for below in range(2, 30)]
    types = Btf(blob(UNSIGNED_CHAR, wide, *chain))
    with steps(MEMBER * MAX_WORK // 3):
        # What has a dtype does not depend on what was asked for before.
        assert all_types(types, Btf.dtype) == all_types(types, Btf.dtype) == 8
    for order in (range(30, 2, -1), range(3, 30)):
        fresh = Btf(blob(UNSIGNED_CHAR, wide, *chain))
        for number in (*order, 30):
            if number > 8:
                with pytest.raises(ValueError, match=f"over {MAX_WORK} members"):
                    fresh.dtype(number)


def test_a_layout_visits_what_it_tells_alone() -> None:
    # 100,000 named fields nested in each other, of which nothing is to be told; and one enum.
    types = Btf(blob(*nested(10, 5, NAMED), strings=STRINGS))
    with steps(MEMBER * 60):
        assert types.layout(6) == Layout(types.dtype(6))
    records = nested(10, 4, NAMED)
    enum = len(records) + 1
    records += [(0, info(6), 4), record(4, 5, [(NAMED, enum - 1, 0), (NAMED, enum, 8)])]
    types = Btf(blob(*records, strings=STRINGS))
    with steps(MEMBER * 70):
        assert types.layout(enum + 1).enums == {"m_2": {}}


def test_what_has_no_dtype_is_found_out_once() -> None:
    # A section's variables, each of a struct of its own that has the same mistake deep inside.
    count = 3000
    wide = [(0, 1, 0)] * 500
    records: list[Words] = [UNSIGNED_CHAR, (0, info(7), 0)]
    records += [record(4, 1, [*wide, (0, below, 0)]) for below in range(2, 28)]
    first = len(records) + 1
    records += [record(4, 1, [(0, first - 1, 0)]) for _ in range(count)]
    records += [(0, info(14), first + n, 0) for n in range(count)]
    records += [record(15, 8, [(first + count + n, 0, 1) for n in range(count)])]
    types = Btf(blob(*records, strings=STRINGS))
    with steps(MEMBER * (3 * count + 29 * 500)):
        dtype = types.dtype(len(types) - 1)
    assert dtype.names is not None
    assert {dtype[index] for index in range(count)} == {np.dtype("V1")}


def test_too_deep_is_told_apart_from_wrong() -> None:
    # 40 levels: whichever of them is asked for first, the upper ones have no dtype, the lower do.
    records = [INT32, *(record(4, 4, [(NAMED, below, 0)]) for below in range(1, 40))]
    for order in (range(40, 0, -1), range(1, 41)):
        types = Btf(blob(*records, strings=STRINGS))
        for number in order:
            if number > 32:
                with pytest.raises(ValueError, match="deeper than 32"):
                    types.dtype(number)
            else:
                assert types.dtype(number).itemsize == 4
    # Deep ones that are wide: each is looked at for as many levels as it may be below, no more.
    wide = [INT32, *(record(4, 4, [(0, 1, 0)] * 100 + [(NAMED, below, 0)])
                     for below in range(1, 80))]
    types = Btf(blob(*wide, strings=STRINGS))
    with steps(MEMBER * 80 * 33 * 100):
        for number in range(80, 0, -1):
            if number > 32:
                with pytest.raises(ValueError, match="deeper than 32"):
                    types.dtype(number)


def test_a_section_stands_alone() -> None:
    section = record(15, 4, [(2, 0, 4)])
    types = Btf(blob(INT32, (NAMED, info(14), 1, 0), section, record(4, 4, [(0, 3, 0)]),
                     (0, info(3), 0, 3, 1, 2), strings=STRINGS))  # fmt: skip
    for number in (4, 5):
        with pytest.raises(ValueError, match="type 3 at byte .*a section within a type"):
            types.dtype(number)
    assert types.dtype(3) == np.dtype([("m", "u4")])


@pytest.mark.parametrize("nelems", [0, 1, 1 << 16, 0xFFFFFFFF])
def test_products_are_bounded_before_numpy_sees_them(nelems: int) -> None:
    """Arrays of arrays, of structs, of nothing; and counts that no blob could hold."""
    records: list[Words] = [INT32, record(4, 0, ()), record(4, 0x7FFFFFFF, ())]
    for below in (1, 2, 3, *range(4, 25)):
        records.append((0, info(3), 0, below, 1, nelems))
    types = Btf(blob(*records))
    with steps(MEMBER * MEMBER * len(records)):
        for number in range(1, len(types)):
            for call in CALLS:
                try:
                    result = call(types, number)
                except ValueError:
                    continue
                if isinstance(result, np.dtype):
                    assert result.itemsize == types.size(number) < 1 << 31


@pytest.mark.parametrize("kind", range(20))
def test_counts_that_no_blob_holds(kind: int) -> None:
    for vlen in (1, 0xFFFF, 0xFFFFFF):
        data = blob(INT32, (0, info(kind, vlen), 4))
        with steps(2000):
            try:
                types = Btf(data)
            except ValueError:
                continue
            for call in CALLS:
                try:
                    call(types, 2)
                except ValueError:
                    continue


# --- mutated ones ---------------------------------------------------------------------------------


def small() -> list[bytes]:
    """Good BTF of some hundred bytes, as fastmap and a compiler make it, and nested types."""
    made = [encode(None, np.dtype(spec), bpftool_safe=safe)[0]
            for spec in DTYPES[:-3] + DTYPES[-1:] for safe in (False, True)]
    made += [blob(*nested(wide, levels, name), strings=STRINGS)
             for wide, levels in ((2, 12), (5, 6), (10, 4)) for name in (VOID, NAMED)]
    return [*made, elf.section(io.BytesIO(OBJECT), ".BTF") or b""]


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Some of its words others: small ids, records' heads, numbers of any size."""
    data = bytearray(good)
    words = struct.unpack_from("=I", data, 12)[0] // 4
    for _ in range(rng.randint(1, 8)):
        place = 24 + 4 * rng.randrange(words) if rng.random() < 0.97 else rng.randrange(6) * 4
        word = rng.choice([
            rng.randrange(40), rng.randrange(40),
            info(rng.randrange(20), rng.choice([0, 1, 2, 3, 5, 10, 40]), rng.randint(0, 1)),
            0xFFFFFFFF, rng.getrandbits(32),
        ])  # fmt: skip
        struct.pack_into("=I", data, place, word)
    return bytes(data)


def test_mutations_are_read_or_refused() -> None:
    rng, seeds = random.Random(20), small()
    read = 0
    for number in range(examples(4000)):
        data = mutated(seeds[number % len(seeds)], rng)
        try:
            types = Btf(data)
        except ValueError:
            continue
        read += 1
        answers: list[Any] = []
        # All calls for all types: no more than making the largest type that there may be.
        with steps(MEMBER * MAX_FIELDS):
            for call in CALLS:
                for type_id in range(len(types)):
                    try:
                        answers.append(call(types, type_id))
                    except ValueError:
                        continue
        assert answers
    assert read > examples(4000) // 5


@pytest.mark.parametrize("magic", [b"\x9f\xeb", b"\x7fELF\x02\x01"])
def test_a_sparse_file_of_many_gb_is_not_read(magic: bytes, tmp_path: Path) -> None:
    """What the header does not tell of is left where it is; what it may not tell of is refused."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(magic)
        file.truncate(1 << 40)  # more than any memory
    with pytest.raises(ValueError):
        read_btf(path)
    if magic == b"\x9f\xeb":
        path.write_bytes(struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 31, 1 << 31, 8))
        with pytest.raises(ValueError, match="no BTF has more than 256 MiB"):
            read_btf(path)
