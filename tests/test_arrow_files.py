"""Files of a running collector: whole under their names, whatever happens to the writer."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet

from fastmap.arrow import Writer, record_batch
from fastmap.maps.batch import Batch

pytestmark = pytest.mark.native("no pyarrow in the emulated kernels")

NOTES = {"value": {0: "even", 1: "odd"}}


def batch(start: int, rows: int = 100) -> Any:
    """A RecordBatch of its own numbers; each has other numbers without a name."""
    keys = np.arange(start, start + rows, dtype="u8")
    return record_batch({"key": keys, "value": (keys % 5).astype("u4")}, annotations=NOTES)


def read(path: Path) -> Any:
    if path.suffix == ".parquet":
        return parquet.read_table(path)
    with ipc.open_stream(path) as stream:
        return stream.read_all()


def whole(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ending)


def others(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


ENDINGS = pytest.mark.parametrize("ending", [".parquet", ".arrows"])


@ENDINGS
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"numbers{ending}"
    path.write_text("of an earlier run")
    with Writer(path, time_column=None) as writer:
        for start in range(0, 1000, 100):
            writer.write(batch(start))
            assert path.read_text() == "of an earlier run" and len(others(tmp_path)) == 1
        writer.write(batch(0, 0))
    assert writer.last == path and others(tmp_path) == []
    table = read(path)
    assert table["key"].to_pylist() == list(range(1000))
    assert table["value"].to_pylist() == ["even", "odd", "2", "3", "4"] * 200


@ENDINGS
def test_a_map_s_batches_with_the_time_they_were_read(
    tmp_path: Path, filled: Callable[..., Any], ending: str
) -> None:
    m = filled(1000)
    reader = m.reader()
    before = time.time_ns()
    with Writer(tmp_path / f"map{ending}", annotations={"value": {0: "none"}}) as writer:
        for _ in range(3):
            writer.write(reader.read())
        batch = m.snapshot()
        writer.write(batch)
        batch.keys[:] = 0  # is in the file as it was
    table = read(tmp_path / f"map{ending}")
    assert sorted(table["key"].to_pylist()) == sorted([*range(1000)] * 4)
    assert set(table["value"].to_pylist()) == {"none", *(str(3 * i) for i in range(1, 1000))}
    times = table["time"].cast(pyarrow.int64()).to_pylist()
    assert times == sorted(times) and len(set(times)) == 4
    assert before <= times[0] and times[-1] <= time.time_ns()
    old = Batch(np.zeros(1), np.zeros(1), complete=True, started_ns=1,
                ended_ns=time.monotonic_ns() - 3_000_000_000)
    with Writer(tmp_path / f"old{ending}", time_column="read") as writer:
        writer.write(old)
    read_at = read(tmp_path / f"old{ending}")["read"].cast(pyarrow.int64())[0].as_py()
    assert 3e9 <= time.time_ns() - read_at < 4e9


@ENDINGS
def test_files_of_a_size(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"n-000001{ending}").write_text("of an earlier run")
    with Writer(tmp_path / f"n-{{number}}{ending}", rotate_bytes=5000) as writer:
        for start in range(0, 5000, 100):
            writer.write(batch(start))
            assert len(others(tmp_path)) <= 1
    files = whole(tmp_path, ending)
    assert [path.name for path in files] == [f"n-{i:06}{ending}" for i in range(len(files))]
    files.pop(1)
    assert len(files) > 5 and all(path.stat().st_size < 25000 for path in files)
    assert [n for path in files for n in read(path)["key"].to_pylist()] == list(range(5000))


def test_files_of_a_time(tmp_path: Path) -> None:
    begun = int(time.time())
    with Writer(tmp_path / "n-{time}.arrows", rotate_seconds=0.2) as writer:
        writer.write(batch(0))
        assert whole(tmp_path, ".arrows") == []
        time.sleep(0.25)
        writer.write(batch(0, 0))  # nothing new, but the file is old
        assert whole(tmp_path, ".arrows") == [writer.last]
        writer.write(batch(100))
        assert writer.rotate() == writer.last
        assert writer.rotate() is None
        writer.write(batch(200))
    first, *more = sorted(whole(tmp_path, ".arrows"), key=lambda path: path.stat().st_mtime_ns)
    assert len(more) == 2, "those begun in one second must not replace each other"
    stamp = re.fullmatch(r"n-(\d{8}T\d{6}Z)\.arrows", first.name)
    assert stamp and begun <= time.mktime(
        time.strptime(stamp[1], "%Y%m%dT%H%M%SZ")) - time.timezone <= time.time()
    assert [read(path)["key"][0].as_py() for path in (first, *more)] == [0, 100, 200]


@ENDINGS
def test_an_exception_keeps_what_was_written(tmp_path: Path, ending: str) -> None:
    with pytest.raises(KeyError), Writer(tmp_path / f"n{ending}") as writer:
        writer.write(batch(0))
        raise KeyError("of the collector's own")
    assert read(tmp_path / f"n{ending}")["key"].to_pylist() == list(range(100))
    with pytest.raises(ValueError, match="closed"):
        writer.write(batch(0))
    with Writer(tmp_path / f"other{ending}") as writer:
        writer.write(batch(0))
        with pytest.raises(ValueError, match="differ from the first"):
            writer.write(record_batch({"key": np.zeros(1)}))
        with pytest.raises(ValueError, match="no such column"):
            Writer(tmp_path / "x.arrows", annotations={"no": "ip"}).write(
                Batch(np.zeros(1), np.zeros(1), complete=True, started_ns=0, ended_ns=0))
    assert read(tmp_path / f"other{ending}").num_rows == 100
    assert others(tmp_path) == []


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@ENDINGS
def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, ending: str) -> None:
    numbers = np.random.default_rng(1).integers(0, 1 << 63, 1 << 16)
    writer = Writer(tmp_path / f"n-{{number}}{ending}", rotate_bytes=1 << 30)
    with no_file_over(1 << 20), pytest.raises(OSError, match="File too large"):
        for _ in range(10):
            writer.write(record_batch({"key": numbers}))
        writer.rotate()
    assert list(tmp_path.iterdir()) == []
    writer.write(record_batch({"key": numbers}))
    writer.close()
    assert read(tmp_path / f"n-000000{ending}").num_rows == 1 << 16


COLLECTOR = """
import sys
import numpy as np
from fastmap.arrow import Writer, record_batch
with Writer(sys.argv[1], rotate_bytes=int(sys.argv[2])) as writer:
    start = 0
    while True:
        if start == 2000:
            print("begun", flush=True)
        keys = np.arange(start, start + 100, dtype="u8")
        noise = np.frombuffer(np.random.bytes(1600), "V16")
        writer.write(record_batch({"key": keys, "noise": noise}))
        start += 100
"""


def collector(path: Path, rotate_bytes: int) -> subprocess.Popen[str]:
    """Start a process that writes without end; return it when it has begun."""
    process = subprocess.Popen([sys.executable, "-c", COLLECTOR, path, str(rotate_bytes)],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@ENDINGS
@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files_only(tmp_path: Path, ending: str) -> None:
    left = 0
    for turn in range(4):
        with collector(tmp_path / f"n{turn}-{{number}}{ending}", 20000) as process:
            time.sleep(0.1 + 0.013 * turn)
            process.kill()
        files = whole(tmp_path, ending)
        numbers = [n for path in files if path.name.startswith(f"n{turn}-")
                   for n in read(path)["key"].to_pylist()]
        assert numbers == list(range(len(numbers))) and numbers
        left += len(others(tmp_path))
        # The next writer of the name takes away what is left, and nothing of others.
        with Writer(tmp_path / f"n{turn}-{{number}}{ending}"):
            assert not [name for name in others(tmp_path) if name.startswith(f".n{turn}-")]
        assert whole(tmp_path, ending) == files
    assert left, "no writer was killed in the middle of a file"


def test_a_living_writer_s_file_is_left_alone(tmp_path: Path) -> None:
    with Writer(tmp_path / "n-{number}.arrows", time_column=None) as one:
        one.write(batch(0))
        with Writer(tmp_path / "n-{number}.arrows", time_column=None) as other:
            other.write(batch(100))
            assert len(others(tmp_path)) == 2
    assert [read(path)["key"][0].as_py() for path in whole(tmp_path, ".arrows")] == [100, 0]


def written(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def test_a_ctrl_c_waits_until_the_rows_are_written(tmp_path: Path) -> None:
    rows = record_batch({"key": np.random.default_rng(1).integers(0, 1 << 63, 1 << 22)})
    with Writer(tmp_path / "n-{number}.parquet", rotate_bytes=40 << 20) as writer:
        writer.write(rows)  # is held
        held = written(tmp_path)

        def interrupt() -> None:
            while written(tmp_path) == held:  # until the write is in the middle
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            writer.write(rows)  # goes to the file, and that is finished
            time.sleep(10)
        other.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        writer.write(rows)
    assert [read(path).num_rows for path in whole(tmp_path, ".parquet")] == [1 << 23, 1 << 22]


@pytest.mark.parametrize(("name", "options", "error", "said"), [
    ("n.csv", {}, ValueError, "ends with none of .parquet, .arrows"),
    ("n.csv", {"format": "csv"}, ValueError, "one of parquet, ipc"),
    ("n.arrows", {"rotate_seconds": 5}, ValueError, "needs a name for each file"),
    ("n-{time}.arrows", {"rotate_seconds": 0}, ValueError, "more than 0"),
    ("n-{time}.arrows", {"rotate_bytes": "1 MB"}, TypeError, "is a number"),
    ("n-{host}.arrows", {}, ValueError, "braces hold time or number"),
    ("n-{.arrows", {}, ValueError, "braces hold time or number"),
    ("{time}/n.arrows", {}, ValueError, "into the name, not the folder"),
])
def test_what_a_writer_refuses(tmp_path: Path, name: str, options: dict[str, Any],
                               error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Writer(tmp_path / name, **options)
    with Writer(tmp_path / "n.arrows") as writer, pytest.raises(ValueError, match="time_column="):
        writer.write(record_batch({"time": np.zeros(1)}))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    device = tmp_path / "null.parquet"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    for path in (device, tmp_path):
        with pytest.raises(ValueError, match="is no file"):
            Writer(path, format="parquet")
    assert stat.S_ISCHR(device.stat().st_mode)
