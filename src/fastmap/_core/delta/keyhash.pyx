"""A hash of the keys of a read, by their bytes: where a key is, which keys are the same.

It holds words of a tag, the upper half of a key's hash, and its place in a list plus one. The list
names entries; their keys lie side by side.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmap._core.rows.codec cimport data_of
from fastmap._core.system.memory cimport Block
from fastmap._core.system.syscall cimport look_for_signals

cdef enum:
    # Entries between looks for a signal.
    SLICE = 4096


cdef inline uint64_t hashed(const char *key, Py_ssize_t size, uint64_t seed) noexcept nogil:
    """Hash a key. The seed is secret: keys often come from a network, whose senders choose them."""
    cdef uint64_t h = seed ^ <uint64_t>size, word
    while size > 0:
        word = 0
        memcpy(&word, key, min(size, 8))
        h = (h ^ word) * <uint64_t>0x9fb21c651e98df25
        h ^= h >> 29
        h = (h + seed) * <uint64_t>0xd6e8feb86659fd93
        h ^= h >> 32
        key += 8
        size -= 8
    return h


cdef void put(const Table *table, const uint32_t *entries, Py_ssize_t which) noexcept nogil:
    cdef uint64_t h = hashed(table.keys + <Py_ssize_t>entries[which] * table.size, table.size,
                             table.seed)
    cdef uint64_t at = h & table.mask
    while table.words[at]:
        at = (at + 1) & table.mask
    table.words[at] = (h & <uint64_t>0xffffffff00000000) | <uint64_t>(which + 1)


cdef Py_ssize_t find(const Table *table, const uint32_t *entries, const char *key) noexcept nogil:
    cdef uint64_t h = hashed(key, table.size, table.seed)
    cdef uint64_t at = h & table.mask
    cdef Py_ssize_t which
    while table.words[at]:
        if (table.words[at] ^ h) >> 32 == 0:
            which = <Py_ssize_t>(<uint32_t>table.words[at]) - 1
            if entries[which] != TAKEN and same(
                    key, table.keys + <Py_ssize_t>entries[which] * table.size, table.size):
                return which
        at = (at + 1) & table.mask
    return -1


cdef Py_ssize_t words_for(Py_ssize_t entries) noexcept nogil:
    cdef Py_ssize_t size = 64
    while size < 2 * entries:
        size *= 2
    return size


def numbered(keys not None):
    """Number equal keys alike, from 0 on in the order in which they first come.

    Parameters
    ----------
    keys : ndarray
        ``(n,)``, of any dtype, side by side. Equal is what is so byte by byte.

    Returns
    -------
    numbers : Block
        A u32 for each key.
    firsts : Block
        A u32 for each number: where its key comes first.
    count : int
        How many numbers there are.
    """
    cdef Py_ssize_t count = keys.shape[0], i, found, different = 0
    cdef Block numbers = Block(max(4 * count, 4)), firsts = Block(max(4 * count, 4))
    cdef Block words = Block(8 * words_for(count))
    cdef uint32_t *each = <uint32_t *>numbers.data
    cdef uint32_t *first = <uint32_t *>firsts.data
    cdef uint64_t time = 0
    cdef Table table
    if count > 0xfffffff0 or not keys.flags.c_contiguous:
        raise ValueError("the keys do not lie side by side")
    table = Table(<uint64_t *>words.data, words.size // 8 - 1,
                  int.from_bytes(os.urandom(8), "little"), data_of(keys), keys.itemsize)
    with nogil:
        memset(words.data, 0, words.size)
        for i in range(count):
            if i % SLICE == 0:
                look_for_signals(&time)
            found = find(&table, first, table.keys + i * table.size)
            if found < 0:
                found = different
                first[found] = <uint32_t>i
                different += 1
                put(&table, first, found)
            each[i] = <uint32_t>found
    return numbers, firsts, different
