"""Sections of ELF files: just enough to find the BTF of an object file, whatever made it."""

from __future__ import annotations

import struct
from typing import BinaryIO

MAGIC = b"\x7fELF"
_NOBITS = 8
_COMPRESSED = 1 << 11
#: More than any BTF has, and any section that is looked at: vmlinux's is 6 MB, and in all DWARF
#: there is nothing to be found here. A sparse file of many GB costs nothing to make.
MOST_BYTES = 256 << 20
_MAX_SECTIONS = 1 << 20
# By class (32, 64 bits): the file's header, a section's, where the link of a section stands in it.
_HEADERS = {1: ("HHIIIIIHHHHHH", "IIIIIIIIII"), 2: ("HHIQQQIHHHHHH", "IIQQQQIIQQ")}


def section(file: BinaryIO, name: str) -> bytes | None:
    """The bytes of a section, None where there is none of that name.

    Raises
    ------
    ValueError
        The file is no ELF file, is cut off, or its section is compressed.
    """
    ident = _read(file, 0, 16, "the header")
    if ident[:4] != MAGIC or ident[4] not in _HEADERS or ident[5] not in (1, 2):
        raise ValueError("no ELF file: it does not begin as one")
    order = "<" if ident[5] == 1 else ">"
    header, entry = (struct.Struct(order + text) for text in _HEADERS[ident[4]])
    fields = header.unpack(_read(file, 16, header.size, "the header"))
    at, entry_size, count, names_index = fields[5], fields[10], fields[11], fields[12]
    if at == 0:
        return None
    if entry_size < entry.size:
        raise ValueError(f"ELF sections of {entry_size} bytes are too short")

    def row(index: int) -> tuple[int, ...]:
        data = _read(file, at + index * entry_size, entry.size, f"section {index}")
        return entry.unpack(data)

    # Numbers that do not fit the header stand in the first section.
    first = row(0)
    count = count or first[5]
    names_index = first[6] if names_index == 0xFFFF else names_index
    if count > _MAX_SECTIONS or names_index >= count:
        raise ValueError(f"ELF names in section {names_index} of {count}")
    names = _content(file, row(names_index), "the names of sections")
    wanted = name.encode() + b"\0"
    for index in range(1, count):
        found = row(index)
        if names[found[0] : found[0] + len(wanted)] == wanted:
            return _content(file, found, name)
    return None


def _content(file: BinaryIO, row: tuple[int, ...], what: str) -> bytes:
    if row[1] == _NOBITS or row[2] & _COMPRESSED:
        raise ValueError(f"ELF {what}: compressed, or without bytes in the file")
    return _read(file, row[4], row[5], what)


def _read(file: BinaryIO, at: int, size: int, what: str) -> bytes:
    if size > MOST_BYTES:
        raise ValueError(f"ELF {what}: {size} bytes, more than {MOST_BYTES >> 20} MiB")
    # The end first: a size that lies is not asked for.
    if at + size > file.seek(0, 2):
        raise ValueError(f"ELF {what}, {size} bytes at byte {at}: beyond the end of the file")
    file.seek(at)
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"ELF {what}: the file became shorter")
    return data
