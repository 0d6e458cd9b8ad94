"""The table of map types in docs, made from the code: `make tables` writes it anew.

A row is a type, its class, what its maps can do, by which ways, and since which Linux. What a class
offers are its public methods, but for those that need a command which no kernel has for the type.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from support import INSIDE

import fastmap
from fastmap.enums import Command, MapType, Version, version_text
from fastmap.inkernel.operations import OPERATIONS
from fastmap.kernel.map_facts import mappable, smallest_kernel
from fastmap.maptypes.consumer import Consumer
from fastmap.maptypes.handle import Map
from fastmap.maptypes.registry import CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "map-types.md"
BEGIN = "<!-- The table of map types: made by `make tables`. -->\n"
END = "<!-- The end of the table of map types. -->\n"

BEGIN_CALLS = "<!-- The table of calls in the kernel: made by `make tables`. -->\n"
END_CALLS = "<!-- The end of the table of calls in the kernel. -->\n"
#: The calls of each row of `OPERATIONS`.
CALLS = {
    "lookup": "`lookup_many`", "update": "`update_many`", "delete": "`delete_many`",
    "take": "`lookup_and_delete_many`", "increment": "`increment_many`", "push": "`push_many`",
    "pop": "`pop_many`, `drain`", "walk": "`reader(exact=False)`, `snapshot(exact=False)`",
    "exact walk": "`reader()`, `snapshot()`"}

#: What every map has, and what is for the house.
HANDLE = {"close", "closed", "fileno", "freeze", "info", "pin", "prepare", "settle", "unpin",
          "untold", "most_entries", *INSIDE}
ELEMENT = {name: Command[f"MAP_{name.upper()}_ELEM"]
           for name in ("lookup", "update", "delete", "lookup_and_delete")}
BATCHES = [c for c in Command if c.name.endswith("_BATCH")]
WHOLE = ("snapshot", "reader", "drain")
DICT = {"get", "pop", "popitem", "setdefault", "clear", "keys", "values", "items"}
#: What reads or writes memory that is mapped.
MEMORY = {"memory", "variables", "read", "reserve"}


def since(name: str, kind: MapType) -> Version | None:
    """Return the first Linux on which a method can work on maps of a type; None for none."""
    if name in MEMORY:
        return mappable(kind)
    if name == "increment_many":  # which many classes inherit, and only programs can
        return kind.since if kind in OPERATIONS["increment"].types else None
    command = ELEMENT.get(name.removesuffix("_many"))
    if command is None and name in ("get", "values", "items"):  # which go with lookup
        return kind.since if smallest_kernel(ELEMENT["lookup"], kind) else None
    return kind.since if command is None else smallest_kernel(command, kind)


def offered(cls: type[Map], kind: MapType) -> Iterator[str]:
    """Yield the names of what maps of a type can do, in the order the classes have them."""
    names = {name: None for each in reversed(cls.__mro__) if issubclass(each, (Map, Consumer))
             for name in vars(each)}
    for name in names:
        what = inspect.getattr_static(cls, name)
        if name.startswith("_") or name in HANDLE or not (
                inspect.isfunction(what) or isinstance(what, property)):
            continue
        if since(name, kind):
            yield name


def late(name: str, first: Version | None, kind: MapType) -> str:
    """Return a name, with the Linux it is from where that came later than the type."""
    return f"{name} ({version_text(first)})" if first and first > kind.since else name


def operations(cls: type[Map], kind: MapType) -> str:
    """Return the cell of what maps of a type can do."""
    left = list(offered(cls, kind))

    def taken(names: list[str]) -> str:
        for name in names:
            left.remove(name)
        return " ".join(late(f"`{name}`", since(name, kind), kind) for name in names)

    parts = []
    habits = left.copy() if set(left) >= DICT else []
    both = [name for name in left if f"{name}_many" in left]
    for name in both:
        left.remove(f"{name}_many")
    if both:
        parts.append(f"one and many: {taken(both)}")
    if whole := [name for name in WHOLE if name in left]:
        parts.append(f"whole: {taken(whole)}")
    if habits:
        parts.append("a dict")
        left = [name for name in left if name not in DICT]
    if left:
        parts.append(taken(left.copy()))
    return "; ".join(parts)


def in_kernel(kind: MapType) -> bool:
    """Whether programs do some of the work on maps of a type."""
    return any(kind in each.types for each in OPERATIONS.values())


def ways(cls: type[Map], kind: MapType) -> str:
    """Return the cell of the ways to the data."""
    can = set(offered(cls, kind))
    found = []
    if can - MEMORY and any(smallest_kernel(c, kind) for c in ELEMENT.values()):
        found.append("element")
    batches = [first for c in BATCHES if (first := smallest_kernel(c, kind))]
    if batches and can & {"update_many", *WHOLE}:
        found.append(late("batch", min(batches), kind))
    if in_kernel(kind):
        found.append(late("in-kernel", fastmap.features()["in-kernel"].since, kind))
    if can & MEMORY:
        found.append(late("memory", mappable(kind), kind))
    return ", ".join(found)


def table() -> str:
    """Return the table."""
    lines = ["| type | class | operations | ways | Linux |", "|---|---|---|---|---|"]
    lines += [f"| `{kind.name.lower()}` | `{cls.__name__}` | {operations(cls, kind)} | "
              f"{ways(cls, kind)} | {version_text(kind.since)} |"
              for kind, cls in sorted(CLASSES.items())]
    return "\n".join(lines) + "\n"


def in_kernel_table() -> str:
    """Return the table of calls that programs do, a row for each row of `OPERATIONS`."""
    lines = ["| call | map types | `via=\"auto\"` takes it | Linux |", "|---|---|---|---|"]
    since = version_text(fastmap.features()["in-kernel"].since)
    for name, operation in OPERATIONS.items():
        alike = operation.same_meaning & operation.types
        auto = "never: `via=\"kernel\"` asks for it"
        if operation.fewest is not None and alike:
            auto = f"from {operation.fewest} elements on"
            if rest := operation.types - alike:
                auto += f", but for {named(rest)}"
        elif name == "increment":
            auto = "always: no system call does it"
        lines.append(f"| {CALLS[name]} | {named(operation.types)} | {auto} | {since} |")
    return "\n".join(lines) + "\n"


def named(kinds: Iterable[MapType]) -> str:
    """Return map types in the order of their numbers."""
    return ", ".join(f"`{kind.name.lower()}`" for kind in sorted(kinds))


def rewritten(text: str) -> str:
    """Return the page with the tables as they are now."""
    for begin, end, made in ((BEGIN, END, table), (BEGIN_CALLS, END_CALLS, in_kernel_table)):
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            raise ValueError(f"the page has no marks around a table: {begin.strip()}")
        text = before + begin + made() + end + after
    return text


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
