"""What reads of a live table return."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap.maptypes.batch import Array, Batch


class LiveBatch(Batch):
    """Entries that one read of a live table returned.

    As `Batch`, and:

    Attributes
    ----------
    born : ndarray of u8
        Shape ``(n,)``: when each key was inserted, in nanoseconds of the monotonic clock. A key
        that was expired and came back has another one.
    slots : ndarray of u4
        Shape ``(n,)``: where each key is: a row of ``table.keys``, a column of ``table.values``. It
        stays until the key is expired.
    new : ndarray of bool or None
        Of a `LiveTable.delta`: which keys were not there, or were not the same, the last time.
    seconds : float
        Of a `LiveTable.delta`: how long after the last one; of the first, after the table was
        opened. 0 of others.
    """

    __slots__ = ("born", "new", "seconds", "slots")

    def __init__(self, keys: Array, values: Array, *, born: Array, slots: Array,
                 new: Array | None = None, seconds: float = 0.0, **told: Any) -> None:
        super().__init__(keys, values, **told)
        self.born = born
        self.slots = slots
        self.new = new
        self.seconds = seconds

    def copy(self) -> LiveBatch:
        """Return a batch that owns copies: it stays as it is when a reader reads on."""
        return self._rows(np.ndarray.copy)

    def take(self, rows: npt.ArrayLike) -> LiveBatch:
        """Return a batch of the `rows` alone, an index array or a mask, with copies of its own."""
        return self._rows(lambda array: array[rows])

    def _rows(self, take: Any) -> LiveBatch:
        return LiveBatch(take(self.keys), take(self.values), born=take(self.born),
                         slots=take(self.slots), new=None if self.new is None else take(self.new),
                         seconds=self.seconds, complete=self.complete, started_ns=self.started_ns,
                         ended_ns=self.ended_ns, owned=True)
