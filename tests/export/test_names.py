"""Names of enums and bitfields in Arrow, files, labels and on the command line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.ipc
import pyarrow.parquet
import pytest
from described import described_map

from fastmap.arrow import Writer
from fastmap.prometheus import MapCollector


@pytest.fixture
def flows() -> Iterator[Any]:
    with described_map() as m:
        yield m


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
    assert {row["proto"] for row in csv.DictReader(io.StringIO(
        cli("dump", number, "--csv", "--raw")))} == {"6", "17", "99"}
    text = cli("dump", number, "--where", "key.saddr in 10.0.0.0/8", "--as", "key.saddr=ip")
    assert "UDP" in text and "10.1.0.2" in text and "192.0.2.1" not in text
    assert "0x11" in cli("dump", number, "--as", "key.proto=hex")
    wrong = subprocess.run([sys.executable, "-m", "fastmap", "dump", number, "--where",
                            "key.proto == UPD"], text=True, capture_output=True, check=False)
    assert wrong.returncode == 2 and "UDP" in wrong.stderr


def test_raw_csv_of_a_map_with_enums_alone() -> None:
    """There is nothing to make plain: what is written are numbers all the same."""
    with described_map(bitfields=False) as m:
        rows = csv.DictReader(io.StringIO(cli("dump", str(m.id), "--csv", "--raw")))
        assert {row["proto"] for row in rows} == {"6", "17", "99"}
        rows = csv.DictReader(io.StringIO(cli("dump", str(m.id), "--csv")))
        assert {row["proto"] for row in rows} == {"TCP", "UDP", "99"}


@pytest.mark.parametrize("ending", ["parquet", "arrows"])
def test_files_of_several_batches(flows: Any, tmp_path: Path, ending: str) -> None:
    """Each batch has a dictionary of its own; the file has all names."""
    path = tmp_path / f"flows.{ending}"
    with Writer(path) as writer:
        for row in range(3):
            writer.write(flows.snapshot().take([row]))
    table = (pyarrow.parquet.read_table(path) if ending == "parquet"
             else pyarrow.ipc.open_stream(path).read_all())
    assert sorted(table["proto"].to_pylist()) == ["99", "TCP", "UDP"]
