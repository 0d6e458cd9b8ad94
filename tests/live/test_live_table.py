"""`LiveTable` as users see it: made, opened, looked up, read in parts, and refused."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_programs import COUNTERS, KEY, Programs, compiled, key_of, loaded
from tools import tool

import fastmap
from fastmap.cli.main import main
from fastmap.live import layout


@pytest.fixture
def table(bpffs: Path) -> Iterator[Any]:
    with fastmap.LiveTable.create(key=KEY, value=COUNTERS, capacity=1000,
                                  pin=bpffs / "flows") as t:
        yield t


@pytest.fixture
def programs(bpffs: Path, table: Any) -> Iterator[Programs]:
    with loaded(bpffs, table) as them:
        yield them


def numbers(batch: Any) -> list[int]:
    return sorted(batch.keys["low"].tolist())


def test_an_empty_table(table: Any) -> None:
    assert len(table) == len(table.read()) == len(table.delta()) == table.full == table.used == 0
    assert key_of([1])[0] not in table and table.get(key_of([1])[0]) is None
    with pytest.raises(KeyError):
        table[key_of([1])[0]]
    assert not table.lookup_many(key_of([1, 2]))[1].any()
    assert len(table.expire(idle=0)) == len(table.evict()) == 0


def test_lookups(table: Any, programs: Programs) -> None:
    programs.count(300, 0)
    values, found = table.lookup_many(key_of(np.arange(400)))
    assert (found == (np.arange(400) < 300)).all()
    assert (values["bytes"][:300] == np.arange(300)).all() and not values["bytes"][300:].any()
    wide, _ = table.lookup_many(key_of(np.arange(400)), reduce=None)
    assert wide.shape == (400, table.columns)
    assert (wide["bytes"].sum(axis=1) == values["bytes"]).all()
    one = table[(7, 0, 21)]
    assert (one["events"], one["bytes"]) == (1, 7)
    slots = table.find_many(key_of([3, 4, 500]))
    assert slots[2] == -1
    assert (table.keys[slots[:2]] == key_of([3, 4])).all()
    assert (table.values["bytes"].sum(axis=0)[slots[:2]] == [3, 4]).all()
    assert (table.born[slots[:2]] & 1).all()


def test_reads_in_parts(table: Any, programs: Programs) -> None:
    programs.count(300, 0)
    assert numbers(table.read(where=("value.bytes", ">=", 290))) == list(range(290, 300))
    assert numbers(table.read(where=("key.low", "<", 3))) == [0, 1, 2]
    batch = table.read(fields=["value.bytes"])
    assert batch.values.dtype.names == ("bytes",) and (batch.values["bytes"]
                                                       == batch.keys["low"]).all()
    wide = table.read(reduce=None)
    assert wide.values.shape == (300, table.columns)
    most = table.read(reduce={"bytes": "max", "events": "sum"})
    assert (most.values["bytes"] == most.keys["low"]).all()
    with pytest.raises(ValueError, match="no field"):
        table.read(fields=["value.nothing"])


def test_a_reader_keeps_its_keys_until_they_change(table: Any, programs: Programs) -> None:
    reader = table.reader()
    for first in (0, 300, 0):
        programs.count(300, 0, first)
        batch = reader.read()
        assert (batch.values["bytes"] % batch.keys["low"].clip(1) == 0).all()
        assert len(batch) == len(table)
    table.expire(key_of(np.arange(0, 600, 3)))
    assert numbers(reader.read()) == [n for n in range(600) if n % 3]
    programs.count(300, 0, 700)  # into the slots of those that went
    batch = reader.read()
    assert numbers(batch) == [n for n in range(600) if n % 3] + list(range(700, 1000))
    kept = batch.copy()
    programs.count(300, 0, 700)
    reader.read()
    assert kept.values["events"][kept.keys["low"] >= 700].tolist() == [1] * 300


def test_a_read_overwrites_no_batch_that_lives(table: Any, programs: Programs) -> None:
    programs.count(100, 0)
    first = table.read()
    keys = first.keys
    del first
    programs.count(50, 0, 100)
    second = table.read()
    assert sorted(keys["low"].tolist()) == list(range(100)) and len(second) == 150
    del keys, second
    table.expire(key_of([3]))
    assert numbers(table.read()) == [n for n in range(150) if n != 3]  # into the same memory


def test_differences(table: Any, programs: Programs) -> None:
    programs.count(100, 0)
    first = table.delta()
    assert first.new.all() and (first.values["bytes"] == first.keys["low"]).all()
    programs.count(150, 0)
    second = table.delta()
    assert second.new.sum() == 50 and (second.values["bytes"] == second.keys["low"]).all()
    assert not table.delta().values["events"].any()
    table.expire(key_of(np.arange(50)))
    programs.count(60, 0)
    third = table.delta()
    changed = third.values["events"] != 0
    assert sorted(third.keys["low"][changed]) == list(range(60)) and third.new.sum() == 50


def test_idle_keys_leave(table: Any, programs: Programs) -> None:
    programs.count(100, 0)
    assert len(table.expire(idle=1e9)) == 0
    programs.count(50, 0)
    gone = table.evict(keep=0.05)  # the 50 that counted nothing since
    assert numbers(gone) == list(range(50, 100)) and (gone.values["events"] == 1).all()
    assert numbers(table.expire(idle=0)) == list(range(50))
    programs.count(100, 0)
    assert len(table) == 100 and table.used == 100  # in the slots that were given back


def test_opened_by_each_way(table: Any, programs: Programs, bpffs: Path) -> None:
    programs.count(10, 0)
    for how in ({"pin": bpffs / "flows"}, {"name": "flows"}, {"id": table.id}):
        with fastmap.LiveTable.open(**how) as other:
            assert other.key_dtype == KEY and other.value_dtype == COUNTERS
            assert numbers(other.read()) == list(range(10))
    with pytest.raises(fastmap.ObjectNotFound):
        fastmap.LiveTable.open(bpffs / "nothing")
    with pytest.raises(fastmap.ObjectNotFound):
        fastmap.LiveTable.open(name="nothing_here")
    with fastmap.create("hash", key="u4", value="u8", max_entries=1, name="other") as m, \
            pytest.raises(ValueError, match="no map of a live table"):
        fastmap.LiveTable.open(id=m.id)


def test_views_outlive_the_table(bpffs: Path) -> None:
    table = fastmap.LiveTable.create(key="u4", value="u8", capacity=8)
    keys, batch = table.keys, table.read()
    table.close()
    table.close()
    gc.collect()
    assert keys.shape == (8,) and len(batch) == 0
    for use in (table.read, table.delta, lambda: len(table), lambda: table.keys,
                lambda: table.expire(idle=1), table.map_fds):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert "closed" in repr(table)
    with pytest.raises(ValueError, match="read-only"):
        keys[0] = 1


def test_a_table_of_another_loader_is_set_up_by_open(bpffs: Path) -> None:
    """What libbpf and bpftool make of FASTMAP_LIVE alone: two columns, as FASTMAP_CPUS says."""
    if layout.own_columns() > 2:
        pytest.skip("more CPUs than FASTMAP_CPUS")
    with loaded(bpffs) as programs:
        assert programs.count(10, 0) == 10  # nobody has set it up: counted in full
        with fastmap.LiveTable.open(name="flows") as table:
            assert table.full == 10 and table.capacity == 1 << 10
            programs.count(10, 0)
            assert numbers(table.read()) == list(range(10))


@pytest.mark.parametrize("columns", [1, None])
def test_a_shared_table_and_a_key_of_13_bytes(columns: int | None, bpffs: Path) -> None:
    with fastmap.LiveTable.create(key="V13", value="u8", capacity=1000, columns=columns,
                                  pin=bpffs / "shared") as table, \
            loaded(bpffs, table) as programs:
        assert table.own_columns == (table.columns >= layout.own_columns())
        assert programs.count(1 << 16, 500, shared=True) == 0
        batch = table.read()
        assert batch.values.sum() == 1 << 16 and len(batch) == 500
        values, found = table.lookup_many(batch.keys)
        assert found.all() and (values == batch.values).all()
        assert table[batch.keys[3]] == int(batch.values[3])


def test_a_program_for_columns_of_its_own_refuses_a_shared_table(bpffs: Path) -> None:
    with fastmap.LiveTable.create(key=KEY, value=COUNTERS, capacity=1000, columns=1,
                                  pin=bpffs / "flows") as table, loaded(bpffs, table) as programs:
        if table.own_columns:
            pytest.skip("one CPU")
        assert programs.count(100, 0) == table.full == 100 and len(table) == 0


def test_another_version_is_refused(table: Any, bpffs: Path) -> None:
    with fastmap.open(bpffs / "flows_h", value=layout.HEAD) as m:
        head = m.memory(writable=True)
        head["abi"] += 1 << 40
        with pytest.raises(ValueError, match="of version 2"):
            fastmap.LiveTable.open(bpffs / "flows")
        head["abi"] = 5
        with pytest.raises(ValueError, match="no head"):
            fastmap.LiveTable.open(bpffs / "flows")
        del head


def test_the_head_is_what_the_header_says(bpffs: Path) -> None:
    with loaded(bpffs), fastmap.open(
            id=next(m.id for m in fastmap.maps() if m.name == "flows_h")) as m:
        theirs = m.value_dtype
    assert theirs.itemsize == layout.HEAD.itemsize
    for name in layout.HEAD.names:
        assert theirs.fields[name] == layout.HEAD.fields[name], name


@pytest.mark.parametrize(("wrong", "error"), [
    ({"key": "V65"}, "up to 64"), ({"value": "u4"}, "multiple of 8"),
    ({"capacity": 0}, "capacity=0"), ({"capacity": 1 << 31}, "1 to"),
    ({"columns": 3}, "columns=3"), ({"columns": 0}, "columns=0"),
    ({"name": "a.b"}, "identifier"), ({"name": "x" * 14}, "13"),
    ({"capacity": 1.5}, "integer"), ({"key": "O"}, "objects"),
])
def test_bad_arguments(wrong: dict[str, Any], error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        fastmap.LiveTable.create(**{"key": "u8", "value": "u8", "capacity": 8, **wrong})


def test_bad_calls(table: Any) -> None:
    for call in (lambda: table.expire(), lambda: table.expire(key_of([1]), idle=1),
                 lambda: table.expire(idle=-1), lambda: table.evict(keep=2),
                 lambda: table.lookup_many([1.5]), lambda: table.reader(reduce="most"),
                 lambda: fastmap.LiveTable.open()):
        with pytest.raises((TypeError, ValueError)):
            call()


SLEEPABLE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "fastmap.bpf.h"
FASTMAP_LIVE(flows, __u64, __u64, 1024);
SEC("syscall") int sleepable(__u64 *args)
{
	__u64 key = args[0], *v = flows_peek(&key);

	return v ? *v : 0;
}
char _license[] SEC("license") = "Dual BSD/GPL";
"""


@pytest.mark.parametrize("locked", [False, True])
def test_sleepable_programs_are_refused(locked: bool, bpffs: Path) -> None:
    """Unless they say that they hold the lock that the grace period waits for."""
    source = bpffs.parent / "sleepable.bpf.c"
    source.write_text("#define FASTMAP_RCU_LOCKED\n" * locked + SLEEPABLE)
    built = bpffs.parent / "sleepable.bpf.o"
    built.write_bytes(compiled(source))
    done = subprocess.run([tool("bpftool", "bpftool"), "prog", "load", built, bpffs / "it"],
                          text=True, capture_output=True, timeout=60)
    assert (done.returncode == 0) == locked
    assert locked or "leepable programs can only use" in done.stderr


def test_listed_as_one(table: Any, programs: Programs, bpffs: Path, capsys: Any) -> None:
    assert main(["list", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    row = rows[table.id]
    assert len(row["maps"]) == 6 and not rows.keys() & set(row["maps"][1:])
    assert (row["name"], row["type"]) == ("flows", "live_table")
    assert (row["key_size"], row["value_size"], row["max_entries"]) == (16, 16, 1000)
    assert row["pins"] == [str(bpffs / "flows")]
    assert row["memory"] >= table.nbytes
    assert "count" in {user["name"] for user in row["programs"]}
    assert main(["list", "--type", "live_table"]) == 0
    assert "flows" in capsys.readouterr().out


def test_shown_dumped_and_watched(table: Any, programs: Programs, bpffs: Path,
                                  capfd: Any) -> None:
    programs.count(30, 0)
    for target in (str(bpffs / "flows"), "flows", str(table.id)):
        assert main(["show", target, "--json"]) == 0
        told = json.loads(capfd.readouterr().out)
        assert (told["name"], told["entries"], told["full"]) == ("flows", 30, 0)
    assert main(["show", "flows"]) == 0 and "a live table" in capfd.readouterr().out
    assert main(["dump", str(bpffs / "flows"), "--json", "--where", "value.bytes >= 28"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert sorted(row["value"]["bytes"] for row in rows) == [28, 29]
    assert main(["dump", "flows", "--top", "1", "--by", "value.bytes"]) == 0
    assert "29" in capfd.readouterr().out
    assert main(["dump", "flows", "--csv", "--where", "value.bytes > 99"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1
    assert main(["top", "flows", "--interval", "0.01", "--count", "2"]) == 0
    assert "0 of 30 entries grew" in capfd.readouterr().out
    assert main(["show", str(bpffs / "nothing")]) == 1


def test_exported(table: Any, programs: Programs, bpffs: Path) -> None:
    from prometheus_client import CollectorRegistry

    from fastmap.prometheus import MapCollector

    programs.count(30, 0)
    for how in ({"pin": str(bpffs / "flows")}, {"name": "flows"}):
        registry, prefix = CollectorRegistry(), "_".join(how)
        registry.register(MapCollector({"maps": [{
            **how, "counters": [{"name": f"{prefix}_bytes", "help": "Bytes.", "field": "bytes",
                                 "labels": ["low"]}]}]}))
        assert registry.get_sample_value(f"{prefix}_bytes_total", {"low": "29"}) == 29
        programs.count(30, 0)
        assert registry.get_sample_value(f"{prefix}_bytes_total", {"low": "29"}) == 58
        table.expire(idle=0)
        programs.count(30, 0)


def test_where_the_header_is(capsys: Any) -> None:
    assert main(["include"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "fastmap.bpf.h").exists()


def test_arrow_and_groups(table: Any, programs: Programs) -> None:
    programs.count(300, 0)
    batch = table.read()
    arrow = batch.to_arrow()
    assert arrow.num_rows == 300
    assert sorted(arrow.column("value.bytes" if "value.bytes" in arrow.schema.names
                               else arrow.schema.names[-1]).to_pylist())[-1] == 299
    top = fastmap.collect.top(batch, 3, by="value.bytes")
    assert sorted(top.keys["low"].tolist()) == [297, 298, 299]


def test_something_is_pinned_there(table: Any, bpffs: Path) -> None:
    with pytest.raises(fastmap.KeyExists):
        fastmap.LiveTable.create(key="u8", value="u8", capacity=8, pin=bpffs / "flows")
    fastmap.LiveTable.open(bpffs / "flows").close()


def test_unpinned(table: Any, bpffs: Path) -> None:
    table.unpin(bpffs / "flows")
    assert not list(bpffs.glob("flows_*"))
    table.unpin(bpffs / "flows")
