"""Where the records of BTF begin."""

from libc.stdint cimport uint32_t, uint64_t


cdef Py_ssize_t _walk(const uint32_t *words, uint64_t end, const uint64_t *base,
                      const uint64_t *more, uint32_t *starts, bint *whole) noexcept nogil
