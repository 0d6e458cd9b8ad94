"""``fastmap dump``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from fastmap.cli.shared.cells import text_columns
from fastmap.cli.shared.command import Command
from fastmap.cli.shared.formats import WRITERS, Sink
from fastmap.cli.shared.histogram import draw
from fastmap.cli.shared.output import Failure, Misuse, print_table, progress
from fastmap.cli.shared.selection import add_selection, selected, selected_live, table_of
from fastmap.cli.shared.target import add_dtypes, add_map, opened_table
from fastmap.live.table import LiveTable
from fastmap.maptypes.batch import Batch
from fastmap.maptypes.handle import Map
from fastmap.maptypes.trie import LpmTrie, ip_version
from fastmap.text.decoders import DECODERS


def _add(parser: argparse.ArgumentParser) -> None:
    add_map(parser)
    add_dtypes(parser)
    add_selection(parser)
    parser.add_argument("--as", metavar="COLUMN=WORD", dest="notes", action="append", default=[],
                        type=note, help=f"how a column is written: key.saddr=ip; one of "
                                        f"{', '.join(DECODERS)}")
    formats = parser.add_mutually_exclusive_group()
    for name, what in (("json", "JSON, an array of {\"key\": ..., \"value\": ...}"),
                       ("csv", "CSV, with a heading"), ("arrow", "a stream of Arrow (IPC)"),
                       ("parquet", "Parquet"), ("histogram", "a histogram: of an array of "
                                                "counters, of keys with a field 'slot', or of "
                                                "values that are arrays of slots")):
        formats.add_argument(f"--{name}", dest="format", action="store_const", const=name,
                             help=what)
    parser.add_argument("--raw", action="store_true",
                        help="numbers of enums, not the names that BTF has for them")
    parser.add_argument("--linear", action="store_true",
                        help="slots of a histogram are numbers, not powers of two")
    parser.add_argument("--unit", default="", help="what a histogram's slots are of, such as usecs")
    parser.add_argument("-o", "--output", metavar="FILE",
                        help="write to FILE, which appears when it is whole")


def _run(given: argparse.Namespace) -> int:
    if given.output and given.format in (None, "histogram"):
        raise Misuse("-o goes with --json, --csv, --arrow or --parquet")
    if (given.linear or given.unit) and given.format != "histogram":
        raise Misuse("--linear and --unit go with --histogram")
    if given.notes and given.format in ("json", "histogram"):
        raise Misuse("--as goes with tables, --csv, --arrow and --parquet")
    notes = dict(given.notes)
    with opened_table(given) as m:
        per_cpu = not isinstance(m, LiveTable) and m.per_cpu and given.reduce is None
        if given.format == "histogram" and per_cpu:
            given.reduce, per_cpu = "sum", False
        total = m.max_entries if isinstance(m, Map) and getattr(m, "indexed", False) else None
        with progress(f"reading {m.name or m.id}", total) as advance:
            chunks = selected_live(m, given) if isinstance(m, LiveTable) else selected(
                m, given, advance)
            if given.format == "histogram":
                draw(chunks, by=given.by, linear=given.linear, unit=given.unit)
            elif given.format is None:
                _table(_described(chunks, given, notes), m, per_cpu, notes)
            else:
                if given.format in ("json", "csv"):
                    chunks = _described(chunks, given, notes)
                with _sink(given) as sink:
                    WRITERS[given.format](chunks, sink, per_cpu, lambda: _none(m, given, notes),
                                          notes, not given.raw)
    return 0


def _described(chunks: Iterator[Batch], given: argparse.Namespace,
               notes: dict[str, str]) -> Iterator[Batch]:
    """Yield the entries as BTF describes them; columns of --as are decoded from their numbers."""
    return (batch.described(names=not given.raw, raw=notes) for batch in chunks)


def note(text: str) -> tuple[str, str]:
    """Return the column and the word of ``--as``."""
    path, _, word = text.partition("=")
    if word not in DECODERS:
        raise argparse.ArgumentTypeError(f"{text!r}: COLUMN=WORD, with one of "
                                         f"{', '.join(DECODERS)}")
    return path, word


def _table(chunks: Iterator[Batch], m: Map | LiveTable, per_cpu: bool,
           notes: dict[str, str]) -> None:
    as_objects = isinstance(m, LpmTrie) and ip_version(m.key_dtype) > 0
    first = next(chunks, None)
    if first is None:
        print("no entries")
        return

    def rows() -> Iterator[tuple[str, ...]]:
        for batch in chain([first], chunks):
            yield from zip(*(texts for _, texts in text_columns(batch, per_cpu, as_objects, notes)),
                           strict=True)

    heading = [column for column, _ in text_columns(_head(first), per_cpu, as_objects, notes)]
    print_table(heading, rows())


def _none(m: Map | LiveTable, given: argparse.Namespace, notes: dict[str, str]) -> Batch:
    """Return a batch of no entries, of the dtypes that entries would have."""
    if isinstance(m, LiveTable):
        return m.read(reduce=given.reduce or "sum").take(slice(0))  # type: ignore[arg-type]
    empty = table_of(m).reader(reduce=given.reduce).empty()
    return next(_described(iter([empty]), given, notes)) if given.format == "csv" else empty


def _head(batch: Batch) -> Batch:
    return Batch(batch.keys[:1], batch.values[:1], complete=False, started_ns=0, ended_ns=0,
                 key_objects=batch.key_objects, layouts=batch.layouts)


@contextmanager
def _sink(given: argparse.Namespace) -> Iterator[Sink]:
    """Yield where the bytes go: stdout, or a file that gets its name when all of it is there."""
    if given.output is None:
        if given.format in ("arrow", "parquet") and sys.stdout.isatty():
            raise Misuse(f"--{given.format} is not for a terminal: -o FILE, or a pipe")
        sys.stdout.flush()
        yield Sink(sys.stdout.fileno())
        return
    import tempfile  # late: it is long to import

    target = Path(given.output)
    if target.exists() and not target.is_file():  # /dev/null, a FIFO: not to be replaced
        number = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield Sink(number)
        finally:
            os.close(number)
        return
    target = target.resolve()  # of a link, the file that it leads to
    try:
        number, unfinished = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise Failure(f"{target}: {error.strerror}") from None
    try:
        try:
            yield Sink(number)
            os.fsync(number)
            os.fchmod(number, 0o666 & ~_umask())
        finally:
            os.close(number)
        os.replace(unfinished, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


DUMP = Command(
    "Write the entries of a map: as a table for people, or for other programs. The map is read "
    "chunk by chunk, and every entry that stays in it meanwhile is there once.",
    ("fastmap dump flows", "fastmap dump flows --json > flows.json",
     "fastmap dump flows --where 'value.bytes >= 4096' --top 10 --by value.bytes",
     "fastmap dump flows --as key.saddr=ip --as value.comm=comm",
     "fastmap dump counts --reduce sum --csv", "fastmap dump flows --parquet -o flows.parquet",
     "fastmap dump latency --histogram --unit usecs"),
    _add, _run)
