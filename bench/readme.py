"""`python -m bench.readme [FOLDER]`: measured tables of README and docs, from a report's figures.

FOLDER is one of ``bench/results/``; without it, the one that the page of figures names. Each table
stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``: what is claimed is on the page.
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
PAGE = HERE.parent / "docs" / "performance.md"
RESULTS = HERE / "results"

#: Which tests' results a table has.
TABLES = {
    "maps": r"bench_maps\.py::test_(fastmap\[(?!ring_|perf_|kernel_)|alloc|progress|elements)",
    "kernel": r"bench_maps\.py::test_fastmap\[kernel_",
    "streams": r"bench_maps\.py::test_fastmap\[(ring_|perf_)",
    "kit": r"bench_(collect|arrow|prometheus|dump)\.py",
}


def blocks(folder: Path, page: Path) -> dict[str, str]:
    """Return each block's text: the tables, and where they were measured."""
    told = json.loads((folder / "figures.json").read_text())
    infos: list[Info] = told["figures"]
    at = os.path.relpath(folder, page.parent)
    made = {"where": f"Measured: {told['where']} The whole page, with what each library returns: "
                     f"`bench/results/{folder.name}/report.md`.",
            "headline": f"{markdown(headline(infos))}\n\n![as a picture]({at}/ratios.svg)",
            "figures": markdown(figures(infos))}
    for name, pattern in TABLES.items():
        made[name] = markdown(targets(
            each for each in infos if re.search(pattern, each["test"])))
    return made


def named(text: str) -> Path:
    """Return the folder of results that the page of figures names."""
    found = re.search(r"bench/results/(\w+)/report\.md", text)
    if found is None:
        raise ValueError("the page names no results: python -m bench.readme FOLDER")
    return RESULTS / found[1]


def rewritten(text: str, folder: Path, page: Path) -> str:
    """Return the text of a page with the tables of these results that it has marks for."""
    made = blocks(folder, page)
    marks = re.findall(r"<!-- measured: (\w+) -->", text)
    if unknown := set(marks) - set(made):
        raise ValueError(f"marks for {', '.join(sorted(unknown))}, which nothing measures")
    if page == PAGE and (missing := set(made) - set(marks)):
        raise ValueError(f"no marks for {', '.join(sorted(missing))}")

    def fresh(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n{made[mark[2]]}\n{mark[3]}"

    return re.sub(r"(<!-- measured: (\w+) -->).*?(<!-- end -->)", fresh, text, flags=re.DOTALL)


def main(*folders: str) -> None:
    """Write both pages anew."""
    folder = Path(folders[0]).resolve() if folders else named(PAGE.read_text())
    for page in (PAGE, README):
        page.write_text(rewritten(page.read_text(), folder, page))


if __name__ == "__main__":
    main(*sys.argv[1:])
