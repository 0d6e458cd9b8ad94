"""Keys and values of a call over many elements, wherever they lie."""

import numpy as np

from fastmap._core.rows.convert import as_bytes, contiguous, convert

from libc.string cimport memcpy, memset

from fastmap._core.rows.codec cimport Codec, PerCpuCodec, data_of
from fastmap._core.rows.convert cimport describe
from fastmap._core.system.memory cimport Block

cimport numpy as cnp

cnp.import_array()


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
                array = contiguous(array)
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


cdef bint as_it_is(cnp.ndarray given, Codec codec, Py_ssize_t count):
    """Tell whether an array is one row an element already: the way of most calls, kept short."""
    return (cnp.PyArray_NDIM(given) == 1 and codec.size != 0
            and <object>cnp.PyArray_DESCR(given) is codec.dtype and not codec.padding
            and not codec.shape and (count < 0 or cnp.PyArray_DIM(given, 0) == count))


cdef Rows plain(object array, Codec codec):
    """Return rows that lie in `array` as they are."""
    cdef Rows rows = Rows.__new__(Rows)
    rows.owner = array
    rows.base = data_of(array)
    rows.count = cnp.PyArray_DIM(<cnp.ndarray>array, 0)
    rows.row_stride = cnp.PyArray_STRIDE(<cnp.ndarray>array, 0)
    rows.item = rows.size = codec.size
    rows.in_place = True
    rows.packed = rows.row_stride == rows.size
    return rows


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
    cdef bint per_cpu
    cdef Codec one
    if type(given) is np.ndarray and type(codec) is not PerCpuCodec and (
            as_it_is(<cnp.ndarray>given, codec, count)):
        return plain(given, codec)
    per_cpu = isinstance(codec, PerCpuCodec)
    one = (<PerCpuCodec>codec).one if per_cpu else codec
    base, shape = one.base, one.shape
    if isinstance(given, np.ndarray) and given.ndim > len(shape):
        array = convert(given, base, one.what)
    elif count >= 0 and not isinstance(given, (list, range)) and not (
            isinstance(given, tuple) and one.dtype.names is None and not shape):
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


cdef object _stacked(list rows, tuple shape, object base):
    """Return arrays of one shape and dtype as one array, all bytes of them."""
    out = np.empty((len(rows), len(rows[0])) + shape, base)
    raw = as_bytes(out)
    for i, row in enumerate(rows):
        raw[i] = as_bytes(row)
    return out


cdef object _from_sequence(object given, Codec codec, Codec one, object base, tuple shape):
    # One by one, so that the same rules and messages hold as for single elements.
    cdef Py_ssize_t i
    cdef char *dst
    if isinstance(given, (str, bytes, bytearray, dict)) or not hasattr(given, "__len__") or (
            not hasattr(given, "__getitem__")):
        raise TypeError(f"{one.what}s are an array or a sequence of {describe(one.dtype)}, "
                        f"not {type(given).__name__}")
    if codec is not one:
        cpus = [_from_sequence(row, one, one, base, shape) for row in given]
        if len({len(row) for row in cpus}) > 1:
            raise ValueError(f"per-CPU {one.what}s of different lengths")
        if not cpus:
            return np.empty((0, (<PerCpuCodec>codec).cpus) + shape, base)
        return _stacked(cpus, shape, base)
    given = tuple(given)  # encoding one may run Python code that shrinks a list
    out = np.zeros((len(given),) + shape, base)
    dst = data_of(out)
    for i in range(len(given)):
        one.encode(given[i], dst + i * one.size)
    return out
