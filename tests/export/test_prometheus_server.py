"""A real Prometheus scrapes the exporter: data of a BPF map, asked for by Prometheus' HTTP API."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tools
from serving import PATIENCE, until

import fastmap
from fastmap.cli.system_calls import KEY, VALUE, counter

pytestmark = [pytest.mark.native("no Prometheus in the emulated kernels"), pytest.mark.slow]

CALLS = 12_345


@contextlib.contextmanager
def running(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command meanwhile; what it says goes to `log`."""
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            yield process
        finally:
            process.kill()


def asked(port: int, query: str) -> dict[str, float]:
    """Ask Prometheus; return the values by their labels, but those of the scrape itself."""
    where = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(where, timeout=5) as answer:
            found = json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        return {}  # it is about to start
    assert found["status"] == "success", found
    return {
        " ".join(value for name, value in sorted(each["metric"].items())
                 if name not in ("__name__", "job", "instance")): float(each["value"][1])
        for each in found["data"]["result"]
    }


@pytest.fixture
def counted(make: Callable[..., Any], bpffs: Path) -> Iterator[Any]:
    """Return a map in which a program has counted the system calls of a child, pinned."""
    m = make("lru_percpu_hash", key=KEY, value=VALUE, max_entries=10_000, pin=bpffs / "calls")
    with (fastmap.Program(fastmap.ProgType.RAW_TRACEPOINT, counter(m)) as prog,
          prog.attach_raw_tracepoint("sys_enter")):
        pid = os.fork()
        if not pid:
            libc = ctypes.CDLL(None)
            libc.prctl(15, b"exporter-test", 0, 0, 0)  # PR_SET_NAME
            for _ in range(CALLS):
                libc.sched_yield()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    yield m


@pytest.fixture
def latencies(make: Callable[..., Any], bpffs: Path) -> Any:
    m = make("array", value="u8", max_entries=12, pin=bpffs / "latencies")
    m.update_many(np.arange(12), np.array([0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0, 4000], "u8"))
    return m


DECLARATION = """
    maps:
      - pin: {bpffs}/calls
        counters:
          - name: system_calls_total
            help: System calls by process.
            field: calls
            labels:
              - {{name: process, field: value.comm}}
              - {{name: syscall, decode: syscall}}
      - pin: {bpffs}/latencies
        histograms:
          - name: io_latency_seconds
            help: How long reads and writes took.
            bucket_type: exp2
            bucket_max: 10
            bucket_multiplier: 0.000001
      - pin: {bpffs}/none
        gauges: [{{name: none, help: Nothing.}}]
    """
SCRAPES = """
    global: {{scrape_interval: 1s, scrape_timeout: 1s}}
    scrape_configs:
      - job_name: fastmap
        static_configs: [targets: ["127.0.0.1:{port}"]]
    """


def test_prometheus_scrapes_a_map(counted: Any, latencies: Any, bpffs: Path,
                                  tmp_path: Path) -> None:
    bin = tools.unpacked("prometheus") / "usr/bin"
    declaration, scrapes = tmp_path / "exporter.yaml", tmp_path / "prometheus.yaml"
    declaration.write_text(textwrap.dedent(DECLARATION.format(bpffs=bpffs)))
    exporter = [sys.executable, "-m", "fastmap", "exporter", str(declaration)]
    checked = subprocess.run([bin / "promtool", "check", "metrics"], text=True,
                             input=tools.run(*exporter, "--once"), capture_output=True, timeout=30)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

    with contextlib.ExitStack() as stack:
        log = tmp_path / "exporter.log"
        served = stack.enter_context(running(log, *exporter, "--listen", "127.0.0.1:0"))
        (port,) = until(lambda: re.findall(r"http://127.0.0.1:(\d+)/metrics\n", log.read_text()))
        scrapes.write_text(textwrap.dedent(SCRAPES.format(port=port)))
        api = tools.free_port()
        stack.enter_context(running(
            tmp_path / "prometheus.log", bin / "prometheus",
            f"--config.file={scrapes}", f"--storage.tsdb.path={tmp_path}/tsdb",
            f"--web.listen-address=127.0.0.1:{api}", "--log.level=error"))

        found = until(lambda: asked(api, 'system_calls_total{process="exporter-test"}'))
        assert found["exporter-test sched_yield"] == CALLS
        summed = counted.snapshot(reduce={"calls": "sum"})
        total = int(summed.values["calls"].sum())
        assert asked(api, "sum(system_calls_total)") == {"": total}
        assert asked(api, "fastmap_map_up") == {
            f"{bpffs}/calls": 1, f"{bpffs}/latencies": 1, f"{bpffs}/none": 0}
        assert asked(api, "fastmap_map_entries") == {
            f"{bpffs}/calls": len(summed), f"{bpffs}/latencies": 12}
        # All of the 100 took more than 2 and at most 4 microseconds.
        assert asked(api, "histogram_quantile(0.5, io_latency_seconds_bucket)") == {
            "": pytest.approx(3e-6)}
        assert asked(api, "io_latency_seconds_sum") == {"": pytest.approx(4e-3)}

        # What a later scrape finds is what is in the map then.
        latencies[2] = 150
        assert until(lambda: asked(api, "io_latency_seconds_count") == {"": 150.0})
        assert asked(api, "up") == {"": 1}
        served.send_signal(signal.SIGINT)
        assert served.wait(PATIENCE) == 0
