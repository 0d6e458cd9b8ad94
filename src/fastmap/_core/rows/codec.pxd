"""Python objects to and from the bytes of a key or a value."""


cdef class Codec:
    cdef readonly object dtype
    cdef readonly str what
    cdef readonly Py_ssize_t size
    cdef readonly tuple padding
    # Of arrays of it: the dtype without sub-array, and that one's shape.
    cdef readonly object base
    cdef readonly tuple shape

    cdef int encode(self, object given, char *dst) except -1
    cdef int encode_key(self, object given, char *dst) except -1
    cdef bint padding_is_set(self, const char *src)
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

cdef char *data_of(object array) except NULL
cdef Py_ssize_t bytes_of(object array) except -1
cdef bytes raw_bytes(object given)
