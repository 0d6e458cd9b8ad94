"""Batches as Arrow: what is in them, who takes them, and whose memory it is."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from producers import Producer

import fastmap
from fastmap._core.rows.columns import copy_columns, cut
from fastmap.arrow import record_batch
from fastmap.maptypes.stream_batch import Kinds, StreamBatch
from fastmap.text.decoders import decode

pytestmark = pytest.mark.native("no pyarrow in the emulated kernels")

KEY = np.dtype([("saddr", "u1", (4,)), ("port", ">u2"), ("kind", "u2"), ("comm", "S16")])
VALUE = np.dtype({"names": ["lock", "bytes", "flags", "seen", "names", "kind"],
                  "formats": [fastmap.spin_lock, "u8", [("up", "?"), ("ttl", "i1")], ("u2", (2, 2)),
                              ("S4", (2,)), "u4"],
                  "offsets": [0, 8, 16, 20, 32, 40], "itemsize": 48})


def flows(make: Callable[..., Any], entries: int = 3) -> Any:
    """Return a map of all sorts of columns, with dirty padding and bytes behind NULs."""
    m = make("hash", key=KEY, value=VALUE, max_entries=max(entries, 1))
    keys, values = np.zeros(entries, KEY), np.zeros(entries, VALUE)
    for i in range(entries):
        keys[i] = ((10, 0, 0, i), 8000 + i, 1, b"ab\0tail" if i else "größer".encode())
        values[["bytes", "flags", "seen", "names", "kind"]][i] = (
            1 << 63 | i, (i % 2, -i), ((i, 1), (2, 3)), (b"eth0", b"lo"), i)
    m.update_many(keys, values)
    return m


def row(i: int, name: str = "kind") -> dict[str, Any]:
    return {"saddr": [10, 0, 0, i], "port": 8000 + i, f"key.{name}": 1,
            "comm": "ab" if i else "größer", "bytes": 1 << 63 | i,
            "flags": {"up": bool(i % 2), "ttl": -i}, "seen": [[i, 1], [2, 3]],
            "names": ["eth0", "lo"], f"value.{name}": i}


# ---- dtypes --------------------------------------------------------------------------------------

ORDERED = [f"{order}{kind}" for order in "<>" for kind in
           ("u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16")]
LEAVES = st.one_of(st.sampled_from(["u1", "i1", "?", *ORDERED]),
                   st.integers(1, 20).map("S{}".format), st.integers(1, 20).map("V{}".format))
SHAPES = st.lists(st.integers(1, 3), max_size=2).map(tuple)


def records(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.lists(st.tuples(inner, SHAPES), min_size=1, max_size=4)
    return st.tuples(fields, st.booleans()).map(lambda given: np.dtype(
        [(f"f{i}", dtype, shape) for i, (dtype, shape) in enumerate(given[0])], align=given[1]))


DTYPES = st.recursive(LEAVES.map(np.dtype), records, max_leaves=8)


def plain(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return what Python has for one element: what Arrow has to say, too."""
    if dtype.subdtype is not None:
        return [plain(each, np.dtype((dtype.subdtype[0], dtype.shape[1:]))) for each in value]
    if dtype.names is not None:
        return {name: plain(value[name], dtype[name]) for name in dtype.names}
    if dtype.kind == "S":
        return value.partition(b"\0")[0].decode(errors="backslashreplace")
    if dtype.kind == "V":
        return bytes(value)
    if dtype.kind == "c":
        return {"real": float(value.real), "imag": float(value.imag)}
    return value.item()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.float16):  # older pyarrows
        one = float(one)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


@given(dtype=DTYPES, data=st.data())
@settings(deadline=None, max_examples=150)
def test_every_dtype_comes_back_as_python_has_it(dtype: Any, data: st.DataObject) -> None:
    n, gap = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 3))
    cpus = data.draw(st.sampled_from([(), (1,), (3,)]))
    step = dtype.itemsize + gap
    count = n * math.prod(cpus)
    raw = data.draw(st.binary(min_size=count * step, max_size=count * step))
    slot = np.dtype({"names": ["v"], "formats": [dtype], "offsets": [0], "itemsize": step})
    array = np.frombuffer(raw, slot).reshape((n, *cpus))["v"]
    for copy in (True, False):
        batch = record_batch({"value": array}, copy=copy)
        batch.validate(full=True)
        assert len(batch) == n
        columns = ({"value": array} if dtype.names is None
                   else {name: array[name] for name in dtype.names})
        expected = {name: [plain(each, np.dtype((column.dtype, column.shape[1:])))
                           for each in column] for name, column in columns.items()}
        assert same(batch.to_pydict(), expected)


def test_types_are_the_arrow_types_of_the_same_name() -> None:
    dtype = np.dtype([("a", ">u4"), ("b", "f2"), ("c", "?"), ("d", "V16"), ("e", "S3", (2,)),
                      ("t", "M8[ns]"), ("u", "m8[s]"), ("w", "M8[D]"), ("x", "U3"), ("g", "g")])
    array = np.zeros(2, dtype)
    array["t"] = [np.datetime64("NaT"), np.datetime64(5, "ns")]
    array["x"] = ["a\0b", "\U0001f600"]
    batch = record_batch({"value": array})
    types = {field.name: str(field.type) for field in batch.schema}
    assert types == {"a": "uint32", "b": "halffloat", "c": "bool", "d": "fixed_size_binary[16]",
                     "e": "fixed_size_list<item: string>[2]", "t": "timestamp[ns]",
                     "u": "duration[s]", "w": "int64", "x": "string", "g": "fixed_size_binary[16]"}
    assert batch["t"].cast(pyarrow.int64()).to_pylist() == [None, 5]
    assert batch["x"].to_pylist() == ["a", "\U0001f600"]


@given(st.integers(0, 70), st.sampled_from(["u1", "<u2", ">u4", ">f8", "V3", "S16", ">c8"]),
       st.lists(st.integers(1, 3), max_size=3), st.data())
@settings(deadline=None, max_examples=100)
def test_copy_columns_copies_what_numpy_copies(n: int, dtype: str, shape: list[int],
                                               data: st.DataObject) -> None:
    whole = np.frombuffer(np.random.default_rng(n).bytes(np.dtype(dtype).itemsize * 2 * n
                                                         * 2 ** len(shape) * math.prod(shape)),
                          dtype).reshape((2 * n, *(2 * extent for extent in shape)))
    steps = data.draw(st.lists(st.sampled_from([2, -2]), min_size=whole.ndim, max_size=whole.ndim))
    source = whole[tuple(slice(None, None, step) for step in steps)]
    if data.draw(st.booleans()):
        source = np.moveaxis(source, 1, -1) if source.ndim > 2 else source
    out = np.empty(source.shape, source.dtype.newbyteorder("="))
    copy_columns([source, source], [out, np.empty_like(out)])
    assert out.tobytes() == source.astype(out.dtype).tobytes()


def test_copies_of_another_size_are_refused() -> None:
    a, n = np.zeros(4, "u4"), np.empty
    for source, out in [(a, n(3, "u4")), (a, n(4, "u8")), (a, n(8, "u4")[::2]),
                        (a, n((4, 1), "u4")), (n(4, object), n(4, object))]:
        with pytest.raises(ValueError, match="a column of"):
            copy_columns([source], [out])
    with pytest.raises(ValueError, match="a column of"):
        copy_columns([a, a[:2]], [n(4, "u4"), n(2, "u4")])
    text = np.zeros(4, "S4")
    for ends, out in [(n(4, "i4"), n(16, "u1")), (n(5, "i4"), n(15, "u1")),
                      (n(5, "i8"), n(16, "u1"))]:
        with pytest.raises(ValueError, match="4 texts of 4 bytes"):
            cut(text, ends, out)


def test_another_thread_goes_on_while_columns_are_copied() -> None:
    """A held GIL would give this loop one turn at most between two marks of the copying thread."""
    source, out = np.zeros((1 << 20, 2), "u8")[:, 0], np.empty(1 << 20, "u8")
    state, turns, within = "", 0, 0

    def copy() -> None:
        nonlocal state
        while within < 1000:  # a busy CPU may leave this loop alone for a while
            state = "inside"
            copy_columns([source] * 200, [out] * 200)
            state = "outside"

    thread = threading.Thread(target=copy)
    thread.start()
    while thread.is_alive():
        turns = turns + 1 if state == "inside" else 0
        within = max(within, turns)
    thread.join()
    assert within >= 1000


# ---- maps ----------------------------------------------------------------------------------------


def test_pyarrow_polars_duckdb_and_pandas_take_a_batch(make: Callable[..., Any]) -> None:
    import duckdb  # here: what is there before the tests is frozen, and it tells of that at the end

    m = flows(make)
    for batch in (m.snapshot(), m.reader().read()):
        expected = [row(int(i)) for i in batch.values["kind"]]
        assert batch.to_arrow().to_pylist() == expected
        assert pyarrow.table(batch).to_pylist() == expected
        assert pyarrow.record_batch(batch).to_pylist() == expected
        frame = polars.DataFrame(batch)
        assert frame.schema["bytes"] == polars.UInt64 and frame.schema["comm"] == polars.String
        assert frame.rows(named=True) == expected
        said = duckdb.sql('SELECT comm, port, flags.ttl, saddr[4], "value.kind", bytes FROM batch '
                          "ORDER BY port").fetchall()
        assert said == [("ab" if i else "größer", 8000 + i, -i, i, i, 1 << 63 | i)
                        for i in range(3)]
        table = pandas.DataFrame.from_arrow(batch).sort_values("port")
        assert table["bytes"].tolist() == [1 << 63 | i for i in range(3)]
        assert table["comm"].tolist() == ["größer", "ab", "ab"]


def test_an_empty_map_has_the_same_columns(make: Callable[..., Any]) -> None:
    m = flows(make, 0)
    notes = {"key.saddr": "ipv4", "value.kind": {1: "tx"}}
    batch = m.snapshot().to_arrow(annotations=notes)
    assert len(batch) == 0
    assert batch.schema == flows(make).snapshot().to_arrow(annotations=notes).schema


def test_values_of_each_cpu_are_lists(make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key="u4", value=[("n", "u8"), ("in", [("s", "S4"), ("x", "u1", (2,))])],
             max_entries=4)
    cpus = len(fastmap.possible_cpus())
    values = np.zeros(cpus, m.value_dtype)
    values["n"] = range(cpus)
    values["in"]["s"] = b"ab"
    m.update(7, values)
    assert m.snapshot().to_arrow().to_pylist() == [
        {"key": 7, "n": list(range(cpus)), "in": [{"s": "ab", "x": [0, 0]}] * cpus}]
    summed = m.snapshot(reduce="sum").to_arrow()
    assert summed["n"].to_pylist() == [sum(range(cpus))]
    assert m.snapshot(fields=["key"]).to_arrow().to_pylist() == [{"key": 7}]


def test_columns_in_one_piece_stay_where_they_are(filled: Callable[..., Any]) -> None:
    m = filled(1000)
    batch = m.snapshot()
    rows = batch.to_arrow()
    for side in ("key", "value"):
        array = getattr(batch, f"{side}s")
        assert rows[side].buffers()[1].address == array.ctypes.data
        del array
    m.close()
    del batch  # its memory stays, for the columns
    assert sorted(rows["value"].to_pylist()) == [3 * i for i in range(1000)]


def test_a_reader_s_batch_is_copied(filled: Callable[..., Any]) -> None:
    m = filled(100)
    reader = m.reader()
    first = reader.read()
    rows, before = first.to_arrow(), dict(first.items())
    kept = first.copy()
    m.update_many(np.arange(100), np.full(100, 5))
    assert set(reader.read().values.tolist()) == {5}
    assert dict(zip(rows["key"].to_pylist(), rows["value"].to_pylist(), strict=True)) == before
    assert kept.to_arrow()["value"].buffers()[1].address == kept.values.ctypes.data
    for part in m.reader(chunk=10):
        assert part.to_arrow()["key"].buffers()[1].address != part.keys.ctypes.data


def test_records_of_a_stream(make: Callable[..., Any]) -> None:
    ring = make("ringbuf", max_entries=4096, record=[("n", "u8"), ("size", "u8")])
    with Producer(ring, 16) as produce:
        produce(0, 5)
        assert polars.DataFrame(ring.read()).rows() == [(i, 16) for i in range(5)]
        produce(5, 3)
        with ring.lease() as batch:
            rows = batch.to_arrow()
    assert rows.to_pydict() == {"n": [5, 6, 7], "size": [16] * 3}
    samples = StreamBatch(Kinds([("cpu", "u4"), ("comm", "S4")], None),
                          np.frombuffer(b"\1\0\0\0a\0bc" * 2, "u1"), 2, length=8, step=8,
                          cpu=np.array([0, 1], "u4"))
    assert samples.to_arrow(annotations={"record.comm": "comm"}).to_pydict() == {
        "record.cpu": [1, 1], "comm": ["a", "a"], "cpu": [0, 1]}
    kinds = StreamBatch.empty(Kinds({1: [("t", "u4")]}, "t"))
    with pytest.raises(ValueError, match="several kinds"):
        kinds.to_arrow()


# ---- what columns mean ---------------------------------------------------------------------------


def test_addresses_names_and_numbers_as_text() -> None:
    dtype = np.dtype([("v4", ">u4"), ("raw", "u1", (4,)), ("v6", "V16"), ("words", ">u4", (4,)),
                      ("mac", "u1", (6,)), ("task", "i1", (8,)), ("both", "S16"), ("err", "i4"),
                      ("each", "u1", (2, 4))])
    array = np.zeros(2, dtype)
    array["v4"], array["raw"], array["err"] = 0x0A000001, (127, 0, 0, 1), (-2, 0)
    array["v6"] = bytes(15) + b"\1"
    array["words"][0] = (0x20010DB8, 0, 0, 1)
    array["mac"][1] = range(1, 7)
    array["task"][0, :3] = (97, 0, 98)
    array["both"] = bytes(10) + b"\xff\xff\n\0\0\2"
    array["each"][:, 1] = (10, 0, 0, 3)
    batch = record_batch({"key": array}, annotations={
        "key.v4": "ipv4", "key.raw": "ip", "key.v6": "ipv6", "key.words": "ipv6", "key.mac": "mac",
        "key.task": "comm", "key.both": "ip", "key.err": "errno", "key.each": "ipv4"})
    assert batch.to_pylist()[0] == {
        "v4": "10.0.0.1", "raw": "127.0.0.1", "v6": "::1", "words": "2001:db8::1",
        "mac": "00:00:00:00:00:00", "task": "a", "both": "10.0.0.2", "err": "ENOENT",
        "each": ["0.0.0.0", "10.0.0.3"]}
    assert batch["mac"][1].as_py() == "01:02:03:04:05:06"
    plain = record_batch({"key": array["raw"]}, annotations={"key": "ipv4"})
    assert plain.to_pydict() == {"key": ["127.0.0.1"] * 2}
    hops = np.zeros(1, [("hops", [("ip", "u1", (4,)), ("kind", "u1")], (2,))])
    hops["hops"]["ip"][0, 1], hops["hops"]["kind"] = (10, 0, 0, 3), 1
    inside = record_batch({"value": hops}, annotations={
        "value.hops.ip": "ipv4", "value.hops.kind": {1: "router"}})
    assert inside["hops"].to_pylist() == [[{"ip": "0.0.0.0", "kind": "router"},
                                           {"ip": "10.0.0.3", "kind": "router"}]]


@pytest.mark.parametrize(("dtype", "note"), [
    (">u4", "ipv4"), ("<u4", "ip"), ("V16", "ip"), ("V6", "mac"), ("u8", "mac"), ("S4", "ipv4")])
def test_addresses_are_those_of_decode(dtype: str, note: str) -> None:
    array = np.frombuffer(np.random.default_rng(1).bytes(np.dtype(dtype).itemsize * 999), dtype)
    for column in (array, array[::-3], np.lib.stride_tricks.as_strided(
            array, (300, 2), (array.itemsize * 2, array.itemsize))):
        batch = record_batch({"key": column}, annotations={"key": note})
        expected = decode(column.reshape(-1), note)
        assert np.ravel(batch["key"].to_pylist()).tolist() == expected


def test_enums_are_dictionaries() -> None:
    numbers = np.array([[3, 250], [1, 2]], "i2")
    column = record_batch({"value": numbers}, annotations={
        "value": {1: "rx", 3: "tx", 70000: "far"}})["value"]
    assert column.type == pyarrow.list_(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), 2)
    assert column.to_pylist() == [["tx", "250"], ["rx", "2"]]
    flags = record_batch({"value": np.array([True, False])}, annotations={
        "value": {"NO": 0, "OFF": 0, "YES": 1}})
    assert flags["value"].to_pylist() == ["YES", "NO"]


def test_a_layout_names_enums_and_takes_bitfields_apart() -> None:
    layout = fastmap.btf_layout("tcphdr")
    headers = np.zeros(2, layout.dtype)
    headers["source"] = 443
    layout.bitfields["syn"].store(headers, [1, 0])
    layout.bitfields["doff"].store(headers, 5)
    for arrays, side in (({"value": headers}, "value"),
                         ({"value": headers.view([("tcp", layout.dtype)])}, "value.tcp")):
        batch = record_batch(arrays, annotations={side: layout})
        rows = batch.to_pylist() if side == "value" else batch["tcp"].to_pylist()
        assert [(each["source"], each["syn"], each["doff"]) for each in rows] == [
            (443, 1, 5), (443, 0, 5)]
        assert not {name for name in rows[0] if name.startswith("bits")}
    with pytest.raises(ValueError, match="the layout of value is of"):
        record_batch({"value": headers[["source"]]}, annotations={"value": layout})
    kinds = fastmap.btf_layout("bpf_map_type")
    column = record_batch({"value": np.array([1, 2], kinds.dtype)}, annotations={"value": kinds})
    assert column["value"].to_pylist() == ["BPF_MAP_TYPE_HASH", "BPF_MAP_TYPE_ARRAY"]


def test_a_map_s_own_layout(make: Callable[..., Any]) -> None:
    m = flows(make)
    layouts = {side: fastmap.btf_layout(side, m) for side in ("key", "value")}
    assert m.snapshot().to_arrow(annotations=layouts) == m.snapshot().to_arrow()
    state = fastmap.btf.Layout(np.dtype([("state", "u4"), ("n", "u4")]),
                               {"state": {"IDLE": 0, "BUSY": 1}})
    each = make("percpu_hash", key="u4", value=state.dtype, max_entries=4)
    each.update(3, (1, 2))
    for options, name in (({}, "state"), ({"reduce": {"n": "sum"}}, "state"),
                          ({"fields": ["value.state"], "reduce": "any"}, "state")):
        batch = each.snapshot(**options).to_arrow(annotations={"value": state})
        assert "BUSY" in str(batch[name].to_pylist()[0])


@pytest.mark.parametrize(("notes", "error", "said"), [
    ({"key.sadr": "ipv4"}, ValueError, r"key.sadr: no such column; there are: key.saddr"),
    ({"saddr": "ipv4"}, ValueError, "no such column"),
    ({"key.saddr": "ipv5"}, ValueError, "no decoder"),
    ({"key.saddr": "mac"}, ValueError, r"key\.saddr: mac decodes 6 or 8 bytes"),
    ({"value.bytes": "ipv4"}, ValueError, r"value\.bytes: ipv4"),
    ({"key.comm": {1: "a"}}, TypeError, r"key\.comm: a map of numbers"),
    ({"key.port": {"a": "b"}}, TypeError, "a map of numbers to names has"),
    ({"key.port": 7}, TypeError, "a decoder is one of"),
    ({"value": fastmap.btf.Layout(np.dtype("u4"))}, ValueError, "the layout of value is of uint32"),
    ("ipv4", TypeError, "annotations is a dict"),
])
def test_annotations_that_do_not_fit(make: Callable[..., Any], notes: Any, error: Any,
                                     said: str) -> None:
    for batch in (flows(make).snapshot(), flows(make, 0).snapshot()):
        with pytest.raises(error, match=said):
            batch.to_arrow(annotations=notes)


def test_arrays_of_several_lengths_and_too_much_text() -> None:
    with pytest.raises(ValueError, match="arrays of one length"):
        record_batch({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(OverflowError, match="over 2 GiB"):
        record_batch({"a": np.broadcast_to(np.zeros(1, "S1024"), 1 << 21)})


def test_pyarrow_is_loaded_by_those_who_use_it_and_its_absence_is_one_line() -> None:
    code = """
import sys, fastmap
assert "pyarrow" not in sys.modules and "fastmap.arrow" not in sys.modules
sys.modules["pyarrow"] = None  # as where it is not installed
import numpy as np
from fastmap.arrow import Writer, record_batch
for call in (lambda: record_batch({"a": np.zeros(1)}), lambda: Writer("/tmp/x.parquet")):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = said.stdout.splitlines()
    assert len(lines) == 2 and all("pip install 'fastmap-bpf[arrow]'" in line for line in lines)
