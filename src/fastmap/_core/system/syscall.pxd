"""Descriptors and the commands of bpf(2) that are not about elements."""

from libc.stdint cimport uint64_t


cdef class Fd:
    cdef int number
    cdef int inflight
    cdef bint closing
    cdef unsigned int generation
    # What the caller gave for it, for messages.
    cdef str given

    cdef int get(self) except -1
    cdef int acquire(self) except -1
    cdef void release(self) noexcept
    cdef void _settle(self) noexcept

cdef class Handle:
    cdef readonly Fd fd

cdef unsigned int forks() noexcept nogil
cdef long check(long result, int command, int map_type=*, str detail=*) except -1
cdef int look_for_signals(uint64_t *last) except -1 nogil
