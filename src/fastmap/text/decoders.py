"""Columns of keys and values as text: addresses, names of processes, system calls, interfaces.

Every distinct value of a column is decoded once. What has no name comes out as its number.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmap.text.syscall_names import syscall_names

Column: TypeAlias = npt.NDArray[Any]
#: A word of `DECODERS`, a map of numbers to names, or None: numbers and text as they are.
How: TypeAlias = str | Mapping[int, str] | None

#: What Python's table of errnos lacks, or calls by the name that the kernel does not use.
_ERRNOS = {
    35: "EDEADLK", 95: "EOPNOTSUPP",
    # What stays inside of the kernel, and programs see (include/linux/errno.h).
    512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 515: "ENOIOCTLCMD",
    516: "ERESTART_RESTARTBLOCK", 517: "EPROBE_DEFER", 518: "EOPENSTALE", 519: "ENOPARAM",
    521: "EBADHANDLE", 522: "ENOTSYNC", 523: "EBADCOOKIE", 524: "ENOTSUPP", 525: "ETOOSMALL",
    526: "ESERVERFAULT", 527: "EBADTYPE", 528: "EJUKEBOX", 529: "EIOCBQUEUED",
    530: "ERECALLCONFLICT",
}


@dataclass(frozen=True)
class Decoder:
    """How one value becomes text.

    Attributes
    ----------
    text : callable
        Takes the value, bytes or an int; gives its text.
    widths : tuple of int or None
        It takes bytes, as they lie in memory: so many; empty: any number of them. None: it takes
        numbers.
    """

    text: Callable[[Any], str]
    widths: tuple[int, ...] | None = ()


def _ip(address: bytes) -> str:
    if address.startswith(b"\0" * 10 + b"\xff\xff"):
        address = address[12:]  # IPv4 on an IPv6 socket
    return _inet(address)


def _inet(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _mac(address: bytes) -> str:
    return address[:6].hex(":")


def _comm(name: bytes) -> str:
    # Bytes that are no UTF-8 stay apart: \xff.
    return name.partition(b"\0")[0].decode(errors="backslashreplace")


def _syscall(number: int) -> str:
    return _syscalls().get(number) or str(number)


@cache
def _syscalls() -> dict[int, str]:
    return syscall_names()


def _errno(number: int) -> str:
    # What functions return: -2, also where a field of no sign keeps it.
    for bits in (32, 64):
        if (1 << bits) - 4096 < number < 1 << bits:
            number -= 1 << bits
    code = abs(number)
    return _ERRNOS.get(code) or errno.errorcode.get(code) or str(number)


def _interface(index: int) -> str:
    if not 0 < index < 1 << 31:
        return str(index)
    try:
        # Any bytes, as the kernel has it: what is no UTF-8 becomes \xff.
        return os.fsencode(socket.if_indextoname(index)).decode(errors="backslashreplace")
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENODEV):
            raise
        return str(index)


#: The decoders by their words.
DECODERS: dict[str, Decoder] = {
    "ipv4": Decoder(_inet, (4,)),
    "ipv6": Decoder(_inet, (16,)),
    "ip": Decoder(_ip, (4, 16)),
    "mac": Decoder(_mac, (6, 8)),
    "comm": Decoder(_comm),
    "hex": Decoder(bytes.hex),
    "syscall": Decoder(_syscall, None),
    "errno": Decoder(_errno, None),
    "interface": Decoder(_interface, None),
}
_HEX_NUMBER = Decoder("{:#x}".format, None)


def check_how(how: Any) -> None:
    """Raise `ValueError` or `TypeError` where `how` is nothing that `decode` takes."""
    if how is None or isinstance(how, str) and how in DECODERS:
        return
    if isinstance(how, str):
        raise ValueError(f"{how!r} is no decoder: {', '.join(DECODERS)}, or a map of numbers to "
                         "names")
    if not isinstance(how, Mapping):
        raise TypeError(f"a decoder is one of {', '.join(DECODERS)}, or a map of numbers to names, "
                        f"not {how!r}")
    for number, name in how.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) \
                or not isinstance(name, str):
            raise TypeError(f"a map of numbers to names has {number!r}: {name!r}")


def decode(column: Column, how: How = None) -> list[str]:
    """Return the values of a column as text.

    Parameters
    ----------
    column : ndarray
        ``(n,)`` of integers, bytes or void; ``(n, k)``, such as an address kept as ``u1[4]``. Any
        byte order, any strides.
    how : str, Mapping or None
        A word, or a map of numbers to names, such as ``{1: "tx"}``:

        - "ipv4", "ipv6", "ip": 4 or 16 bytes in network byte order, as programs keep addresses;
          "ip" gives IPv4 addresses of IPv6 sockets as IPv4.
        - "mac": 6 bytes; or 8, of which the first 6 are the address.
        - "comm": text to the first NUL; bytes that are no UTF-8 become ``\\xff``.
        - "syscall": the name of a system call of this machine.
        - "errno": the name of an errno, negative or not.
        - "interface": the name of a network interface of this network namespace.
        - "hex": an integer as ``0x1f``, bytes as ``001f``.
        - None: numbers as they are, bytes as "comm", void as "hex".

    Returns
    -------
    list of str
        ``n`` of them. What has no name is its number.

    Raises
    ------
    TypeError, ValueError
        There is no such decoder, or the column's dtype does not suit it; also where it is empty.

    Examples
    --------
    >>> decode(np.array([[10, 0, 0, 1]], "u1"), "ipv4")
    ['10.0.0.1']
    >>> decode(np.array([1, 9]), {1: "tx"})
    ['tx', '9']
    """
    check_how(how)
    if how is None:
        if column.ndim == 1 and column.dtype.kind in "iubf":
            values = column if column.dtype.kind == "f" else _numbers(column, "")
            return [str(value) for value in values]
        how = "comm" if column.dtype.kind == "S" else "hex"
    if not isinstance(how, str):
        names = how
        return _each(_numbers(column, "a map of numbers to names"),
                     lambda number: names.get(number) or str(number))
    decoder = DECODERS[how]
    if how == "hex" and column.ndim == 1 and column.dtype.kind in "iub":
        decoder = _HEX_NUMBER
    if decoder.widths is None:
        return _each(_numbers(column, how), decoder.text)
    return _each(_bytes(column, how, decoder.widths), decoder.text)


def _each(values: Sequence[Any], text: Callable[[Any], str]) -> list[str]:
    """Decode each distinct value once. A dict is quicker than sorting them."""
    known = {value: text(value) for value in set(values)}
    return [known[value] for value in values]


def _rows(column: Column, what: str) -> tuple[Column, int]:
    """Return the bytes of a column, ``(n, width)``, and the width."""
    if column.ndim == 0 or column.dtype.hasobject or column.dtype.kind in "USTmM" \
            and column.dtype.kind != "S":
        raise TypeError(f"{what} decodes a column of integers or bytes, not {_said(column)}")
    count = len(column)
    width = column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=int))
    return np.ascontiguousarray(column).reshape(-1).view("u1").reshape(count, width), width


def _bytes(column: Column, what: str, widths: tuple[int, ...]) -> list[bytes]:
    if column.dtype.kind in "fc":
        raise TypeError(f"{what} decodes bytes, not {_said(column)}")
    rows, width = _rows(column, what)
    if widths and width not in widths:
        raise ValueError(f"{what} decodes {' or '.join(map(str, widths))} bytes; "
                         f"{_said(column)} has {width}")
    if not width:
        return [b""] * len(rows)
    found: list[bytes] = rows.view(f"V{width}").reshape(-1).tolist()
    return found


def _numbers(column: Column, what: str) -> list[int]:
    found: list[int]
    if column.ndim == 1 and column.dtype.kind in "iub":
        found = (column.view("u1") if column.dtype.kind == "b" else column).tolist()
        return found
    # A field that nobody has described: V4, or char[4].
    if column.dtype.kind not in "fc":
        rows, width = _rows(column, what)
        if width in (1, 2, 4, 8):
            found = rows.view(f"u{width}").reshape(-1).tolist()
            return found
    raise TypeError(f"{what} decodes integers, not {_said(column)}")


def _said(column: Column) -> str:
    shape = column.shape[1:]
    return f"{column.dtype}{list(shape) if shape else ''}"
