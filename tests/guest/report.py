"""What pytest said in each guest, and the table of a whole matrix."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.etree import ElementTree


@dataclass
class Result:
    """One run of the tests on one kernel with one topology."""

    kernel: str
    topology: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    skips: Counter[str] = field(default_factory=Counter)  # reason: how many
    failures: list[str] = field(default_factory=list)  # names of tests
    problem: str | None = None  # why there is no result, or why it is not to be trusted

    @property
    def good(self) -> bool:
        return self.problem is None and self.failed == 0

    def summary(self) -> str:
        """Return the counts as a phrase."""
        text = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{text}; {self.problem}" if self.problem else text

    def read(self, junit: bytes, status: int) -> None:
        """Fill in the counts from a junit file, and hold them against pytest's exit status."""
        try:
            cases = list(ElementTree.fromstring(junit).iter("testcase"))
        except ElementTree.ParseError as error:
            self.problem = f"junit result unreadable: {error}"
            return
        for case in cases:
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
                name = f"{case.get('classname', '')}.{case.get('name', '')}"
                self.failures.append(name.lstrip("."))
            elif skip is not None:
                self.skipped += 1
                self.skips[_reason(skip)] += 1
            else:
                self.passed += 1
        if status == 5:
            self.problem = "no test was selected"
        elif status != (1 if self.failed else 0):
            self.problem = f"pytest ended with status {status}"


def _reason(skip: ElementTree.Element) -> str:
    """Return why a test was skipped, without the addresses that would make reasons differ."""
    text = (skip.get("message") or skip.text or "no reason given").strip().splitlines()[0]
    if skip.get("type") == "pytest.xfail":
        text = f"expected failure: {text}"
    return re.sub(r"0x[0-9a-f]+", "0x...", text)


def table(results: Iterable[Result]) -> str:
    """Return the results as a table, with the reasons of each row's skips below it."""
    rows = [("kernel", "topology", "passed", "failed", "skipped", "seconds", "")]
    notes: list[list[str]] = [[]]
    for result in results:
        mark = "" if result.good else "FAILED"
        counts = (str(result.passed), str(result.failed), str(result.skipped))
        rows.append((result.kernel, result.topology, *counts, f"{result.seconds:.1f}", mark))
        lines = [result.problem] if result.problem else []
        lines += [f"failed: {name}" for name in result.failures]
        lines += [f"skipped {count}: {reason}" for reason, count in result.skips.most_common()]
        notes.append(lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, below in zip(rows, notes, strict=True):
        cells = [
            cell.ljust(width) if index < 2 or index == 6 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        lines += [f"    {line}" for line in below]
    return "\n".join(lines)
