"""dtypes and arrays: what of them is padding, and conversions that lose nothing."""


cdef str describe(dtype)
cdef object guessed(object given, base)
cdef bint kernels_own(dtype)
