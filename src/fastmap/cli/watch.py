"""``fastmap watch``: the records of a ring or perf buffer, as they come."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from fastmap.cli.shared.cells import cells
from fastmap.cli.shared.command import Command
from fastmap.cli.shared.formats import Sink
from fastmap.cli.shared.output import Failure, Misuse, json_visible, warn
from fastmap.cli.shared.selection import count, positive
from fastmap.cli.shared.target import add_map, opened, record_dtype
from fastmap.maptypes.perf import PerfBuffer
from fastmap.maptypes.references import PerfEventArray
from fastmap.maptypes.rings import RingBuffer
from fastmap.maptypes.stream_batch import StreamBatch
from fastmap.text.json import json_lines

#: Records that are taken at once at most: what a Ctrl-C or a closed pipe can lose.
AT_ONCE = 4096


class Readable(Protocol):
    """A ring or perf buffer."""

    def read(self, max: int | None = None, timeout: float | None = None) -> StreamBatch:
        """Take records."""


def _add(parser: argparse.ArgumentParser) -> None:
    add_map(parser, "RING")
    parser.add_argument("--record", metavar="TYPE",
                        help="what a record is: 'pid:u4,comm:S16', or with --from a struct's name")
    parser.add_argument("--from", metavar="SOURCE", dest="source",
                        help="whose BTF has that struct: an object file, a pin, 'vmlinux', or the "
                             "id of a program")
    parser.add_argument("--json", action="store_true", help="a JSON value on each line")
    parser.add_argument("--count", metavar="N", type=count, help="end after N records")
    parser.add_argument("--seconds", metavar="S", type=positive, help="end after so long")
    parser.add_argument("--force", action="store_true",
                        help="perf buffers: take the place of whoever reads it")


def _run(given: argparse.Namespace) -> int:
    if given.source is not None and given.record is None:
        raise Misuse("--from goes with --record NAME")
    dtype = None if given.record is None else record_dtype(given.record, given.source)
    with ExitStack() as stack:
        m: Any = stack.enter_context(opened(given))
        ring: Readable
        if isinstance(m, RingBuffer):
            warn("watch takes the records: whoever else reads this ring does not get them")
            ring = m
        elif isinstance(m, PerfEventArray):
            if not given.force:
                raise Failure("a perf buffer has one reader, and watch would take its place for "
                              "good, also after its end; --force where there is none")
            warn("watch takes the place of this perf buffer's reader")
            ring = stack.enter_context(PerfBuffer(m))
        else:
            raise Failure(f"{m.name or m.id} is of type {m.type.name.lower()}, no ring: "
                          "fastmap dump reads tables")
        _watch(ring, dtype, given)
    return 0


def _watch(ring: Readable, dtype: np.dtype[Any] | None, given: argparse.Namespace) -> None:
    end = None if given.seconds is None else time.monotonic() + given.seconds
    left = given.count
    shown = _json if given.json else _text
    sys.stdout.flush()
    sink = Sink(sys.stdout.fileno())
    while left is None or left > 0:
        # Never for ever, so that a pipe that has closed is noticed.
        wait = 0.5 if end is None else min(0.5, max(end - time.monotonic(), 0))
        batch = ring.read(AT_ONCE if left is None else min(left, AT_ONCE), timeout=wait)
        if batch.lost:
            warn(f"{batch.lost} records were lost")
        # At once, whatever waits for it in a pipe.
        for record in range(len(batch)):
            text = shown(bytes(batch[record]), dtype)
            sink.write(json_visible(text.decode()).encode()
                       if given.json and sink.terminal else text)
        if left is not None:
            left -= len(batch)
        if end is not None and time.monotonic() >= end:
            return


def _typed(data: bytes, dtype: np.dtype[Any] | None) -> np.ndarray[Any, Any]:
    """Return a record as an array of one; as bytes where it is too short for its dtype."""
    if dtype is None or len(data) < dtype.itemsize:
        dtype = np.dtype(f"V{len(data)}")
    return np.frombuffer(data, dtype, 1) if dtype.itemsize else np.empty(1, dtype)


def _json(data: bytes, dtype: np.dtype[Any] | None) -> bytes:
    return json_lines(_typed(data, dtype))


def _text(data: bytes, dtype: np.dtype[Any] | None) -> bytes:
    record = _typed(data, dtype)
    names = record.dtype.names
    text = cells(record)[0] if names is None else " ".join(
        f"{name}={cells(record[name])[0]}" for name in names)
    return f"{text}\n".encode(sys.stdout.encoding, "backslashreplace")


WATCH = Command(
    "Print the records of a ring buffer (or of a perf buffer) as they come. Records that are "
    "printed are taken: whoever else reads the ring does not get them.",
    ("fastmap watch events", "fastmap watch events --record 'pid:u4,comm:S16'",
     "fastmap watch /sys/fs/bpf/events --record event --from exec.bpf.o --json --count 10"),
    _add, _run)
