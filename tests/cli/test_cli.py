"""What the subcommands say of maps of this test's own, in this process: content, not looks."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from producers import Producer
from support import inserter

import fastmap
from fastmap.cli.main import COMMANDS, main

pytestmark = pytest.mark.quick

FLOW = [("addr", "u1", (4,)), ("port", "u2")]
STATS = [("packets", "u8"), ("bytes", "u8"), ("comm", "S16")]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Return what runs a subcommand, checks its status, and returns what it said."""

    def run(*arguments: str | int, status: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        try:
            found = main([str(each) for each in arguments])
        except SystemExit as end:  # argparse
            found = int(end.code or 0)
        out, err = capfd.readouterr()
        assert found == status, (out, err)
        assert "Traceback" not in err
        return out, err

    return run


Said = Callable[..., tuple[str, str]]


@pytest.fixture
def flows(make: Callable[..., Any]) -> Any:
    m = make("hash", key=FLOW, value=STATS, max_entries=64, name="cli_flows")
    for i in range(20):
        m[(10, 0, 0, i), 1000 + i] = (i, 1500 * i, b"curl%d" % (i % 3))
    return m


# ---- list and show ------------------------------------------------------------------------------


def test_list_tells_who_uses_a_map_and_where_it_is_pinned(
        said: Said, make: Callable[..., Any], bpffs: Path) -> None:
    target = make("hash", key="u8", value="u8", max_entries=8, name="cli_target")
    counters = make("array", key="u4", value="u8", max_entries=2, name="cli_counters")
    target.pin(bpffs / "here")
    with fastmap.Program("syscall", inserter(target, counters), name="cli_prog", flags=16):
        rows = {row["id"]: row for row in json.loads(said("list", "--json")[0])}
        text = said("list")[0]
        (row,) = [line for line in text.splitlines() if line.split()[0] == str(target.id)]
        (shown,) = re.findall(r"programs: +(.*)", said("show", target.id)[0])
    assert set(rows) >= {target.id, counters.id}
    info = target.info()
    one = rows[target.id]
    assert (one["type"], one["name"], one["key_size"], one["value_size"], one["max_entries"],
            one["memory"], one["frozen"]) == ("hash", "cli_target", 8, 8, 8, info.memlock, False)
    assert one["pins"] == [str(bpffs / "here")] and rows[counters.id]["pins"] == []
    assert [user["name"] for user in one["programs"]] == ["cli_prog"]
    assert re.search(r"hash +cli_target +8 +8 +8 .*cli_prog\(\d+\) +" + str(bpffs / "here"), row)
    assert re.fullmatch(r"cli_prog\(\d+\) syscall", shown)
    assert all(line.split()[1] == "array"
               for line in said("list", "--type", "array")[0].splitlines()[1:])


def test_show_counts_entries_and_names_columns(said: Said, flows: Any) -> None:
    one = json.loads(said("show", flows.id, "--json")[0])
    assert (one["entries"], one["max_entries"], one["dtype_source"]) == (20, 64, "btf")
    assert one["columns"] == [
        {"name": "key.addr", "dtype": "u1[4]", "offset": 0},
        {"name": "key.port", "dtype": "u2", "offset": 4},
        {"name": "value.packets", "dtype": "u8", "offset": 0},
        {"name": "value.bytes", "dtype": "u8", "offset": 8},
        {"name": "value.comm", "dtype": "S16", "offset": 16}]
    text = said("show", flows.id)[0]
    assert "20 of 64 (31.2%)" in text and "value.comm" in text


@pytest.mark.parametrize("kind", ["queue", "ringbuf", "bloom_filter", "perf_event_array"])
def test_show_of_maps_that_are_no_tables(said: Said, make: Callable[..., Any], kind: str) -> None:
    value = {"value": "u8"} if kind in ("queue", "bloom_filter") else {}
    m = make(kind, max_entries=4096, name="cli_other", **value)
    one = json.loads(said("show", m.id, "--json")[0])
    assert (one["type"], one["entries"]) == (kind, None)
    assert "no entries" not in said("show", m.id)[0]
    assert kind in said("dump", m.id, status=1)[1]


def test_a_map_is_a_pin_an_id_or_a_name(said: Said, make: Callable[..., Any], flows: Any,
                                        bpffs: Path) -> None:
    flows.pin(bpffs / "flows")
    for name in (bpffs / "flows", flows.id, f"id:{flows.id}", "cli_flows", "name:cli_flows",
                 f"pin:{bpffs}/flows"):
        assert json.loads(said("show", name, "--json")[0])["id"] == flows.id
    other = make("array", value="u4", max_entries=1, name="cli_flows")
    error = said("show", "cli_flows", status=1)[1]
    assert error.count("\n") == 1
    assert f"{flows.id}, {other.id}" in error
    numbered = make("array", value="u4", max_entries=1, name=str(other.id))
    assert json.loads(said("show", f"name:{other.id}", "--json")[0])["id"] == numbered.id


# ---- dump ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hash", "lru_hash", "array", "percpu_hash", "percpu_array"])
def test_json_is_the_snapshot(said: Said, filled: Callable[..., Any], kind: str) -> None:
    m = filled(500, type=kind, name="cli_json", max_entries=500 if "array" in kind else 4096)
    found = {each["key"]: each["value"] for each in json.loads(said("dump", m.id, "--json")[0])}
    keys, values = m.snapshot()
    assert len(found) == len(keys)
    assert found == dict(zip(keys.tolist(), values.tolist(), strict=True))


def test_fast_is_the_same_of_a_map_that_rests(said: Said, filled: Callable[..., Any],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmap.cli.shared import selection

    monkeypatch.setattr(selection, "SLICE", 100)
    for kind in ("hash", "array", "percpu_hash"):
        m = filled(1000, type=kind, name="cli_fast")
        plain, fast = (json.loads(said("dump", m.id, "--json", *option)[0])
                       for option in ((), ("--fast",)))
        assert len(fast) == 1000
        assert sorted(fast, key=lambda each: each["key"]) == sorted(
            plain, key=lambda each: each["key"])
    found = json.loads(said("dump", m.id, "--json", "--fast", "--where", "key < 7")[0])
    assert sorted(each["key"] for each in found) == list(range(7))


def test_json_of_records(said: Said, flows: Any) -> None:
    found = json.loads(said("dump", flows.id, "--json")[0])
    keys, values = flows.snapshot()
    assert found == [
        {"key": {"addr": bytes(key["addr"].tolist()).hex(), "port": int(key["port"])},
         "value": {"packets": int(value["packets"]), "bytes": int(value["bytes"]),
                   "comm": value["comm"].decode()}}
        for key, value in zip(keys, values, strict=True)]


def test_where_a_flag_is_true(said: Said, make: Callable[..., Any]) -> None:
    m = make("array", value="?", max_entries=3, name="cli_flags")
    m[1] = True
    for words, keys in (("value == true", [1]), ("value != True", [0, 2]), ("value == 0", [0, 2]),
                        ("value == false", [0, 2])):
        found = json.loads(said("dump", m.id, "--json", "--where", words)[0])
        assert [each["key"] for each in found] == keys
    assert "no constant" in said("dump", m.id, "--where", "value == maybe", status=2)[1]


def test_dump_without_btf(said: Said, make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="u8,u4,u4", max_entries=4, name="cli_plain", btf=False)
    m[7] = (1, 2, 3)
    assert json.loads(said("dump", m.id, "--json")[0]) == [
        {"key": "07000000", "value": "01000000000000000200000003000000"}]
    typed = ("--key", "u4", "--value", "total:u8,a:u4,b:u4")
    assert json.loads(said("dump", m.id, *typed, "--json")[0]) == [
        {"key": 7, "value": {"total": 1, "a": 2, "b": 3}}]
    assert "key has 4 bytes" in said("dump", m.id, "--key", "u8", status=1)[1]


def test_table(said: Said, flows: Any, make: Callable[..., Any]) -> None:
    lines = said("dump", flows.id)[0].splitlines()
    assert lines[0].split() == ["key.addr", "key.port", "value.packets", "value.bytes",
                                "value.comm"]
    assert sorted(line.split() for line in lines[1:]) == sorted(
        [f"0a0000{i:02x}", str(1000 + i), str(i), str(1500 * i), f"curl{i % 3}"]
        for i in range(20))
    ends = {line.index(" ", line.index(str(1000))) for line in lines[1:] if " 1000" in line}
    assert len(ends) == 1
    trie = make("lpm_trie", key="ipv4", value="u4", max_entries=4, name="cli_trie")
    trie["10.0.0.0/8"] = 1
    assert said("dump", trie.id)[0].splitlines()[1].split() == ["10.0.0.0/8", "1"]
    cpus = make("percpu_array", value="u4", max_entries=1, name="cli_cpus")
    assert said("dump", cpus.id)[0].splitlines()[1] == (
        f"  0  [{', '.join(['0'] * len(fastmap.possible_cpus()))}]")


def test_names_of_processes_do_nothing_to_a_terminal(said: Said, make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="S16", max_entries=1, name="cli_evil")
    m[0] = b"\x1b[2Jevil\xff"
    assert r"\x1b[2Jevil\xff" in said("dump", m.id)[0]


def test_entries_that_cannot_be_counted(said: Said, make: Callable[..., Any]) -> None:
    m = make("task_storage", value="u8")
    m[os.getpid()] = 1
    assert "entries:     not countable" in said("show", m.id)[0]
    assert json.loads(said("show", m.id, "--json")[0])["entries"] is None


def test_what_is_not_finite_does_not_grow(said: Said, make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="f8", max_entries=4)
    m.update_many([1, 2, 3], [np.nan, np.inf, 5.0])
    for by in ((), ("--by", "value")):
        text = said("top", m.id, "--count", 1, "--interval", 0.01, *by)[0]
        assert "0 of 3 entries grew" in text and "nan" not in text and "inf" not in text


def test_where_top_limit(said: Said, flows: Any) -> None:
    def ports(*options: str | int) -> list[int]:
        found = json.loads(said("dump", flows.id, "--json", *options)[0])
        return [each["key"]["port"] for each in found]

    assert sorted(ports("--where", "value.bytes >= 27000")) == [1018, 1019]
    assert sorted(ports("--where", "key.port<1002")) == [1000, 1001]
    assert sorted(ports("--where", "value.comm == curl2")) == list(range(1002, 1020, 3))
    assert ports("--top", 3, "--by", "value.bytes") == [1019, 1018, 1017]
    assert ports("--top", 3, "--by", "key.port", "--where", "key.port < 1010",
                 "--limit", 2) == [1009, 1008]
    assert len(ports("--limit", 7)) == 7
    assert ports("--where", "value.bytes > 99999999") == []


def test_top_is_the_same_over_many_chunks(filled: Callable[..., Any]) -> None:
    from types import SimpleNamespace

    from fastmap.cli.shared import selection

    m = filled(3000, name="cli_chunks")
    found = [batch.copy() for batch in selection._largest(
        iter([batch.copy() for batch in m.reader(chunk=100)]), "value", 5)]
    assert [batch.values.tolist() for batch in found] == [[3 * i for i in range(2999, 2994, -1)]]
    given = SimpleNamespace(by="value", top=2, reduce=None, where=None, limit=None, fast=False)
    advanced: list[int] = []
    (batch,) = selection.selected(m, given, advanced.append)  # type: ignore[arg-type]
    assert batch.values.tolist() == [8997, 8994] and sum(advanced) == 3000


@pytest.mark.parametrize("dtype", ["u8", "i8", "f8"])
def test_top_orders_numbers_of_all_kinds(make: Callable[..., Any], said: Said, dtype: str) -> None:
    numbers = {"u8": [0, 2 ** 64 - 1, 2 ** 63, 5], "i8": [-2 ** 63, -1, 2 ** 63 - 1, 0],
               "f8": [-1.5, 0.25, 1e300, -1e-300]}[dtype]
    m = make("hash", key="u4", value=dtype, max_entries=8, name="cli_order")
    for key, number in enumerate(numbers):
        m[key] = number
    args = ["dump", m.id, "--json", "--top", 3]
    if m.value_dtype.kind == "f" or m.dtype_source == "given":
        args += ["--value", dtype]
    found = json.loads(said(*args)[0])
    assert [each["value"] for each in found] == sorted(numbers, reverse=True)[:3]


def test_reduce(said: Said, make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key="u4", value=STATS, max_entries=4, name="cli_percpu")
    cpus = len(fastmap.possible_cpus())
    m[1] = (5, 7, b"x")
    (one,) = json.loads(said("dump", m.id, "--json", "--reduce", "sum")[0])
    assert one["value"] == {"packets": 5 * cpus, "bytes": 7 * cpus, "comm": "x"}
    (one,) = json.loads(said("dump", m.id, "--json")[0])
    assert one["value"] == [{"packets": 5, "bytes": 7, "comm": "x"}] * cpus
    assert "--reduce" in said("dump", m.id, "--where", "value.bytes > 1", status=2)[1]
    assert "--reduce" in said("dump", m.id, "--top", 1, "--by", "value.bytes", status=2)[1]


def test_a_file_appears_when_it_is_whole(said: Said, flows: Any, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "flows.json"
    assert said("dump", flows.id, "--json", "-o", target) == ("", "")
    assert len(json.loads(target.read_text())) == 20
    target.write_text("before")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    assert "No space left" in said("dump", flows.id, "--json", "-o", target, status=1)[1]
    assert target.read_text() == "before" and os.listdir(tmp_path) == ["flows.json"]
    assert "No such file" in said("dump", flows.id, "--json", "-o", tmp_path / "no/x", status=1)[1]


def test_a_device_is_written_to_and_stays(said: Said, flows: Any, tmp_path: Path) -> None:
    """Root that says ``-o /dev/null`` still has one; a link leads to its file, and stays."""
    null, link, target = tmp_path / "null", tmp_path / "link", tmp_path / "flows.json"
    os.mknod(null, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert said("dump", flows.id, "--json", "-o", null) == ("", "")
    assert null.is_char_device()
    link.symlink_to(target)
    assert said("dump", flows.id, "--json", "-o", link) == ("", "")
    assert link.is_symlink() and len(json.loads(target.read_text())) == 20
    assert said("dump", flows.id, "--json", "-o", tmp_path, status=1)[1] == (
        f"fastmap: {tmp_path}: Is a directory\n")
    assert sorted(os.listdir(tmp_path)) == ["flows.json", "link", "null"]


# ---- histograms ---------------------------------------------------------------------------------


def drawn(text: str) -> dict[str, int]:
    """Return the counts of a drawing by range; the longest bar is that of the largest."""
    rows = re.findall(r"^ *(-?\d+(?: -> \d+)?)  +(\d+)  \|([*. ]*)\|$", text, flags=re.MULTILINE)
    counts = {label: int(n) for label, n, _ in rows}
    bars = {label: len(bar.strip()) for label, _, bar in rows}
    assert 8 <= max(bars.values()) <= 40
    assert max(bars.values()) == bars[max(counts, key=counts.__getitem__)]
    assert all(bool(n) == bool(bars[label]) for label, n in counts.items())
    return counts


def test_histogram_of_an_array(said: Said, make: Callable[..., Any]) -> None:
    m = make("array", value="u8", max_entries=64, name="cli_lat")
    m[0], m[3], m[4], m[63] = 1, 1000, 500, 2
    text = said("dump", m.id, "--histogram", "--unit", "usecs")[0]
    counts = drawn(text)
    assert len(counts) == 64 and "usecs" in text
    assert (counts["0 -> 1"], counts["8 -> 15"], counts["16 -> 31"], counts["32 -> 63"]) == (
        1, 1000, 500, 0)
    assert counts[f"{2 ** 63} -> {2 ** 64 - 1}"] == 2
    assert drawn(said("dump", m.id, "--histogram", "--linear")[0])["3"] == 1000
    big = make("array", value="u8", max_entries=100, name="cli_big")
    assert said("dump", big.id, "--histogram")[0] == "nothing counted\n"
    big[99] = 1
    assert "--linear" in said("dump", big.id, "--histogram", status=1)[1]


def test_histograms_by_key(said: Said, make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key=[("disk", "S8"), ("slot", "u4")], value="u8", max_entries=64,
             name="cli_disks")
    cpus = len(fastmap.possible_cpus())
    for disk, slot, n in ((b"sda", 2, 10), (b"sda", 3, 20), (b"nvme0", 5, 7)):
        m[disk, slot] = n
    first, second = said("dump", m.id, "--histogram")[0].split("\n\n")
    assert first.startswith("disk sda\n") and second.startswith("disk nvme0\n")
    assert drawn(first) == {"4 -> 7": 10 * cpus, "8 -> 15": 20 * cpus}
    assert drawn(second) == {"32 -> 63": 7 * cpus}


def test_histograms_in_values(said: Said, make: Callable[..., Any]) -> None:
    """As libbpf-tools keep them: ``struct hist { __u32 slots[27]; char comm[16]; }``."""
    m = make("hash", key="u4", value=[("slots", "u4", (27,)), ("comm", "S16")], max_entries=4,
             name="cli_hists")
    slots = np.zeros(27, "u4")
    slots[4] = 9
    m[77] = (slots, b"dd")
    text = said("dump", m.id, "--histogram")[0]
    assert text.startswith("key 77, dd\n") and drawn(text) == {"16 -> 31": 9}


def test_no_histogram(said: Said, flows: Any) -> None:
    assert "slot" in said("dump", flows.id, "--histogram", "--by", "value.bytes", "--top", 5,
                          status=1)[1]


# ---- watch --------------------------------------------------------------------------------------


def test_watch_takes_records(said: Said, make: Callable[..., Any]) -> None:
    rb = make("ringbuf", max_entries=4096, name="cli_ring")
    with Producer(rb, 16) as produce:
        assert produce(5, 3) == 0
        out, err = said("watch", rb.id, "--count", 2, "--record", "number:u8,size:u8")
        assert out == "number=5 size=16\nnumber=6 size=16\n" and "takes the records" in err
        out, _ = said("watch", rb.id, "--seconds", 0.1, "--record", "number:u8,size:u8", "--json")
        assert json.loads(out) == {"number": 7, "size": 16}
        assert rb.available == 0
        produce(1, 1)
        out, _ = said("watch", rb.id, "--count", 1)
        assert out == "01000000000000001000000000000000\n"
        produce(1, 1)
        out, _ = said("watch", rb.id, "--count", 1, "--record", "u8", "--json")
        assert out == "1\n"


def test_watch_takes_the_structs_of_others(said: Said, make: Callable[..., Any]) -> None:
    rb = make("ringbuf", max_entries=4096, name="cli_structs")
    with Producer(rb, 16) as produce:
        produce(9, 1)
        out, _ = said("watch", rb.id, "--count", 1, "--record", "timespec64", "--from", "vmlinux")
    assert out == "tv_sec=9 tv_nsec=16\n"
    assert "no_such_struct" in said("watch", rb.id, "--record", "no_such_struct", "--from",
                                    "vmlinux", status=1)[1]


def test_watch_refuses_what_it_would_break(said: Said, make: Callable[..., Any],
                                           flows: Any) -> None:
    events = make("perf_event_array", max_entries=1 + max(fastmap.possible_cpus()), name="cli_perf")
    assert "--force" in said("watch", events.id, status=1)[1]
    assert said("watch", events.id, "--force", "--seconds", 0.1)[0] == ""
    assert "no ring" in said("watch", flows.id, status=1)[1]


# ---- doctor and features ------------------------------------------------------------------------


def test_doctor_finds_this_machine_well(said: Said, bpffs: Path) -> None:
    found = {each["what"]: each for each in json.loads(said("doctor", "--json")[0])}
    assert found["bpf(2)"]["state"] == found["CAP_BPF"]["state"] == "ok"
    assert str(bpffs) in found["bpffs"]["text"]
    text = said("doctor")[0]
    assert all(what in text for what in found)
    ways = {way.name: bool(way) for way in fastmap.features().ways}
    for name, works in ways.items():
        assert (found[f"the {name} way"]["state"] == "ok") == works


def test_features(said: Said) -> None:
    found = json.loads(said("features", "--json")[0])
    for name, group in (("map types", fastmap.features().map_types),
                        ("flags", fastmap.features().flags)):
        assert {each.name: each.supported for each in group} == {
            each: told["supported"] for each, told in found[name].items()}
    text = said("features")[0]
    assert re.search(r"^  yes HASH$", text, flags=re.MULTILINE)


# ---- usage --------------------------------------------------------------------------------------


def test_help_has_examples_that_parse(said: Said) -> None:
    from fastmap.cli.main import parser

    assert all(name in said("--help")[0] for name in COMMANDS)
    for name in COMMANDS:
        text = said(name, "--help")[0]
        examples = re.findall(r"^  (fastmap .*)$", text.partition("examples:\n")[2],
                              flags=re.MULTILINE)
        assert examples
        for line in examples:
            words = re.findall(r"'[^']*'|\S+", re.split(r" [|>] ", line)[0])
            given = parser(name).parse_args([word.strip("'") for word in words[1:]])
            assert given.command == name


@pytest.mark.parametrize("arguments", [
    (), ("nonsense",), ("dump",), ("dump", "x", "--nope"), ("dump", "x", "--json", "--csv"),
    ("dump", "x", "--limit", "0"), ("dump", "x", "--limit", "many"), ("dump", "x", "-o", "f"),
    ("dump", "x", "--key", "no such dtype"), ("dump", "x", "--unit", "ms"), ("show", "id:x"),
    ("watch", "x", "--from", "vmlinux"), ("watch", "x", "--record", "event"),
    ("watch", "x", "--seconds", "0"),
])
def test_usage(said: Said, arguments: tuple[str, ...]) -> None:
    out, err = said(*arguments, status=2)
    assert out == "" and err.splitlines()[-1].startswith("fastmap")


@pytest.mark.parametrize("condition", [
    "bytes > 1", "value.bytes", "value.nope > 1", "value.bytes > many", "value.comm.x == a",
    "value > 1", "key.addr == 1", "value.bytes >",
])
def test_conditions_that_make_no_sense(said: Said, flows: Any, condition: str) -> None:
    err = said("dump", flows.id, "--where", condition, status=2)[1]
    assert err.startswith("fastmap: ") and err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "text"), [
    (("dump", "no_such_map"), "no map is named"), (("show", "4294967295"), "no object has that id"),
    (("dump", "/sys/fs/bpf/no/such"), "nothing is pinned"), (("dump", "/dev/null"), "/dev/null"),
])
def test_one_line_says_what_failed(said: Said, arguments: tuple[str, ...], text: str) -> None:
    out, err = said(*arguments, status=1)
    assert out == "" and err.startswith("fastmap: ") and err.count("\n") == 1 and text in err


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Leave the umask as it was."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022


def test_keys_with_padding_are_told(said: Said, make: Callable[..., Any]) -> None:
    key = np.dtype([("a", "u1"), ("b", "u4")], align=True)
    m = make("hash", key=key, value="u4", max_entries=8, name="cli_padded", btf=True)
    m[1, 2] = 3
    assert "padding" not in said("show", "cli_padded")[0]
    assert "cli_padded" not in said("doctor", "--json", status=0)[0]
    m[b"\x01\xaa\xaa\xaa\x02\0\0\0"] = 5
    assert "not zero in 1 keys" in said("show", "cli_padded")[0]
    assert json.loads(said("show", "cli_padded", "--json")[0])["padded_keys"] == 1
    assert f"cli_padded({m.id})" in said("doctor")[0]
