"""Clients of every sort against the server's loop, over real sockets: each is bounded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from typing import Any

import pytest
from serving import PATIENCE, received, until

from fastmap.prometheus.http import Answer, Limits, Refused, parsed, plain
from fastmap.prometheus.server import Connection, Server
from fastmap.prometheus.worker import Worker

#: More than the buffers of a connection on this machine take.
LARGE = b"x" * (32 << 20)


class Client:
    """A client whose sockets are closed when the test ends."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        self._stack, self._port = stack, port

    def __call__(self, sent: bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        self._stack.enter_context(sock)
        sock.sendall(sent)
        return sock


@contextmanager
def served(answer: Callable[[Any, Connection], Answer | None],
           **limits: Any) -> Iterator[tuple[Server, Client]]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=socket.SOMAXCONN)
    port = listener.getsockname()[1]
    patient = dict.fromkeys(("headers", "writing", "idle"), PATIENCE)
    server = Server([listener], answer, Limits(**{**patient, **limits}))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with ExitStack() as stack:
            yield server, Client(stack, port)
    finally:
        server.stop()
        server.stop()
        thread.join(PATIENCE)
        server.close()


def path(request: Any, _: Connection) -> Answer:
    return Answer(HTTPStatus.OK, LARGE if request.path == "/large" else request.path.encode())


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


LAST = get("/last", "Connection: close")


def test_many_pipelined_requests_are_answered_in_turn() -> None:
    with served(path) as (_, client):
        text = received(client(b"".join(get(f"/{i}") for i in range(2000)) + LAST)).decode()
    bodies = [part.rpartition("\r\n\r\n")[2] for part in text.split("HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(f"/{i}" for i in range(2000)), "/last"]


def test_a_request_in_single_bytes() -> None:
    with served(path) as (_, client):
        sock = client()
        for byte in LAST:
            sock.sendall(bytes([byte]))
        assert received(sock).endswith(b"\r\n\r\n/last")


@pytest.mark.parametrize("before", [b"", get("/first")])
def test_headers_that_drip_have_a_deadline(before: bytes) -> None:
    """It goes on while bytes come, of the first request and of later ones."""
    with served(path, headers=0.3) as (server, client):
        def dropped() -> bool:
            """Send byte by byte until the server closes; return whether `before` was answered."""
            sock, got, count = client(before), b"", server.dropped["headers"]
            sock.settimeout(0.02)
            while server.dropped["headers"] == count:
                with suppress(TimeoutError, ConnectionError):
                    sock.send(b"G")
                    got += sock.recv(4096)
            with suppress(TimeoutError):
                got += received(sock)
            return b"/first" in got or not before

        until(dropped)
        until(lambda: received(client(LAST)).endswith(b"/last"))
        assert server.dropped["writing"] == server.dropped["replaced"] == 0


def test_a_silent_client_and_an_idle_one_have_deadlines() -> None:
    with served(path, headers=0.2, idle=0.2) as (server, client):
        assert received(client()) == b""
        assert server.dropped["headers"] == 1
        until(lambda: received(client(get("/a"))).endswith(b"/a"))


@pytest.mark.parametrize("sent", [
    b"G" * 9000, get("/" + "a" * 9000), get("/", "X: " + "a" * 100_000),
    get("/", *["A: b"] * 2000)])
def test_huge_headers(sent: bytes) -> None:
    """The answer arrives, also where the client is still sending."""
    with served(path) as (_, client):
        answer = received(client(sent))
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(("sent", "status"), [
    (b"\x16\x03\x01\x02\x00\r\n\r\n", 400), (b"GET /\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n: x\r\n\r\n", 400),
    (b"GET http://[ HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400)])
def test_what_is_no_request(sent: bytes, status: int) -> None:
    with served(path) as (_, client):
        assert received(client(sent)).startswith(f"HTTP/1.1 {status} ".encode())


def test_what_is_a_request() -> None:
    request = parsed(b"GET http://x/a?b=c HTTP/1.1\r\nAccept: a\r\nACCEPT:b\r\nX:")
    assert request[:4] == ("GET", "/a", "b=c", {"accept": "a, b", "x": ""}) and not request.close
    assert parsed(b"GET / HTTP/1.0").close
    assert parsed(b"GET / HTTP/1.1\nConnection: x, Close").close
    assert parsed(b"POST / HTTP/1.1\nContent-Length: 5").close
    assert parsed(b"POST / HTTP/1.1\nTransfer-Encoding: chunked").close
    with pytest.raises(Refused):
        parsed(b"")


def test_a_request_that_fails_is_the_only_one() -> None:
    def fails(request: Any, connection: Connection) -> Answer | None:
        if request.path != "/last":
            raise LookupError(request.path)
        return path(request, connection)

    with served(fails) as (_, client):
        answer = received(client(get("/") + LAST))
        assert answer.startswith(b"HTTP/1.1 500 ") and answer.endswith(b"/last")


def test_a_body_is_not_taken_for_a_request() -> None:
    body = get("/smuggled")
    sent = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    with served(path) as (_, client):
        assert received(client(sent + body)).endswith(b"\r\n\r\n/")


def test_head_has_no_body() -> None:
    with served(path) as (_, client):
        answer = received(client(b"HEAD /abc HTTP/1.1\r\n\r\n" + LAST)).decode()
    first, second = answer.split("HTTP/1.1 200 OK")[1:]
    assert first.endswith("\r\n\r\n") and "\r\nContent-Length: 4\r\n" in first
    assert second.endswith("/last")


def test_clients_that_never_read() -> None:
    with served(path, writing=0.5) as (server, client):
        for _ in range(3):
            client(get("/large"))
        assert received(client(LAST)).endswith(b"/last")
        until(lambda: server.dropped["writing"] == 3)
        until(lambda: not server.connections)


def test_large_answers_are_few() -> None:
    """One that many take is one; of more than `bodies`, the slowest client loses its."""
    def fresh(request: Any, _: Connection) -> Answer:
        return Answer(HTTPStatus.OK, LARGE if request.path == "/same" else LARGE + b"y")

    with served(fresh, bodies=2) as (server, client):
        for _ in range(3):
            client(get("/same"))
        until(lambda: len([1 for each in list(server.connections) if each.body]) == 3)
        assert server.dropped["writing"] == 0
        client(get("/new"))
        until(lambda: len([1 for each in list(server.connections) if each.body]) == 4)
        client(get("/new"))
        until(lambda: server.dropped["writing"] == 3)


def test_a_slow_reader_gets_all() -> None:
    with served(path) as (_, client):
        sock = client(get("/large", "Connection: close"))
        assert received(sock).partition(b"\r\n\r\n")[2] == LARGE


def test_the_one_that_has_been_idle_longest_makes_room() -> None:
    with served(path, connections=2) as (server, client):
        first, second = client(), client(get("/second"))
        assert second.recv(4096).endswith(b"/second")
        assert received(client(LAST)).endswith(b"/last")
        assert received(first) == b""
        until(lambda: len(server.connections) < 2)
        second.sendall(LAST)
        assert received(second).endswith(b"/last")
        assert server.dropped["replaced"] == 1 and server.refused["connections"] == 0


def test_those_that_wait_for_an_answer_do_not_make_room() -> None:
    waiting: list[Connection] = []

    def later(request: Any, connection: Connection) -> None:
        waiting.append(connection)

    with served(later, connections=2) as (server, client):
        first, second = client(LAST), client(LAST)
        until(lambda: len(waiting) == 2)
        assert b"503 Service Unavailable" in received(client())
        assert server.refused == {"connections": 1, "descriptors": 0}
        server.deliver(waiting, plain(HTTPStatus.OK))
        assert b"200 OK" in received(first) and b"200 OK" in received(second)


def test_an_answer_for_one_that_has_gone_reaches_nobody() -> None:
    waiting: list[Connection] = []

    def later(request: Any, connection: Connection) -> Answer | None:
        if request.path == "/last":
            return path(request, connection)
        waiting.append(connection)
        return None

    with served(later) as (server, client):
        client(get("/")).close()
        until(lambda: waiting)
        server.deliver(waiting, plain(HTTPStatus.OK))
        server.deliver(waiting, plain(HTTPStatus.OK))
        assert received(client(LAST)).endswith(b"/last")


def test_what_is_under_way_ends_before_the_server_does() -> None:
    waiting: list[Connection] = []
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server([listener], lambda _, connection: waiting.append(connection),
                    Limits(stopping=PATIENCE))
    thread = threading.Thread(target=server.run)
    thread.start()
    with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as sock:
        sock.sendall(get("/"))
        until(lambda: waiting)
        server.stop()
        server.deliver(waiting, plain(HTTPStatus.OK))
        answer = sock.recv(4096)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        server.close()
    assert b"200 OK" in answer and b"Connection: close" in answer


def test_work_is_done_once_for_all_who_ask_before_it_begins() -> None:
    done: list[tuple[list[Any], Answer]] = []
    began, goes = threading.Event(), threading.Event()
    count = 0

    def first() -> Answer:
        began.set()
        assert goes.wait(PATIENCE)
        return plain(HTTPStatus.OK)

    def work() -> Answer:
        nonlocal count
        count += 1
        return plain(HTTPStatus.OK)

    def fails() -> Answer:
        raise LookupError

    worker = Worker(lambda waiting, answer: done.append((waiting, answer)))
    worker.ask("first", first, 0)
    assert began.wait(PATIENCE)
    worker.ask("last", work, 7, later=True)
    for i in range(1, 5):
        worker.ask("first" if i == 1 else "second", work, i)
    worker.ask("wrong", fails, 5)
    goes.set()
    until(lambda: len(done) == 5)
    worker.stop()
    assert [waiting for waiting, _ in done] == [[0], [1], [2, 3, 4], [5], [7]] and count == 3
    assert done[3][1].status == 500 and done[4][1].status == 200
