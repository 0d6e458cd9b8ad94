"""Keys of an LPM trie."""

from libc.stdint cimport uint32_t

from fastmap._core.rows.codec cimport Codec


cdef class PrefixCodec(Codec):
    cdef Codec inner
    cdef readonly int version
    cdef uint32_t bits

    cdef int parse(self, str text, char *dst) except -1
    cdef int address(self, object given, char *dst) except -1

cdef bint comes_after(const char *key, const char *other) noexcept nogil
