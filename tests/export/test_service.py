"""The exporter as a service: real maps, real sockets, and clients that mean no good."""

from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from serving import Exporter, exporting, received, until

pytestmark = pytest.mark.native("no prometheus_client in the emulated kernels")

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def config(make: Callable[..., Any], bpffs: Path, tmp_path: Path) -> Path:
    m = make("hash", key="u4", value="u8", max_entries=3, pin=bpffs / "served")
    m[1] = 42
    path = tmp_path / "served.yaml"
    path.write_text(f"maps: [{{pin: {bpffs}/served, gauges: [{{name: served, help: S.}}]}}]\n")
    return path


@pytest.fixture
def exporter(config: Path) -> Iterator[Exporter]:
    with exporting(config) as found:
        yield found


def test_routes(exporter: Exporter) -> None:
    status, headers, body = exporter.ask("/metrics")
    assert status == 200 and b"\nserved 42.0\n" in body
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    status, headers, body = exporter.ask("/")
    assert status == 200 and b'href="/metrics"' in body
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert exporter.ask("/-/healthy")[::2] == (200, b"200 OK\n")
    assert exporter.ask("/-/ready")[0] == 200
    for path in ("/metric", "/metrics/", "//metrics", "/favicon.ico"):
        assert exporter.ask(path)[0] == 404
    for path in ("/metrics", "/", "/-/healthy", "/-/ready"):
        status, headers, body = exporter.ask(path, "POST")
        assert status == 405 and headers["Allow"] == "GET, HEAD"
        status, headers, body = exporter.ask(path, "HEAD")
        assert status == 200 and body == b"" and int(headers["Content-Length"]) > 0
    assert exporter.ask("/none", "HEAD")[::2] == (404, b"")


def test_forms_of_a_scrape(exporter: Exporter) -> None:
    status, headers, body = exporter.ask(Accept=OPENMETRICS)
    assert headers["Content-Type"].startswith(OPENMETRICS) and body.endswith(b"# EOF\n")
    status, headers, body = exporter.ask(**{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip" and b"\nserved 42.0\n" in gzip.decompress(body)
    # A version that nobody knows is that of everybody; so is one that is none.
    for version in ("7.0.0", "x", "1.0.0\xff"):
        status, headers, body = exporter.ask(
            Accept=f"application/openmetrics-text; version={version}")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    status, headers, body = exporter.ask("/metrics?name[]=served&name[]=none")
    assert [line for line in body.splitlines() if not line.startswith(b"#")] == [b"served 42.0"]
    assert exporter.ask("/metrics?" + "&".join(["a=b"] * 1500))[0] == 400


def test_ready_once_a_map_has_been_opened(make: Callable[..., Any], bpffs: Path,
                                          tmp_path: Path) -> None:
    config = tmp_path / "late.yaml"
    config.write_text(f"maps: [{{pin: {bpffs}/late, gauges: [{{name: late, help: L.}}]}}]\n")
    with exporting(config) as exporter:
        assert exporter.ask("/-/ready")[0] == 503
        assert exporter.ask("/-/healthy")[0] == 200
        assert exporter.value(f'fastmap_map_up{{map="{bpffs}/late"}}') == 0
        assert exporter.ask("/-/ready")[0] == 503
        m = make("hash", key="u4", value="u8", max_entries=3, pin=bpffs / "late")
        assert exporter.ask("/-/ready")[0] == 200
        m.close()
        (bpffs / "late").unlink()
        assert exporter.ask("/-/ready")[0] == 200


def test_a_thousand_silent_connections_beside_a_scrape(exporter: Exporter, bpffs: Path) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(exporter.connect())
        assert exporter.value("served") == 42
        dropped = "fastmap_exporter_connections_dropped_total"
        until(lambda: sum(exporter.value(f'{dropped}{{why="{why}"}}') or 0
                          for why in ("replaced", "headers")) >= 1000 - 256)
        assert (exporter.value("fastmap_exporter_connections") or 0) <= 256
        status = Path(f"/proc/{exporter.process.pid}/status").read_text()
        assert int(status.partition("\nThreads:")[2].split()[0]) < 20
        assert exporter.value(f'fastmap_map_up{{map="{bpffs}/served"}}') == 1


def test_without_free_descriptors_maps_are_read(config: Path, bpffs: Path) -> None:
    with exporting(config, descriptors=64) as exporter, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(exporter.connect())
        for _ in range(30):
            stack.enter_context(exporter.connect())
            assert exporter.value(f'fastmap_map_up{{map="{bpffs}/served"}}') == 1
        assert (exporter.value("fastmap_exporter_connections") or 0) < 64 - 16


def test_with_hardly_a_descriptor_it_refuses_and_goes_on(config: Path) -> None:
    """The limit is lowered to what is open: no connection can be had, until it is raised again."""
    import resource

    with exporting(config) as exporter:
        pid = exporter.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)

        def refused() -> float | None:
            """Knock while there is none; return how many times it was told."""
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, before[1]))
            with exporter.connect():
                time.sleep(0.05)  # it need not have looked by then: `until` knocks again
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            return exporter.value('fastmap_exporter_connections_refused_total{why="descriptors"}')

        assert until(refused) >= 1
        assert exporter.value("served") == 42


def test_many_scrapes_at_once(exporter: Exporter) -> None:
    """Pipelined and side by side, by clients that go away early among them."""
    request = b"GET /metrics HTTP/1.1\r\n\r\n"
    last = b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        socks = [stack.enter_context(exporter.connect()) for _ in range(40)]
        for i, sock in enumerate(socks):
            sock.sendall(request * 5 + last)
            if i % 4 == 0:
                sock.close()
        for i, sock in enumerate(socks):
            if i % 4:
                assert received(sock).count(b"\nserved 42.0\n") == 6
    assert exporter.value("served") == 42


def test_it_ends_while_clients_hold_on(exporter: Exporter) -> None:
    with exporter.connect(), exporter.connect() as other:
        other.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"200 OK" in other.recv(1 << 16)
        assert exporter.end(signal.SIGTERM) == 0
    assert "Traceback" not in exporter.log.read_text()


def test_over_ipv6(config: Path) -> None:
    if not Path("/proc/net/if_inet6").exists():  # then it says so
        done = subprocess.run([sys.executable, "-m", "fastmap", "exporter", str(config),
                               "--listen", "[::1]:0"], text=True, capture_output=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith("fastmap exporter: "), done
        return
    pattern = r"http://\[::1\]:(\d+)/metrics"
    with exporting(config, "--listen", "[::1]:0", pattern=pattern) as exporter, \
            socket.create_connection(("::1", exporter.port)) as sock:
        sock.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
        assert received(sock).endswith(b"\r\n\r\n200 OK\n")
