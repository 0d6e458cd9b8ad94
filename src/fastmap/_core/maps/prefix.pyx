"""Keys of an LPM trie: a u4 that counts the bits of the prefix, then the address.

The kernel compares only the bits of the prefix, but keeps and hands out those behind it: they are
cleared in what is handed in, so that a prefix has one spelling.
"""

import ipaddress

import numpy as np

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy, memset

from fastmap._core.rows.codec cimport Codec, data_of
from fastmap._core.rows.rows cimport Rows


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    int AF_INET
    int AF_INET6

_NETWORKS = {4: ipaddress.IPv4Network, 6: ipaddress.IPv6Network}
_ADDRESSES = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}
_INTERFACES = {4: ipaddress.IPv4Interface, 6: ipaddress.IPv6Interface}
_ANY_ADDRESS = (*_NETWORKS.values(), *_ADDRESSES.values())


cdef class PrefixCodec(Codec):
    """What `inner` takes; with a `version` of IP (4 or 6), text and `ipaddress` objects as well.

    A prefix longer than the address is a `ValueError`; bits behind the prefix are cleared.
    """

    def __init__(self, Codec inner not None, int version):
        Codec.__init__(self, inner.dtype, inner.what)
        self.inner = inner
        self.version = version
        self.bits = 8 * (self.size - 4)

    cdef int encode(self, object given, char *dst) except -1:
        cdef uint32_t length
        if self.version and isinstance(given, str):
            self.parse(given, dst)
        elif self.version and isinstance(given, _ANY_ADDRESS):
            self.address(given, dst)
        else:
            self.inner.encode(given, dst)
        memcpy(&length, dst, 4)
        if length > self.bits:
            raise ValueError(f"a prefix of {length} bits; the {self.what} has {self.bits}")
        _clear(dst + 4, length, self.size - 4)
        return 0

    cdef int parse(self, str text, char *dst) except -1:
        cdef uint32_t length = self.bits
        cdef bytes address
        before, slash, after = text.partition("/")
        address = before.encode()
        if b"\0" in address or inet_pton(AF_INET if self.version == 4 else AF_INET6,
                                         address, dst + 4) != 1:
            raise ValueError(f"{text[:60]!r} is no IPv{self.version} address or network")
        if slash:
            if not (after.isascii() and after.isdigit() and len(after) <= 3):
                raise ValueError(f"{text[:60]!r}: a prefix length of 0 to {self.bits}")
            length = int(after)
        memcpy(dst, &length, 4)
        return 0

    cdef int address(self, object given, char *dst) except -1:
        cdef uint32_t length = self.bits
        cdef bytes packed
        if given.version != self.version:
            raise TypeError(f"a {self.what} is of IPv{self.version}, not {given!r}")
        if isinstance(given, _INTERFACES[self.version]):
            given = given.network
        elif getattr(given, "scope_id", None) is not None:
            raise ValueError(f"{given!r}: a {self.what} holds no scope")
        if isinstance(given, _NETWORKS[self.version]):
            length = given.prefixlen
            packed = given.network_address.packed
        else:
            packed = given.packed
        memcpy(dst, &length, 4)
        memcpy(dst + 4, <const char *>packed, self.size - 4)
        return 0

    cdef object decode(self, const char *src):
        cdef uint32_t length
        if not self.version:
            return self.inner.decode(src)
        memcpy(&length, src, 4)
        return _NETWORKS[self.version]((src[4:self.size], length), strict=False)


cdef bint _clear(char *data, uint32_t length, Py_ssize_t size) noexcept nogil:
    """Clear the bits from `length`, at most 8 * `size`, on; tell whether one was set."""
    cdef Py_ssize_t at = length // 8, i
    cdef unsigned char behind
    cdef bint dirty = False
    if at == size:
        return False
    behind = <unsigned char>(0xff >> length % 8)
    if data[at] & behind:
        dirty = True
    for i in range(at + 1, size):
        if data[i]:
            dirty = True
    if dirty:
        data[at] = <char>(data[at] & ~behind)
        memset(data + at + 1, 0, size - at - 1)
    return dirty


def prefixes(Rows rows not None):
    """Return the array of `rows`, checked as `PrefixCodec` does; a copy where bits were cleared.

    Raises
    ------
    ValueError
        A prefix is longer than the address.
    """
    cdef Py_ssize_t i, bad = -1, size = rows.size
    cdef uint32_t length = 0, bits = <uint32_t>(8 * (size - 4))
    cdef bint dirty = False
    cdef char one[512]
    cdef char *data
    if size > <Py_ssize_t>sizeof(one):
        raise ValueError(f"keys of {size} bytes")
    with nogil:
        for i in range(rows.count):
            memcpy(one, rows.base + i * rows.row_stride, size)
            memcpy(&length, one, 4)
            if length > bits:
                bad = i
                break
            dirty |= _clear(one + 4, length, size - 4)
    if bad >= 0:
        raise ValueError(f"key {bad}: a prefix of {length} bits; there are {bits}")
    if not dirty:
        return rows.owner  # the kernel checks what it finds there once more
    copy = np.empty(rows.owner.shape, rows.owner.dtype)
    data = data_of(copy)
    with nogil:
        for i in range(rows.count):
            # Copied first, and checked in the copy: others may write to the original meanwhile.
            memcpy(data + i * size, rows.base + i * rows.row_stride, size)
            memcpy(&length, data + i * size, 4)
            if length > bits:
                bad = i
                break
            _clear(data + i * size + 4, length, size - 4)
    if bad >= 0:
        raise ValueError(f"key {bad}: a prefix of {length} bits; there are {bits}")
    return copy


cdef bint comes_after(const char *key, const char *other) noexcept nogil:
    """Tell whether the kernel walks `key` after `other`: longer prefixes first, then 0 before 1."""
    cdef uint32_t length, other_length, common
    cdef Py_ssize_t whole
    cdef unsigned char mask
    cdef int order
    memcpy(&length, key, 4)
    memcpy(&other_length, other, 4)
    common = min(length, other_length)
    whole = common // 8
    order = memcmp(key + 4, other + 4, whole)
    if order == 0 and common % 8:
        mask = <unsigned char>(0xff << (8 - common % 8))
        order = (<int>(<unsigned char>key[4 + whole] & mask)
                 - <int>(<unsigned char>other[4 + whole] & mask))
    return order > 0 if order else length < other_length
