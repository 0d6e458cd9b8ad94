"""The producer's end of user ring buffers, written without the GIL."""

from libc.stdint cimport uint64_t

from fastmap._core.system.memory cimport Mapping
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport Fd


cdef class UserRing:
    cdef Fd _fd
    # The consumer's page, which only the kernel writes.
    cdef Mapping consumer
    # The producer's page, then the data twice, so that no record wraps.
    cdef readonly Mapping pages
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t page
    cdef unsigned int generation
    cdef bint busy

    cdef int _own(self) except -1
    cdef int _enter(self) except -1
    cdef Py_ssize_t _room(self, uint64_t *produced) except -1 nogil
    cdef Py_ssize_t _write(self, Rows rows, Py_ssize_t start) except -1 nogil
