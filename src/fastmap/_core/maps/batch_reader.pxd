"""Whole reads of a map by the batch commands."""

from libc.stdint cimport uint32_t, uint64_t

from fastmap._core.rows.columns cimport Columns
from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Block, Mapping


cdef class BatchReader:
    # The map whose descriptor and sizes are used.
    cdef MapCore map
    cdef Columns columns
    cdef Block cursor
    cdef readonly Mapping keys
    cdef readonly Mapping values
    # Where the kernel writes rows that `columns` then turns into values; None without columns.
    cdef Mapping scratch
    cdef Py_ssize_t scratch_rows
    cdef readonly Py_ssize_t capacity
    cdef Py_ssize_t touched
    cdef Py_ssize_t chunk
    cdef Py_ssize_t command_limit
    cdef Py_ssize_t key_size
    cdef Py_ssize_t row_size
    cdef readonly Py_ssize_t out_size
    cdef Py_ssize_t max_entries
    cdef Py_ssize_t walked
    cdef bint is_array
    cdef bint started
    cdef readonly bint ended
    # Whether the walk returns each stable key once; not where it goes from key to key of a hash.
    cdef readonly bint exact
    cdef readonly Py_ssize_t filled
    cdef readonly uint64_t started_ns
    cdef readonly uint64_t ended_ns
    cdef bint busy
    cdef unsigned int generation

    cdef int _refuse_second(self) except -1
    cdef int _grow(self, Py_ssize_t room) except -1
    cdef int _grow_scratch(self, Py_ssize_t rows) except -1
    cdef int _run(self, bint drain, bint whole, int fd) except -1 nogil
    cdef int _walk(self, bint drain, bint whole, int fd) except -1 nogil
    cdef long _take_next(self, bint drain, int fd, char *key, char *row) noexcept nogil
    cdef void _touch(self, Py_ssize_t count) noexcept nogil
