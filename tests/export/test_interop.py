"""Maps of others read by fastmap, and fastmap's by others: bpftool, and objects that clang built.

Values are compared one by one, both as the bytes and as the fields that bpftool shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw
from tools import bpftool, built

import fastmap
from fastmap import MapFlag, MapType
from fastmap.enums import Command

pytestmark = pytest.mark.slow

#: Runs of the object's program, each of which writes one entry into every map.
RUNS = 23
#: The enums of tests/objects/others.bpf.c.
NAMES = {"IDLE": 0, "RUNNING": 5, "DEAD": 1000000, "LOW": -1, "HIGH": 1}
CPUS = fastmap.possible_cpus()


# ---- comparing --------------------------------------------------------------------------------


def raw_bytes(shown: list[str]) -> bytes:
    return bytes(int(byte, 16) for byte in shown)


def hexes(given: Any) -> list[str]:
    """Return bytes as bpftool takes them."""
    return ["hex", *(f"{byte:02x}" for byte in np.asarray(given).tobytes())]


def agree(shown: Any, ours: Any, dtype: np.dtype[Any], where: str = "") -> None:
    """Compare what bpftool shows of a value, by the BTF, with the value that fastmap read."""
    if dtype.subdtype is not None:
        assert len(shown) == dtype.shape[0] == len(ours), where
        inner = np.dtype((dtype.base, dtype.shape[1:]))
        for i, (theirs, own) in enumerate(zip(shown, ours, strict=True)):
            agree(theirs, own, inner, f"{where}[{i}]")
    elif dtype.names is not None:
        assert dtype.fields is not None
        for name in dtype.names:
            if not name.startswith("bits"):  # what bitfields lie in
                agree(shown[name], ours[name], dtype.fields[name][0], f"{where}.{name}")
    elif dtype.kind == "S":
        # Text without a NUL at its end is shown letter by letter.
        assert "".join(shown).encode() == bytes(ours), where
    elif dtype.kind == "V":
        assert bytes(shown) == ours.tobytes(), where
    elif dtype.kind == "b":
        assert bool(shown) == bool(ours), where
    elif isinstance(shown, str) and shown in NAMES:
        # clang 14 does not tell that an enum has negative values: only the bits agree.
        assert NAMES[shown] & 0xFFFFFFFF == int(ours) & 0xFFFFFFFF, where
    else:
        number = np.array(ours, dtype)
        if not dtype.isnative:  # bpftool shows the bytes in the machine's order
            number = number.view(dtype.newbyteorder())
        assert int(shown) == int(number), where


def in_step(m: Any, path: str | Path, *, formatted: bool = True) -> int:
    """Compare all entries of a map, as fastmap reads them, with bpftool's; return how many."""
    shown = bpftool("map", "dump", "pinned", path)
    batch = m.snapshot()
    keys = np.ascontiguousarray(batch.keys)
    # Slices of one: a single big-endian number would be one of the machine's.
    ours = {keys[i:i + 1].tobytes(): (keys[i], batch.values[i:i + 1]) for i in range(len(batch))}
    assert len(ours) == len(batch) == len(shown)
    for entry in shown:
        key, value = ours[raw_bytes(entry["key"])]
        one = m.lookup(key.tobytes() if m.key_dtype.names else key)
        if m.per_cpu:
            value = value[0]
            assert [each["cpu"] for each in entry["values"]] == list(CPUS)
            theirs = b"".join(raw_bytes(each["value"]) for each in entry["values"])
            assert theirs == value.tobytes() == one.tobytes()
        else:
            assert raw_bytes(entry["value"]) == value.tobytes()
            # numpy's copy of a record has anything in its padding.
            whole = one if isinstance(one, np.generic | np.ndarray) else np.array(
                one, m.value_dtype.base)
            assert whole.tobytes() == value.tobytes()
            value = value[0]
        if not formatted:
            continue
        told = entry["formatted"]
        if "key" in told:  # that of a section has none
            agree(told["key"], key, m.key_dtype, "key")
        if m.per_cpu:
            for i in range(len(CPUS)):
                agree(told["values"][i]["value"], value[i], m.value_dtype, f"value[{i}]")
        elif "key" in told:
            agree(told["value"], value, m.value_dtype, "value")
        else:
            ((_, variables),) = told["value"].items()
            for variable in variables:
                ((name, theirs),) = variable.items()
                agree(theirs, value[name], m.value_dtype[name], name)
    return len(batch)


def popped(m: Any) -> Any:
    """Return the next value of a queue or stack, and remove it."""
    return m.pop() if hasattr(m, "pop") else m.lookup_and_delete(None)


# ---- made, filled and pinned by bpftool -------------------------------------------------------

PLAIN = {  # type: (options of bpftool, key, value, keys to write)
    "hash": ((), "u4", "u8", (7, 1 << 31, 3)),
    "lru_hash": ((), "V7", "V3", (b"seven_b", b"\0\1\2\3\4\5\6")),
    "percpu_hash": ((), "u8", "u4", (1, 1 << 63)),
    "lru_percpu_hash": ((), "u2", "V5", (1, 2)),
    "array": ((), "u4", "V12", (0, 2, 7)),
    "percpu_array": ((), "u4", "u8", (0, 5)),
    "lpm_trie": (("flags", "1"), [("prefixlen", "u4"), ("addr", "u1", (4,))], "u4",
                 ((8, (10, 0, 0, 0)), (24, (10, 1, 2, 0)))),
}


@pytest.mark.parametrize("type", PLAIN)
def test_plain_maps_of_bpftool(type: str, bpffs: Path) -> None:
    options, key, value, keys = PLAIN[type]
    key_dtype, value_dtype = np.dtype(key), np.dtype(value)
    path = bpffs / "theirs"
    bpftool("map", "create", path, "type", type, "key", key_dtype.itemsize, "value",
            value_dtype.itemsize, "entries", 8, "name", "theirs", *options)
    generator = np.random.default_rng(1)
    given = {}
    for each in keys:
        packed = np.array(each, key_dtype).tobytes()
        given[packed] = generator.bytes(value_dtype.itemsize)
        bpftool("map", "update", "pinned", path, "key", *hexes(np.void(packed)), "value",
                *hexes(np.void(given[packed])))
    with fastmap.open(path) as untyped, fastmap.open(path, key=key, value=value) as m:
        assert (m.type, m.name, m.max_entries) == (MapType[type.upper()], "theirs", 8)
        assert untyped.dtype_source == "none" and m.dtype_source == "given"
        assert untyped.value_dtype == f"V{value_dtype.itemsize}"
        for each in (untyped, m):
            entries = dict(zip((k.tobytes() for k in each.snapshot().keys),
                               each.snapshot().values, strict=True))
            for packed, wanted in given.items():
                row = entries[packed]
                assert [cell.tobytes() for cell in (row if m.per_cpu else [row])] \
                    == [wanted] * (len(CPUS) if m.per_cpu else 1)
            assert len(entries) == (8 if m.type.name.endswith("ARRAY") else len(given))
        in_step(m, path, formatted=False)


@pytest.mark.parametrize("type", ["queue", "stack"])
def test_queues_of_bpftool(type: str, bpffs: Path) -> None:
    path = bpffs / "theirs"
    bpftool("map", "create", path, "type", type, "key", 0, "value", 4, "entries", 8, "name", "q")
    for i in range(5):
        bpftool("map", "push" if type == "stack" else "enqueue", "pinned", path, "value",
                *hexes(np.uint32(100 + i)))
    with fastmap.open(path, value="u4") as m:
        values = [popped(m) for _ in range(5)]
    assert values == ([104, 103, 102, 101, 100] if type == "stack" else [100, 101, 102, 103, 104])


def test_a_map_of_maps_of_bpftool(bpffs: Path) -> None:
    for name in ("one", "two"):
        bpftool("map", "create", bpffs / name, "type", "hash", "key", 4, "value", 8, "entries", 4,
                "name", name)
        bpftool("map", "update", "pinned", bpffs / name, "key", *hexes(np.uint32(1)), "value",
                *hexes(np.uint64(len(name) + ord(name[0]))))
    bpftool("map", "create", bpffs / "outer", "type", "hash_of_maps", "key", 4, "value", 4,
            "entries", 4, "name", "outer", "inner_map", "pinned", bpffs / "one")
    for key, name in ((5, "one"), (6, "two")):
        bpftool("map", "update", "pinned", bpffs / "outer", "key", *hexes(np.uint32(key)), "value",
                "pinned", bpffs / name)
    with fastmap.open(bpffs / "outer") as outer:
        for key, name in ((5, "one"), (6, "two")):
            number = np.frombuffer(raw.peek(outer, np.uint32(key).tobytes(), 4), "u4")[0]
            with fastmap.open(id=int(number), key="u4", value="u8") as inner:
                assert inner.name == name and inner[1] == len(name) + ord(name[0])


def test_bpftool_and_fastmap_write_the_same_map(bpffs: Path, make: Callable[..., Any]) -> None:
    path = bpffs / "shared"
    m = make("hash", key="u4", value=[("packets", "u8"), ("port", ">u2")], max_entries=8,
             name="shared", pin=path)
    m[1] = (10, 443)
    bpftool("map", "update", "pinned", path, "key", *hexes(np.uint32(2)), "value",
            *hexes(np.array((20, 80), m.value_dtype)))
    assert m[2].item() == (20, 80)
    bpftool("map", "delete", "pinned", path, "key", *hexes(np.uint32(1)))
    assert 1 not in m and len(m) == 1
    bpftool("map", "freeze", "pinned", path)
    assert m.info().frozen
    with pytest.raises(fastmap.PermissionDenied):
        m[3] = (1, 1)


# ---- an object that clang built and bpftool loaded --------------------------------------------


class Loaded:
    """The pins of tests/objects/others.bpf.c in the kernel."""

    def __init__(self, bpffs: Path, folder: Path) -> None:
        self.maps = bpffs / "maps"
        self.program = bpffs / "progs" / "fill_maps"
        (folder / "others.bpf.o").write_bytes(built("others"))
        bpftool("prog", "loadall", folder / "others.bpf.o", bpffs / "progs", "pinmaps", self.maps)
        self.packet = folder / "packet"
        self.packet.write_bytes(bytes(64))
        self.opened: list[Any] = []

    def run(self, times: int = 1) -> None:
        bpftool("prog", "run", "pinned", self.program, "data_in", self.packet, "repeat", times)

    def open(self, name: str, **options: Any) -> Any:
        self.opened.append(fastmap.open(self.maps / name, **options))
        return self.opened[-1]


@pytest.fixture
def loaded(bpffs: Path, tmp_path: Path) -> Iterator[Loaded]:
    """Return the object loaded; what is opened of it is closed when the test ends."""
    it = Loaded(bpffs, tmp_path)
    yield it
    for each in it.opened:
        each.close()


@pytest.mark.parametrize(("name", "entries"), [
    ("flows", RUNS), ("cpu_spans", RUNS), ("cpu_counts", 4), ("recent", 2), ("slots", 5),
    ("routes", 19), ("locks", 1), ("second_inner", 2),
    ("others_bss", 1), ("others_data", 1), ("others_rodata", 1), ("_data_extra", 1),
])
def test_maps_that_a_program_filled(name: str, entries: int, loaded: Loaded) -> None:
    loaded.run(RUNS)
    m = loaded.open(name)
    assert m.dtype_source == "btf"
    assert in_step(m, loaded.maps / name) == entries


def test_a_name_longer_than_the_kernel_keeps(loaded: Loaded) -> None:
    """The section ``.maps`` of the BTF has the names as the author wrote them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fastmap.open(name="longer_than_the_kernel_keeps")
    loaded.opened.append(found)
    assert found.id == loaded.open("longer_than_the_kernel_keeps").id
    with pytest.raises(fastmap.ObjectNotFound, match="is longer_than_the_kernel_keeps"):
        fastmap.open(name="longer_than_the_author_wrote")


def test_records_as_the_program_meant_them(loaded: Loaded) -> None:
    loaded.run(RUNS)
    m = loaded.open("flows")
    assert m.key_dtype["host"] == ">u4" and m.key_dtype["port"] == ">u2"
    assert m.key_dtype.itemsize == 8 and m.value_dtype["grid"].shape == (2, 3)
    for n in range(1, RUNS + 1):
        flow = m[(0x0A000000 + n, 1000 + n, 6)]
        assert flow["packets"] == 3 * n
        assert flow["bytes"].tolist() == [n, n + 1, n + 2]
        assert flow["state"] == (5 if n & 1 else 1000000)
        assert int(flow["level"]) & 0xFFFFFFFF == (0xFFFFFFFF if n & 1 else 1)
        (box,) = (name for name in m.value_dtype.names if name.startswith("bits"))
        word = int(flow[box])
        assert (word & 63, word >> 6 & 3, word >> 8 & 0xFFFFF) == (n & 63, n & 3, 1000 * n)
        assert flow["spans"].tolist() == [(n, 0), (0, n << 33)]
        assert flow["comm"] == b"c%d" % (n % 10)
        assert flow["open"] == bool(n & 1) and flow["delta"] == -5 - n
        assert flow["grid"].tolist() == [[0, 0, 0], [0, 0, 7 * n]]
    batch = loaded.open("cpu_spans").snapshot(reduce="max")
    assert sorted((int(k), *v.tolist()) for k, v in zip(*batch, strict=True)) \
        == [(n, n, n * n) for n in range(1, RUNS + 1)]
    counts = loaded.open("cpu_counts").snapshot(reduce="sum").values
    assert counts.tolist() == [sum(n & 3 == i for n in range(1, RUNS + 1)) for i in range(4)]


def test_addresses_and_big_endian_values(loaded: Loaded) -> None:
    loaded.run(RUNS)
    recent = loaded.open("recent")
    assert recent.value_dtype == ">u2"
    assert recent[5] == 8000 + RUNS and recent[1000000] == 7999 + RUNS
    routes = loaded.open("routes")
    assert routes[(32, (10, 7, 7, 7))] == 7  # as the program wrote it: /8 to /32 by turns
    assert routes[(32, (10, 7, 7, 9))] == 20  # which no longer one matches than 10.0.0.0/8


def test_a_value_with_a_spin_lock(loaded: Loaded) -> None:
    loaded.run(RUNS)
    m = loaded.open("locks")
    value = m[1]
    assert (value["count"], value["total"]) == (RUNS, RUNS * (RUNS + 1) // 2)
    assert m.lookup(1, flags=fastmap.UpdateFlag.LOCK)["total"] == value["total"]


def test_queues_that_a_program_filled(loaded: Loaded) -> None:
    loaded.run(6)
    span = [("first", "u2"), ("", "V6"), ("last", "u8")]
    waiting = loaded.open("waiting", value=span)
    first = popped(waiting)
    assert (first["first"], first["last"]) == (1, 1)
    assert popped(loaded.open("undo", value="u4")) == 6
    known, events = loaded.open("known", value="u8"), loaded.open("events")
    for m, kind, entries in ((waiting, "QUEUE", 8), (known, "BLOOM_FILTER", 64),
                             (events, "RINGBUF", 4096)):
        assert (m.type.name, m.max_entries, m.key_dtype) == (kind, entries, None)
    for n in range(1, 7):  # a lookup in a Bloom filter asks for the value it is given
        assert raw.elem(Command.MAP_LOOKUP_ELEM, known.fileno(), b"", bytearray(
            np.uint64(n).tobytes())) == 0


def test_maps_of_maps_that_an_object_declares(loaded: Loaded) -> None:
    loaded.run(RUNS)
    for outer, key, inner in (("tables", 0, "first_inner"), ("tables", 2, "second_inner"),
                              ("tables_by_name", 1, "second_inner")):
        number = raw.peek(loaded.open(outer), np.uint32(key).tobytes(), 4)
        with fastmap.open(id=int(np.frombuffer(number, "u4")[0])) as m:
            assert m.id == loaded.open(inner).id and m.value_dtype == "u8"
            assert m[1] == sum(n for n in range(1, RUNS + 1) if n & 2 == key) or key == 1


def test_global_variables(loaded: Loaded) -> None:
    loaded.run(RUNS)
    bss = loaded.open("others_bss")
    assert bss.dtype_source == "btf" and bss[0]["runs"] == RUNS
    variables = bss.variables
    assert set(variables) == {"runs", "seen", "table", "last_span"} and len(variables) == 4
    runs, table = variables["runs"], variables["table"]
    assert runs.shape == () and runs.dtype == "u8" and int(runs) == RUNS
    assert table.tolist() == [[0, RUNS - 1, 0], [0, RUNS, 0]]
    assert variables["last_span"].tolist() == (RUNS, RUNS * RUNS)
    loaded.run(2)  # live: the arrays are the program's own memory
    assert int(runs) == RUNS + 2 and table[1].tolist() == [0, RUNS + 2, 0]

    data = loaded.open("others_data")
    flows = loaded.open("flows")
    assert data.variables["label"][()] == b"fastmap" and data.variables["gateway"] == 0x0A000001
    assert data.variables["spans"].tolist() == [(1, 1 << 40), (2, 3)]
    data.variables["threshold"] = 1000  # and the program reads what is written
    loaded.run()
    assert flows[(0x0A000000 + RUNS + 3, 1000 + RUNS + 3, 6)]["delta"] == 1000 - (RUNS + 3)
    data.variables["spans"][1]["last"] = 99
    data.variables["label"] = b"other"
    assert data[0]["spans"].tolist() == [(1, 1 << 40), (2, 99)] and data[0]["label"] == b"other"

    real = loaded.open("_data_real")  # of which bpftool's own output is no JSON
    assert real.variables["ratio"].dtype == "f8" and real.variables["ratio"] == 0.25
    real.variables["ratio"] = 0.5
    assert real[0]["ratio"] == 0.5


def test_constants_are_read_only(loaded: Loaded) -> None:
    m = loaded.open("others_rodata")
    assert m.info().frozen and m.flags & MapFlag.RDONLY_PROG
    constants = m.variables
    assert int(constants["step"]) == 3 and constants["powers"].tolist() == [1, 2, 4, 8]
    assert not constants["powers"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        constants["step"] = 4
    with pytest.raises(ValueError, match="read-only"):
        constants["powers"][0] = 4


# ---- fastmap's maps as bpftool shows them -----------------------------------------------------

INNER = [("kind", "u1"), ("", "V7"), ("when", "u8")]
RECORD = np.dtype({
    "names": ["packets", "delta", "address", "port", "comm", "open", "grid", "inner", "history"],
    "formats": ["u8", "i4", ">u4", ">u2", "S16", "?", ("i2", (2, 3)), INNER, (INNER, (2,))],
    "offsets": [0, 8, 12, 16, 18, 34, 36, 48, 64], "itemsize": 96,
})
OURS = {  # type: (key, value)
    "hash": ([("host", ">u4"), ("port", ">u2"), ("proto", "u1")], RECORD),
    "lru_hash": ("i8", RECORD),
    "array": (None, RECORD),
    "percpu_hash": ("i2", RECORD),
    "lru_percpu_hash": ([("cpu", "u4"), ("comm", "S8")], "i4"),
    "percpu_array": (None, [("a", "u1"), ("b", "i8"), ("c", "u4", (3,))]),
    "lpm_trie": ([("prefixlen", "u4"), ("addr", "u1", (4,))], [("hops", "u1"), ("asn", "u4")]),
}


def scrambled(dtype: np.dtype[Any], rows: int, generator: np.random.Generator) -> Any:
    """Return rows of random numbers, text of a few letters, and padding that is zero."""
    out = np.zeros(rows, dtype)
    if dtype.names is not None:
        for name in dtype.names:
            out[name] = scrambled(out.dtype[name], rows, generator)
    elif dtype.subdtype is not None:
        out = np.zeros((rows, *dtype.shape), dtype.base)
        out[...] = scrambled(dtype.base, out.size, generator).reshape(out.shape)
    elif dtype.kind == "S":
        out[...] = [b"%x" % n for n in generator.integers(0, 1 << 32, rows)]
    elif dtype.kind == "b":
        out[...] = generator.integers(0, 2, rows)
    elif dtype.kind in "iu":
        out = np.frombuffer(generator.bytes(out.nbytes), dtype).copy()
    return out


@pytest.mark.parametrize("type", OURS)
def test_bpftool_reads_what_fastmap_wrote(type: str, bpffs: Path,
                                         make: Callable[..., Any]) -> None:
    key, value = OURS[type]
    generator = np.random.default_rng(7)
    m = make(type, key=key, value=value, max_entries=40, name="ours", pin=bpffs / "ours")
    rows = 20
    keys = scrambled(m.key_dtype, rows, generator)
    if key is None:
        keys = np.arange(rows, dtype="u4")
    if type == "lpm_trie":
        keys["prefixlen"] = 32
    values = scrambled(m.value_dtype, rows * len(CPUS) if m.per_cpu else rows, generator)
    m.update_many(keys, values.reshape(rows, len(CPUS)) if m.per_cpu else values)
    assert in_step(m, bpffs / "ours") == (40 if key is None else rows)
    # And each entry that was written is what bpftool shows, whatever fastmap reads.
    shown = {raw_bytes(e["key"]): e for e in bpftool("map", "dump", "pinned", bpffs / "ours")}
    for i in range(rows):
        entry = shown[keys[i].tobytes()]
        cells = entry["values"] if m.per_cpu else [entry]
        for cpu, cell in enumerate(cells):
            wanted = values.reshape(rows, -1)[i, cpu]
            agree(entry["formatted"]["values"][cpu]["value"] if m.per_cpu
                  else entry["formatted"]["value"], wanted, m.value_dtype)
            assert len(raw_bytes(cell["value"])) == m.value_dtype.itemsize


@pytest.mark.parametrize("type", ["hash", "array", "queue", "lpm_trie", "bloom_filter", "ringbuf"])
def test_bpftool_describes_maps_as_fastmap_does(type: str, bpffs: Path,
                                               make: Callable[..., Any]) -> None:
    key, value, entries = {
        "queue": (None, "u4", 16), "bloom_filter": (None, "u4", 16), "ringbuf": (None, None, 4096),
        "lpm_trie": ("V8", "u4", 16), "array": (None, "u4", 16), "hash": ("u2", "u4", 16)}[type]
    m = make(type, key=key, value=value, max_entries=entries, name=f"my_{type}"[:15],
             pin=bpffs / "ours")
    shown = bpftool("map", "show", "pinned", bpffs / "ours")
    info = m.info()
    assert shown["type"] == type and shown["name"] == m.name and shown["id"] == m.id
    assert (shown["bytes_key"], shown["bytes_value"], shown["max_entries"]) \
        == (info.key_size, info.value_size, m.max_entries)
    assert shown["flags"] == int(m.flags) and shown["bytes_memlock"] == info.memlock
    assert bool(shown["frozen"]) == info.frozen and shown.get("btf_id", 0) == info.btf_id
