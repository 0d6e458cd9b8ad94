"""Files of a running collector: whole under their names, whatever happens to the writer."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet
from pyarrow.parquet import ParquetWriter

from fastmap.arrow import Writer, record_batch, unfinished
from fastmap.arrow import writer as arrow_writer
from fastmap.maptypes.batch import Batch

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
    tmp_path: Path, filled: Callable[..., Any], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both clocks at one moment: between two looks at them anything may take its time.
    offset, now = 1_700_000_000_000_000_000, time.monotonic_ns()
    monkeypatch.setattr(arrow_writer, "monotonic_ns", lambda: now)
    monkeypatch.setattr(arrow_writer, "time_ns", lambda: offset + now)
    m = filled(1000)
    reader = m.reader()
    ended = []
    with Writer(tmp_path / f"map{ending}", annotations={"value": {0: "none"}}) as writer:
        for _ in range(3):
            batch = reader.read()
            ended.append(batch.ended_ns)
            writer.write(batch)
        batch = m.snapshot()
        ended.append(batch.ended_ns)
        writer.write(batch)
        batch.keys[:] = 0  # is in the file as it was
    table = read(tmp_path / f"map{ending}")
    assert sorted(table["key"].to_pylist()) == sorted([*range(1000)] * 4)
    assert set(table["value"].to_pylist()) == {"none", *(str(3 * i) for i in range(1, 1000))}
    times = table["time"].cast(pyarrow.int64()).to_pylist()
    assert times == [offset + each for each in ended for _ in range(1000)]
    old = Batch(np.zeros(1), np.zeros(1), complete=True, started_ns=1,
                ended_ns=now - 3_000_000_000)
    with Writer(tmp_path / f"old{ending}", time_column="read") as writer:
        writer.write(old)
    read_at = read(tmp_path / f"old{ending}")["read"].cast(pyarrow.int64())[0].as_py()
    assert read_at == offset + now - 3_000_000_000


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


def test_files_of_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    for module in (arrow_writer, unfinished):
        monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    begun = int(time.time())
    finished = []
    with Writer(tmp_path / "n-{time}.arrows", rotate_seconds=60) as writer:
        writer.write(batch(0))
        clock[0] = 59.9
        writer.write(batch(0, 0))
        assert whole(tmp_path, ".arrows") == []
        clock[0] = 60.0
        writer.write(batch(0, 0))  # nothing new, but the file is old
        assert whole(tmp_path, ".arrows") == [writer.last]
        finished.append(writer.last)
        writer.write(batch(100))
        finished.append(writer.rotate())
        assert writer.rotate() is None
        writer.write(batch(200))
    finished.append(writer.last)
    first, *more = [path for path in finished if path is not None]
    assert sorted([first, *more]) == whole(tmp_path, ".arrows")
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


#: Writes without end; or where it is told to, stops for ever in the middle of a file.
COLLECTOR = """
import signal, sys
import numpy as np
from fastmap.arrow import Writer, record_batch
from fastmap.arrow import unfinished
with Writer(sys.argv[1], rotate_bytes=int(sys.argv[2])) as writer:
    start = 0
    while True:
        if start >= 2000 and sys.argv[3] == "stops" and writer.last and writer._file:
            print("begun", flush=True)
            signal.pause()
        if start == 2000 and sys.argv[3] == "goes on":
            print("begun", flush=True)
        keys = np.arange(start, start + 100, dtype="u8")
        noise = np.frombuffer(np.random.bytes(1600), "V16")
        writer.write(record_batch({"key": keys, "noise": noise}))
        start += 100
"""


def collector(path: Path, rotate_bytes: int, how: str) -> subprocess.Popen[str]:
    """Start a process that "goes on" or "stops" in a file; return it when it has begun."""
    process = subprocess.Popen([sys.executable, "-c", COLLECTOR, path, str(rotate_bytes), how],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@ENDINGS
@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files_only(tmp_path: Path, ending: str) -> None:
    left = 0
    for turn in range(4):
        # The first is killed inside a file for certain, the others wherever they are.
        with collector(tmp_path / f"n{turn}-{{number}}{ending}", 20000,
                       "goes on" if turn else "stops") as process:
            time.sleep(0.037 * turn)
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


def test_a_ctrl_c_waits_until_the_rows_are_written(tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes inside the write itself: before the row group, and behind it."""
    rows = record_batch({"key": np.random.default_rng(1).integers(0, 1 << 63, 1 << 16)})
    real, sent = ParquetWriter.write_table, []

    def write_table(self: Any, *args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)  # its handler runs before this returns
        real(self, *args, **options)
        signal.raise_signal(signal.SIGINT)
        sent.append(len(args[0]))

    with Writer(tmp_path / "n-{number}.parquet", rotate_bytes=700_000) as writer:
        writer.write(rows)  # is held
        monkeypatch.setattr(ParquetWriter, "write_table", write_table)
        with pytest.raises(KeyboardInterrupt):
            writer.write(rows)  # goes to the file, and that is finished
        monkeypatch.undo()
        assert sum(sent) >= len(rows)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        writer.write(rows)
    assert [read(path).num_rows for path in whole(tmp_path, ".parquet")] == [1 << 17, 1 << 16]


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
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(device)
    for path in (device, tmp_path, *(tmp_path / name for name in ("fifo", "socket", "link"))):
        with pytest.raises(ValueError, match="is no file"):
            Writer(path, format="parquet")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_what_strangers_have_put_there_is_passed_over(tmp_path: Path) -> None:
    """Whoever may write to the folder can take the name of a left-over file, with anything."""
    def left(number: int) -> Path:
        return tmp_path / f".n.parquet.{number:016x}.tmp"

    os.mkfifo(left(1))
    left(2).mkdir()
    precious = tmp_path / "precious"
    precious.write_text("of somebody")
    left(3).symlink_to(precious)
    left(4).symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(left(5)))
    left(6).write_text("of another user")
    os.chown(left(6), 12345, -1)
    left(7).write_text("of a writer that was killed")
    before = set(others(tmp_path))
    with Writer(tmp_path / "n.parquet") as writer:
        assert before - set(others(tmp_path)) == {left(7).name}
        writer.write(batch(0))
    assert precious.read_text() == "of somebody" and read(tmp_path / "n.parquet").num_rows == 100


def test_a_name_that_became_a_fifo_since_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / ".n.parquet.0123456789abcdef.tmp"
    left.write_text("of a writer that was killed")
    real = os.open

    def changed(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if Path(path) == left:
            left.unlink()
            os.mkfifo(left)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", changed)
    Writer(tmp_path / "n.parquet").close()
    assert stat.S_ISFIFO(left.stat().st_mode)


def test_a_lock_of_somebody_else_does_not_stop_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may read a file may lock it, before the writer does."""
    taken = []

    def first(fd: int, how: int) -> None:
        if not taken:
            taken.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
            fcntl.flock(taken[0], fcntl.LOCK_EX)
        fcntl.flock(fd, how)

    monkeypatch.setattr(unfinished, "flock", first)
    with Writer(tmp_path / "n.parquet") as writer:
        writer.write(batch(0))
        assert len(others(tmp_path)) == 1
    os.close(taken[0])
    assert read(tmp_path / "n.parquet").num_rows == 100


def test_links_and_what_comes_to_a_final_name_meanwhile(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("of somebody")
    for name, leads_to in (("link.parquet", precious), ("dangling.parquet", tmp_path / "nothing")):
        link = tmp_path / name
        link.symlink_to(leads_to)
        with Writer(link) as writer:
            writer.write(batch(0))
        assert not link.is_symlink() and read(link).num_rows == 100
    assert precious.read_text() == "of somebody" and not (tmp_path / "nothing").exists()
    fifo = tmp_path / "fifo.parquet"
    writer = Writer(fifo)
    writer.write(batch(0))
    os.mkfifo(fifo)
    with pytest.raises(FileExistsError, match="no file"):
        writer.close()
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    fifo.unlink()
    writer.close()
    assert read(fifo).num_rows == 100
    number = tmp_path / "n-000000.parquet"
    os.mkfifo(number)
    with Writer(tmp_path / "n-{number}.parquet") as writer:
        writer.write(batch(0))
    assert writer.last == tmp_path / "n-000001.parquet" and stat.S_ISFIFO(number.stat().st_mode)
