"""Requests and answers of HTTP/1.1, as far as an exporter needs them: bytes in, bytes out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

TEXT = "text/plain; charset=utf-8"

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~\x80-\xff]+) HTTP/(\d)\.(\d)")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Limits:
    """Bounds on clients: counts, bytes, and seconds.

    Attributes
    ----------
    connections : int
        Connections at a time.
    head : int
        Bytes of a request line and its headers.
    headers, writing, idle : float
        Seconds until the headers are complete, until the answer is taken, and between requests.
    spare : int
        Descriptors that connections leave free, for reading maps.
    bodies : int
        Large answers that are being written at a time; one that several clients take is one.
    stopping : float
        Seconds that answers under way have once the server stops.
    """

    connections: int = 256
    head: int = 8192
    headers: float = 5.0
    writing: float = 30.0
    idle: float = 30.0
    spare: int = 16
    bodies: int = 16
    stopping: float = 5.0


class Request(NamedTuple):
    """A request; the names of its headers are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    close: bool


class Answer(NamedTuple):
    """An answer."""

    status: HTTPStatus
    body: bytes
    type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that cannot be answered; the connection ends, for where it goes on is unknown."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


def plain(status: HTTPStatus, *headers: tuple[str, str]) -> Answer:
    """Return an answer that says its status in words."""
    return Answer(status, f"{status.value} {status.phrase}\n".encode(), TEXT, headers)


def take_head(buffer: bytearray, start: int, most: int) -> bytes | None:
    """Take the head of the first request out of `buffer`; None where it is not complete.

    `start` is how much of the buffer was searched before. Raises `Refused` for one of more than
    `most` bytes.
    """
    while buffer.startswith((b"\r", b"\n")):  # left over where bodies end with a line's end
        del buffer[:1]
        start = 0
    end = _END.search(buffer, max(start - 3, 0))
    if end is None or end.start() > most:
        if len(buffer) >= most:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return None
    head = bytes(buffer[:end.start()])
    del buffer[:end.end()]
    return head


def parsed(head: bytes) -> Request:
    """Return the request that a head makes; raise `Refused` where it makes none."""
    line, *fields = [each.removesuffix(b"\r") for each in head.split(b"\n")]
    match = _LINE.fullmatch(line)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST)
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    headers: dict[str, str] = {}
    for field in fields:
        given, colon, value = field.partition(b":")
        if not colon or _NAME.fullmatch(given) is None:
            raise Refused(HTTPStatus.BAD_REQUEST)
        name, text = given.decode().lower(), value.strip(b" \t").decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    path, query = _split(target.decode("latin-1"))
    wishes = {each.strip().lower() for each in headers.get("connection", "").split(",")}
    # A body is not read: what comes after it would be taken for a request.
    body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return Request(method.decode(), path, query, headers,
                   minor == b"0" or "close" in wishes or body)


def _split(target: str) -> tuple[str, str]:
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return path, query
    try:
        parts = urlsplit(target)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST) from None
    return parts.path or "/", parts.query


def head_of(answer: Answer, close: bool) -> bytes:
    """Return the status line and the headers of an answer."""
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
             f"Date: {formatdate(usegmt=True)}", f"Content-Type: {answer.type}",
             f"Content-Length: {len(answer.body)}",
             *(f"{name}: {value}" for name, value in answer.headers),
             *["Connection: close"] * close]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")
