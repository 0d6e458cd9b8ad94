"""The only owners of memory."""


cdef class Owner:
    cdef char *data
    cdef Py_ssize_t size
    cdef Py_ssize_t exports
    cdef bint readonly


cdef class Block(Owner):
    pass


cdef class Mapping(Owner):
    cdef void touch(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
