"""A writer on a disk that is full, and later has room: nothing that it took is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import ipc, parquet
from support import mounted

from fastmap.arrow import Writer, record_batch, unfinished

pytestmark = pytest.mark.native("no pyarrow in the emulated kernels")

#: Rows of a batch: of numbers that no compression makes smaller, 64 KiB.
ROWS = 1 << 13


class Disk:
    """A disk of 1 MiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, but: int = 0) -> None:
        with self._ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(bytes(4096))
        os.truncate(self._ballast, self._ballast.stat().st_size - but)

    def free(self) -> None:
        self._ballast.unlink()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path != self._ballast)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted("tmpfs", tmp_path / "disk", "size=1m") as folder:
        yield Disk(folder)


def batch(number: int, rows: int = ROWS) -> Any:
    return record_batch({"key": np.random.default_rng(number).integers(0, 1 << 62, rows)})


def expected(count: int) -> list[int]:
    return [key for number in range(count) for key in batch(number)["key"].to_pylist()]


def keys(path: Path) -> list[int]:
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
    else:
        with ipc.open_stream(path) as stream:
            table = stream.read_all()
    found: list[int] = table["key"].to_pylist()
    return found


ENDINGS = pytest.mark.parametrize("ending", [".parquet", ".arrows"])


def taken(writer: Writer) -> int:
    """Write until the disk is full; return how many batches the writer took."""
    for number in range(100):
        try:
            writer.write(batch(number))
        except OSError as error:
            assert "No space left" in str(error)
            return number
    raise AssertionError("the disk is never full")


def test_what_is_in_memory_alone_is_told_and_close_may_be_called_again(disk: Disk) -> None:
    disk.fill(but=4096)
    path = disk.folder / "one.parquet"
    writer = Writer(path, time_column=None)
    assert (writer.pending_rows, writer.pending_bytes) == (0, 0)
    for number in range(5):
        writer.write(batch(number))
        assert writer.pending_rows == (number + 1) * ROWS
        assert writer.pending_bytes >= writer.pending_rows * 8
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            writer.close()
        assert not writer.closed and writer.pending_rows == 5 * ROWS and not path.exists()
    with pytest.raises(OSError, match="No space left"):
        writer.write(batch(5))
    disk.free()
    writer.close()
    assert writer.closed and (writer.pending_rows, writer.pending_bytes) == (0, 0)
    assert keys(path) == expected(5) and disk.names() == ["one.parquet"]
    writer.close()


@ENDINGS
def test_writing_goes_on_once_there_is_room(disk: Disk, ending: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups go to the disk as they fill; the one that finds no room is held whole."""
    monkeypatch.setattr(unfinished, "ROW_GROUP_BYTES", 2 * ROWS * 8)
    disk.fill(but=512 << 10)
    path = disk.folder / f"n{ending}"
    writer = Writer(path, time_column=None)
    count = taken(writer)
    assert count >= 3 and 0 < writer.pending_rows <= 2 * ROWS
    assert 0 < writer.pending_bytes < 3 * ROWS * 8
    with pytest.raises(OSError, match="No space left"):  # that batch was not taken
        writer.write(batch(count))
    disk.free()
    for number in range(count, count + 2):
        writer.write(batch(number))
    writer.close()
    assert keys(path) == expected(count + 2) and disk.names() == [path.name]


@ENDINGS
def test_rotated_files_have_all_rows_and_no_number_is_left_out(disk: Disk, ending: str) -> None:
    writer = Writer(disk.folder / f"n-{{number}}{ending}", rotate_bytes=ROWS * 8, time_column=None)
    with pytest.raises(OSError, match="No space left"), writer:
        count = taken(writer)
        raise OSError("No space left, says the collector")
    with pytest.raises(OSError, match="No space left"):
        writer.rotate()
    found: dict[str, list[int]] = {}

    def taken_away() -> None:
        for path in sorted(disk.folder.glob("n-*")):
            found[path.name] = keys(path)
            path.unlink()

    taken_away()
    writer.write(batch(count))
    writer.close()
    taken_away()
    assert list(found) == [f"n-{i:06}{ending}" for i in range(len(found))] and len(found) > 2
    assert [key for each in found.values() for key in each] == expected(count + 1)
    assert disk.names() == []


def test_a_disk_that_is_full_from_the_start_is_told_at_the_second_write(disk: Disk) -> None:
    disk.fill()
    writer = Writer(disk.folder / "one.parquet", time_column=None)
    assert taken(writer) == 1 and writer.pending_rows == ROWS
    writer.discard()


def test_a_file_that_is_given_up_leaves_its_room(disk: Disk) -> None:
    writer = Writer(disk.folder / "n.arrows", time_column=None)
    taken(writer)
    writer.discard()
    assert disk.names() == [] and writer.closed
    assert (writer.pending_rows, writer.pending_bytes) == (0, 0)
    with pytest.raises(ValueError, match="closed"):
        writer.write(batch(0))
    writer.close()
    assert disk.names() == []
    del writer  # pyarrow's writer writes its end now, to nowhere


@ENDINGS
def test_what_cannot_be_repeated_gives_the_file_up(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel has dropped what it had: a second one says nothing."""
    writer = Writer(tmp_path / f"n{ending}", time_column=None)
    writer.write(batch(0))

    def lost(number: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "fsync", lost)
        writer.rotate()
    assert list(tmp_path.iterdir()) == []
    writer.write(batch(1))
    writer.close()
    assert keys(tmp_path / f"n{ending}") == batch(1)["key"].to_pylist()


def test_a_batch_that_is_held_stays_as_it_was(disk: Disk, filled: Callable[..., Any]) -> None:
    """A map's buffers are read into again while rows wait for room."""
    m = filled(1000)
    disk.fill()
    writer = Writer(disk.folder / "n.arrows", time_column=None)
    read = m.snapshot()
    writer.write(read)
    read.keys[:] = 0
    disk.free()
    writer.close()
    assert sorted(keys(disk.folder / "n.arrows")) == list(range(1000))
