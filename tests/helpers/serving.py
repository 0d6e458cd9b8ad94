"""An exporter as a process, and what HTTP clients of every sort do to it."""

from __future__ import annotations

import http.client
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: What anything may take on a machine that is busy with other things.
PATIENCE = 60.0


def until(what: Callable[[], Any]) -> Any:
    """Return what `what` gives, once it gives something."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, f"nothing within {PATIENCE} s"
        time.sleep(0.02)
    return found


class Exporter:
    """A running ``fastmap exporter``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, pattern: str) -> None:
        self.process, self.log = process, log
        self.port = int(self.said(pattern)[0])

    def said(self, pattern: str) -> list[str]:
        """Wait until the log has a pattern; return what it matches."""
        def found() -> list[str]:
            text = self.log.read_text()
            assert self.process.poll() is None or re.search(pattern, text), text
            return re.findall(pattern, text)

        return list(until(found))

    def ask(self, path: str = "/metrics", method: str = "GET",
            **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of an answer, over a connection of its own."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            client.request(method, path, headers=headers)
            answer = client.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            client.close()

    def value(self, series: str) -> float | None:
        """Return the value of a series at a scrape."""
        for line in self.ask()[2].decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return None

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def exporting(config: Path, *options: str, descriptors: int | None = None,
              pattern: str = r"http://127\.0\.0\.1:(\d+)/metrics",
              **more: Any) -> Iterator[Exporter]:
    """Run an exporter meanwhile, with so many descriptors at most."""
    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    log = config.with_suffix(".log")
    command = [sys.executable, "-m", "fastmap", "exporter", str(config), "--listen",
               "127.0.0.1:0", *options]
    with log.open("wb") as said, subprocess.Popen(
            command, stdout=said, stderr=said, preexec_fn=limit, **more) as process:
        try:
            yield Exporter(process, log, pattern)
        finally:
            process.kill()


def received(sock: socket.socket) -> bytes:
    """Return all that comes until the other side closes; then close."""
    found = []
    with sock, suppress(ConnectionResetError):
        while some := sock.recv(1 << 20):
            found.append(some)
    return b"".join(found)
