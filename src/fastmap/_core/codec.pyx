"""Python objects to and from the bytes of a key or a value.

A `Codec` is chosen once per map, from the dtype; the element commands call it through one virtual
call. `Rows` is the same for whole arrays: where each key or value starts, and what must be done to
it (padding zeroed, CPUs spread to the kernel's 8-byte slots) on its way to the kernel.
"""

import operator

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.ref cimport PyObject
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastmap._core.memory cimport Block

cimport numpy as cnp

cnp.import_array()


cdef extern from "numpy/arrayobject.h":
    object scalar_of "PyArray_Scalar"(void *data, cnp.PyArray_Descr *descr, PyObject *base)

cdef extern from "numpy/arrayscalars.h":
    ctypedef struct PyVoidScalarObject:
        int flags
    int NPY_ARRAY_WRITEABLE


cdef char *data_of(object array) except NULL:
    """Return where the data of an ndarray starts."""
    return <char *>cnp.PyArray_DATA(<cnp.ndarray?>array)


cdef bytes raw_bytes(object given):
    """Return the bytes of a bytes-like object, or None where it is none."""
    cdef Py_buffer view
    if isinstance(given, bytes):
        return given
    if not isinstance(given, (bytearray, memoryview)):
        return None
    PyObject_GetBuffer(given, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def padding_of(dtype):
    """Return ``((offset, length), ...)`` of the bytes of `dtype` that no field covers."""
    covered = np.zeros(dtype.itemsize, bool)
    _cover(dtype, covered)
    edges = np.flatnonzero(np.diff(np.concatenate(([1], covered, [1]))))
    return tuple((int(a), int(b - a)) for a, b in edges.reshape(-1, 2))


cdef _cover(dtype, covered):
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        one = np.zeros(base.itemsize, bool)
        _cover(base, one)
        covered[:] |= np.tile(one, covered.size // max(one.size, 1))
    elif dtype.names is not None:
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]
            _cover(field, covered[offset:offset + field.itemsize])
    else:
        covered[:] = True


cdef class Codec:
    """Base: bytes of one key or value (`what`, for messages) of `dtype`."""

    def __init__(self, dtype, str what):
        self.dtype = dtype
        self.what = what
        self.size = dtype.itemsize
        self.padding = padding_of(dtype)

    cdef int encode(self, object given, char *dst) except -1:
        raise TypeError("a codec without a dtype")

    cdef object decode(self, const char *src):
        raise TypeError("a codec without a dtype")

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
        return TypeError(f"a {self.what} is {_describe(self.dtype)}, "
                         f"not {type(given).__name__} ({_shorten(given)})")

    cdef object wrong_size(self, Py_ssize_t size):
        return ValueError(f"a {self.what} is {_describe(self.dtype)}: "
                          f"{self.size} bytes, not {size}")


cdef str _shorten(object given):
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


cdef str _describe(dtype):
    if dtype.names is not None:
        return f"a record of {', '.join(dtype.names)}"
    return str(dtype)


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
    """``S16``: shorter bytes are filled up with NULs, which numpy takes off again."""

    cdef int encode(self, object given, char *dst) except -1:
        cdef bytes raw = raw_bytes(given)
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

    def __init__(self, dtype, str what):
        Codec.__init__(self, dtype, what)
        self.fields = []
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]
            self.fields.append((codec_of(field, f"{what}.{name}"), offset))

    cdef int encode(self, object given, char *dst) except -1:
        cdef bytes raw
        if isinstance(given, np.ndarray) and given.ndim == 0:
            given = given[()]
        if isinstance(given, np.void):
            if given.dtype.names is None or given.dtype == self.dtype:
                raw = given.tobytes()
            elif given.dtype.names == self.dtype.names:
                return self.encode_tuple(tuple(given[name] for name in given.dtype.names), dst)
            else:
                raise TypeError(f"a {self.what} is {_describe(self.dtype)}, "
                                f"not {_describe(given.dtype)}")
        elif isinstance(given, tuple):
            return self.encode_tuple(given, dst)
        else:
            raw = raw_bytes(given)
            if raw is None:
                raise self.refuse(given)
        if len(raw) != self.size:
            raise self.wrong_size(len(raw))
        memcpy(dst, <const char *>raw, self.size)
        return self.clear_padding(dst)

    cdef int encode_tuple(self, tuple given, char *dst) except -1:
        cdef Py_ssize_t i, offset
        cdef Codec field
        if len(given) != len(self.fields):
            raise ValueError(f"a {self.what} is {_describe(self.dtype)}: "
                             f"{len(self.fields)} fields, not {len(given)}")
        memset(dst, 0, self.size)
        for i in range(len(given)):
            field, offset = self.fields[i]
            field.encode(given[i], dst + offset)
        return 0

    cdef object decode(self, const char *src):
        record = scalar_of(<void *>src, <cnp.PyArray_Descr *><PyObject *>self.dtype, NULL)
        # Read-only, so that it hashes; it owns its bytes, nobody else can change them.
        (<PyVoidScalarObject *><PyObject *>record).flags &= ~NPY_ARRAY_WRITEABLE
        return record


@cython.final
cdef class ArrayCodec(Codec):
    """A sub-array dtype, or a scalar that only numpy itself converts: bool, complex, time, str."""

    cdef int encode(self, object given, char *dst) except -1:
        cdef bytes raw
        base, shape = self.dtype.subdtype or (self.dtype, ())
        if shape and isinstance(given, (bytes, bytearray)):
            raw = bytes(given)
            if len(raw) != self.size:
                raise self.wrong_size(len(raw))
        else:
            array = convert(np.asarray(given), base, self.what)
            if array.shape != shape:
                raise ValueError(f"a {self.what} has the shape {shape}, not {array.shape}")
            raw = np.ascontiguousarray(array).tobytes()
        memcpy(dst, <const char *>raw, self.size)
        return self.clear_padding(dst)

    cdef object decode(self, const char *src):
        cdef bytes raw = PyBytes_FromStringAndSize(src, self.size)
        base, shape = self.dtype.subdtype or (self.dtype, ())
        array = np.frombuffer(raw, base).reshape(shape)
        if shape:
            return array
        return bool(array[()]) if base.kind == "b" else array[()]


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
        self.layout = slot_dtype(one.dtype, self.stride)

    cdef int encode(self, object given, char *dst) except -1:
        cdef Py_ssize_t cpu
        cdef Rows rows
        memset(dst, 0, self.size)
        shape = (self.dtype.subdtype or (None, ()))[1]
        many = isinstance(given, list) or (
            isinstance(given, tuple) and self.dtype.names is None and not shape)
        if isinstance(given, np.ndarray) and given.ndim == 1 + len(shape):
            rows = Rows(convert(given, (self.dtype.subdtype or (self.dtype,))[0], self.what),
                        self.one)
            self.demand(rows.count)
            for cpu in range(self.cpus):
                rows.put(cpu, dst + cpu * self.stride)
        elif many and not shape:
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


def slot_dtype(dtype, Py_ssize_t stride):
    """Return a record of `stride` bytes with `dtype` as its field ``value``, at the start."""
    return np.dtype({"names": ["value"], "formats": [dtype], "offsets": [0], "itemsize": stride})


def codec_of(dtype, str what):
    """Return the `Codec` for keys or values (`what`) of `dtype`."""
    if dtype.subdtype is None:
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


def convert(array, dtype, str what):
    """Return `array` with `dtype`, itself where it has it; nothing is lost on the way.

    Raises
    ------
    TypeError
        Where the kinds differ: floats never become integers, objects nothing at all.
    OverflowError
        Where an integer does not fit.
    """
    given = array.dtype
    if given == dtype:
        return array
    if given.hasobject:
        raise TypeError(f"{what}s are {_describe(dtype)}, not Python objects")
    if given.names is not None and given.names == dtype.names:
        out = np.zeros(array.shape, dtype)
        for name in dtype.names:
            field = dtype.fields[name][0]
            base = field.subdtype[0] if field.subdtype else field
            column = convert(array[name], base, f"{what}.{name}")
            if column.shape != out[name].shape:
                raise ValueError(f"{what}.{name} has the shape {field.shape}")
            out[name] = column
        return out
    if dtype.kind in "iu" and given.kind in "iub":
        if given.kind != "b" and array.size and not np.can_cast(given, dtype):
            limits = np.iinfo(dtype)
            low, high = int(array.min()), int(array.max())
            if low < limits.min or high > limits.max:
                raise OverflowError(f"{what} {low if low < limits.min else high} does not fit "
                                    f"{dtype} ({limits.min} to {limits.max})")
        return array.astype(dtype)
    if dtype.kind == "S" and given.kind == "S" and given.itemsize > dtype.itemsize:
        if array.size and int(np.char.str_len(array).max()) > dtype.itemsize:
            raise ValueError(f"{what}s have {dtype.itemsize} bytes; one given is longer")
        return array.astype(dtype)
    if given.kind == dtype.kind == "V" or "V" in (given.kind, dtype.kind):
        raise TypeError(f"{what}s are {_describe(dtype)}, not {_describe(given)}")
    if dtype.kind == given.kind and dtype.kind in "fcSU" or dtype.kind in "fc" and (
            given.kind in "iufb"):
        if dtype.kind in "SU" and given.itemsize > dtype.itemsize:
            raise ValueError(f"{what}s are {dtype}, not {given}")
        return array.astype(dtype)
    raise TypeError(f"{what}s are {_describe(dtype)}, not {_describe(given)}")


cdef class Rows:
    """Keys or values of a call over many elements, wherever they lie.

    Parameters
    ----------
    array : ndarray
        Of the codec's dtype (the base of it, where that is a sub-array), any strides: one row an
        element; for a per-CPU codec ``(n, cpus)``, or with strides of 0 where one value serves
        many.
    codec : Codec
    """

    def __init__(self, array, Codec codec):
        cdef Codec one = codec
        cdef Py_ssize_t inner, offset, length, i
        cdef Block pads
        cdef bint per_cpu = isinstance(codec, PerCpuCodec)
        if per_cpu:
            one = (<PerCpuCodec>codec).one
        lead = 2 if per_cpu else 1
        base, shape = one.dtype.subdtype or (one.dtype, ())
        if array.dtype != base or array.shape[lead:] != shape:
            raise TypeError(f"rows of {array.dtype} {array.shape} for {one.dtype}")
        # Within an item the bytes must lie together.
        inner = base.itemsize
        for extent, step in zip(reversed(shape), reversed(array.strides[lead:])):
            if extent > 1 and step != inner:
                array = np.ascontiguousarray(array)
                break
            inner *= extent
        self.owner = array
        self.base = data_of(array)
        self.count = array.shape[0]
        self.row_stride = array.strides[0]
        self.item = one.size
        self.size = codec.size
        self.cpus = 0
        if per_cpu:
            self.cpus = array.shape[1]
            self.cpu_stride = array.strides[1]
            if self.cpus != (<PerCpuCodec>codec).cpus:
                raise ValueError(f"{self.cpus} CPUs where there are {(<PerCpuCodec>codec).cpus}")
        self.paddings = len(one.padding)
        if self.paddings:
            pads = Block(self.paddings * 2 * sizeof(Py_ssize_t))
            self.padding_owner = pads
            self.padding = <Py_ssize_t *>pads.data
            for i, (offset, length) in enumerate(one.padding):
                self.padding[2 * i] = offset
                self.padding[2 * i + 1] = length
        # In place: each row can be handed to the kernel where it lies; packed: all at once.
        self.in_place = not self.paddings and (
            not per_cpu or (self.cpu_stride == self.item == self.size // self.cpus))
        self.packed = self.in_place and self.row_stride == self.size

    cdef void put(self, Py_ssize_t index, char *dst) noexcept nogil:
        """Write row `index` to `dst` as the kernel wants it: `size` bytes."""
        cdef const char *src = self.base + index * self.row_stride
        cdef Py_ssize_t cpu, slot
        if not self.cpus:
            memcpy(dst, src, self.item)
            self.wipe(dst)
            return
        slot = self.size // self.cpus
        for cpu in range(self.cpus):
            memcpy(dst, src + cpu * self.cpu_stride, self.item)
            memset(dst + self.item, 0, slot - self.item)
            self.wipe(dst)
            dst += slot

    cdef void wipe(self, char *dst) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.paddings):
            memset(dst + self.padding[2 * i], 0, self.padding[2 * i + 1])


def rows_of(given, Codec codec, Py_ssize_t count=-1):
    """Return `given` as `Rows`: what a user handed in as keys or values.

    Parameters
    ----------
    given : ndarray or sequence
        Keys or values; or, where `count` is given, one value for all rows.
    codec : Codec
        The map's, for the key or the value.
    count : int
        How many rows there must be; -1 where `given` decides.
    """
    cdef bint per_cpu = isinstance(codec, PerCpuCodec)
    cdef Codec one = (<PerCpuCodec>codec).one if per_cpu else codec
    base, shape = one.dtype.subdtype or (one.dtype, ())
    if isinstance(given, np.ndarray) and given.ndim > len(shape):
        array = convert(given, base, one.what)
    elif count >= 0 and not isinstance(given, list):
        # One value for all rows (and CPUs): a stride of 0 stands for the copies.
        raw = np.frombuffer(one.pack(given), np.uint8)
        array = raw.view(base).reshape(shape)
        lead = [count, (<PerCpuCodec>codec).cpus] if per_cpu else [count]
        return Rows(np.broadcast_to(array, (*lead, *shape)), codec)
    else:
        array = _from_sequence(given, codec, one, base, shape)
    if per_cpu:
        array = _spread(array, <PerCpuCodec>codec, shape)
    elif array.ndim != 1 + len(shape):
        raise ValueError(f"{one.what}s have the shape (n{''.join(f', {d}' for d in shape)}"
                         f"{'' if shape else ','}), not {array.shape}")
    if array.shape[1 if per_cpu else 1:][(1 if per_cpu else 0):] != shape:
        raise ValueError(f"a {one.what} has the shape {shape}; given was {array.shape}")
    if count >= 0 and array.shape[0] != count:
        raise ValueError(f"{count} keys, but {array.shape[0]} {one.what}s")
    return Rows(array, codec)


cdef object _spread(object array, PerCpuCodec codec, tuple shape):
    expected = f"(n, {codec.cpus}), (n, 1) or one value"
    if array.ndim != 2 + len(shape):
        raise ValueError(f"per-CPU {codec.what}s are {expected}, not {array.shape}")
    if array.shape[1] == 1:
        return np.broadcast_to(array, (array.shape[0], codec.cpus) + shape)
    if array.shape[1] != codec.cpus:
        raise ValueError(f"per-CPU {codec.what}s are {expected}, not {array.shape}")
    return array


cdef object _from_sequence(object given, Codec codec, Codec one, object base, tuple shape):
    # One by one, so that the same rules and messages hold as for single elements.
    cdef Py_ssize_t i
    cdef char *dst
    if isinstance(given, (str, bytes, bytearray)) or not hasattr(given, "__len__") or (
            not hasattr(given, "__getitem__")):
        raise TypeError(f"{one.what}s are an array or a sequence of {_describe(one.dtype)}, "
                        f"not {type(given).__name__}")
    if codec is not one:
        cpus = [_from_sequence(row, one, one, base, shape) for row in given]
        if len({len(row) for row in cpus}) > 1:
            raise ValueError(f"per-CPU {one.what}s of different lengths")
        return np.array(cpus) if cpus else np.empty((0, (<PerCpuCodec>codec).cpus) + shape, base)
    out = np.zeros((len(given),) + shape, base)
    dst = data_of(out)
    for i in range(len(given)):
        one.encode(given[i], dst + i * one.size)
    return out
