"""``fastmap list`` and ``fastmap show``."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fastmap.cli.shared.command import Command, add_json
from fastmap.cli.shared.output import (
    BOLD,
    Column,
    Misuse,
    as_json,
    print_table,
    size_text,
    styled,
    warn,
)
from fastmap.cli.shared.target import add_dtypes, add_map, opened_table
from fastmap.enums import MapFlag, MapType, ProgType
from fastmap.errors import BpfError
from fastmap.kernel.bpffs import walk
from fastmap.kernel.inventory import MapInfo, ProgramInfo, maps, programs
from fastmap.live.found import Parts, tables
from fastmap.live.table import LiveTable
from fastmap.maptypes.reader import padded_keys
from fastmap.maptypes.storage import LocalStorage
from fastmap.maptypes.table import DictMap
from fastmap.text.visible import visible

#: The type that a live table has in lists, of several maps.
LIVE = "live_table"


def type_name(number: int, names: type[MapType] | type[ProgType] = MapType) -> str:
    """Return a type as `fastmap.create` takes it; its number where it has no name."""
    try:
        return names(number).name.lower()
    except ValueError:
        return str(number)


def flag_names(flags: int) -> list[str]:
    """Return the names of a map's flags, and what has none as a number."""
    known = MapFlag(flags)
    named = [flag.name or hex(flag) for flag in known]
    rest = flags & ~sum(int(flag) for flag in known)
    return [*named, hex(rest)] if rest else named


def pins_of_maps() -> dict[int, list[Path]]:
    """Return where each map is pinned, by one walk; says so where something may not be read."""
    found: dict[int, list[Path]] = defaultdict(list)
    left_out: list[Path] = []
    for pin in walk(left_out):
        if pin.kind == "map":
            found[pin.id].append(pin.path)
    if left_out:
        warn(f"{len(left_out)} pins or folders of pins may not be read, {left_out[0]} among them")
    return found


def users_of_maps() -> dict[int, list[ProgramInfo]]:
    """Return the programs that use each map, by one walk."""
    found: dict[int, list[ProgramInfo]] = defaultdict(list)
    try:
        for program in programs():
            for number in dict.fromkeys(program.map_ids):
                found[number].append(program)
    except BpfError as error:
        warn(f"the programs cannot be told: {error}")
    return found


def described(info: MapInfo, where: list[Path], users: list[ProgramInfo]) -> dict[str, Any]:
    """Return what there is to say of a map, for JSON."""
    return {
        "id": info.id, "type": type_name(info.type), "name": info.name,
        "key_size": info.key_size, "value_size": info.value_size,
        "max_entries": info.max_entries, "flags": flag_names(info.map_flags),
        "memory": info.memlock, "frozen": info.frozen, "btf_id": info.btf_id or None,
        "pins": [str(path) for path in where],
        "programs": [{"id": user.id, "type": type_name(user.type, ProgType), "name": user.name}
                     for user in users],
    }


def known_type(text: str) -> str:
    """Return the type of ``--type``, as `type_name` writes it."""
    known = [*(each.name.lower() for each in MapType), LIVE]
    if text.lower() in known or text.isdigit():
        return text.lower()
    from difflib import get_close_matches  # late: for errors alone

    close = get_close_matches(text.lower(), known, 1)
    raise Misuse(f"no such map type: {text}; " + (
        f"did you mean {close[0]}?" if close else f"one of {', '.join(known[1:])}"))


def _list(given: argparse.Namespace) -> int:
    if given.type is not None:
        given.type = known_type(given.type)
    found = list(maps())
    where, users = pins_of_maps(), users_of_maps()
    rows = {info.id: described(info, where[info.id], users[info.id]) for info in found}
    live = tables(found)
    for table in live:
        rows[table.ids[0]] = _table(table, rows)
    hidden = {number for table in live for number in table.ids[1:]}
    # What makes the verifier refuse sleepable programs belongs to the table as well.
    guards = {f"{table.name}_s" for table in live}
    hidden |= {info.id for info in found
               if info.name in guards and info.type == MapType.PERF_EVENT_ARRAY}
    _print_list(given, [row for number, row in rows.items() if number not in hidden
                        and given.type in (None, row["type"])])
    return 0


def _table(table: Parts, rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what there is to say of a live table: one row, not six."""
    head, _, keys, _, values, _ = (rows[number] for number in table.ids)
    return {
        **head, "type": LIVE, "name": table.name, "key_size": keys["value_size"],
        "value_size": values["value_size"], "max_entries": keys["max_entries"],
        "memory": sum(rows[number]["memory"] for number in table.ids),
        "pins": [pin.removesuffix("_h") for pin in head["pins"]], "maps": list(table.ids),
    }


def _print_list(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if given.json:
        as_json(rows)
        return
    columns = [Column("ID", True), Column("TYPE"), Column("NAME"), Column("KEY", True),
               Column("VALUE", True), Column("MAX_ENTRIES", True), Column("MEMORY", True),
               Column("PROGRAMS"), Column("PINS")]
    print_table(columns, (
        [str(row["id"]), row["type"], visible(row["name"]) or "-", str(row["key_size"]),
         str(row["value_size"]), str(row["max_entries"]), size_text(row["memory"]),
         ", ".join(_user(user) for user in row["programs"]) or "-",
         ", ".join(map(visible, row["pins"])) or "-"] for row in rows))


def _user(user: dict[str, Any]) -> str:
    return f"{visible(user['name'])}({user['id']})"


def fields(dtype: np.dtype[Any] | None, name: str, size: int) -> list[tuple[str, str, int]]:
    """Return ``(path, dtype, offset)`` of each field of a key or a value; none of an empty one."""
    if dtype is None or not size:
        return []
    base, shape = dtype.subdtype if dtype.subdtype is not None else (dtype, ())
    if base.names is None or base.fields is None:
        return [(name, f"{base.str.lstrip('<|')}{list(shape) or ''}", 0)]
    found = []
    for each in base.names:
        inner, offset = base.fields[each][:2]
        found += [(path, kind, offset + at)
                  for path, kind, at in fields(inner, f"{name}.{each}", inner.itemsize)]
    return found


def _show(given: argparse.Namespace) -> int:
    with opened_table(given) as m:
        if isinstance(m, LiveTable):
            return _show_live(given, m)
        info = m.info()
        row = described(info, pins_of_maps()[m.id], users_of_maps()[m.id])
        columns = [*fields(m.key_dtype, "key", info.key_size),
                   *fields(m.value_dtype, "value", info.value_size)]
        row["dtype_source"] = m.dtype_source
        row["columns"] = [{"name": path, "dtype": kind, "offset": at}
                          for path, kind, at in columns]
        # A walk over every entry: what a table holds, nobody else tells.
        counted = hasattr(m, "reader") and hasattr(m, "__len__")
        row["entries"] = len(m) if counted else None  # type: ignore[arg-type]
        row["padded_keys"] = padded_keys(m) if isinstance(m, DictMap) else 0
    if given.json:
        as_json(row)
        return 0
    print(styled(f"{visible(row['name']) or '(no name)'}, a {row['type']} map", BOLD))
    holds = f"{row['max_entries']:,}"
    if isinstance(m, LocalStorage):
        holds = "not countable: they belong to their owners, of which the kernel keeps no list"
    elif row["entries"] is not None:
        of = f" of {holds} ({100 * row['entries'] / row['max_entries']:.1f}%)"
        holds = f"{row['entries']:,}{of if row['max_entries'] else ''}"
    lines = [("id", str(row["id"])), ("entries", holds),
             ("key", f"{row['key_size']} bytes"), ("value", f"{row['value_size']} bytes"),
             ("flags", " ".join(row["flags"]) or "-"), ("memory", size_text(row["memory"])),
             ("frozen", {True: "yes", False: "no", None: "?"}[row["frozen"]]),
             ("types from", {"btf": "the map's BTF", "given": "the command line",
                             "none": "nowhere: bytes (say --key and --value)"
                             }[row["dtype_source"]]),
             ("programs", ", ".join(f"{_user(user)} {user['type']}" for user in row["programs"])
              or "-"),
             ("pins", ", ".join(map(visible, row["pins"])) or "-")]
    if row["padded_keys"]:
        lines.append(("padding", f"not zero in {row['padded_keys']:,} keys: see docs/calls.md"))
    for name, text in lines:
        print(f"{name + ':':<12} {text}")
    if columns:
        print()
        print_table([Column("COLUMN"), Column("DTYPE"), Column("OFFSET", True)],
                    [[path, kind, str(at)] for path, kind, at in columns])
    return 0


def _show_live(given: argparse.Namespace, table: LiveTable) -> int:
    columns = [*fields(table.key_dtype, "key", table.sizes[0]),
               *fields(table.value_dtype, "value", table.sizes[1])]
    told = {"id": table.id, "type": LIVE, "name": table.name, "entries": len(table),
            "max_entries": table.capacity, "used": table.used, "columns_of_values": table.columns,
            "full": table.full, "races": table.races, "memory": table.nbytes,
            "columns": [{"name": path, "dtype": kind, "offset": at} for path, kind, at in columns]}
    if given.json:
        as_json(told)
        return 0
    print(styled(f"{visible(table.name)}, a live table", BOLD))
    lines = [("id", str(table.id)),
             ("entries", f"{told['entries']:,} of {table.capacity:,} "
                         f"({100 * len(table) / table.capacity:.1f}%)"),
             ("full", f"{table.full:,} events found no room"),
             ("columns", f"{table.columns}, {'one a CPU' if table.own_columns else 'shared'}"),
             ("memory", size_text(table.nbytes))]
    for name, text in lines:
        print(f"{name + ':':<12} {text}")
    print()
    print_table([Column("COLUMN"), Column("DTYPE"), Column("OFFSET", True)],
                [[path, kind, str(at)] for path, kind, at in columns])
    return 0


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", help="only maps of this type, such as hash")
    add_json(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    add_map(parser)
    add_dtypes(parser)
    add_json(parser)


LIST = Command(
    "List the maps of this machine: types, sizes in bytes, how many entries they can hold, "
    "memory, the programs that use them, and where they are pinned.",
    ("fastmap list", "fastmap list --type hash", "fastmap list --json | jq '.[].name'"),
    _add_list, _list)

SHOW = Command(
    "Show one map: how many entries it has, its columns, who uses it.",
    ("fastmap show flows", "fastmap show /sys/fs/bpf/flows", "fastmap show 42 --json"),
    _add_show, _show)
