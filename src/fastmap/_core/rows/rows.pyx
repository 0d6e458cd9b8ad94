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
    as_it_is : bool
        Whether the padding stays what it is; otherwise it is zeroed on the way.
    """

    def __init__(self, array, Codec codec, bint as_it_is=False):
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
        self.codec = codec
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
        self.paddings = 0 if as_it_is else len(one.padding)
        if self.paddings:
            pads = Block(self.paddings * 2 * sizeof(Py_ssize_t))
            self.padding_owner = pads
            self.padding = <Py_ssize_t *>pads.data
            for i, (offset, length) in enumerate(one.padding):
                self.padding[2 * i] = offset
                self.padding[2 * i + 1] = length
        self.lie()

    cdef void lie(self):
        """Tell whether each row can be handed to the kernel where it lies, and all at once."""
        self.in_place = not self.paddings and (
            not self.cpus or (self.cpu_stride == self.item == self.size // self.cpus))
        self.packed = self.in_place and self.row_stride == self.size

    def part(self, Py_ssize_t start, Py_ssize_t stop):
        """Return rows [start, stop) as rows of their own."""
        return Rows(self.owner[start:stop], self.codec, not self.paddings)

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


cdef bint fits(cnp.ndarray given, Codec codec, Py_ssize_t count):
    """Tell whether an array is one row an element already: the way of most calls, kept short."""
    return (cnp.PyArray_NDIM(given) == 1 and codec.size != 0
            and <object>cnp.PyArray_DESCR(given) is codec.dtype and not codec.padding
            and not codec.shape and (count < 0 or cnp.PyArray_DIM(given, 0) == count))


cdef Rows plain(object array, Codec codec):
    """Return rows that lie in `array` as they are."""
    cdef Rows rows = Rows.__new__(Rows)
    rows.owner = array
    rows.codec = codec
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
    return _rows_of(given, codec, count, None)


def keys_of(given, Codec codec):
    """Return given keys as `Rows`, and which of them are records whose padding is not zero.

    Returns
    -------
    rows : Rows
        All bytes as they are.
    doubtful : ndarray of int64 or None
        Which rows stand for the entry of their bytes, where there is one, and otherwise for that
        with zeros in the padding. Rows that were given as bytes or void are meant as they are.
    """
    cdef list found
    cdef Rows rows
    if not codec.padding:
        return _rows_of(given, codec, -1, None), None
    found = []
    rows = _rows_of(given, codec, -1, found)
    doubtful = np.array(found, np.int64) if found else None
    if rows.paddings:
        doubtful = _where_set(rows)
        rows.paddings = 0
        rows.lie()
    return rows, doubtful


cdef object _where_set(Rows rows):
    """Return which rows have padding that is not zero; None where none has."""
    cdef Py_ssize_t i, pad, at, hits = 0
    cdef const char *row
    set_ = np.zeros(rows.count, np.bool_)
    cdef char *flags = data_of(set_)
    with nogil:
        for i in range(rows.count):
            row = rows.base + i * rows.row_stride
            for pad in range(rows.paddings):
                for at in range(rows.padding[2 * pad], rows.padding[2 * pad] +
                                rows.padding[2 * pad + 1]):
                    flags[i] |= row[at] != 0
            hits += flags[i]
    return np.flatnonzero(set_) if hits else None


cdef Rows _rows_of(object given, Codec codec, Py_ssize_t count, list doubtful):
    cdef bint per_cpu, as_it_is = True
    cdef Codec one
    if type(given) is np.ndarray and type(codec) is not PerCpuCodec and (
            fits(<cnp.ndarray>given, codec, count)):
        return plain(given, codec)
    per_cpu = isinstance(codec, PerCpuCodec)
    one = (<PerCpuCodec>codec).one if per_cpu else codec
    base, shape = one.base, one.shape
    if isinstance(given, np.ndarray) and given.ndim > len(shape):
        as_it_is = _is_void(given.dtype, one)
        array = given.view(base) if as_it_is else convert(given, base, one.what)
    elif count >= 0 and not isinstance(given, (list, range)) and not (
            isinstance(given, tuple) and one.dtype.names is None and not shape):
        # One value for all rows (and CPUs): a stride of 0 stands for the copies.
        raw = np.frombuffer(one.pack(given), np.uint8)
        array = raw.view(base).reshape(shape)
        lead = [count, (<PerCpuCodec>codec).cpus] if per_cpu else [count]
        return Rows(np.broadcast_to(array, (*lead, *shape)), codec, True)
    else:
        array = _from_sequence(given, codec, one, base, shape, doubtful)
    if per_cpu:
        array = _spread(array, <PerCpuCodec>codec, shape)
    elif array.ndim != 1 + len(shape):
        raise ValueError(f"{one.what}s have the shape (n{''.join(f', {d}' for d in shape)}"
                         f"{'' if shape else ','}), not {array.shape}")
    if array.shape[1 if per_cpu else 1:][(1 if per_cpu else 0):] != shape:
        raise ValueError(f"a {one.what} has the shape {shape}; given was {array.shape}")
    if count >= 0 and array.shape[0] != count:
        raise ValueError(f"{count} keys, but {array.shape[0]} {one.what}s")
    return Rows(array, codec, as_it_is)


cdef bint _is_void(object dtype, Codec one):
    """Tell whether elements are the bytes of a record, as void: these are meant as they are."""
    return (dtype.kind == "V" and dtype.names is None and dtype.itemsize == one.size
            and one.dtype.names is not None and not one.shape)


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


cdef object _from_sequence(object given, Codec codec, Codec one, object base, tuple shape,
                           list doubtful):
    # One by one, so that the same rules and messages hold as for single elements.
    cdef Py_ssize_t i
    cdef char *dst
    if isinstance(given, (str, bytes, bytearray, dict)) or not hasattr(given, "__len__") or (
            not hasattr(given, "__getitem__")):
        raise TypeError(f"{one.what}s are an array or a sequence of {describe(one.dtype)}, "
                        f"not {type(given).__name__}")
    if codec is not one:
        cpus = [_from_sequence(row, one, one, base, shape, None) for row in given]
        if len({len(row) for row in cpus}) > 1:
            raise ValueError(f"per-CPU {one.what}s of different lengths")
        if not cpus:
            return np.empty((0, (<PerCpuCodec>codec).cpus) + shape, base)
        return _stacked(cpus, shape, base)
    given = tuple(given)  # encoding one may run Python code that shrinks a list
    out = np.zeros((len(given),) + shape, base)
    dst = data_of(out)
    for i in range(len(given)):
        if doubtful is None:
            one.encode(given[i], dst + i * one.size)
        elif one.encode_key(given[i], dst + i * one.size):
            doubtful.append(i)
    return out
