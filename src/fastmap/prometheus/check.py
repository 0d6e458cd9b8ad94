"""What is wrong in a file of a declaration, with the lines where it is; no map is opened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike, fspath
from typing import Any

from fastmap.prometheus.config import examined
from fastmap.prometheus.yaml_file import document_of

_PATH = re.compile(r"((?:\.?\w+|\[\d+\])+)[:.]", re.ASCII)
_STEP = re.compile(r"\w+|\[\d+\]", re.ASCII)
_YAML = re.compile(r"line (\d+), column \d+: ")


def checked(path: str | PathLike[str]) -> list[str]:
    """Return all that is wrong in a declaration, as ``FILE:LINE: what``, in the order of lines.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    name = fspath(path)
    try:
        root, values = document_of(path)
    except ValueError as error:
        text = str(error).removeprefix(f"{name} ")
        found = _YAML.search(text)
        return [f"{name}:{found[1]}: {text.replace(found[0], '')}" if found else f"{name}: {text}"]
    told = [(_line(root, str(problem)), str(problem)) for problem in examined(values)[1]]
    return [f"{name}:{line}: {text}" for line, text in sorted(told, key=lambda each: each[0])]


def _line(node: Any, problem: str) -> int:
    """Return the line of what the path at the beginning of a problem leads to, or nearest to."""
    line: int = node.start_mark.line + 1 if node is not None else 1
    found = _PATH.match(problem)
    for step in _STEP.findall(found[1]) if found and node is not None else ():
        under = dict(_children(node)).get(step)
        if under is None:
            break
        mark, node = under
        line = mark.line + 1
    return line


def _children(node: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield the step to each value in a node of YAML, the mark it begins at, and its node."""
    if isinstance(node.value, str):
        return
    for i, each in enumerate(node.value):
        if isinstance(each, tuple):
            yield str(each[0].value), (each[0].start_mark, each[1])
        else:
            yield f"[{i}]", (each.start_mark, each)
