"""Arrow in files, as a running collector writes them: rotated, and never torn."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from pathlib import Path
from secrets import token_hex
from time import monotonic, monotonic_ns, time_ns
from types import FrameType, TracebackType
from typing import Any, Protocol

from fastmap.arrow.unfinished import ROW_GROUP_BYTES, Unfinished

#: The format of a file, by how its name ends.
FORMATS = {".parquet": "parquet", ".arrows": "ipc"}


def pyarrow() -> Any:
    """Return the module; where there is none, the error says how to get it."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f"Arrow needs pyarrow: pip install 'fastmap-bpf[arrow]' ({error})",
                          name="pyarrow") from None
    return pyarrow


class _Batch(Protocol):
    def to_arrow(self, *, annotations: Any = None, copy: bool) -> Any: ...


class Writer:
    """Writes batches to Parquet files or Arrow IPC streams, one after the other.

    What stands under its final name is whole, whenever the process is killed or the machine stops:
    a file has another name in the same folder, is written to disk, and only then gets its own.
    What was left behind by a writer that was killed is removed by the next one of the same path and
    user. Links are not followed: one that has the final name is replaced, and not what it leads to.

    Parameters
    ----------
    path : path
        The name may hold ``{time}``, when the file was begun (UTC, ``20260131T235959Z``), and
        ``{number}``, counted up from 000000: these never replace a file, they take the next
        number, or a further one behind the time. A path without is one file, which is replaced
        when the writer is closed.
    format : {"parquet", "ipc"}, optional
        Or by the name: ``.parquet``, ``.arrows``. An IPC stream has each batch as it comes;
        Parquet gathers them to row groups of 64 MiB.
    rotate_seconds, rotate_bytes : float, int, optional
        A file is finished once it is so old, or so large. It is looked at with each `write`.
    annotations : mapping, optional
        For batches of fastmap, as `Batch.to_arrow` takes it.
    time_column : str or None
        A column that is put first: when the batch was read (else, when it is written).

    Attributes
    ----------
    last : Path or None
        The last file that was finished.
    closed : bool
        Whether it takes no more: `close` came through.

    Notes
    -----
    ``close()``, also on the way out of a ``with`` that an exception leaves, finishes the file: all
    that `write` has taken is in it. A Ctrl-C waits until a write is over. One thread at a time.

    Until a file is finished, rows may be in memory alone, as `pending_rows` tells: Parquet's until
    there are enough for a row group (which a full disk may not have room for), and all that the
    disk had no room for. That a disk is full is told by the next `write`, `rotate` or `close`, by
    an OSError; nothing is lost. Once there is room, the same call goes on where it was; `discard`
    gives the file up.
    """

    def __init__(self, path: str | os.PathLike[str], *, format: str | None = None,
                 rotate_seconds: float | None = None, rotate_bytes: int | None = None,
                 annotations: Mapping[str, Any] | None = None,
                 time_column: str | None = "time") -> None:
        pyarrow()
        where = Path(path)
        self._folder, self._pattern = where.parent, where.name
        self._format = _format(where, format)
        self._places = _places(where)
        if not self._places and _is_no_file(where):
            raise ValueError(f"{str(where)!r} is no file: it would be replaced by one")
        for what, limit in (("rotate_seconds", rotate_seconds), ("rotate_bytes", rotate_bytes)):
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, (int, float)):
                raise TypeError(f"{what} is a number, not {limit!r}")
            if limit <= 0:
                raise ValueError(f"{what}={limit}: more than 0")
            if not self._places:
                raise ValueError(f"{what} needs a name for each file: put {{time}} or {{number}} "
                                 f"into {self._pattern!r}")
        self._seconds, self._bytes = rotate_seconds, rotate_bytes
        self._annotations = annotations
        self._time_column = time_column
        self._schema: Any = None
        self._file: Unfinished | None = None
        self._number = 0
        self.last: Path | None = None
        self.closed = False
        self._sweep()

    def write(self, batch: _Batch | Any) -> None:
        """Write a batch of fastmap, or anything that pyarrow takes as a RecordBatch.

        Raises
        ------
        ValueError
            Its columns are not those of the first batch; or the writer is closed.
        OSError
            What was taken before cannot be written, for want of room say. It is held, and this
            batch is not taken: write it again.
        """
        if self.closed:
            raise ValueError("the writer is closed")
        rows = self._rows(batch)
        with _uninterrupted():
            if self._file is not None:
                self._file.drain()
            if self._old():
                self._finish()
            if rows.num_rows:
                file = self._file = self._file or Unfinished(
                    self._temporary, self._format, rows.schema, self._bytes or ROW_GROUP_BYTES)
                self._guarded(lambda: file.write(rows))
            if self._old():
                try:
                    self._finish()
                except OSError:
                    if self._file is None:  # it is lost, and the batch in it
                        raise

    def _rows(self, batch: Any) -> Any:
        pa = pyarrow()
        if isinstance(batch, pa.RecordBatch):
            rows = batch
        elif hasattr(batch, "to_arrow") and hasattr(batch, "__arrow_c_array__"):
            # Rows that wait for their row group must not change, nor hold a map's whole buffers.
            rows = batch.to_arrow(annotations=self._annotations, copy=self._format == "parquet")
        else:
            rows = pa.record_batch(batch)
        if self._time_column is not None:
            if self._time_column in rows.schema.names:
                raise ValueError(f"there is a column {self._time_column!r} already: give "
                                 "time_column= another name, or None")
            ended = getattr(batch, "ended_ns", 0)
            when = time_ns() - (monotonic_ns() - ended if ended else 0)
            kind = pa.timestamp("ns", tz="UTC")
            times = pa.repeat(pa.scalar(when, kind), rows.num_rows)
            rows = pa.RecordBatch.from_arrays(
                [times, *rows.columns], schema=pa.schema([(self._time_column, kind), *rows.schema]))
        if self._schema is None:
            self._schema = rows.schema
        elif rows.schema != self._schema:
            raise ValueError(f"the columns of a batch differ from the first one's:\n{rows.schema}\n"
                             f"not:\n{self._schema}")
        return rows

    def rotate(self) -> Path | None:
        """Finish the file that is being written, if there is one; return its path.

        Raises
        ------
        OSError
            There is no room for the rest of it, say: call it again. Where the kernel says that
            what it had taken did not reach the disk (fsync), the file is removed.
        """
        with _uninterrupted():
            return self._finish()

    def close(self) -> None:
        """Finish the last file, as `rotate` does; the writer is closed once that is done.

        After an OSError it may be called again. A call on a closed writer does nothing.
        """
        try:
            self.rotate()
        finally:
            self.closed = self._file is None

    def discard(self) -> None:
        """Remove the file that is being written, with all that is in it, and close."""
        if self._file is not None:
            self._file.discard()
        self._file, self.closed = None, True

    @property
    def pending_rows(self) -> int:
        """Rows of the file that is being written which are not on their way to the disk yet."""
        return self._file.pending_rows if self._file is not None else 0

    @property
    def pending_bytes(self) -> int:
        """Bytes that are held in memory for it."""
        return self._file.pending_bytes if self._file is not None else 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _old(self) -> bool:
        file = self._file
        return file is not None and (
            file.ended
            or self._seconds is not None and monotonic() >= file.began + self._seconds
            or self._bytes is not None and file.size >= self._bytes)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do something with the file that cannot be repeated; remove it where that fails."""
        file = self._file
        assert file is not None
        try:
            work()
        except BaseException:
            self._file = None
            file.discard()
            raise

    def _finish(self) -> Path | None:
        """Finish the file. Where that fails, the next call begins with the step that did."""
        file = self._file
        if file is None:
            return None
        self._guarded(file.end)
        file.drain()
        self._guarded(file.sync)
        if file.final is None:
            file.final = self._named(file)
        if self._places:
            file.path.unlink(missing_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.last, self._file = file.final, None
        file.close()
        return self.last

    def _named(self, file: Unfinished) -> Path:
        """Give a whole file its name; return that."""
        final = self._folder / self._pattern
        if not self._places:
            if _is_no_file(final):  # it came since we began
                raise FileExistsError(errno.EEXIST, "no file: it would be replaced by one",
                                      str(final))
            os.replace(file.path, final)
            return final
        for final in self._names(file):
            # A link, unlike a rename, never replaces what another writer has put there.
            with suppress(FileExistsError):
                os.link(file.path, final)
                break
        self._number += 1
        return final

    def _names(self, file: Unfinished) -> Iterator[Path]:
        time = file.time.strftime("%Y%m%dT%H%M%SZ")
        for again in count():
            name = Path(self._pattern.format(time=time, number=f"{self._number:06}"))
            if "number" not in self._places and again:
                name = name.with_stem(f"{name.stem}-{again}")
            yield self._folder / name
            self._number += 1

    def _temporary(self) -> Path:
        plain = self._pattern.replace("{", "").replace("}", "")
        return self._folder / f".{plain}.{token_hex(8)}.tmp"

    def _sweep(self) -> None:
        """Remove the temporary files of writers that were killed: nobody holds their locks."""
        plain = self._pattern.replace("{", "").replace("}", "")
        mine = re.compile(rf"\.{re.escape(plain)}\.[0-9a-f]{{16}}\.tmp")
        with os.scandir(self._folder) as entries:
            left = [Path(entry) for entry in entries
                    if mine.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
        for path in left:
            with suppress(OSError):  # gone, in use, or not for us to remove
                _remove_left(path)


def _remove_left(path: Path) -> None:
    """Remove a file of ours that nobody has locked. Whoever may write to the folder chose its name.

    So it may have become a link, or a FIFO whose opening waits for ever, since it was looked at.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            flock(fd, LOCK_EX | LOCK_NB)
            os.unlink(path)
    finally:
        os.close(fd)


def _format(where: Path, format: str | None) -> str:
    if format is None:
        format = FORMATS.get(where.suffix)
        if format is None:
            raise ValueError(f"{where.name!r} ends with none of {', '.join(FORMATS)}: give format=")
    if format not in FORMATS.values():
        raise ValueError(f"format={format!r}: one of {', '.join(FORMATS.values())}")
    return format


def _is_no_file(where: Path) -> bool:
    """Tell whether there is something else than a file, such as a FIFO, or a link to one."""
    return where.exists() and not where.is_file()


def _places(where: Path) -> set[str]:
    """Return the words in braces of a file's name."""
    try:
        found = {word for _, word, how, convert in string.Formatter().parse(where.name)
                 if word is not None and not how and not convert}
        odd = {word for _, word, *_ in string.Formatter().parse(str(where.parent)) if word}
        where.name.format(time="", number="")
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{str(where)!r}: braces hold time or number ({error})") from None
    if odd:
        raise ValueError(f"{str(where)!r}: {{{min(odd)}}} goes into the name, not the folder")
    return found


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep a Ctrl-C until the block is over: it must not leave half a row group in a file."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])
