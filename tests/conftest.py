"""What every test stands on: the real kernel, and a ledger that nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from support import EMULATED, mounted

import fastmap
from fastmap._core.system import memory
from fastmap.enums import running_kernel, version_text

# A guest of tests/guest has no compiler and no source tree: these are about the sources; nor has it
# the libraries of the extras, which those about Arrow, metrics and fleets import.
collect_ignore = (["repo", "cli/test_cli_formats.py", "core/test_uapi.py",
                   "export/test_arrow.py", "export/test_arrow_files.py",
                   "export/test_arrow_full_disk.py",
                   "export/test_declaration.py", "export/test_fleet.py", "export/test_interop.py",
                   "export/test_names.py", "export/test_prometheus.py", "export/test_reload.py",
                   "export/test_server.py", "export/test_service.py"]
                  if EMULATED else [])

if EMULATED:
    settings.register_profile("emulated", suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("emulated")

CAP_SYS_ADMIN, CAP_BPF, CAP_PERFMON = 21, 39, 38
#: Of a test: it is skipped because the running kernel is older than a feature it needs.
TOO_OLD = pytest.StashKey[bool]()


def effective_capabilities() -> int:
    """Return the effective capabilities of this process as the kernel's bit mask."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise RuntimeError("no CapEff in /proc/self/status")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fail at once, with one line, where bpf(2) may not be used: never a green wall of skips."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell starts what runs behind its back so, and each child of the tests would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = effective_capabilities()
    if not mask >> CAP_SYS_ADMIN & 1 and not (mask >> CAP_BPF & 1 and mask >> CAP_PERFMON & 1):
        pytest.exit("these tests use bpf(2) for real: run them as root "
                    "(CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON)", returncode=3)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Hide what stays for the whole run from the collector: the ledger is ten times quicker."""
    gc.collect()
    gc.freeze()


def open_descriptors() -> dict[int, str]:
    """Return the descriptors of this process that belong to the kernel's BPF objects."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing itself
        if "bpf" in target or "btf" in target:
            found[int(name)] = target
    return found


@pytest.fixture(autouse=True)
def ledger() -> Iterator[None]:
    """Fail a test that leaves a BPF descriptor, or a byte of the core's memory, behind."""
    gc.collect()
    before, memory_before = open_descriptors(), memory.live()
    yield
    gc.collect()
    after, memory_after = open_descriptors(), memory.live()
    assert after == before, "descriptors were left behind"
    assert memory_after == memory_before, "memory (owners, bytes) was left behind"


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return `fastmap.create` whose maps are closed when the test ends."""
    made: list[Any] = []

    def create(*args: Any, **options: Any) -> Any:
        made.append(fastmap.create(*args, **options))
        return made[-1]

    yield create
    for each in made:
        each.close()


@pytest.fixture
def filled(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a maker of maps of u8 values, of the entries ``{i: 3 * i}`` for i below n."""

    def create(entries: int, *, type: str = "hash", max_entries: int | None = None,
               **options: Any) -> Any:
        m = make(type, key="u4" if type.endswith("array") else "u8", value="u8",
                 max_entries=max_entries or max(entries, 1), **options)
        keys = np.arange(entries, dtype="u8")
        if entries:
            m.update_many(keys, 3 * keys[:, None] if m.per_cpu else 3 * keys)
        return m

    return create


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with a bpffs of the test's own."""
    with mounted("bpf", tmp_path / "bpffs") as where:
        yield where


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With FASTMAP_NO_SKIPS, as in CI, a test that is skipped fails, but where Linux is too old."""
    report = yield
    if (os.environ.get("FASTMAP_NO_SKIPS") and report.skipped and not hasattr(report, "wasxfail")
            and not item.stash.get(TOO_OLD, False)):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a later kernel; fail it where a new enough one lacks the feature.

    ``@pytest.mark.needs("ARENA", ...)`` names features as `fastmap.features` does.
    """
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            feature = fastmap.features()[name]
            if feature.since is None or running_kernel() >= feature.since:
                assert feature.supported, f"this kernel should have it: {feature}"
            else:
                item.stash[TOO_OLD] = True
                pytest.skip(f"{name} needs Linux {version_text(feature.since)}")
