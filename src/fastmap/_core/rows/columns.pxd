"""From rows as the kernel writes them to rows as the caller wants them."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy


cdef inline void _copy(char *dst, const char *src, Py_ssize_t size, bint swapped) noexcept nogil:
    # memcpy: fields of packed records lie anywhere.
    cdef Py_ssize_t i
    if swapped:
        for i in range(size):
            dst[i] = src[size - 1 - i]
    else:
        memcpy(dst, src, size)


cdef struct Column:
    int op
    int kind
    bint swapped
    Py_ssize_t src
    Py_ssize_t dst
    Py_ssize_t count


cdef union Word:
    int64_t signed
    uint64_t unsigned
    double real


cdef class Columns:
    # What it was made of, and `keep` called with (or None): for those that make programs of it.
    cdef readonly tuple given
    cdef readonly tuple condition
    cdef Column *columns
    cdef Py_ssize_t used
    cdef Py_ssize_t cpus
    cdef Py_ssize_t slot
    cdef Py_ssize_t value_size
    cdef readonly Py_ssize_t out_size
    # Whether its columns are copied as they are, all of them.
    cdef bint copies
    cdef bint filtered
    cdef bint filter_key
    cdef Column filter
    cdef int compare
    cdef int compare_as
    cdef Word bound
    # The bytes that `bound_at` points into.
    cdef bytes bound_bytes
    cdef const char *bound_at

    cdef bint keeps(self, const char *key, const char *row) noexcept nogil
    cdef void fill(self, const char *row, char *dst) noexcept nogil
    cdef Py_ssize_t run(self, char *keys, Py_ssize_t key_size, const char *rows,
                        Py_ssize_t row_size, char *out, Py_ssize_t count) noexcept nogil
