"""Python objects to and from the bytes of a key or a value.

A `Codec` is chosen once per map, from the dtype; the element commands call it through one virtual
call.
"""

import operator

import numpy as np

from fastmap._core.rows.convert import contiguous, convert, padding_of, slot_dtype

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastmap._core.rows.convert cimport describe, guessed, kernels_own

cimport numpy as cnp

cnp.import_array()


cdef extern from "numpy/arrayobject.h":
    object scalar_of "PyArray_Scalar"(void *data, cnp.PyArray_Descr *descr, PyObject *base)

cdef extern from "numpy/arrayscalars.h":
    ctypedef struct PyVoidScalarObject:
        PyObject *base


# Gives its flags to every record.
cdef object _READ_ONLY = np.frombuffer(b"\0", np.uint8)


cdef char *data_of(object array) except NULL:
    """Return where the data of an ndarray starts."""
    return <char *>cnp.PyArray_DATA(<cnp.ndarray?>array)


cdef Py_ssize_t bytes_of(object array) except -1:
    """Return how many bytes an ndarray has."""
    return cnp.PyArray_NBYTES(<cnp.ndarray?>array)


cdef bytes raw_bytes(object given):
    """Return the bytes of a bytes-like object, or None where it is none."""
    if type(given) is bytes:
        return given
    # np.bytes_, say, is a subclass.
    return bytes(given) if isinstance(given, (bytes, bytearray, memoryview)) else None


cdef str _shorten(object given):
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


cdef class Codec:
    """Base: bytes of one key or value (`what`, for messages) of `dtype`."""

    def __init__(self, dtype, str what):
        self.dtype = dtype
        self.what = what
        self.size = dtype.itemsize
        self.padding = padding_of(dtype)
        self.base, self.shape = dtype.subdtype or (dtype, ())

    cdef int encode(self, object given, char *dst) except -1:
        raise TypeError("a codec without a dtype")

    cdef int encode_key(self, object given, char *dst) except -1:
        """Encode a key; return 1 where it is a record whose padding, which is kept, is not zero.

        Such a key stands for the entry of these very bytes, where there is one, otherwise for the
        one with zeros: numpy's copies have anything there, and so have the keys of C programs.
        """
        return self.encode(given, dst)

    cdef object decode(self, const char *src):
        raise TypeError("a codec without a dtype")

    cdef bint padding_is_set(self, const char *src):
        cdef Py_ssize_t offset, length, i
        for offset, length in self.padding:
            for i in range(offset, offset + length):
                if src[i]:
                    return True
        return False

    cdef int clear_padding(self, char *dst) except -1:
        cdef Py_ssize_t offset, length
        for offset, length in self.padding:
            memset(dst + offset, 0, length)
        return 0

    def pack(self, given):
        """Return the bytes of `given` as the kernel gets them."""
        cdef bytearray raw = bytearray(self.size)
        self.encode(given, <char *>raw)
        return bytes(raw)

    def unpack(self, bytes raw not None):
        """Return the object that `raw` encodes."""
        if len(raw) != self.size:
            raise self.wrong_size(len(raw))
        return self.decode(<const char *>raw)

    cdef object refuse(self, object given):
        return TypeError(f"a {self.what} is {describe(self.dtype)}, "
                         f"not {type(given).__name__} ({_shorten(given)})")

    cdef object wrong_size(self, Py_ssize_t size):
        return ValueError(f"a {self.what} is {describe(self.dtype)}: "
                          f"{self.size} bytes, not {size}")


@cython.final
cdef class IntCodec(Codec):
    cdef bint signed
    cdef bint swapped

    def __init__(self, dtype, str what):
        Codec.__init__(self, dtype, what)
        self.signed = dtype.kind == "i"
        self.swapped = not dtype.isnative

    cdef int encode(self, object given, char *dst) except -1:
        cdef int64_t signed = 0
        cdef uint64_t number
        cdef bint fits
        if not PyLong_CheckExact(given):
            given = self.integer(given)
        try:
            if self.signed:
                signed = given
                number = <uint64_t>signed
                fits = self.size == 8 or -(1LL << (8 * self.size - 1)) <= signed < (
                    1LL << (8 * self.size - 1))
            else:
                number = given
                fits = self.size == 8 or number >> (8 * self.size) == 0
        except OverflowError:
            fits = False
        if not fits:
            limits = np.iinfo(self.dtype)
            raise OverflowError(f"{self.what} {given} does not fit {self.dtype} "
                                f"({limits.min} to {limits.max})")
        if self.swapped:
            number = _reversed_bytes(number, self.size)
        memcpy(dst, &number, self.size)  # little-endian: the low bytes come first
        return 0

    cdef object integer(self, object given):
        try:
            return operator.index(given)
        except TypeError:
            pass
        raise self.refuse(given)

    cdef object decode(self, const char *src):
        cdef uint64_t number = 0
        memcpy(&number, src, self.size)
        if self.swapped:
            number = _reversed_bytes(number, self.size)
        if not self.signed:
            return number
        if self.size == 8:
            return <int64_t>number
        if self.size == 4:
            return <int32_t>number
        if self.size == 2:
            return <int16_t>number
        return <int8_t>number


cdef inline uint64_t _reversed_bytes(uint64_t number, Py_ssize_t size) noexcept nogil:
    cdef uint64_t turned = 0
    cdef Py_ssize_t i
    for i in range(size):
        turned = turned << 8 | (number >> (8 * i) & 0xff)
    return turned


@cython.final
cdef class FloatCodec(Codec):
    cdef int encode(self, object given, char *dst) except -1:
        cdef double wide
        cdef float narrow
        if not PyFloat_CheckExact(given) and not isinstance(
                given, (float, int, np.floating, np.integer)):
            raise self.refuse(given)
        wide = given
        if self.size == 8:
            memcpy(dst, &wide, 8)
        else:
            narrow = <float>wide
            memcpy(dst, &narrow, 4)
        return 0

    cdef object decode(self, const char *src):
        cdef double wide
        cdef float narrow
        if self.size == 8:
            memcpy(&wide, src, 8)
            return wide
        memcpy(&narrow, src, 4)
        return <double>narrow


@cython.final
cdef class BytesCodec(Codec):
    """``S16``: what is shorter is filled up with NULs, which numpy takes off; text is UTF-8."""

    cdef int encode(self, object given, char *dst) except -1:
        cdef bytes raw = given.encode() if isinstance(given, str) else raw_bytes(given)
        if raw is None:
            raise self.refuse(given)
        if len(raw) > self.size:
            raise self.wrong_size(len(raw))
        memset(dst, 0, self.size)
        memcpy(dst, <const char *>raw, len(raw))
        return 0

    cdef object decode(self, const char *src):
        cdef Py_ssize_t size = self.size
        while size and src[size - 1] == 0:
            size -= 1
        return PyBytes_FromStringAndSize(src, size)


@cython.final
cdef class VoidCodec(Codec):
    """``V12``: bytes as they are."""

    cdef object refuse(self, object given):
        error = Codec.refuse(self, given)
        if isinstance(given, (tuple, dict, int)):
            return TypeError(f"{error}; of a map without types, key= and value= of open tell them")
        return error

    cdef int encode(self, object given, char *dst) except -1:
        cdef bytes raw
        if isinstance(given, np.void) and given.dtype.names is None:
            raw = given.tobytes()
        else:
            raw = raw_bytes(given)
        if raw is None:
            raise self.refuse(given)
        if len(raw) != self.size:
            raise self.wrong_size(len(raw))
        memcpy(dst, <const char *>raw, self.size)
        return 0

    cdef object decode(self, const char *src):
        return PyBytes_FromStringAndSize(src, self.size)


@cython.final
cdef class RecordCodec(Codec):
    # The fields in order: a codec and an offset each.
    cdef list fields
    cdef dict places
    # Two fields that lie over each other, as in a union; None where none do.
    cdef tuple overlap

    def __init__(self, dtype, str what):
        Codec.__init__(self, dtype, what)
        self.fields = []
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]
            self.fields.append((codec_of(field, f"{what}.{name}"), offset))
        self.places = dict(zip(dtype.names, self.fields))
        self.overlap = self.overlapping(dtype.names)

    cdef tuple overlapping(self, names):
        end, before = 0, None
        for _, name in sorted([(self.places[name][1], name) for name in names]):
            codec, offset = self.places[name]
            if offset < end and (<Codec>codec).size:
                return before, name
            if offset + (<Codec>codec).size > end:
                end, before = offset + (<Codec>codec).size, name
        return None

    cdef int encode(self, object given, char *dst) except -1:
        if self.fill(given, dst):
            self.clear_padding(dst)
        return 0

    cdef int encode_key(self, object given, char *dst) except -1:
        return self.fill(given, dst) and self.padding_is_set(dst)

    cdef bint fill(self, object given, char *dst) except -1:
        """Encode; tell whether the padding came from a record, not from bytes that are meant so."""
        cdef bytes raw
        cdef bint record = False
        if isinstance(given, np.ndarray) and given.ndim == 0:
            given = given[()]
        if isinstance(given, np.void):
            record = given.dtype.names is not None
            if not record or given.dtype == self.dtype:
                raw = given.tobytes()
            elif given.dtype.names == self.dtype.names:
                return self.encode_tuple(tuple(given[name] for name in given.dtype.names), dst)
            else:
                raise TypeError(f"a {self.what} is {describe(self.dtype)}, "
                                f"not {describe(given.dtype)}")
        elif isinstance(given, tuple):
            return self.encode_tuple(given, dst)
        elif isinstance(given, dict):
            return self.encode_dict(given, dst)
        else:
            raw = raw_bytes(given)
            if raw is None:
                raise self.refuse(given)
        if len(raw) != self.size:
            raise self.wrong_size(len(raw))
        memcpy(dst, <const char *>raw, self.size)
        return record

    cdef int encode_tuple(self, tuple given, char *dst) except -1:
        cdef Py_ssize_t i, offset
        cdef Codec field
        if len(given) != len(self.fields):
            raise ValueError(f"a {self.what} is {describe(self.dtype)}: "
                             f"{len(self.fields)} fields, not {len(given)}")
        if self.overlap is not None:
            raise ValueError(f"{self.overlap[0]} and {self.overlap[1]} of a {self.what} lie over "
                             "each other (a union): a tuple does not tell which one is meant; give "
                             "a dict of the members that are")
        memset(dst, 0, self.size)
        for i in range(len(given)):
            field, offset = self.fields[i]
            field.encode(given[i], dst + offset)
        return 0

    cdef int encode_dict(self, dict given, char *dst) except -1:
        """Encode the members that are named; the others are zeros."""
        cdef Py_ssize_t offset
        cdef Codec field
        given = dict(given)  # encoding one may run Python code that changes it
        if unknown := [name for name in given if name not in self.places]:
            raise ValueError(f"a {self.what} is {describe(self.dtype)}: it has no {unknown[0]!r}")
        both = self.overlapping(given) if self.overlap is not None else None
        if both is not None:
            raise ValueError(f"{both[0]} and {both[1]} of a {self.what} lie over each other (a "
                             "union): give one of them")
        memset(dst, 0, self.size)
        for name, value in given.items():
            field, offset = self.places[name]
            field.encode(value, dst + offset)
        return 0

    cdef object decode(self, const char *src):
        # Read-only, so that it hashes. On bytes that it refers to: a record that owns its memory
        # hands numpy copies, which would take an assignment in silence, and nested ones no hash.
        cdef bytes raw = PyBytes_FromStringAndSize(src, self.size)
        record = scalar_of(<char *>raw, <cnp.PyArray_Descr *><PyObject *>self.dtype,
                           <PyObject *>_READ_ONLY)
        cdef PyVoidScalarObject *scalar = <PyVoidScalarObject *><PyObject *>record
        Py_INCREF(raw)
        Py_DECREF(<object>scalar.base)
        scalar.base = <PyObject *>raw
        return record


@cython.final
cdef class ArrayCodec(Codec):
    """A sub-array dtype, or a scalar that only numpy itself converts: bool, complex, time, str."""

    cdef int encode(self, object given, char *dst) except -1:
        if self.fill(given, dst):
            self.clear_padding(dst)
        return 0

    cdef int encode_key(self, object given, char *dst) except -1:
        return self.fill(given, dst) and self.padding_is_set(dst)

    cdef bint fill(self, object given, char *dst) except -1:
        """Encode; tell whether the padding came from records, not from bytes that are meant so."""
        cdef bytes raw
        base, shape = self.dtype.subdtype or (self.dtype, ())
        raw = raw_bytes(given) if shape else None
        if raw is not None:
            if len(raw) != self.size:
                raise self.wrong_size(len(raw))
            memcpy(dst, <const char *>raw, self.size)
            return False
        if shape and base.names is not None and isinstance(given, (list, tuple)):
            # Of records: numpy would take their tuples for one more axis.
            if len(given) != shape[0]:
                raise ValueError(f"a {self.what} has {shape[0]} of these, not {len(given)}")
            one = codec_of(np.dtype((base, shape[1:])), self.what)
            raw = b"".join([(<Codec>one).pack(each) for each in given])
        else:
            array = convert(guessed(given, base), base, self.what)
            if array.shape != shape:
                raise ValueError(f"a {self.what} has the shape {shape}, not {array.shape}")
            raw = contiguous(array).tobytes()
        memcpy(dst, <const char *>raw, self.size)
        return True

    cdef object decode(self, const char *src):
        cdef bytes raw = PyBytes_FromStringAndSize(src, self.size)
        base, shape = self.dtype.subdtype or (self.dtype, ())
        array = np.frombuffer(raw, base).reshape(shape)
        if shape:
            return array
        if base.kind not in "bfcU":
            return array[()]
        try:
            return array.item()
        except SystemError as error:  # numpy hands Python any 32 bits as a character
            raise ValueError(f"a {self.what} of {base} is no text ({error}); as u4 it is "
                             "numbers") from None


cdef class PerCpuCodec(Codec):
    """One value for every possible CPU, each in a slot rounded up to 8 bytes."""

    def __init__(self, Codec one, Py_ssize_t cpus):
        self.one = one
        self.dtype = one.dtype
        self.what = one.what
        self.cpus = cpus
        self.stride = (one.size + 7) // 8 * 8
        self.size = self.stride * cpus
        self.padding = ()
        self.base, self.shape = one.base, one.shape
        self.layout = slot_dtype(one.dtype, self.stride)

    cdef int encode(self, object given, char *dst) except -1:
        cdef Py_ssize_t cpu
        memset(dst, 0, self.size)
        shape = (self.dtype.subdtype or (None, ()))[1]
        many = isinstance(given, list) or (
            isinstance(given, tuple) and self.dtype.names is None and not shape)
        if many and shape:
            array = guessed(given, self.dtype.subdtype[0])
            if array.ndim == 1 + len(shape):
                given = array
        if isinstance(given, np.ndarray) and given.ndim == 1 + len(shape):
            array = contiguous(
                convert(given, (self.dtype.subdtype or (self.dtype,))[0], self.what))
            if array.shape[1:] != shape:
                raise ValueError(f"a {self.what} has the shape {shape}, not {array.shape[1:]}")
            self.demand(len(array))
            for cpu in range(self.cpus):
                memcpy(dst + cpu * self.stride, data_of(array) + cpu * self.one.size,
                       self.one.size)
                self.one.clear_padding(dst + cpu * self.stride)
        elif many and not shape:
            given = tuple(given)  # encoding one may run Python code that shrinks a list
            self.demand(len(given))
            for cpu in range(self.cpus):
                self.one.encode(given[cpu], dst + cpu * self.stride)
        else:
            self.one.encode(given, dst)
            for cpu in range(1, self.cpus):
                memcpy(dst + cpu * self.stride, dst, self.one.size)
        return 0

    cdef int demand(self, Py_ssize_t given) except -1:
        if given != self.cpus:
            raise ValueError(f"a per-CPU {self.what} is one for each of {self.cpus} possible CPUs, "
                             f"or one for all of them, not {given}")
        return 0

    cdef object decode(self, const char *src):
        array = np.empty(self.cpus, self.layout)
        memcpy(data_of(array), src, self.size)
        return array["value"]


@cython.final
cdef class KernelsOwnCodec(Codec):
    """A lock, a timer: zeros for user space, whose writes the kernel ignores."""

    cdef int encode(self, object given, char *dst) except -1:
        cdef bytes raw
        memset(dst, 0, self.size)
        if given is None or (PyLong_CheckExact(given) and given == 0):
            return 0
        raw = given.tobytes() if isinstance(given, np.void) else raw_bytes(given)
        if raw is None and not isinstance(given, tuple):
            raise TypeError(f"{self.what} is the kernel's own: None, not {_shorten(given)}")
        return 0

    cdef object decode(self, const char *src):
        return np.zeros((), self.dtype)[()]


@cython.final
cdef class NoCodec(Codec):
    """Of a map that has no keys, or no values: there is nothing to give, and nothing to get."""

    def __init__(self, str what):
        self.dtype = None
        self.what = what
        self.size = 0
        self.padding = ()

    cdef int encode(self, object given, char *dst) except -1:
        if given is not None:
            raise TypeError(f"this map has no {self.what}s; given was {_shorten(given)}")
        return 0

    cdef object decode(self, const char *src):
        return None


def codec_of(dtype, str what):
    """Return the `Codec` for keys or values (`what`) of `dtype`; None where there are none."""
    if dtype is None:
        return NoCodec(what)
    if dtype.subdtype is None:
        if kernels_own(dtype):
            return KernelsOwnCodec(dtype, what)
        if dtype.names is not None:
            return RecordCodec(dtype, what)
        if dtype.kind in "iu":
            return IntCodec(dtype, what)
        if dtype.kind == "f" and dtype.itemsize in (4, 8) and dtype.isnative:
            return FloatCodec(dtype, what)
        if dtype.kind == "S":
            return BytesCodec(dtype, what)
        if dtype.kind == "V":
            return VoidCodec(dtype, what)
    return ArrayCodec(dtype, what)
