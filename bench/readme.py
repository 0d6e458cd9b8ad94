"""`python -m bench.readme [FOLDER]`: README's measured tables, made from a report's figures.

FOLDER is one of ``bench/results/``; without it, the one that README names. Each table stands
between ``<!-- measured: NAME -->`` and ``<!-- end -->``: what README claims is on the page.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from .report import Info, figures, headline, markdown, targets

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"

#: Which tests' results a table has.
TABLES = {
    "maps": r"bench_maps\.py::test_(fastmap\[(?!ring_|perf_|kernel_)|alloc|progress|elements)",
    "kernel": r"bench_maps\.py::test_fastmap\[kernel_",
    "streams": r"bench_maps\.py::test_fastmap\[(ring_|perf_)",
    "kit": r"bench_(collect|arrow|prometheus|dump)\.py",
}


def blocks(folder: Path) -> dict[str, str]:
    """Return each block's text: the tables, and where they were measured."""
    told = json.loads((folder / "figures.json").read_text())
    infos: list[Info] = told["figures"]
    at = os.path.relpath(folder, README.parent)
    made = {"where": f"Measured: {told['where']} [The whole page, with what each library returns]"
                     f"({at}/report.md).",
            "headline": f"{markdown(headline(infos))}\n\n![as a picture]({at}/ratios.svg)",
            "figures": markdown(figures(infos))}
    for name, pattern in TABLES.items():
        made[name] = markdown(targets(
            each for each in infos if re.search(pattern, each["test"])))
    return made


def named(text: str) -> Path:
    """Return the folder of results that a README names."""
    found = re.search(r"\(bench/results/(\w+)/report\.md\)", text)
    if found is None:
        raise ValueError("README names no results: python -m bench.readme FOLDER")
    return RESULTS / found[1]


def rewritten(text: str, folder: Path) -> str:
    """Return a README with the tables of these results."""
    made = blocks(folder)

    def fresh(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n{made.pop(mark[2])}\n{mark[3]}"

    text = re.sub(r"(<!-- measured: (\w+) -->).*?(<!-- end -->)", fresh, text, flags=re.DOTALL)
    if made:
        raise ValueError(f"README has no marks for {', '.join(made)}")
    return text


def main(*folders: str) -> None:
    """Write README anew."""
    text = README.read_text()
    README.write_text(rewritten(text, Path(folders[0]).resolve() if folders else named(text)))


if __name__ == "__main__":
    main(*sys.argv[1:])
