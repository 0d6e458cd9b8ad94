"""A hash of the keys of a read, by their bytes."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy


cdef enum:
    # In a list of entries: one that is found already, and not again.
    TAKEN = 0xffffffff


cdef struct Table:
    uint64_t *words
    uint64_t mask
    uint64_t seed
    const char *keys
    Py_ssize_t size


cdef inline bint same(const char *one, const char *other, Py_ssize_t size) noexcept nogil:
    cdef uint64_t a, b
    while size >= 8:
        memcpy(&a, one, 8)
        memcpy(&b, other, 8)
        if a != b:
            return False
        one += 8
        other += 8
        size -= 8
    while size:
        if one[0] != other[0]:
            return False
        one += 1
        other += 1
        size -= 1
    return True


cdef Py_ssize_t words_for(Py_ssize_t entries) noexcept nogil
cdef void put(const Table *table, const uint32_t *entries, Py_ssize_t which) noexcept nogil
cdef Py_ssize_t find(const Table *table, const uint32_t *entries, const char *key) noexcept nogil
