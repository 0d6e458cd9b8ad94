"""What BTF knows beside dtypes reaches reads, tables, JSON, CSV, Arrow, labels and conditions."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import fastmap
from fastmap._core.system import syscall
from fastmap.btf import Builder, Kind
from fastmap.collect import group_by, top
from fastmap.enums import MapType
from fastmap.prometheus import MapCollector

PROTOCOLS = [("TCP", 6), ("UDP", 17), ("ALSO_UDP", 17)]
#: `struct key { enum protocol proto; __be32 saddr; u32 peer; }`
KEY = np.dtype([("proto", "u4"), ("saddr", ">u4"), ("peer", "u4")])
#: `struct value { u64 bytes; enum state state:3; u32 dscp:6; }`
VALUE = np.dtype([("bytes", "u8"), ("bits8", "u4"), ("_pad", "u4")])


def blob() -> tuple[bytes, int, int]:
    """BTF of a map's key and value, and their ids."""
    b = Builder()
    u4, u8 = b.add_int("unsigned int", 4), b.add_int("unsigned long", 8)
    be32 = b.add_ref(Kind.TYPEDEF, u4, "__be32")
    proto = b.add_enum("protocol", 4, PROTOCOLS)
    state = b.add_enum("state", 4, [("IDLE", 0), ("BUSY", 1)])
    key = b.add_struct("key", 12, [("proto", proto, 0), ("saddr", be32, 4), ("peer", u4, 8)])
    value = b.add_struct("value", 16, [("bytes", u8, 0), ("state", state, 8), ("dscp", u4, 8)],
                         bits={"state": (64, 3), "dscp": (67, 6)})
    return b.build(), key, value


@pytest.fixture
def flows() -> Iterator[Any]:
    raw, key, value = blob()
    btf = syscall.btf_load(raw)
    made = syscall.map_create(int(MapType.HASH), 12, 16, 64, name=b"described",
                              btf_fd=btf.fileno(), btf_key_type_id=key, btf_value_type_id=value)
    with closing(btf), closing(made), fastmap.open(fd=made.fileno()) as m:
        assert m.dtype_source == "btf"
        keys = np.zeros(3, m.key_dtype)
        keys["proto"] = 6, 17, 99
        keys["saddr"] = 0x0A000001, 0x0A010002, 0xC0000201
        keys["peer"] = np.array([[127, 0, 0, 1]] * 3, "u1").view("u4").reshape(3)
        values = np.zeros(3, m.value_dtype)
        values["bytes"] = 10, 20, 30
        values["bits8"] = [0 | 46 << 3, 1 | 8 << 3, 5]  # 5: a state without a name
        m.update_many(keys, values)
        yield m


def by_bytes(batch: Any, column: Callable[[Any], Any]) -> dict[int, Any]:
    return dict(zip(batch.values["bytes"].tolist(), column(batch).tolist(), strict=True))


def test_a_read_can_be_described(flows: Any) -> None:
    batch = flows.snapshot()
    assert batch.keys.dtype["proto"] == "u4", "as the kernel has it"
    said = batch.described()
    assert by_bytes(said, lambda b: b.keys["proto"]) == {10: b"TCP", 20: b"UDP", 30: b"99"}
    assert by_bytes(said, lambda b: b.values["state"]) == {10: b"IDLE", 20: b"BUSY", 30: b"5"}
    assert by_bytes(said, lambda b: b.values["dscp"]) == {10: 46, 20: 8, 30: 0}
    assert said.values.dtype.names == ("bytes", "state", "dscp")
    numbers = batch.described(names=False)
    assert by_bytes(numbers, lambda b: b.values["state"]) == {10: 0, 20: 1, 30: 5}
    part = batch.described(raw=["key.proto"])
    assert by_bytes(part, lambda b: b.keys["proto"]) == {10: 6, 20: 17, 30: 99}
    assert batch.take([0]).described().keys["proto"].dtype.kind == "S"


def test_a_map_without_btf_is_as_it_was(make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="u8", max_entries=4)
    m[1] = 2
    batch = m.snapshot()
    assert not m.layouts and batch.described() is batch


def test_a_read_of_some_fields(flows: Any) -> None:
    batch = flows.reader(fields=["value.bytes"]).read().described()
    assert batch.values.dtype.names == ("bytes",)
    assert set(batch.keys["proto"].tolist()) == {b"TCP", b"UDP", b"99"}


@pytest.mark.parametrize(("where", "found"), [
    (("key.proto", "==", "UDP"), {20}),
    (("key.proto", "!=", "TCP"), {20, 30}),
    (("key.proto", "==", "ALSO_UDP"), {20}),
    (("key.saddr", "==", "10.0.0.1"), {10}),
    (("key.saddr", ">=", "10.1.0.0"), {20, 30}),
    (("key.saddr", "in", "10.0.0.0/8"), {10, 20}),
    (("key.saddr", "in", "10.1.0.0/16"), {20}),
    (("key.saddr", "in", "0.0.0.0/0"), {10, 20, 30}),
    (("key.peer", "==", "127.0.0.1"), {10, 20, 30}),
    (("key.peer", "in", "128.0.0.0/8"), set()),
])
@pytest.mark.parametrize("via", ["syscall", "kernel"])
def test_conditions_in_words(flows: Any, where: Any, found: set[int], via: str) -> None:
    exact = via == "syscall"
    batch = flows.reader(where=where, via=via, exact=exact).read()
    assert set(batch.values["bytes"].tolist()) == found


@pytest.mark.parametrize(("where", "error", "said"), [
    (("key.proto", "==", "UPD"), ValueError, "named 'UPD'.*UDP"),
    (("key.saddr", "==", "10.0.0.300"), ValueError, "no address"),
    (("key.saddr", "==", "::1"), ValueError, "16 bytes, the column 4"),
    (("key.saddr", "==", "10.0.0.0/8"), ValueError, "is a network"),
    (("key.saddr", "in", "10.0.0.1/8"), ValueError, "no address"),
    (("key.saddr", "in", "10.0.0.0/9"), ValueError, "whole bytes"),
    (("key.saddr", "in", 5), TypeError, "in a network"),
    (("value.bytes", "in", "10.0.0.0/8"), ValueError, "a column of addresses"),
    (("key.peer", "<", "10.0.0.1"), ValueError, "have no order"),
])
def test_conditions_that_are_refused(flows: Any, where: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        flows.reader(where=where)


def test_an_address_that_is_an_array_of_bytes(make: Callable[..., Any]) -> None:
    key = np.dtype([("addr", "u1", 16), ("v4", "u1", 4)])
    m = make("hash", key=key, value="u4", max_entries=4)
    keys = np.zeros(2, key)
    keys["addr"][0, 15], keys["addr"][1, 0] = 1, 0xFE
    keys["v4"] = [10, 0, 0, 1], [11, 0, 0, 1]
    m.update_many(keys, np.array([1, 2], "u4"))
    for where, found in ((("key.addr", "==", "::1"), [1]), (("key.addr", "in", "fe00::/8"), [2]),
                         (("key.v4", "==", "11.0.0.1"), [2]), (("key.v4", ">", "10.0.0.1"), [2])):
        assert m.reader(where=where).read().values.tolist() == found, where


def test_text_keys(make: Callable[..., Any]) -> None:
    m = make("hash", key="S16", value="u4", max_entries=4)
    m["bash"] = 7
    assert m["bash"] == m[b"bash"] == 7 and "zsh" not in m
    with pytest.raises(ValueError, match="16 bytes"):
        m["é" * 9] = 1
    assert m.reader(where=("key", "==", "bash")).read().values.tolist() == [7]


def test_groups_and_the_largest(flows: Any) -> None:
    groups = group_by(flows.snapshot(), ["key.proto", "value.state"], sum="value.bytes")
    assert set(groups.keys["state"].tolist()) == {0, 1, 5}
    assert set(groups.described().keys["proto"].tolist()) == {b"TCP", b"UDP", b"99"}
    assert set(group_by(flows.snapshot(), "key.proto").described().keys.tolist()) == {
        b"TCP", b"UDP", b"99"}
    assert top(flows.snapshot(), 1, "value.dscp").values["bytes"].tolist() == [10]


def test_arrow_has_names_and_bitfields(flows: Any) -> None:
    batch = flows.snapshot()
    table = batch.to_arrow()
    assert table.schema.names == ["proto", "saddr", "peer", "bytes", "state", "dscp"]
    assert sorted(table["proto"].to_pylist()) == ["99", "TCP", "UDP"]
    assert sorted(table["dscp"].to_pylist()) == [0, 8, 46]
    numbers = batch.to_arrow(names=False)
    assert sorted(numbers["proto"].to_pylist()) == [6, 17, 99]
    assert sorted(numbers["dscp"].to_pylist()) == [0, 8, 46]
    own = batch.to_arrow(annotations={"key.proto": {6: "six"}})
    assert sorted(own["proto"].to_pylist()) == ["17", "99", "six"]


def test_labels_have_the_names(flows: Any) -> None:
    declared = {"maps": [{"id": flows.id, "labels": [{"name": "proto"}],
                          "counters": [{"name": "flow_bytes", "help": "h", "field": "bytes"}]}]}
    found = {sample.labels["proto"]: sample.value for metric in MapCollector(declared).collect()
             for sample in metric.samples if sample.name == "flow_bytes_total"}
    assert found == {"TCP": 10, "UDP": 20, "99": 30}


def cli(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "fastmap", *words], text=True,
                          capture_output=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_dump(flows: Any) -> None:
    number = str(flows.id)
    entries = json.loads(cli("dump", number, "--json"))
    assert {e["value"]["bytes"]: (e["key"]["proto"], e["value"]["state"], e["value"]["dscp"])
            for e in entries} == {10: ("TCP", "IDLE", 46), 20: ("UDP", "BUSY", 8),
                                  30: ("99", "5", 0)}
    entries = json.loads(cli("dump", number, "--json", "--raw", "--where", "key.proto == UDP"))
    assert [(e["key"]["proto"], e["value"]["dscp"]) for e in entries] == [(17, 8)]
    rows = list(csv.DictReader(io.StringIO(cli("dump", number, "--csv"))))
    assert sorted(row["proto"] for row in rows) == ["99", "TCP", "UDP"]
    assert sorted(row["dscp"] for row in rows) == ["0", "46", "8"]
    text = cli("dump", number, "--where", "key.saddr in 10.0.0.0/8", "--as", "key.saddr=ip")
    assert "UDP" in text and "10.1.0.2" in text and "192.0.2.1" not in text
    assert "0x11" in cli("dump", number, "--as", "key.proto=hex")
    wrong = subprocess.run([sys.executable, "-m", "fastmap", "dump", number, "--where",
                            "key.proto == UPD"], text=True, capture_output=True, check=False)
    assert wrong.returncode == 2 and "UDP" in wrong.stderr
