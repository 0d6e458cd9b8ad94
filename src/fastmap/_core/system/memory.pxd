"""The only owners of memory."""


cdef class Owner:
    cdef char *data
    cdef Py_ssize_t size
    cdef Py_ssize_t exports
    cdef bint readonly
    # Not in forked children: those of the process that `forks()` numbered so.
    cdef bint bound
    cdef unsigned int generation


cdef class Block(Owner):
    pass


cdef class Mapping(Owner):
    cdef object __weakref__

    cdef void touch(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
