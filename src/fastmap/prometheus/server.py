"""A server of short answers over HTTP: one thread for all connections, each of them bounded.

A connection costs a descriptor and at most 8 KiB, whatever its client does. Where there is no room
for a new one, that which has been idle or slow for longest makes room.
"""

from __future__ import annotations

import logging
import resource
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum, auto
from http import HTTPStatus

from fastmap.prometheus.http import (
    Answer,
    Limits,
    Refused,
    Request,
    head_of,
    parsed,
    plain,
    take_head,
)

_log = logging.getLogger(__name__)

#: Connections accepted before others have their turn: fewer than `Limits.connections`, or one
#: would be replaced before it is read.
_ACCEPTED = 16
#: Seconds without accepting where the system has no room for a connection.
_PAUSE = 0.1
#: Answers of so many bytes count in `Limits.bodies`.
_LARGE = 1 << 16


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()
    IDLE = auto()
    WAITING = auto()
    WRITING = auto()
    CLOSING = auto()
    CLOSED = auto()


class Connection:
    """A client's connection, and how far it is with a request."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.phase = Phase.HEAD
        self.since = now
        self.events = 0
        self.received = bytearray()
        self.searched = 0
        self.bare = self.close = False
        self.body = b""
        self.output: list[memoryview] = []


class Server:
    """Serves what `answer` gives.

    Parameters
    ----------
    listeners : sequence of socket
        They listen; the server closes them.
    answer : callable
        Takes a request and its connection; gives the answer, or None where `deliver` will.
    limits : Limits
    tick : callable, optional
        Called in every round of the loop.

    Attributes
    ----------
    refused : dict
        New connections closed at once: at the bound of "connections", or without "descriptors".
    dropped : dict
        Connections that were closed before their time: too slow with their "headers" or with
        reading what is written ("writing"), or "replaced" by a new one.
    """

    def __init__(self, listeners: Sequence[socket.socket],
                 answer: Callable[[Request, Connection], Answer | None],
                 limits: Limits = Limits(),  # noqa: B008
                 tick: Callable[[], None] = lambda: None) -> None:
        self.refused = {"connections": 0, "descriptors": 0}
        self.dropped = {"headers": 0, "writing": 0, "replaced": 0}
        self.connections: set[Connection] = set()
        self._listeners = list(listeners)
        self._answer = answer
        self._limits = limits
        self._tick = tick
        self._delivered: deque[tuple[Iterable[Connection], Answer]] = deque()
        self._stops = self._hurry = False
        self._resume: float | None = None
        self._selector = selectors.DefaultSelector()
        self._woken, self.waker = socket.socketpair()
        for each in (self._woken, self.waker, *self._listeners):
            each.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listen(True)

    # ---- from other threads and signal handlers ----

    def wake(self) -> None:
        """Have the loop go through another round."""
        with suppress(OSError):  # it is full: the loop will wake
            self.waker.send(b"\0")

    def deliver(self, waiting: Iterable[Connection], answer: Answer) -> None:
        """Give an answer to connections that wait."""
        self._delivered.append((waiting, answer))
        self.wake()

    def stop(self) -> None:
        """End `run`: at once where it is called again, or else when answers under way are out."""
        self._hurry = self._stops
        self._stops = True
        self.wake()

    # ---- the loop ----

    def run(self) -> None:
        """Serve until `stop`."""
        end: float | None = None
        while True:
            self._tick()
            now = time.monotonic()
            if self._stops:
                if end is None:
                    self._listen(False)
                    end = now + self._limits.stopping
                busy = any(each.phase in (Phase.WAITING, Phase.WRITING)
                           for each in self.connections)
                if not busy or self._hurry or now >= end:
                    return
            self._round(self._timeout(now, end))

    def close(self) -> None:
        """Close all sockets, after `run`."""
        for connection in list(self.connections):
            self._drop(connection)
        self._selector.close()
        for each in (self._woken, self.waker, *self._listeners):
            each.close()

    def _round(self, timeout: float | None) -> None:
        ready: list[socket.socket] = []
        for key, events in self._selector.select(timeout):
            if isinstance(key.data, Connection):
                self._proceed(key.data, events)
            elif key.fileobj is self._woken:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif isinstance(key.fileobj, socket.socket):
                ready.append(key.fileobj)
        while self._delivered:
            waiting, answer = self._delivered.popleft()
            for connection in waiting:
                if connection.phase is Phase.WAITING:
                    self._send(connection, answer)
                    self._advance(connection)
        for listener in ready:
            self._accept(listener)
        self._expire()

    def _timeout(self, now: float, end: float | None) -> float | None:
        ends = [self._deadline(each) for each in self.connections]
        ends += [self._resume, end]
        known = [each for each in ends if each is not None]
        return max(min(known) - now, 0.0) if known else None

    def _deadline(self, connection: Connection) -> float | None:
        limits = self._limits
        seconds = {Phase.HEAD: limits.headers, Phase.IDLE: limits.idle,
                   Phase.WRITING: limits.writing, Phase.CLOSING: limits.headers}
        return (connection.since + seconds[connection.phase] if connection.phase in seconds
                else None)

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            deadline = self._deadline(connection)
            if deadline is not None and deadline <= now:
                why = {Phase.HEAD: "headers", Phase.WRITING: "writing"}.get(connection.phase)
                self._drop(connection, why)
        if self._resume is not None and self._resume <= now and not self._stops:
            self._listen(True)

    # ---- new connections ----

    def _listen(self, wanted: bool) -> None:
        self._resume = None
        for each in self._listeners:
            there = each in self._selector.get_map()
            if wanted and not there:
                self._selector.register(each, selectors.EVENT_READ)
            elif there and not wanted:
                self._selector.unregister(each)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it is gone again
            except OSError:  # EMFILE, ENFILE, ENOBUFS, ENOMEM
                if self._replace():
                    continue
                self.refused["descriptors"] += 1
                self._listen(False)  # the listener stays readable: the loop would spin
                self._resume = time.monotonic() + _PAUSE
                return
            room = self._room(sock)
            if room is not None:
                room.setblocking(False)
                connection = Connection(room, time.monotonic())
                self.connections.add(connection)
                self._watch(connection, selectors.EVENT_READ)

    def _room(self, sock: socket.socket) -> socket.socket | None:
        """Return the socket of a new connection once there is room for it; None: it is refused."""
        if len(self.connections) >= self._limits.connections and not self._replace():
            self._refuse(sock, "connections")
            return None
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most != resource.RLIM_INFINITY:
            most -= min(self._limits.spare, most // 4)
            while sock.fileno() >= most:
                if not self._replace():
                    self._refuse(sock, "descriptors")
                    return None
                # What was closed may be below: were its number left to the next connection, those
                # above would be taken one by one.
                try:
                    lower = sock.dup()
                except OSError:
                    continue
                sock.close()
                sock = lower
        return sock

    def _refuse(self, sock: socket.socket, why: str) -> None:
        self.refused[why] += 1
        answer = plain(HTTPStatus.SERVICE_UNAVAILABLE)
        sock.setblocking(False)
        with suppress(OSError):
            sock.send(head_of(answer, True) + answer.body)
        sock.close()

    def _replace(self) -> bool:
        """Close the connection that has been idle or slow for longest, if there is one."""
        late = time.monotonic() - self._limits.writing
        for phases, before in (((Phase.HEAD, Phase.IDLE, Phase.CLOSING), None),
                               ((Phase.WRITING,), None), ((Phase.WAITING,), late)):
            found = [each for each in self.connections if each.phase in phases
                     and (before is None or each.since < before)]
            if found:
                self._drop(min(found, key=lambda each: each.since), "replaced")
                return True
        return False

    # ---- a connection ----

    def _watch(self, connection: Connection, events: int) -> None:
        if events == connection.events:
            return
        if not connection.events:
            self._selector.register(connection.sock, events, connection)
        elif not events:
            self._selector.unregister(connection.sock)
        else:
            self._selector.modify(connection.sock, events, connection)
        connection.events = events

    def _drop(self, connection: Connection, why: str | None = None) -> None:
        if connection.phase is Phase.CLOSED:
            return
        if why is not None:
            self.dropped[why] += 1
        self._watch(connection, 0)
        connection.phase = Phase.CLOSED
        connection.output, connection.body = [], b""
        connection.sock.close()
        self.connections.discard(connection)

    def _enter(self, connection: Connection, phase: Phase, events: int) -> None:
        connection.phase = phase
        connection.since = time.monotonic()
        self._watch(connection, events)

    def _proceed(self, connection: Connection, events: int) -> None:
        """Read or write what the client is ready for."""
        if connection.phase is Phase.CLOSED:
            return  # in this round
        if connection.phase is Phase.WRITING:
            self._flush(connection)
            self._advance(connection)
            return
        try:
            received = connection.sock.recv(
                max(self._limits.head + 4 - len(connection.received), 1))
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._drop(connection)
        elif connection.phase is not Phase.CLOSING:
            connection.received += received
            self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        """Answer the requests that are complete, one after the other."""
        while connection.phase in (Phase.HEAD, Phase.IDLE):
            try:
                head = take_head(connection.received, connection.searched, self._limits.head)
                if head is None:
                    connection.searched = len(connection.received)
                    if connection.received and connection.phase is Phase.IDLE:
                        self._enter(connection, Phase.HEAD, selectors.EVENT_READ)
                    return
                connection.searched = 0
                request = parsed(head)
            except Refused as error:
                connection.bare, connection.close = False, True
                self._send(connection, plain(error.status))
                return
            connection.bare = request.method == "HEAD"
            connection.close = request.close
            self._enter(connection, Phase.WAITING, 0)
            try:
                answer = self._answer(request, connection)
            except Exception:  # one request's; the others go on
                _log.exception("a request failed")
                answer = plain(HTTPStatus.INTERNAL_SERVER_ERROR)
            if answer is not None:
                self._send(connection, answer)

    def _send(self, connection: Connection, answer: Answer) -> None:
        close = connection.close = connection.close or self._stops
        connection.output = [memoryview(head_of(answer, close))]
        if not connection.bare and answer.body:
            connection.body = answer.body
            connection.output.append(memoryview(answer.body))
        self._enter(connection, Phase.WRITING, 0)
        self._flush(connection)
        if connection.phase is Phase.WRITING:
            self._fewer_bodies()

    def _flush(self, connection: Connection) -> None:
        """Write what the client takes; go on to its next request, or to the end, after the last."""
        try:
            while connection.output:
                sent = connection.sock.sendmsg(connection.output)
                while connection.output and sent >= len(connection.output[0]):
                    sent -= len(connection.output.pop(0))
                if connection.output:
                    connection.output[0] = connection.output[0][sent:]
        except BlockingIOError:
            self._watch(connection, selectors.EVENT_WRITE)
            return
        except OSError:
            self._drop(connection)
            return
        connection.body = b""
        if not connection.close:
            self._enter(connection, Phase.IDLE, selectors.EVENT_READ)
            return
        # Closed while there is something to read, the answer could be lost: the client closes.
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)
        connection.received.clear()
        self._enter(connection, Phase.CLOSING, selectors.EVENT_READ)

    def _fewer_bodies(self) -> None:
        """Keep no more large answers than are allowed: drop those that take longest."""
        held: dict[int, list[Connection]] = {}
        for each in sorted(self.connections, key=lambda each: each.since):
            if len(each.body) >= _LARGE:
                held.setdefault(id(each.body), []).append(each)
        for same in list(held.values())[:max(len(held) - self._limits.bodies, 0)]:
            for each in same:
                self._drop(each, "writing")
