"""Maps of many hosts as one table: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from distributed import Client
from support import mounted

import fastmap
from fastmap import fleet

pytestmark = [pytest.mark.native("no distributed in the emulated kernels"), pytest.mark.slow]

DASK = [sys.executable, "-m", "dask"]
KEY = np.dtype([("proto", "u4"), ("saddr", "u1", (4,))])
VALUE = np.dtype([("packets", "u8"), ("bytes", "u8")])
#: Another suite may run on the machine.
NAME = f"fleet_{os.getpid()}"


class Fleet:
    """A scheduler, workers, and a client of them."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.log = (folder / "log").open("wb")
        self.pins = folder / "bpffs"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.scheduler = self.start("scheduler", "--port", "0", "--no-dashboard")

    def start(self, what: str, *options: str, own_pins: bool = False) -> subprocess.Popen[bytes]:
        command = [*DASK, what, "--scheduler-file", str(self.file), "--host", "127.0.0.1", *options]
        if own_pins:  # a mount namespace of its own: another host, as far as pins go
            mounts = f'umount {self.pins} && mount -t bpf none {self.pins} && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mounts, "sh", *command]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def worker(self, name: str, *, own_pins: bool = False) -> None:
        self.workers[name] = self.start(
            "worker", "--name", name, "--no-nanny", "--nthreads", "1", "--no-dashboard",
            own_pins=own_pins)

    def connect(self) -> None:
        deadline = time.monotonic() + 60
        while not self.file.exists():
            assert self.scheduler.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        self.client = Client(scheduler_file=str(self.file), timeout=30)
        self.client.wait_for_workers(len(self.workers), timeout=60)

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close(timeout=5)
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    threads = threading.active_count()
    with mounted("bpf", folder / "bpffs"):
        fleet = Fleet(folder)
        try:
            fleet.worker("alpha")
            fleet.worker("beta")
            fleet.worker("bare", own_pins=True)
            fleet.connect()
            yield fleet
        finally:
            fleet.close()
    # A client that has lost its scheduler looks for it for 30 s, in a thread.
    deadline = time.monotonic() + 120
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == threads, threading.enumerate()


@pytest.fixture
def flows(make: Callable[..., Any], hosts: Fleet) -> Iterator[Any]:
    """A pinned map of ten flows."""
    pin = hosts.pins / "flows"
    m = make("percpu_hash", key=KEY, value=VALUE, max_entries=64, name=NAME, pin=pin)
    keys, values = np.zeros(10, KEY), np.zeros((10, 1), VALUE)
    keys["proto"], keys["saddr"] = np.where(np.arange(10) < 4, 6, 17), (10, 0, 0, 1)
    keys["saddr"][:, 3] = range(10)
    values["packets"][:, 0], values["bytes"][:, 0] = 1, np.arange(10)
    m.update_many(keys, values)
    yield m
    m.unpin(pin)


def said(snapshot: fleet.Snapshot) -> dict[str, str]:
    return {failure.host: failure.reason for failure in snapshot.failures}


def test_one_table_of_all_hosts(hosts: Fleet, flows: Any) -> None:
    cpus = len(fastmap.possible_cpus())
    found = fleet.snapshot(hosts.client, name=NAME, reduce="sum",
                           annotations={"key.saddr": "ipv4"})
    assert found.failures == found.partial == ()
    assert found.table.schema == pyarrow.schema([
        ("host", pyarrow.string()), ("proto", pyarrow.uint32()), ("saddr", pyarrow.string()),
        ("packets", pyarrow.uint64()), ("bytes", pyarrow.uint64())])
    for host in ("alpha", "bare", "beta"):
        rows = [row for row in found.table.to_pylist() if row["host"] == host]
        assert sorted((row["saddr"], row["bytes"]) for row in rows) == [
            (f"10.0.0.{i}", i * cpus) for i in range(10)]


def test_rows_are_reduced_where_they_are(hosts: Fleet, flows: Any) -> None:
    cpus = len(fastmap.possible_cpus())
    found = fleet.snapshot(
        hosts.client, path=hosts.pins / "flows", reduce="sum", where=("value.bytes", ">", 0),
        group_by=["proto"], aggregate={"bytes": "sum", "packets": "max", "saddr": "count"},
        annotations={"key.saddr": "ipv4"}, workers=["beta", "alpha"], host_column="machine")
    rows = sorted(found.table.to_pylist(), key=lambda row: (row["machine"], row["proto"]))
    assert rows == [
        {"machine": host, "proto": proto, "bytes": total * cpus, "packets": cpus, "saddr": count}
        for host in ("alpha", "beta") for proto, total, count in ((6, 6, 3), (17, 39, 6))]
    one = fleet.snapshot(hosts.client, name=NAME, reduce="sum", group_by=[],
                         aggregate={"bytes": "min"}, workers=["alpha"])
    assert one.table.to_pylist() == [{"host": "alpha", "bytes": 0}]


def test_an_asynchronous_client_gets_a_coroutine(hosts: Fleet, flows: Any) -> None:
    async def ask() -> fleet.Snapshot:
        async with Client(hosts.client.scheduler.address, asynchronous=True) as client:
            found: fleet.Snapshot = await fleet.snapshot(client, name=NAME, reduce="sum")
            return found

    found = asyncio.run(ask())
    assert len(found.table) == 30 and found.failures == ()


def test_a_host_without_the_map_is_named(hosts: Fleet, flows: Any) -> None:
    found = fleet.snapshot(hosts.client, path=hosts.pins / "flows", reduce="sum")
    assert set(found.table["host"].to_pylist()) == {"alpha", "beta"} and len(found.table) == 20
    (failure,) = found.failures
    assert failure.host == "bare" and isinstance(failure.error, fastmap.ObjectNotFound)
    assert failure.worker.startswith("tcp://127.0.0.1:") and "ObjectNotFound" in failure.reason


def test_what_fails_on_all_hosts_is_an_empty_table(hosts: Fleet, flows: Any) -> None:
    found = fleet.snapshot(hosts.client, name="nobody_has_it")
    assert len(found.table) == 0 and found.table.column_names == ["host"]
    assert said(found).keys() == {"alpha", "bare", "beta"}
    found = fleet.snapshot(hosts.client, name=NAME, group_by=["prto"],
                           aggregate={"bytes": "sum"}, workers=["alpha"])
    assert said(found) == {"alpha": "ValueError: no column prto; there are: proto, saddr, packets, "
                                    "bytes"}


def test_what_a_host_raises_is_said_once_and_here(hosts: Fleet, flows: Any) -> None:
    """Not with a traceback of dask on the host's stderr."""
    found = fleet.snapshot(hosts.client, name="nobody_has_it", workers=["alpha"])
    (failure,) = found.failures
    assert str(failure) == "alpha: ObjectNotFound: [Errno 2] no map is named 'nobody_has_it'"
    logged = Path(hosts.log.name).read_text()  # a worker logs before it answers
    assert "Traceback" not in logged and "Compute Failed" not in logged


def test_an_error_that_does_not_travel_is_told_by_its_words(monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    class Local(Exception):
        pass

    def read(request: Any) -> Any:
        raise Local("only here")

    monkeypatch.setattr(fleet, "_read", read)
    told = fleet._answered(None)  # type: ignore[arg-type]
    assert isinstance(told, RuntimeError) and str(told) == "Local: only here"


def test_workers_are_called_by_their_names_even_if_that_is_0() -> None:
    known = {"tcp://10.0.0.1:1": {"name": 0}, "tcp://10.0.0.1:2": {"name": 1},
             "tcp://10.0.0.2:1": {"name": "tcp://10.0.0.2:1"}, "tcp://10.0.0.3:1": {"name": None}}
    assert fleet._hosts(known, None) == {
        "0": "tcp://10.0.0.1:1", "1": "tcp://10.0.0.1:2", "10.0.0.2": "tcp://10.0.0.2:1",
        "10.0.0.3": "tcp://10.0.0.3:1"}
    assert fleet._hosts(known, ["0"]) == {"0": "tcp://10.0.0.1:1"}


@pytest.mark.parametrize("missing", ["distributed", "pyarrow"])
def test_what_is_missing_names_the_extra_of_a_fleet(missing: str,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"fastmap-bpf\[fleet\]") as caught:
        fleet.snapshot(None, name="a")
    assert caught.value.name == missing


def test_hosts_of_other_columns_are_named(make: Callable[..., Any], hosts: Fleet,
                                          flows: Any) -> None:
    other = make("percpu_hash", key="u4", value="u4", max_entries=4)
    pin = f"/proc/{hosts.workers['bare'].pid}/root{hosts.pins}/flows"  # as that host sees it
    other.pin(pin)
    found = fleet.snapshot(hosts.client, path=hosts.pins / "flows", reduce="sum")
    other.unpin(pin)
    assert said(found) == {
        "bare": "other columns than most hosts: key: uint32, value: uint64"}
    assert set(found.table["host"].to_pylist()) == {"alpha", "beta"} and len(found.table) == 20


@pytest.mark.parametrize(("options", "error", "match"), [
    ({}, TypeError, "a name= or a path="),
    ({"name": "a", "path": "/b"}, TypeError, "a name= or a path="),
    ({"name": "a", "timeout": 0}, ValueError, "more than 0 seconds"),
    ({"name": "a", "timeout": "1 s"}, TypeError, "a number of seconds"),
    ({"name": "a", "workers": "alpha"}, TypeError, "a list of names"),
    ({"name": "a", "workers": ["alpha", "gamma"]}, ValueError,
     "no worker gamma; there are: alpha, bare, beta"),
    ({"name": "a", "group_by": ["proto"]}, TypeError, "goes with aggregate="),
    ({"name": "a", "aggregate": {"x": "sum"}}, TypeError, "goes with group_by="),
    ({"name": "a", "group_by": "proto", "aggregate": {"x": "sum"}}, TypeError, "list of columns"),
    ({"name": "a", "group_by": ["a"], "aggregate": {"x": "mean"}}, ValueError, "sum, min, max"),
    ({"name": "a", "group_by": ["a"], "aggregate": {"a": "sum"}}, ValueError, "in group_by and"),
])
def test_what_is_refused_before_a_host_is_asked(hosts: Fleet, options: dict[str, Any],
                                                error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        fleet.snapshot(hosts.client, **options)
    with pytest.raises(TypeError, match=r"a distributed\.Client"):
        fleet.snapshot("tcp://127.0.0.1:8786", name="a")


def test_a_column_of_the_host_s_name(make: Callable[..., Any], hosts: Fleet) -> None:
    with make("hash", key=[("host", "u4")], value="u4", max_entries=4, name="fleet_hosts") as m:
        m.update((1,), 2)
        with pytest.raises(ValueError, match="host_column="):
            fleet.snapshot(hosts.client, name="fleet_hosts")
        found = fleet.snapshot(hosts.client, name="fleet_hosts", host_column="machine")
        assert found.table.column_names == ["machine", "host", "value"] and len(found.table) == 3


def test_a_host_lost_in_the_middle_is_named_and_the_rest_is_there(hosts: Fleet, flows: Any) -> None:
    """One stands still, as a machine that hangs; the next time it dies while it is asked."""
    beta = hosts.workers["beta"]
    os.kill(beta.pid, signal.SIGSTOP)
    began = time.monotonic()
    found = fleet.snapshot(hosts.client, name=NAME, reduce="sum", timeout=1.5)
    assert 1.4 < time.monotonic() - began < 60
    assert said(found) == {"beta": "no answer within 1.5 s"}
    assert set(found.table["host"].to_pylist()) == {"alpha", "bare"} and len(found.table) == 20

    killer = threading.Timer(0.5, beta.kill)
    killer.start()
    began = time.monotonic()
    found = fleet.snapshot(hosts.client, name=NAME, reduce="sum", timeout=60)
    assert 0.4 < time.monotonic() - began < 60
    killer.join()
    assert said(found) == {"beta": "its worker was lost"}
    assert set(found.table["host"].to_pylist()) == {"alpha", "bare"} and len(found.table) == 20
    assert fleet.snapshot(hosts.client, name=NAME).failures == ()


def test_a_scheduler_lost_in_the_middle_ends_the_call(hosts: Fleet, flows: Any) -> None:
    """The last test: it takes the fleet down."""
    alpha = hosts.workers["alpha"]
    os.kill(alpha.pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, hosts.scheduler.kill)
    killer.start()
    began = time.monotonic()
    found = fleet.snapshot(hosts.client, name=NAME, reduce="sum", timeout=30)
    assert 0.4 < time.monotonic() - began < 60
    killer.join()
    assert said(found).keys() == {"alpha"} and "the scheduler" in said(found)["alpha"]
    assert "bare" in found.table["host"].to_pylist()
    began = time.monotonic()
    with pytest.raises(OSError):
        fleet.snapshot(hosts.client, name=NAME, timeout=2)
    assert time.monotonic() - began < 60
