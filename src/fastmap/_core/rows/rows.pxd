"""Keys and values of a call over many elements, wherever they lie."""


cdef class Rows:
    # The array the rows are in: keeps `base` valid.
    cdef readonly object owner
    cdef object codec
    cdef const char *base
    cdef readonly Py_ssize_t count
    cdef Py_ssize_t row_stride
    cdef Py_ssize_t cpu_stride
    cdef Py_ssize_t item
    cdef Py_ssize_t cpus
    cdef readonly Py_ssize_t size
    cdef bint packed
    cdef bint in_place
    # (offset, length) pairs that are zeroed in each row; `padding_owner` keeps them.
    cdef object padding_owner
    cdef Py_ssize_t *padding
    cdef Py_ssize_t paddings

    cdef void put(self, Py_ssize_t index, char *dst) noexcept nogil
    cdef void lie(self)
    cdef void wipe(self, char *dst) noexcept nogil
