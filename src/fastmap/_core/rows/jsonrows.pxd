"""Entries as JSON text."""

from fastmap._core.system.memory cimport Block

cdef struct Piece:
    # What stands before it: bytes of `literals`.
    Py_ssize_t before
    Py_ssize_t before_size
    int kind
    bint on_value
    bint swapped
    Py_ssize_t src
    # Bytes of one item; how many there are (-1: one, which is no list), and how far apart.
    Py_ssize_t size
    Py_ssize_t count
    Py_ssize_t step


cdef class JsonRows:
    cdef Block owner, text
    # Owned by `owner`.
    cdef Piece *pieces
    cdef int length
    cdef bytes literals, last
    # Owned by `literals`.
    cdef const char *words
    cdef readonly Py_ssize_t largest
    cdef Py_ssize_t key_size, value_size

    cdef char *put(self, const char *key, const char *value, char *out) except NULL nogil
