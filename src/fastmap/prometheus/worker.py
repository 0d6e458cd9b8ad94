"""A thread that does work for whoever waits, the same work once for all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from http import HTTPStatus
from typing import Any

from fastmap.prometheus.http import Answer, plain

_log = logging.getLogger(__name__)


class Worker:
    """Does one piece of work at a time.

    Parameters
    ----------
    deliver : callable
        Takes those that wait for a piece of work, and the answer; called in the worker's thread.
    """

    def __init__(self, deliver: Callable[[list[Any], Answer], None]) -> None:
        self._deliver = deliver
        #: By key; what is being done is no longer in it: it began before who asks now did.
        self._asked: dict[Hashable, tuple[Callable[[], Answer], bool, list[Any]]] = {}
        self._changed = threading.Condition()
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="fastmap-exporter", daemon=True)
        self._thread.start()

    def ask(self, key: Hashable, work: Callable[[], Answer], waiting: Any = None, *,
            later: bool = False) -> None:
        """Ask for work; for the same key it is done once for all who ask before it begins.

        With `later`, what is asked for without it goes first.
        """
        with self._changed:
            _, _, those = self._asked.setdefault(key, (work, later, []))
            if waiting is not None:
                those.append(waiting)
            self._changed.notify()

    def stop(self, patience: float | None = None) -> None:
        """End the thread after its present work; wait for it, but not longer than `patience`."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join(patience)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stops or self._asked)
                if self._stops:
                    return
                # min: of equals, the first.
                key = min(self._asked, key=lambda each: self._asked[each][1])
                work, _, waiting = self._asked.pop(key)
            try:
                answer = work()
            except Exception:
                _log.exception("a request failed")
                answer = plain(HTTPStatus.INTERNAL_SERVER_ERROR)
            self._deliver(waiting, answer)
