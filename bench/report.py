"""`python -m bench.report [JSON ...]`: what `make bench` measured, as an HTML page and Markdown.

Both go to ``bench/results/COMMIT/``, with the plots as SVG and the figures as JSON. A ratio whose
spread crosses 1 gets no verdict; where another library is ahead, the page says so, and why.
"""

from __future__ import annotations

import html
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import plots
from .harness import FEWEST
from .table import environment

HERE = Path(__file__).parent
MEASURED = HERE / "build" / "bench.json"

Info = dict[str, Any]
Table = tuple[Sequence[str], list[Sequence[str]]]

#: Why a library may be ahead, by question; `None` is said where there is no better reason.
WHY: dict[str | None, str] = {
    "one element: lookup": "the kernel's own time is most of it; Python's loop and an int object "
    "for each value come on top, which compiled code does not pay",
    "one element: update": "as for the lookup: Python's loop comes on top of one system call each",
    "one element: delete": "as for the lookup: Python's loop comes on top of one system call each",
    "whole read, each library's best way": "the same LOOKUP_BATCH; fastmap's arrays are fresh and "
    "their pages faulted in by the read, where this one writes into memory it had before "
    "(a `reader` does so too)",
    "drain: the whole map, and the entries are gone": "the same LOOKUP_AND_DELETE_BATCH; as for "
    "the whole read, fastmap's arrays are fresh",
    "5,000 given keys updated at once": "the same work; what fastmap's call costs is checks of the "
    "keys and values, and the in-kernel path's buffers",
    "whole read by the library's iterator": "its iterator makes no Python object for an entry",
    "ring buffer: 100,000 records of 32 bytes read and summed": "it sums in the loop that walks "
    "the ring, with the record in the cache; fastmap sums the strided array afterwards",
    "perf buffer: 100,000 records of 32 bytes read and summed": "it sums in the loop that walks "
    "the rings; fastmap lists where each record lies, its length and CPU, and sums afterwards",
    **{f"the kernel's BTF: from the file to the layout of {struct}": "it begins with no index of "
       "names and makes no dtype, nested and named, of what it walks over"
       for struct in ("task_struct", "timespec64")},
    None: "not looked into yet",
}


def said(*command: str) -> str:
    """What a command says, or nothing where it cannot."""
    try:
        return subprocess.run(command, text=True, capture_output=True, cwd=HERE).stdout.strip()
    except FileNotFoundError:
        return ""


def commit() -> str:
    """The commit that was measured; with a + where the tree had changes."""
    changed = said("git", "status", "--porcelain", "--untracked-files=no", "..")
    return said("git", "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def mitigations() -> str:
    """The kernel's mitigations that are on, in its words."""
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    states = {path.name: path.read_text().strip() for path in sorted(folder.glob("*"))}
    told = [f"{name}: {state}" for name, state in states.items() if state != "Not affected"]
    return "; ".join(told) or "none needed"


def ahead(ratio: Info) -> str:
    """The verdict against a peer: who is ahead, unless the spread crosses 1."""
    low, high = ratio["spread"]
    if ratio["rounds"] < FEWEST:
        return "too busy to say"
    if low <= 1 <= high:
        return "no verdict"
    return "fastmap" if high < 1 else ratio["against"]


def times(ratio: Info) -> str:
    """How many times as fast fastmap is, with the spread."""
    low, high = ratio["spread"]
    if not low or high == float("inf"):
        return f"{1 / ratio['ratio']:.2f}"
    return f"{1 / ratio['ratio']:.2f} ({1 / high:.2f}-{1 / low:.2f})"


def peers(infos: Iterable[Info]) -> Table:
    """Question by question, fastmap beside every library."""
    infos = list(infos)
    returned = {each["question"]: each["returns"] for each in infos
                if each.get("peer") == "fastmap"}
    rows: list[Sequence[str]] = []
    for each in infos:
        if "question" not in each or "ratio" not in each:
            continue
        ratio = each["ratio"]
        verdict = ahead(ratio)
        why = WHY.get(each["question"], WHY[None]) if verdict == ratio["against"] else ""
        rows.append((each["question"], f"{ratio['against']} {each['version']}".strip(),
                     each["returns"], f"{ratio['theirs']:,.0f}",
                     returned.get(each["question"], "a strided ndarray, by lease"),
                     f"{ratio['ours']:,.0f}", times(ratio), verdict, why))
    return (("question", "library", "returns", "ns an entry", "fastmap returns",
             "fastmap, ns an entry", "fastmap is so many times as fast (95%)", "ahead", "why"),
            rows)


def headline(infos: Iterable[Info]) -> Table:
    """How many times as fast fastmap is, question by question, each library a column."""
    cells: dict[str, dict[str, str]] = {}
    libraries: dict[str, None] = {}
    for each in infos:
        if "question" in each and "ratio" in each:
            ratio = each["ratio"]
            libraries[ratio["against"]] = None
            cells.setdefault(each["question"], {})[ratio["against"]] = (
                f"{1 / ratio['ratio']:.{2 if ratio['ratio'] > 0.1 else 0}f}"
                + ("" if ahead(ratio) in ("fastmap", ratio["against"]) else " (no verdict)"))
    return (("fastmap is so many times as fast as", *libraries),
            [(question, *(row.get(each, "-") for each in libraries))
             for question, row in cells.items()])


def targets(infos: Iterable[Info]) -> Table:
    """The figures that fastmap has to reach, and those beside them."""
    rows: list[Sequence[str]] = []
    for r in (ratio for each in infos for ratio in each.get("ratios", ())):
        low, high = r["spread"]
        if r["at_most"] and r["limit"] and r["limit"] <= 0.9:
            figure, target = f"{times(r)} times as fast", f">= {1 / r['limit']:.3g}"
        else:
            figure = f"{r['ratio']:.3f} ({low:.3f}-{high:.3f})"
            target = f"{'<=' if r['at_most'] else '>='} {r['limit']:.2f}"
        rows.append((r["name"], r["against"], f"{r['ours']:,.1f} {r['unit']}",
                     f"{r['theirs']:,.1f} {r['unit']}", figure, target, r["verdict"]))
    return (("work", "against", "fastmap", "reference", "ratio (95%)", "target", "verdict"), rows)


def figures(infos: Iterable[Info]) -> Table:
    """What stands for itself."""
    rows = [(name, f"{number:,.{1 if number >= 1 else 2}f} {unit}", target)
            for each in infos for name, number, unit, target in each.get("figures", ())]
    return ("what", "figure", "target"), rows


def curves(each: Info) -> Table:
    """One cost curve as a table: the median, and the least in brackets."""
    series = each["curve"]["series"]
    xs = sorted({point[0] for points in series.values() for point in points})
    rows: list[Sequence[str]] = []
    for name, points in series.items():
        at = {x: f"{median:,.0f} ({least:,.0f})" for x, median, least in points}
        rows.append((name, *(at.get(x, "") for x in xs)))
    return ((f"ns an entry over {each['curve']['over']}", *(f"{x:,}" for x in xs)), rows)


def counts(each: Info) -> Table:
    """System calls, memory, and where they were counted instructions of one call."""
    calls, memory = each["counts"]["system calls"], each["counts"]["allocations"]
    executed = each["counts"].get("instructions", {})
    rows = [(name, ", ".join(f"{n:g} {kind}" for kind, n in calls[name].items()) or "none",
             f"{memory[name]['traced peak']:,.0f}", f"{memory[name]['asked of C']:,.0f}",
             *(f"{count:,}" for count in executed.get(name, {}).values()))
            for name in calls]
    return (("one call", "system calls", "Python's memory at peak, bytes", "asked of C, bytes",
             *(["instructions of user space"] if executed else [])), rows)


def latency(each: Info) -> Table:
    """How single calls are distributed."""
    return (("one call, ns", "p1", "p10", "p25", "median", "p75", "p90", "p99", "p99.9", "most"),
            [(name, *(f"{ns:,.0f}" for ns in marks)) for name, marks in each["latency"].items()])


def memory(each: Info) -> Table:
    """Memory at peak over payload."""
    return (("whole read of 1M entries of 16 bytes", "memory at peak / payload"),
            [(name, f"{share:.2f}") for name, share in each["memory"].items()])


def sections(infos: list[Info]) -> Iterable[tuple[str, str, Table]]:
    """Title, what to know, and table."""
    notes = {f"{each['peer']}: {each['note']}" for each in infos if each.get("note")}
    yield ("In short", "Below 1 the other is ahead; no verdict: the spread crosses 1, or too few "
           "rounds were undisturbed.", headline(infos))
    yield ("Against every library", "One map of 100,000 entries, u64 to u64, all sides in turn. "
           "What each one returns is in the table. " + "; ".join(sorted(notes)) + ".", peers(infos))
    yield ("With targets", "`open`: the spread crosses the target.", targets(infos))
    yield ("Single figures", "", figures(infos))
    for key, title, note, make in (
        ("curve", "Cost", "Medians, and the least in brackets.", curves),
        ("latency", "Latency of single calls", "Each call timed by itself.", latency),
        ("memory", "Memory", "Resident memory; what the call returns is in it.", memory),
        ("counts", "System calls, allocations, instructions", "System calls counted by fastmap's "
         "own demo program; allocations by a preloaded counter, instructions by callgrind.",
         counts),
    ):
        for each in infos:
            if key in each:
                yield title, note, make(each)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    head, rows = table
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"
                     for row in (head, ["---"] * len(head), *rows))


def page(table: Table) -> str:
    """A table as HTML."""
    head, rows = table
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{border:1px solid #ccc;
padding:.25em .6em;text-align:left;vertical-align:top}th{background:#f4f4f4}img{max-width:100%;
height:auto}.note{color:#444}"""


def main(*sources: Path) -> Path:
    """Write the report of one or more runs, of which a later one counts; return its folder."""
    found: dict[str, Info] = {}
    for source in sources or (MEASURED,):
        try:
            measured = json.loads(source.read_text())
        except FileNotFoundError:
            raise SystemExit(f"no {source}: make bench") from None
        found |= {each["fullname"]: {"test": each["fullname"], **each["extra_info"]}
                  for each in measured["benchmarks"]}
    infos = list(found.values())
    questions = [each.get("question", "") for each in infos]
    # What belongs together, maps before their types.
    infos.sort(key=lambda each: ("BTF" in each.get("question", ""),
                                 questions.index(each.get("question", ""))))
    at = commit()
    folder = HERE / "results" / at.rstrip("+")
    folder.mkdir(parents=True, exist_ok=True)
    where = (f"{environment()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}, commit {at}, "
             f"measured {measured['datetime'][:16]} UTC. Mitigations: {mitigations()}.")
    title = "fastmap beside the other libraries"
    plain, rich = [f"# {title}", where], [f"<h1>{title}</h1><p>{html.escape(where)}</p>"]
    for name, text in plots.drawn(infos).items():
        (folder / f"{name}.svg").write_text(text)
        plain.append(f"![{name}]({name}.svg)")
        rich.append(f'<img src="{name}.svg" alt="{name}">')
    last = ""
    for heading, note, table in sections(infos):
        if not table[1]:
            continue
        if heading != last:
            plain.append(f"## {heading}\n\n{note}")
            rich.append(f"<h2>{html.escape(heading)}</h2><p class=note>{html.escape(note)}</p>")
        last = heading
        plain.append(markdown(table))
        rich.append(page(table))
    (folder / "report.md").write_text("\n\n".join(plain) + "\n")
    (folder / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        + "\n".join(rich))
    (folder / "figures.json").write_text(json.dumps({"where": where, "figures": infos}) + "\n")
    print(folder / "index.html")
    return folder


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
