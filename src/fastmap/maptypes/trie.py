"""LPM tries: values under prefixes of addresses."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastmap._core.maps.map import KeyedCore
from fastmap._core.maps.prefix import PrefixCodec, prefixes
from fastmap._core.maps.trie_reader import TrieReader
from fastmap._core.rows.codec import codec_of
from fastmap._core.rows.convert import padding_of
from fastmap._core.rows.rows import rows_of
from fastmap._core.system import syscall
from fastmap._core.system.syscall import Fd
from fastmap.dtypes import Reduce
from fastmap.enums import ANY, NOEXIST, MapType
from fastmap.errors import KeyExists
from fastmap.maptypes.batch import Array
from fastmap.maptypes.handle import Map
from fastmap.maptypes.keyed import Keys
from fastmap.maptypes.rules import Shape, Side
from fastmap.maptypes.table import DictMap

#: Bytes of a key: the length of the prefix, and 1 to 256 bytes of address.
SMALLEST_KEY, LARGEST_KEY = 5, 260

IPV4 = np.dtype([("prefixlen", "u4"), ("addr", "u1", (4,))])
IPV6 = np.dtype([("prefixlen", "u4"), ("addr", "u1", (16,))])

_NAMED = {"ipv4": IPV4, "ipv6": IPV6}
_NETWORKS = {4: IPv4Network, 6: IPv6Network}


def ip_version(key: np.dtype[Any]) -> int:
    """Return the IP version whose prefixes a key is, by its layout: 4, 6, or 0 for another."""
    if key.names is None or len(key.names) != 2 or key[0] != np.dtype("u4"):
        return 0
    address = key[1]
    if key.itemsize == 8 and address in (IPV4[1], np.dtype(">u4")):
        return 4
    return 6 if key.itemsize == 20 and address == IPV6[1] else 0


def _named(spec: npt.DTypeLike | None) -> npt.DTypeLike | None:
    return _NAMED.get(spec, spec) if isinstance(spec, str) else spec


@dataclass(frozen=True)
class _PrefixSide(Side):
    """``{u4 prefixlen, bytes of an address}``; "ipv4" and "ipv6" stand for those of theirs."""

    def settle(self, spec: npt.DTypeLike | None, what: str, kind: MapType) -> np.dtype[Any] | None:
        dtype = super().settle(_named(spec), what, kind)
        _check_key(dtype)
        if dtype is not None and (path := _host_order(dtype)):
            raise ValueError(f"key {path}: prefixes are of bytes as they lie, so that those of an "
                             "integer in the host's order are not the number's: give it as "
                             "big-endian ('>u4') or as bytes")
        return dtype

    def of_size(self, spec: npt.DTypeLike | None, size: int, what: str,
                kind: MapType) -> np.dtype[Any] | None:
        dtype = super().of_size(_named(spec), size, what, kind)
        if spec is not None:
            _check_key(dtype)
        return dtype


def _check_key(dtype: np.dtype[Any] | None) -> None:
    """Refuse a key that is not a u4 and then bytes, without padding."""
    if dtype is None or dtype.names is None or dtype.fields is None:
        return
    first, at = dtype.fields[dtype.names[0]][:2]
    if first != np.dtype("u4") or at != 0:
        raise ValueError(f"key {dtype}: an LPM trie's begins with the length of the prefix in "
                         "bits, a u4 in native order")
    if padding := padding_of(dtype):
        raise ValueError(f"key {dtype} has padding at byte {padding[0][0]}: an LPM trie's is the "
                         "length of the prefix and then the address, without")


def _host_order(dtype: np.dtype[Any], path: str = "") -> str:
    """Return the first field behind the length that is a number in the host's byte order."""
    for name in (dtype.names or ())[0 if path else 1:]:
        field = dtype[name].base
        if field.names is not None:
            found = _host_order(field, f"{path}{name}.")
            if found:
                return found
        elif field.kind in "iuf" and field.itemsize > 1 and field.isnative:
            return f"{path}{name}"
    return ""


class LpmTrie(DictMap):
    """LPM_TRIE: a value under each prefix; a lookup finds the longest one that matches.

    >>> routes = fastmap.create("lpm_trie", key="ipv4", value="u4", max_entries=1024)
    >>> routes["10.0.0.0/8"], routes["10.1.0.0/16"] = 1, 2
    >>> routes["10.1.2.3"], routes["10.9.9.9"], "192.0.2.1" in routes
    (2, 1, False)
    >>> routes.lookup_many(np.array([[10, 1, 2, 3], [10, 9, 9, 9]], "u1"))[0]
    array([2, 1], dtype=uint32)

    A key is a record (or tuple, or bytes) of the key dtype: a u4, the length of the prefix in bits,
    and the address, its first byte first. For ``key="ipv4"`` (or "ipv6"), that is
    ``[("prefixlen", "u4"), ("addr", "u1", (4,))]`` (or 16), a key is as well text
    ("10.0.0.0/8"), or a network or address of `ipaddress`; an address is a prefix of full length.
    Many keys are arrays of the dtype, sequences of any of these, arrays of text; and of whole
    addresses ``(n, 4)`` (or 16) of "u1", or for IPv4 ``(n,)`` of ">u4". An array of native u4 is
    refused: whether it holds numbers or the bytes of addresses cannot be told.

    ``m[key]``, ``get``, ``in``, `lookup_many`: of the prefixes that are there, the longest that
    covers the key (and is not longer than it). ``m[key] = value``, ``del m[key]``, ``pop``,
    `update_many`, `delete_many`: exactly this prefix.

    Bits of the address behind the prefix mean nothing to the kernel, but it would keep them and
    hand them out: they are cleared in what is handed in. A prefix longer than the address is a
    `ValueError`.

    Iteration, ``keys()`` and ``items()`` give `ipaddress` networks for the two dtypes, which hash
    (numpy's records with an array in them do not), and records for others; arrays keep the dtype.

    **Whole reads** go from key to key. Where the key that the kernel stands on is deleted
    meanwhile, it starts over; the reader passes over what it has had, and so returns each entry
    once. A walk ends at the latest when the kernel has handed out four times ``max_entries``. An
    entry that is deleted while it is read may show the value of the prefix above it.

    Beside a writer the kernel may pass over entries, unseen (one read in a hundred, measured beside
    one that never pauses). So ``complete`` is True only where the kernel counts as many entries
    before the read and after it as came, and after a drain none. Its count is in the descriptor's
    fdinfo, from Linux 6.4 on, and what it means is tried once on a trie of one entry, which takes
    CAP_BPF: without these ``complete`` is False.

    **Drains** and ``clear()`` look up a batch of entries and then delete it, for want of a command
    that does both: what was deleted is returned, once, but a value that is replaced between the
    two is lost, the new one. The same holds for ``pop`` and ``popitem``. In one step none can be
    had: `lookup_and_delete` is `NotSupported`.
    """

    keys_are = _PrefixSide(None)
    reads_by = TrieReader

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Check the size of the key."""
        if not SMALLEST_KEY <= shape.key_size <= LARGEST_KEY:
            raise ValueError(f"key {shape.key} has {shape.key_size} bytes; an LPM trie's has "
                             f"{SMALLEST_KEY} to {LARGEST_KEY}: a u4 for the length of the prefix, "
                             "and the address")
        if shape.map_extra:
            raise ValueError(f"map_extra={shape.map_extra}: not for an LPM trie")

    def __new__(cls, fd: Fd, key: np.dtype[Any] | None, value: np.dtype[Any] | None,
                **_: Any) -> Self:
        version = 0 if key is None else ip_version(key)
        return KeyedCore.__new__(cls, fd, syscall.map_info(fd)["type"],
                               PrefixCodec(codec_of(key, "key"), version),
                               codec_of(value, "value"))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if sys.byteorder == "little" and (path := _host_order(self.key_dtype)):
            warnings.warn(
                f"LPM trie {self.name or self.id}: key field {path} is an integer in the host's "
                "order, whose prefixes are not those of the number; open it with key= and "
                "big-endian or byte fields", stacklevel=4)
        self._version = ip_version(self.key_dtype)
        if self._version:
            self.key_objects = _networks

    # ---- keys as they are given ----------------------------------------------------------------

    def _prefixes(self, keys: Keys) -> Array:
        """Return `keys` as an array of the key dtype that the kernel will take."""
        if self._version and isinstance(keys, np.ndarray) and keys.dtype.names is None:
            keys = self._addresses(keys)
        return prefixes(rows_of(keys, self.key))

    def _addresses(self, given: Array) -> Keys:
        width = self.key_dtype.itemsize - 4
        if given.dtype.kind == "U" and given.ndim == 1:
            texts: list[str] = given.tolist()
            return texts
        if given.dtype == np.uint8 and given.ndim == 2 and given.shape[1] == width:
            octets = given
        elif given.dtype == np.dtype(">u4") and given.ndim == 1 and width == 4:
            octets = np.ascontiguousarray(given).view("u1").reshape(-1, 4)
        else:
            numbers = ", (n,) of '>u4'" if width == 4 else ""
            hint = ("; of a native u4 it cannot be told whether it is a number or the bytes of an "
                    "address: .astype('>u4') or .view('>u4')"
                    if given.dtype == np.uint32 and width == 4 else "")
            raise TypeError(f"keys are an array of the key dtype, or addresses: (n, {width}) of "
                            f"'u1'{numbers}; not {given.shape} of {given.dtype}{hint}")
        whole = np.empty(len(octets), IPV4 if width == 4 else IPV6)
        whole["prefixlen"] = 8 * width
        whole["addr"] = octets
        return whole.view(self.key_dtype)

    def lookup_many(self, keys: Keys, *, out: Array | None = None, reduce: Reduce = None,
                    via: str | None = None, threads: int = 1) -> tuple[Array, Array]:
        """Look up many keys, each the longest prefix that covers it; see `Table.lookup_many`.

        An array of addresses becomes one of keys in one pass.
        """
        return super().lookup_many(self._prefixes(keys), out=out, reduce=reduce, via=via,
                                   threads=threads)

    def update_many(self, keys: Keys, values: Any, *, flags: int = ANY, errors: str = "raise",
                    via: str | None = None, threads: int = 1) -> Any:
        """Set the values of many prefixes; see `Map.update_many`. Linux 5.13 in batches."""
        return super().update_many(self._prefixes(keys), values, flags=flags, errors=errors,
                                   via=via, threads=threads)

    def delete_many(self, keys: Keys, *, errors: str = "ignore", via: str | None = None,
                    threads: int = 1) -> Any:
        """Delete many prefixes, exactly these; see `Map.delete_many`. Linux 5.13 in batches."""
        return super().delete_many(self._prefixes(keys), errors=errors, via=via, threads=threads)

    # ---- what a trie cannot do in one step -----------------------------------------------------

    def popitem(self) -> tuple[Any, Any]:
        """Delete an arbitrary entry and return it, in two steps; `KeyError`: there is none."""
        for batch in self.reader(chunk=1).drain_chunks():
            for item in batch.items():
                return item
        raise KeyError("the map is empty")

    def setdefault(self, key: Any, default: Any) -> Any:
        """Return the value of exactly the prefix `key`; where it is missing, set `default`."""
        with suppress(KeyExists):  # no lookup first: it may find a shorter prefix
            self.update_elem(key, default, NOEXIST)
        return self.lookup(key)


def _networks(keys: Array) -> list[Any]:
    """Return an array of IP prefixes as networks of `ipaddress`."""
    same = keys.view(IPV4 if keys.dtype.itemsize == 8 else IPV6)
    network = _NETWORKS[ip_version(same.dtype)]
    size = same.dtype.itemsize - 4
    octets = np.ascontiguousarray(same["addr"]).tobytes()
    return [network((octets[i * size:(i + 1) * size], length), strict=False)
            for i, length in enumerate(same["prefixlen"].tolist())]


CLASSES: dict[MapType, type[Map]] = {MapType.LPM_TRIE: LpmTrie}
