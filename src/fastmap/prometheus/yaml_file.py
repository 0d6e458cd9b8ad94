"""A YAML file as values: bounded in size, in depth, and in what aliases make of it."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from fastmap.prometheus.said import cut, said

MOST_BYTES = 1 << 20
#: Values, one that aliases stand for counted as often as they do.
MOST_VALUES = 100_000
MOST_DEPTH = 50


def values_of(path: str | PathLike[str]) -> Any:
    """Return what a YAML file has; raise `ValueError`, in one line, where it is none."""
    return document_of(path)[1]


def document_of(path: str | PathLike[str]) -> tuple[Any, Any]:
    """Return the root of a YAML file's nodes, which know their lines, and what the file has."""
    try:
        import yaml
    except ImportError:
        raise ImportError("a declaration in YAML needs PyYAML: "
                          "pip install 'fastmap-bpf[prometheus]'") from None

    class Loader(yaml.SafeLoader):
        """Counts, before there is anything that is large."""

        values = depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                # Of one that is still open, there is no end.
                self._count(sizes.get(event.anchor, MOST_VALUES), event)
                return super().compose_node(parent, index)
            before, self.depth = self.values, self.depth + 1
            if self.depth > MOST_DEPTH:
                raise yaml.MarkedYAMLError(
                    problem=f"more than {MOST_DEPTH} values within each other",
                    problem_mark=event.start_mark)
            self._count(1, event)
            sizes.pop(event.anchor, None)
            node = super().compose_node(parent, index)
            self.depth -= 1
            if event.anchor is not None:
                sizes[event.anchor] = self.values - before
            return node

        def _count(self, values: int, event: Any) -> None:
            self.values += values
            if self.values > MOST_VALUES:
                raise yaml.MarkedYAMLError(
                    problem=f"more than {MOST_VALUES} values, aliases counted as what they "
                    "stand for", problem_mark=event.start_mark)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except yaml.YAMLError:
                raise
            except Exception as error:  # of a number, a date, ...: PyYAML lets all through
                raise yaml.MarkedYAMLError(
                    problem=f"{node.tag.rpartition(':')[2]}: {error}",
                    problem_mark=node.start_mark) from None

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            words: set[str] = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:str":
                    if key.value in words:  # YAML has it so; PyYAML would take the last
                        raise yaml.MarkedYAMLError(problem=f"{said(key.value)} is there already",
                                                   problem_mark=key.start_mark)
                    words.add(key.value)
            return super().construct_mapping(node, deep)

    sizes: dict[str | None, int] = {}
    with open(path, "rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"{fspath(path)} is no declaration: larger than {MOST_BYTES} bytes")
    try:
        loader = Loader(text.decode())
        try:
            node = loader.get_single_node()
            return node, None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{fspath(path)} is no YAML: {cut(_line(error), 400)}") from None


def _line(error: Exception) -> str:
    """Return an error of PyYAML in one line, with the place."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
