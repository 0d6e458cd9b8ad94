"""dtypes and arrays: what of them is padding, and conversions that lose nothing."""

import numpy as np


cdef bint _is_kernels_own(title):
    # How `fastmap.btf.special` marks locks, timers and their kind: these are not for users.
    return bool(title) and isinstance(title[0], str) and title[0].startswith("bpf_")


cdef bint kernels_own(dtype):
    """Tell whether all of `dtype` is a lock, a timer or the like, which the kernel alone writes."""
    return dtype.names is not None and len(dtype.names) == 1 and _is_kernels_own(
        dtype.fields[dtype.names[0]][2:])


def padding_of(dtype):
    """Return ``((offset, length), ...)`` of the bytes of `dtype` that are no field of the user's.

    That is what no field covers, and what belongs to the kernel (a spin lock).
    """
    covered = np.zeros(dtype.itemsize, bool)
    _cover(dtype, covered)
    edges = np.flatnonzero(np.diff(np.concatenate(([1], covered, [1]))))
    return tuple((int(a), int(b - a)) for a, b in edges.reshape(-1, 2))


cdef _cover(dtype, covered):
    if dtype.subdtype is not None:
        base = dtype.subdtype[0]
        one = np.zeros(base.itemsize, bool)
        _cover(base, one)
        covered[:] |= np.tile(one, covered.size // max(one.size, 1))
    elif dtype.names is not None:
        for name in dtype.names:
            field, offset, *title = dtype.fields[name]
            if _is_kernels_own(title):
                continue
            _cover(field, covered[offset:offset + field.itemsize])
    else:
        covered[:] = True


def slot_dtype(dtype, Py_ssize_t stride):
    """Return a record of `stride` bytes with `dtype` as its field ``value``, at the start."""
    return np.dtype({"names": ["value"], "formats": [dtype], "offsets": [0], "itemsize": stride})


cdef str describe(dtype):
    if dtype.names is not None:
        return f"a record of {', '.join(dtype.names)}"
    return str(dtype)


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
        raise TypeError(f"{what}s are {describe(dtype)}, not Python objects")
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
        raise TypeError(f"{what}s are {describe(dtype)}, not {describe(given)}")
    if dtype.kind == given.kind and dtype.kind in "fcSU" or dtype.kind in "fc" and (
            given.kind in "iufb"):
        if dtype.kind in "SU" and given.itemsize > dtype.itemsize:
            raise ValueError(f"{what}s are {dtype}, not {given}")
        return array.astype(dtype)
    raise TypeError(f"{what}s are {describe(dtype)}, not {describe(given)}")


cdef object guessed(object given, base):
    """Return what is no array yet as one, of a dtype that `convert` can judge."""
    array = np.asarray(given)
    if base.kind in "iu" and array.dtype.kind in "fO" and isinstance(given, (list, tuple)):
        # Integers that numpy finds no common dtype for, such as [1, 2**63], or something else.
        numbers = np.asarray(given, object)
        flat = [n for n in numbers.flat if isinstance(n, (int, np.integer))]
        if flat and len(flat) == numbers.size:
            wide = np.dtype("i8" if min(flat) < 0 else "u8")
            return np.array([int(n) for n in flat], wide).reshape(numbers.shape)
    return array


# ---- moving elements ----------------------------------------------------------------------------
# numpy copies records field by field: it leaves out padding, and where fields overlap or records
# are nested in arrays, promotion to a common dtype can write past the end. Whatever only moves
# elements moves their bytes.


def as_bytes(array):
    """Return a view of an array whose elements are their bytes (void), of the same shape."""
    if array.dtype.names is None or array.dtype.itemsize == 0:
        return array
    return array.view(np.dtype((np.void, array.dtype.itemsize)))


def copied(array):
    """Return a C-contiguous copy of an array, all bytes of it."""
    return as_bytes(array).copy().view(array.dtype)


def contiguous(array):
    """Return an array itself where it is C-contiguous, or a copy of all bytes of it."""
    return array if array.flags.c_contiguous else copied(array)


def taken(array, which):
    """Return the elements of an array that an index array or a mask chooses, all bytes of them."""
    return as_bytes(array)[which].view(array.dtype)


def joined(arrays):
    """Return arrays of one dtype one behind the other, all bytes of them."""
    return np.concatenate([as_bytes(array) for array in arrays]).view(arrays[0].dtype)
