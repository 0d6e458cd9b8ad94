"""Work over many elements, split over threads that all have ended when the call does."""

from cpython.pythread cimport PyThread_type_lock


cdef class Work:
    cdef object part
    cdef list failures
    cdef Py_ssize_t count, parts, taken, running, done
    cdef bint stopped
    cdef PyThread_type_lock ended

    cdef _do(self, Py_ssize_t which)
    cdef _stop(self, error)
