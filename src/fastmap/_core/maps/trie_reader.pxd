"""Whole reads of an LPM trie."""

from libc.stdint cimport uint32_t

from fastmap._core.maps.batch_reader cimport BatchReader
from fastmap._core.system.memory cimport Block


cdef class TrieReader(BatchReader):
    # The key that was handed over last; `begun` where there is one.
    cdef Block last
    cdef bint begun
    # How many entries came since the first one, whatever columns then keep of them.
    cdef Py_ssize_t seen

    cdef Py_ssize_t _keep_new(self, char *keys, char *rows, Py_ssize_t count) noexcept nogil
    cdef long _delete(self, int fd, char *keys, char *rows, Py_ssize_t count,
                      Py_ssize_t *deleted) noexcept nogil
