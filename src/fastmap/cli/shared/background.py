"""Work that goes on behind the caller's: what is written while the next is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

#: Pieces of work that may be given and not done.
WAITING = 2


class Behind(Generic[T]):
    """Does `work` on what it is given, in order, in a thread of its own.

    Leaving its ``with`` waits for the rest, unless by an exception: a Ctrl-C does not wait for a
    pipe that nobody reads. What `work` raises, `give` and the end of the ``with`` raise.
    """

    def __init__(self, work: Callable[[T], None]) -> None:
        self._work = work
        self._given: SimpleQueue[T | None] = SimpleQueue()
        self._room = threading.Semaphore(WAITING)
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while (piece := self._given.get()) is not None:
            try:
                if self._error is None and not self._stopped:
                    self._work(piece)
            except BaseException as error:
                self._error = error
            del piece
            self._room.release()

    def give(self, piece: T) -> None:
        """Have a piece of work done; waits while two are not."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._given.put(piece)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stopped = kind is not None
        self._given.put(None)
        if kind is None:
            self._thread.join()
            if self._error is not None:
                raise self._error
