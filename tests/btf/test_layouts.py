"""What BTF knows beside dtypes: names of enums, bitfields, addresses in batches and conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from described import described_map

import fastmap
from fastmap.btf import Btf, Builder, Layout
from fastmap.btf.described import Layouts, described
from fastmap.collect import Delta, group_by, top

pytestmark = pytest.mark.quick


@pytest.fixture
def flows() -> Iterator[Any]:
    with described_map() as m:
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


def test_what_is_summed_is_no_value_of_an_enum() -> None:
    layout = Layout(np.dtype([("state", "u4"), ("n", "u4")]), {"state": {"IDLE": 0}})
    kept = described(np.zeros(2, layout.dtype), layout)
    assert kept["state"].tolist() == [b"IDLE", b"IDLE"]
    widened = np.zeros(2, [("state", "u8"), ("n", "u8")])
    assert described(widened, layout) is widened


def test_growth_has_the_names_of_its_keys_alone(flows: Any) -> None:
    with_growth = Delta(flows)
    flows.update_many(flows.snapshot().keys, np.zeros(3, flows.value_dtype))
    batch = with_growth.read()
    said = batch.described()
    assert set(said.keys["proto"].tolist()) == {b"TCP", b"UDP", b"99"}
    assert said.values.dtype == batch.values.dtype


def test_more_enums_than_a_call_may_look_at() -> None:
    """The dtype stands; that names are not told is a warning, not an error."""
    b = Builder()
    enums = [b.add_enum(f"e{i}", 4, ((f"v{i}_{k}", k) for k in range(60_000))) for i in range(9)]
    record = b.add_struct("many", 36, [(f"f{i}", each, 4 * i) for i, each in enumerate(enums)])
    types = Btf(b.build())
    assert types.dtype(record).itemsize == 36
    layouts = Layouts(types, {"value": record})
    with pytest.warns(UserWarning, match="value's enums and bitfields are not told"):
        assert not layouts
    assert "value" not in layouts


def test_threads_that_ask_first_at_once(flows: Any) -> None:
    with fastmap.open(fd=flows.fileno()) as m, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: set(m.layouts) == {"key", "value"}, range(64)))
