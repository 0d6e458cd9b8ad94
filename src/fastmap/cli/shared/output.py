"""What the subcommands print: tables, sizes, progress; plain where nobody looks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, TextIO

from fastmap.text.visible import visible

#: Work that is done before so many seconds are over shows no progress.
PATIENCE = 0.5
#: Rows by which the widths of a table's columns are settled.
SETTLING = 1000

#: Columns of the terminal that a text is cut to at least.
LEAST = 6

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"


class Failure(Exception):
    """What a subcommand cannot do: one line on stderr, and exit status 1."""


class Misuse(Exception):
    """Options that do not go together: one line on stderr, and exit status 2."""


def coloured(stream: TextIO) -> bool:
    """Return whether colours are wanted: on a terminal that has them (see no-color.org)."""
    return (stream.isatty() and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb")


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return `text` with a style where colours are wanted."""
    return f"\x1b[{style}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text


def width() -> int | None:
    """Return the columns of the terminal; None where the output goes elsewhere."""
    if not sys.stdout.isatty():
        return None
    from shutil import get_terminal_size  # late: it imports every compression there is

    return get_terminal_size().columns


def cut(line: str, columns: int | None) -> str:
    """Return the line, cut to so many columns, and seen to be."""
    return line if columns is None or len(line) <= columns else line[:max(columns - 1, 0)] + "…"


def json_visible(text: str) -> str:
    """Return JSON that does nothing to a terminal, and means the same."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def warn(text: object) -> None:
    """Say something on stderr that does not end the work."""
    said = "\n".join(map(visible, str(text).split("\n")))
    print(f"{styled('fastmap:', YELLOW, sys.stderr)} {said}", file=sys.stderr, flush=True)


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(json_visible(text) if sys.stdout.isatty() else text)


def size_text(size: int | None) -> str:
    """Return bytes as people read them.

    >>> size_text(65536), size_text(512)
    ('64.0 KiB', '512 B')
    """
    if size is None:
        return "?"
    if size < 1024:
        return f"{size} B"
    # Half a tenth below the next unit, it is that: never "1024.0 KiB".
    power = next(power for power in (1, 2, 3, 4) if size < 1023.95 * 1024 ** power or power == 4)
    return f"{size / 1024 ** power:.1f} {'KMGT'[power - 1]}iB"


class Column(NamedTuple):
    """A column of a table: its heading, and whether it is of numbers, which end at one place."""

    heading: str
    right: bool = False


def table_lines(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, the heading first.

    The first rows settle the widths. On a terminal that is too narrow the widest columns of text
    are cut, and then those at the end are left out: half a number would be another one. In a pipe
    all of it is there.
    """
    source = iter(rows)
    first = list(islice(source, SETTLING))
    widths = [max([len(column.heading), *(len(row[i]) for row in first)])
              for i, column in enumerate(columns)]
    limit = width()
    shown = len(columns) if limit is None else _fit(columns, widths, limit)

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(widths[i]) if columns[i].right else
                  cut(cell, None if limit is None else widths[i]).ljust(widths[i])
                  for i, cell in enumerate(cells[:shown])]
        while True:  # a number behind the settled widths may still be too long
            more = ["…"] if len(padded) < len(columns) else []
            text = "  ".join(padded + more).rstrip()
            if limit is None or len(text) <= limit or len(padded) <= 1:
                return text
            del padded[-1]

    yield styled(line([column.heading for column in columns]), BOLD)
    yield from map(line, chain(first, source))


def _fit(columns: Sequence[Column], widths: list[int], limit: int) -> int:
    """Make the widths fit a line, the widest text first; return how many columns are shown."""
    wanted = list(widths)
    for shown in range(len(columns), 0, -1):
        widths[:] = wanted
        more = 3 if shown < len(columns) else 0  # what says that there are more
        over = sum(widths[:shown]) + 2 * (shown - 1) + more - limit
        texts = [i for i in range(shown) if not columns[i].right]
        while over > 0 and texts:
            widest = max(texts, key=lambda i: widths[i])
            if widths[widest] <= LEAST:
                break
            widths[widest] -= 1
            over -= 1
        if over <= 0:
            return shown
    return 1


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as it comes."""
    lines = table_lines(columns, rows)
    while some := list(islice(lines, SETTLING)):
        print("\n".join(some))


#: Tells that so many more of the work are done.
Advance = Callable[[int], None]


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show on stderr how far the work is, once it has taken a while: only on a terminal of its own.

    Parameters
    ----------
    what : str
        What is done.
    total : int, optional
        How much there is to do, where that is known.
    """
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda done: None
        return
    start = time.monotonic()
    bar: Any = None
    task: Any = None
    done_before = 0

    def advance(done: int) -> None:
        nonlocal bar, task, done_before
        done_before += done
        if bar is None:
            if time.monotonic() - start < PATIENCE or (bar := _bar()) is False:
                return
            bar.start()
            task = bar.add_task(what, total=total, completed=done_before)
        elif bar:
            bar.update(task, completed=done_before)

    try:
        yield advance
    finally:
        if bar:
            bar.stop()


def _bar() -> Any:
    """Return a bar of rich on stderr; False without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        return False
    return Progress(TextColumn("{task.description}"), BarColumn(),
                    TextColumn("{task.completed:,.0f} entries"), TimeElapsedColumn(),
                    console=Console(stderr=True), transient=True)
