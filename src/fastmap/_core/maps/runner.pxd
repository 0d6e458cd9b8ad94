"""Runs of the in-kernel path's programs over a buffer that user space has mapped."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmap._core.rows.columns cimport Columns
from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Mapping
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport Fd


cdef struct Head:  # `fastmap.inkernel.key_programs`, at the start of the buffer
    uint32_t count
    uint32_t at
    uint32_t mode
    uint32_t failed
    uint32_t error
    uint32_t index
    uint64_t flags
    uint32_t ahead
    uint32_t end
    uint32_t copied
    uint32_t buckets


cdef class Runner:
    cdef readonly Fd buffer
    # An array of one element that is not mapped, or None.
    cdef readonly Fd scratch
    # The buffer's pages.
    cdef Mapping memory
    # Where large values are copied to, one an element; None where rows stand in the buffer.
    cdef readonly Fd large
    cdef Mapping large_memory
    cdef dict programs
    cdef object layout
    cdef Py_ssize_t chunk
    # Rounds of a lookup's loop for each key: one for each CPU.
    cdef Py_ssize_t rounds
    cdef Py_ssize_t keys_at
    cdef Py_ssize_t codes_at
    cdef Py_ssize_t values_at
    cdef unsigned int generation

    cdef Head *head(self) noexcept nogil
    cdef int start(self, str work, MapCore map) except -1
    cdef int _look(self, int fd, MapCore map, Rows keys, char *rows, char *found, Columns columns,
                   int command, Py_ssize_t *done, Py_ssize_t *hits) except -1 nogil
    cdef void _take_rows(self, Py_ssize_t n, Py_ssize_t size, char *to, const char *found,
                         Columns columns) noexcept nogil
    cdef int _apply(self, int fd, MapCore map, int command, Rows keys, Rows values,
                    Py_ssize_t count, int mode, char *codes, Py_ssize_t code,
                    Py_ssize_t *applied) except -1 nogil
    cdef int _pop(self, int fd, MapCore map, char *to, Py_ssize_t stop, Py_ssize_t size,
                  int64_t *popped) except -1 nogil

cdef long run(int fd) noexcept nogil
cdef tuple mapped(Py_ssize_t size, Py_ssize_t entries, bytes name)
