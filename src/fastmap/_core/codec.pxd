"""Python objects to and from the bytes of a key or a value."""


cdef class Codec:
    cdef readonly object dtype
    cdef readonly str what
    cdef readonly Py_ssize_t size
    cdef readonly tuple padding

    cdef int encode(self, object given, char *dst) except -1
    cdef object decode(self, const char *src)
    cdef int clear_padding(self, char *dst) except -1
    cdef object refuse(self, object given)
    cdef object wrong_size(self, Py_ssize_t size)


cdef class PerCpuCodec(Codec):
    cdef readonly Codec one
    cdef readonly Py_ssize_t cpus
    cdef readonly Py_ssize_t stride
    cdef object layout

    cdef int demand(self, Py_ssize_t given) except -1

cdef class Rows:
    # The array the rows are in: keeps `base` valid.
    cdef readonly object owner
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
    cdef void wipe(self, char *dst) noexcept nogil


cdef char *data_of(object array) except NULL
cdef bytes raw_bytes(object given)
