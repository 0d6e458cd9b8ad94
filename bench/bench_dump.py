"""``fastmap dump --json`` against ``bpftool map dump -j``: whole processes, from start to exit.

Both write the same map to a file, and what was written is parsed and compared.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastmap

from .conftest import Keep
from .harness import result_of
from .rows.cases import scattered

#: With --fast, which promises what bpftool does; and without, where every entry that stays in the
#: map is there once. What the last one wrote is compared.
OPTIONS: tuple[tuple[str, ...], ...] = (("--fast",), ())
#: At least so many times as fast.
TARGET = 8.0
STRUCT = [("packets", "u8"), ("bytes", "u8"), ("flags", "u4"), ("comm", "S12")]


@pytest.fixture(params=["u8", STRUCT], ids=["u64", "struct"])
def filled(request: pytest.FixtureRequest, once: bool) -> Iterator[Any]:
    entries = 2_000 if once else 1_000_000
    with fastmap.create("hash", key="u8", value=request.param, max_entries=entries,
                        name="bench_dump", btf="bpftool") as m:
        keys = scattered(entries)
        values = np.zeros(entries, m.value_dtype)
        if m.value_dtype.names:
            values["packets"], values["bytes"], values["flags"] = keys, 1500 * keys, 3
            values["comm"] = b"systemd"
        else:
            values[:] = keys
        m.update_many(keys, values)
        yield m


#: As it is where it was installed: with the bytecode that PYTHONDONTWRITEBYTECODE keeps away, which
#: would be made anew in each start.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def seconds(command: list[str], target: Path) -> float:
    """The time of a process that writes to `target`, from its start to its exit."""
    with open(target, "wb") as file:
        start = time.perf_counter()
        subprocess.run(command, stdout=file, env=ENVIRONMENT, check=True)
        return time.perf_counter() - start


def same(m: Any, ours: Path, theirs: Path) -> None:
    """Ours says what the map holds, theirs as many entries: a million dicts of it are 4 GB."""
    said = {each["key"]: each["value"] for each in json.loads(ours.read_bytes())}
    keys, values = (column.tolist() for column in m.snapshot())
    assert len(said) == len(keys) == theirs.read_bytes().count(b'"formatted"')
    for key, value in zip(keys, values, strict=True):
        if m.value_dtype.names:
            packets, size, flags, comm = value
            value = {"packets": packets, "bytes": size, "flags": flags,
                     "comm": comm.decode()}
        assert said[key] == value


def test_dump(benchmark: BenchmarkFixture, filled: Any, once: bool, tmp_path: Path,
              keep: Keep) -> None:
    bpftool = shutil.which("bpftool", path="/usr/sbin:/sbin:/usr/local/sbin:/usr/bin")
    assert bpftool is not None, "no bpftool: apt-get install bpftool"
    entries, number = len(filled), str(filled.id)
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    # In turn, and on all CPUs: what a process does on several is part of it.
    commands = [([bpftool, "-j", "map", "dump", "id", number], theirs),
                *(([sys.executable, "-m", "fastmap", "dump", number, "--json", *options], ours)
                  for options in OPTIONS)]
    benchmark.group = "dump"
    benchmark.extra_info["entries"] = entries
    samples = benchmark.pedantic(
        lambda: [[seconds(*command) for command in commands] for _ in range(1 if once else 5)])
    same(filled, ours, theirs)
    if once:
        return
    kind = "a struct of 32 bytes" if filled.value_dtype.names else "u64"
    reference, *each = ([1e9 * took / entries for took in side]
                        for side in zip(*samples, strict=True))
    for options, ns in zip(OPTIONS, each, strict=True):
        name = f"`{' '.join(('fastmap dump --json', *options))}`, 1M entries, u64 to {kind}"
        keep(result_of(name, "`bpftool map dump -j`", ns, reference, entries=entries,
                       limit=1 / TARGET))
