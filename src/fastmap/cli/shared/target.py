"""MAP on the command line: a pin, an id or a name."""

from __future__ import annotations

import argparse
import re
from typing import Any

import numpy as np

from fastmap.btf.sources import btf_dtype
from fastmap.cli.shared.output import Failure, Misuse
from fastmap.errors import ObjectNotFound
from fastmap.live.found import HEAD_BYTES
from fastmap.live.table import LiveTable
from fastmap.maptypes.handle import Map
from fastmap.maptypes.open import open as open_map


def add_map(parser: argparse.ArgumentParser, what: str = "MAP") -> None:
    """Add the argument that names a map."""
    parser.add_argument(
        "map", metavar=what,
        help="a pin (with a '/'), an id, or a name; 'name:42' is the map named 42")


def add_dtypes(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what keys and values are, for maps without BTF."""
    for side in ("key", "value"):
        parser.add_argument(
            f"--{side}", metavar="TYPE", type=dtype,
            help=f"what a {side} is, where the map has no BTF: 'u8', or 'pid:u4,comm:S16' for a "
                 "C struct (padded as C does)")


def dtype(text: str) -> np.dtype[Any]:
    """Return the dtype that is written as ``u8`` or ``packets:u8,comm:S16``."""
    try:
        if ":" not in text:
            return np.dtype(text)
        fields = [field.partition(":") for field in text.split(",")]
        return np.dtype([(name.strip(), kind.strip()) for name, _, kind in fields], align=True)
    except (TypeError, ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no dtype such as 'u8' or "
                                         f"'packets:u8,comm:S16': {error}") from None


def record_dtype(text: str, source: str | None) -> np.dtype[Any]:
    """Return the dtype of a ring's records: as `dtype`, or a struct by its name in `source`.

    `source` is an object file, a pin, or the id of a program, whose BTF has the struct.
    """
    if source is None:
        try:
            return dtype(text)
        except argparse.ArgumentTypeError as error:
            raise Misuse(f"--record: {error}; a struct's name goes with --from") from None
    try:
        if source.isdigit():
            return btf_dtype(text, prog_id=int(source))
        return btf_dtype(text, source)
    except KeyError as error:
        raise Failure(error.args[0]) from None


def named(text: str) -> dict[str, Any]:
    """Return what `fastmap.open` takes to open the map that `text` names."""
    kind, colon, rest = text.partition(":")
    if colon and kind in ("id", "name", "pin") and rest:
        if kind == "id" and not rest.isdigit():
            raise Misuse(f"{text}: an id is a number")
        return {"path": rest} if kind == "pin" else {kind: int(rest) if kind == "id" else rest}
    if "/" in text:
        return {"path": text}
    if re.fullmatch(r"[0-9]+", text):
        return {"id": int(text)}
    kind, equals, rest = text.partition("=")
    if equals and kind in ("id", "name", "pin"):
        raise Misuse(f"{text}: say {kind}:{rest}" + (f", or {rest}" if kind == "id" else ""))
    return {"name": text}


def opened(given: argparse.Namespace, **options: Any) -> Map:
    """Open the map that the arguments name."""
    key, value = getattr(given, "key", None), getattr(given, "value", None)
    found: Map = open_map(**named(given.map), key=key, value=value, **options)
    return found


def opened_table(given: argparse.Namespace) -> Map | LiveTable:
    """Open the map or live table that the arguments name; it is read only."""
    where = named(given.map)
    try:
        found = opened(given, readonly=True)
    except ObjectNotFound:
        try:
            return _live(given, {"pin" if way == "path" else way: what
                                 for way, what in where.items()})
        except ObjectNotFound:
            pass
        raise
    if not (found.name.endswith("_h") and found.value_dtype is not None
            and found.value_dtype.itemsize == HEAD_BYTES):
        return found
    with found:
        return _live(given, {"id": found.id})


def _live(given: argparse.Namespace, where: dict[str, Any]) -> LiveTable:
    return LiveTable.open(**where, key=getattr(given, "key", None),
                          value=getattr(given, "value", None))
