"""`python -m bench.ratios [WORD ...]`: the table alone, as Markdown, in about a minute.

With words, only the rows whose function has one of them in its name. Ends with status 1 where a
target is missed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from .allocations import STEADY, growth
from .cside import CSide
from .harness import Result, waited
from .rows.array_cases import ARRAYS
from .rows.cases import ROWS, Size
from .rows.kernel_cases import KERNEL_ROWS
from .rows.perf_rows import PERFS
from .rows.rings import RINGS
from .rows.threads import bulk_calls, element_rate, progress
from .table import environment, markdown


def measured(words: list[str]) -> Iterator[Result]:
    """The rows one after the other, each reported while it is known."""
    c, size = CSide(), Size()

    def wanted(name: str) -> bool:
        return not words or any(word in name for word in words)

    rows = {**{row.__name__: row for row in (*ROWS, *RINGS)}, **KERNEL_ROWS, **ARRAYS, **PERFS}
    for name, row in rows.items():
        if wanted(name):
            with row(c, size) as case:
                case.check()
                yield case.compare()
    for work in STEADY:
        if wanted(f"allocations_{work}"):
            yield growth(work)
    if wanted("progress"):
        with bulk_calls(c, size) as bulks:
            for bulk in bulks:
                yield progress(bulk)
    if wanted("element_rate"):
        yield element_rate(c, size)


def main(words: list[str], write: Callable[[str], object] = print) -> int:
    """Print the table; progress goes to stderr, so that the table can be piped."""
    results = []
    start, waits = time.perf_counter_ns(), waited()
    for result in measured(words):
        print(result, file=sys.stderr, flush=True)
        results.append(result)
    busy = (waited() - waits) / (time.perf_counter_ns() - start)
    write(
        f"{markdown(results)}\n\n{environment()}. "
        f"Other work held the measured CPU for {busy:.0%} of the time."
    )
    return int(any(result.verdict == "missed" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
