"""A file of Arrow's that is being written, of which a full disk loses nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Any

#: Bytes that wait for the next row group of a Parquet file.
ROW_GROUP_BYTES = 64 << 20
#: Bytes that are written at once.
_AT_ONCE = 1 << 20


class Unfinished:
    """A file under a name of its own, locked for as long as it is written.

    Parameters
    ----------
    name : callable
        Gives a name that nobody has, again where somebody was quicker.
    format : {"parquet", "ipc"}
    schema : pyarrow.Schema
    held : int
        Bytes that are gathered to a row group at most.

    Attributes
    ----------
    path : Path
    began : float
        On the monotonic clock.
    time : datetime
        The same, UTC.
    ended : bool
        Whether its footer is made: it takes no more rows.
    final : Path or None
        The name that it was given for good.
    """

    def __init__(self, name: Callable[[], Path], format: str, schema: Any, held: int) -> None:
        self.began = monotonic()
        self.time = datetime.now(UTC)
        while True:
            self.path = name()
            self._file = FileIO(self.path, "xb")
            with suppress(BlockingIOError):
                flock(self._file.fileno(), LOCK_EX | LOCK_NB)
                if os.fstat(self._file.fileno()).st_nlink:
                    break
            # Swept away before it was locked; or locked by whoever may read it, maybe for ever.
            self._file.close()
            self.path.unlink(missing_ok=True)
        self.ended = False
        self.final: Path | None = None
        self._sink = _Sink(self._file)
        self._schema = schema
        self._held: list[Any] = []
        self._held_bytes, self._most = 0, min(held, ROW_GROUP_BYTES)
        self._unwritten = 0  # rows of which bytes may wait in the sink
        try:
            self._writer = self._opened(format, schema)
        except BaseException:
            self.discard()
            raise

    def _opened(self, format: str, schema: Any) -> Any:
        self._gathers = format == "parquet"
        if self._gathers:
            from pyarrow import parquet
            return parquet.ParquetWriter(self._sink, schema)
        from pyarrow import ipc
        return ipc.new_stream(self._sink, schema)

    @property
    def size(self) -> int:
        """Bytes of the file so far, but for what is gathered to a row group."""
        return self._sink.tell()

    @property
    def pending_rows(self) -> int:
        """Rows that are not, or not wholly, written."""
        held: int = sum(rows.num_rows for rows in self._held)
        return self._unwritten + held

    @property
    def pending_bytes(self) -> int:
        """Bytes that are held in memory."""
        return self._held_bytes + self._sink.waiting

    def write(self, rows: Any) -> None:
        """Take rows; those the disk has no room for are held, as `drain` will say."""
        if self._gathers:
            self._held.append(rows)
            self._held_bytes += rows.nbytes
            if self._held_bytes >= self._most:
                self._encode()
        else:
            self._writer.write_batch(rows)
            self._unwritten += rows.num_rows
        with suppress(OSError):
            self.drain()

    def _encode(self) -> None:
        if not self._held:
            return
        from pyarrow import Table
        table = Table.from_batches(self._held, self._schema).unify_dictionaries()
        self._writer.write_table(table, row_group_size=len(table))
        self._unwritten += len(table)
        self._held, self._held_bytes = [], 0

    def end(self) -> None:
        """Make what is left of the file, its footer too; `drain` writes it."""
        if not self.ended:
            self._encode()
            self._writer.close()
            self.ended = True

    def drain(self) -> None:
        """Write what waits; where that fails it still waits, and may be tried again."""
        self._sink.drain()
        self._unwritten = 0

    def sync(self) -> None:
        """Have it on disk. Where that fails, nobody knows what of it is: it cannot be repeated."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Leave the file, and its lock."""
        self._sink.closed = True
        self._file.close()

    def discard(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):  # it may have its name already
            os.unlink(self.path)
        self._held, self._held_bytes, self._unwritten = [], 0, 0
        with suppress(OSError):  # what is not written any more need not be
            self.close()


class _Sink:
    """Takes what pyarrow writes, always: its writers cannot go on from an error.

    What the disk has no room for waits here.
    """

    closed = False

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._waiting = bytearray()
        self._size = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._size += len(view)
        if not self.closed:  # a writer that is given up still writes its end
            self._waiting += view
            if len(self._waiting) >= _AT_ONCE:
                with suppress(OSError):
                    self.drain()
        return len(view)

    def drain(self) -> None:
        written = 0
        try:
            with memoryview(self._waiting) as waiting:
                while written < len(waiting):
                    written += self._file.write(waiting[written:])
        finally:
            del self._waiting[:written]

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Do nothing: `drain` is called by who knows when."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Leave the file to its owner."""
