"""``fastmap dump`` for other programs: read back by pyarrow itself; and ``fastmap top``."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from support import inserter
from terminal import FASTMAP, environment, on_terminal, piped, terminal

import fastmap
from fastmap.cli.main import main

pytestmark = pytest.mark.native("no pyarrow in the emulated kernels")


@pytest.fixture
def flows(make: Callable[..., Any]) -> Any:
    m = make("hash", key=[("saddr", "u1", (4,)), ("port", "u2")],
             value=[("bytes", "u8"), ("comm", "S16"), ("rtt", [("min", "u4"), ("max", "u4")])],
             max_entries=64, name="fmt_flows")
    for i in range(20):
        m[(10, 0, 0, i), i] = (1500 * i, b"curl%d" % i, (i, 2 * i))
    return m


class Dumped(Protocol):
    """Dumps a map; returns what was written, or where it fails, the one line that says why."""

    def __call__(self, m: Any, *options: str, status: int = 0) -> bytes: ...


@pytest.fixture
def dumped(capfdbinary: pytest.CaptureFixture[bytes]) -> Dumped:
    def run(m: Any, *options: str, status: int = 0) -> bytes:
        capfdbinary.readouterr()
        assert main(["dump", str(m.id), *options]) == status
        out, err = capfdbinary.readouterr()
        assert err.count(b"\n") == bool(status), err
        return err if status else out

    return run


def test_arrow_is_the_snapshot(flows: Any, dumped: Dumped) -> None:
    table = pa.ipc.open_stream(dumped(flows, "--arrow")).read_all()
    assert table.equals(pa.table(flows.snapshot()))


def test_parquet_is_the_snapshot(flows: Any, tmp_path: Path, dumped: Dumped) -> None:
    target = tmp_path / "flows.parquet"
    assert main(["dump", str(flows.id), "--parquet", "-o", str(target)]) == 0
    expected = pa.table(flows.snapshot())
    assert pa.parquet.read_table(target).equals(expected)
    assert pa.parquet.read_table(io.BytesIO(dumped(flows, "--parquet"))).equals(expected)


def test_csv_has_a_column_for_each_field(flows: Any, dumped: Dumped) -> None:
    rows = list(csv.DictReader(io.StringIO(dumped(flows, "--csv").decode())))
    assert list(rows[0]) == ["saddr", "port", "bytes", "comm", "rtt.min", "rtt.max"]
    assert sorted((row["saddr"], row["port"], row["comm"], row["rtt.max"]) for row in rows) == (
        sorted((f"0a0000{i:02x}", str(i), f"curl{i}", str(2 * i)) for i in range(20)))


def test_csv_has_lists_as_json(make: Callable[..., Any], dumped: Dumped) -> None:
    pair = [("id", "u1", (2,)), ("rate", "f4")]
    m = make("array", value=[("slots", "u4", (2, 2)), ("pairs", pair, (2,)), ("name", "S4")],
             max_entries=1, name="fmt_lists")
    m[0] = ([[1, 2], [3, 4]], [((1, 2), 0.5), ((255, 0), float("nan"))], b"a")
    (row,) = csv.DictReader(io.StringIO(dumped(m, "--csv").decode()))
    assert json.loads(row["slots"]) == [[1, 2], [3, 4]] and row["name"] == "a"
    assert json.loads(row["pairs"]) == [{"id": "0102", "rate": 0.5}, {"id": "ff00", "rate": None}]


def test_chosen_rows_in_chunks_and_none(make: Callable[..., Any], dumped: Dumped) -> None:
    m = make("hash", key="u8", value="u8", max_entries=1 << 19, name="fmt_many")
    keys = np.arange(1 << 19, dtype="u8")
    m.update_many(keys, keys)
    for options, expected in ((("--arrow",), 1 << 19), (("--arrow", "--where", "value < 9"), 9),
                              (("--arrow", "--where", "value > 999999999"), 0)):
        table = pa.ipc.open_stream(dumped(m, *options)).read_all()
        assert table.num_rows == expected and table.schema.names == ["key", "value"]
        assert table["key"].equals(table["value"])
    table = pa.parquet.read_table(io.BytesIO(dumped(m, "--parquet")))
    assert sorted(table["key"].to_numpy()[:1 << 19].tolist()) == keys.tolist()


def test_per_cpu(make: Callable[..., Any], dumped: Dumped) -> None:
    cpus = len(fastmap.possible_cpus())
    m = make("percpu_array", value="u8", max_entries=2, name="fmt_cpus")
    m[1] = 5
    table = pa.ipc.open_stream(dumped(m, "--arrow")).read_all()
    assert table["value"].to_pylist() == [[0] * cpus, [5] * cpus]
    listed = list(csv.reader(io.StringIO(dumped(m, "--csv").decode())))
    assert [json.loads(value) for _, value in listed[1:]] == [[0] * cpus, [5] * cpus]
    assert dumped(m, "--csv", "--reduce", "sum").decode().splitlines()[1:] == [
        "0,0", f"1,{5 * cpus}"]


def test_columns_as_text(flows: Any, dumped: Dumped) -> None:
    notes = ("--as", "key.saddr=ip", "--as", "value.comm=comm")
    table = pa.ipc.open_stream(dumped(flows, "--arrow", *notes)).read_all()
    assert set(table["saddr"].to_pylist()) == {f"10.0.0.{i}" for i in range(20)}
    assert b"\n10.0.0.7 " in dumped(flows, *notes)
    assert b"10.0.0.7" in dumped(flows, "--csv", *notes)
    assert b"key.nope" in dumped(flows, "--as", "key.nope=ip", status=1)
    assert b"ipv4" in dumped(flows, "--as", "key.port=ipv4", status=1)
    assert b"--json" not in dumped(flows, "--json", *notes, status=2)
    with pytest.raises(SystemExit):
        main(["dump", str(flows.id), "--as", "key.saddr=zip"])


def test_without_pyarrow_one_line_names_the_extra(flows: Any) -> None:
    code = ("import sys; sys.modules['pyarrow'] = None\n"
            "from fastmap.cli.main import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "dump", str(flows.id), "--csv"],
                          capture_output=True, text=True, env=environment())
    assert done.returncode == 1 and done.stdout == ""
    assert "pip install 'fastmap-bpf[arrow]'" in done.stderr and done.stderr.count("\n") == 1


def test_bytes_are_not_for_a_terminal(flows: Any) -> None:
    shown, status = on_terminal("dump", flows.id, "--arrow")
    assert status == 2 and "not for a terminal" in shown and len(shown) < 200


def test_a_pipe_gets_them(flows: Any) -> None:
    done = subprocess.run([*FASTMAP, "dump", str(flows.id), "--parquet"], env=environment(),
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert pa.parquet.read_table(io.BytesIO(done.stdout)).equals(pa.table(flows.snapshot()))


# ---- top ----------------------------------------------------------------------------------------


@pytest.fixture
def counting(make: Callable[..., Any]) -> Any:
    """Return an array whose element 1 counts the entries that a program adds at each run."""
    target = make("lru_hash", key="u8", value="u8", max_entries=64, name="fmt_target")
    counters = make("array", value="u8", max_entries=2, name="fmt_counts")
    with fastmap.Program("raw_tracepoint", inserter(target, counters)) as program, \
            program.attach_raw_tracepoint("sys_enter"):
        yield counters


def test_top_in_a_pipe_is_lines(counting: Any) -> None:
    done = piped("top", counting.id, "--interval", "0.2", "--count", "2")
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    first, second = done.stdout.split("\n\n")
    for reading in (first, second):
        heading, columns, *rows = reading.splitlines()
        assert re.match(r"fmt_counts: [12] of 2 entries grew in 0\.\d s, 0 new, 0 gone", heading)
        assert columns.split() == ["key", "value/s"]
        rates = [float(row.split()[1].replace(",", "")) for row in rows]
        assert rates == sorted(rates, reverse=True) and rates[0] > 0


def test_top_stays_in_place_on_a_terminal(counting: Any) -> None:
    with terminal("top", counting.id, "--interval", "0.2") as process:
        process.until(lambda said: said.count("value/s") >= 3)
        process.interrupt()
        said, status = process.end()
    assert status == 130 and "Traceback" not in said
    assert "\x1b[1A" in said  # up again: the next reading is where the last one was
    assert said.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in said  # the cursor is back


def test_top_of_records_and_cpus(make: Callable[..., Any]) -> None:
    m = make("percpu_hash", key="u4", value=[("packets", "u8"), ("bytes", "u8"), ("comm", "S8")],
             max_entries=8, name="fmt_grow")
    for key in range(3):
        m[key] = (1, 1, b"x%d" % key)
    with subprocess.Popen([*FASTMAP, "top", str(m.id), "--by", "value.bytes", "--interval", "0.5",
                           "--count", "4"], stdout=subprocess.PIPE, text=True,
                          env=environment()) as process:
        assert process.stdout is not None
        assert "0 of 3" in process.stdout.readline()
        for key in range(3):
            m[key] = (1, 1 + 1000 * key, b"x%d" % key)
        said = process.stdout.read()
        assert process.wait() == 0
    keys = re.findall(r"^ +([0-2]) +0 +[\d,]+  x\1$", said, flags=re.MULTILINE)
    assert keys == ["2", "1"]


def test_top_of_what_has_no_counters(make: Callable[..., Any], flows: Any,
                                     capfd: pytest.CaptureFixture[str]) -> None:
    words = make("hash", key="u4", value="S8", max_entries=2, name="fmt_words")
    for arguments, status in ((["top", words.id], 1),
                              (["top", flows.id, "--by", "value.nope"], 2),
                              (["top", flows.id, "--by", "key.port"], 2)):
        assert main([*map(str, arguments), "--interval", "0.05", "--count", "1"]) == status
        assert capfd.readouterr().err.count("\n") == 1
