"""Taking keys out of a live table while programs count on, losing nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastmap._core.live.table import DYING, LOST, LiveCore, claim
from fastmap._core.live.table import LiveReader as Core
from fastmap.dtypes import plan, slots
from fastmap.live.batch import LiveBatch
from fastmap.live.grace import Grace
from fastmap.live.layout import HEAD
from fastmap.live.reader import row_maker
from fastmap.live.views import view
from fastmap.maptypes.batch import Array

#: Of each table (by the id of its head) that this process expires: one thread at a time.
_inside: dict[int, threading.Lock] = {}


def _token() -> int:
    """Return what this process is in ``owner``: its number, and when it started."""
    return os.getpid() << 32 | _started(os.getpid()) & 0xFFFFFFFF


def _started(pid: int) -> int:
    """Return when a process started, in ticks; -1 where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return -1


class Expiry:
    """The one who takes keys out of a table: what it saw of idle keys, and the steps.

    The steps are: unlink (programs that begin now do not find the key, or insert it anew in another
    slot), wait for the programs that run, take the last counts, empty the slots, and give them
    back. Killed before the last counts are handed out, all is told by the next expiry; only from
    there on, the counts of slots that are emptied already are gone with the process.
    """

    def __init__(self, core: LiveCore, head: Any, table: int, born: Array, key: np.dtype[Any],
                 value: np.dtype[Any], columns: int) -> None:
        self._core = core
        self._memory = head
        self._head = view(head, HEAD, 1)[0]
        self._born = born
        self._key = key
        made, self._dtype, wide = plan(key, value, columns, value.itemsize, reduce="sum")
        self._columns, self._size = row_maker(value, made, "sum", self._dtype, wide, columns)
        self._lock = _inside.setdefault(table, threading.Lock())
        self._grace = Grace()
        self._looks: Core | None = None
        self._changed: Array | None = None

    def close(self) -> None:
        """Let go of what waiting needs."""
        self._grace.close()

    @contextmanager
    def _owned(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("another thread is inside an expiry of this table")
        try:
            mine, at = _token(), HEAD.fields["owner"][1]  # type: ignore[index]
            while True:
                there = int(self._head["owner"])
                if there not in (0, mine):
                    pid, started = there >> 32, _started(there >> 32)
                    if started >= 0 and started & 0xFFFFFFFF == there & 0xFFFFFFFF:
                        raise RuntimeError(f"process {pid} is inside an expiry of this table")
                if claim(self._memory, at, there, mine):
                    break
            try:
                yield
            finally:
                claim(self._memory, at, mine, 0)
        finally:
            self._lock.release()

    def step(self, name: str) -> None:
        """Mark where an expiry is: "unlinked", "waited", "told", "cleared". Does nothing."""

    def wait(self) -> None:
        """Wait until no program holds what it found before."""
        self._grace.wait()

    def run(self, choose: Callable[[], Array]) -> LiveBatch:
        """Take out the slots that `choose` returns, and what a killed collector left."""
        self._grace.prepare()
        core = self._core
        with self._owned():
            chosen = choose()
            started = time.monotonic_ns()
            interrupted = core.begin()
            core.finish_journal()
            # Both are read before what they count is looked for: more may come meanwhile.
            tombs, lost_ever = int(self._head["tombs"]), int(self._head["lost"])
            dying = self._left(DYING) if interrupted else _none()
            lost = (self._left(LOST) if interrupted or lost_ever != self._head["found"]
                    else _none())
            chosen = chosen[self._born[chosen] & 1 == 1]
            leaving = np.concatenate([dying, chosen])
            born = self._born[leaving] | 1
            places = view(core.unlink(leaving), np.int64, len(leaving))
            if interrupted or tombs != self._head["swept"]:
                block, count = core.tombs()
                places = view(block, np.int64, count)
            self.step("unlinked")
            if len(leaving) or len(places) or len(lost):
                self.wait()
            self.step("waited")
            keys, values = core.last(leaving, self._columns, self._size)
            n = len(leaving)
            batch = LiveBatch(
                slots(keys, self._key, self._key.itemsize, n),
                slots(values, self._dtype, self._dtype.itemsize, n),
                born=born, slots=leaving, complete=True, started_ns=started,
                ended_ns=time.monotonic_ns(), owned=True)
            self.step("told")
            try:
                core.clear(leaving)
                self.step("cleared")
                core.give_back(np.concatenate([leaving, lost]), places)
                self._head["swept"], self._head["found"] = tombs, lost_ever
                core.end()
            except BaseException as error:
                error.batch = batch  # type: ignore[attr-defined]
                raise
        return batch

    def _left(self, state: int) -> Array:
        block, count = self._core.left(state)
        return view(block, np.uint32, count)

    # ---- who leaves ----------------------------------------------------------------------------

    def _look(self) -> tuple[Array, Array, Array]:
        """Return slots, when each was last seen to change, and when it was born."""
        core = self._core
        if self._looks is None:
            self._looks = Core(core, None, core.value_size, True)
            self._changed = np.zeros(core.capacity)
        looks, changed = self._looks, self._changed
        assert changed is not None
        n = looks.fill()
        where = view(looks.slots, np.uint32, n)
        grown = view(looks.values, np.uint64, n * core.value_size // 8)
        moved = grown.reshape(n, core.value_size // 8).any(axis=1)
        moved |= view(looks.fresh, bool, n)
        changed[where[moved]] = looks.ended_ns / 1e9
        return where, changed[where], view(looks.born, np.uint64, n)

    def idle_slots(self, seconds: float) -> Array:
        """Return the slots of keys that counted nothing for so long."""
        where, changed, _ = self._look()
        now = time.monotonic()
        return where[now - changed >= seconds]

    def oldest_slots(self, keep: int) -> Array:
        """Return the slots of those that were idle longest, all but `keep`."""
        where, changed, born = self._look()
        return where[np.lexsort((born, changed))[:max(len(where) - keep, 0)]]


def _none() -> Array:
    return np.empty(0, np.uint32)
