"""Elements without keys: queues, stacks, Bloom filters.

There are no batch commands for them. The loops give up the GIL once, and look for signals.
"""

from fastmap import errors

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ENOENT
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from fastmap._core.rows.codec cimport data_of
from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Block
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport look_for_signals
from fastmap._core.system.uapi cimport *


def contains(MapCore map not None, value):
    """Tell whether a Bloom filter may have `value`."""
    cdef Block row = Block(map.value.size)
    cdef long result
    map.value.encode(value, row.data)
    result = fm_elem(FM_MAP_LOOKUP_ELEM, map.fd.get(), NULL, row.data, 0)
    if result < 0 and result != -ENOENT:
        raise errors.from_errno(<int>-result, FM_MAP_LOOKUP_ELEM, map.kind)
    return result == 0


def contains_rows(MapCore map not None, Rows values not None, found):
    """Ask a Bloom filter for each of `values`; write a flag each to `found`, an array of bool."""
    cdef char *flags = data_of(found)
    cdef Block scratch = Block(map.value.size)
    cdef Py_ssize_t i = 0
    cdef long result = 0
    cdef uint64_t last = 0
    cdef int fd
    if found.nbytes != values.count:
        raise ValueError(f"{found.nbytes} flags for {values.count} values")
    fd = map.fd.acquire()
    try:
        with nogil:
            for i in range(values.count):
                if i & 255 == 0:
                    look_for_signals(&last)
                values.put(i, scratch.data)  # the kernel takes a copy that it may write to
                result = fm_elem(FM_MAP_LOOKUP_ELEM, fd, NULL, scratch.data, 0)
                if result < 0 and result != -ENOENT:
                    break
                flags[i] = result == 0
        if result < 0 and result != -ENOENT:
            raise errors.batch_error(<int>-result, FM_MAP_LOOKUP_ELEM, map.kind, i, i)
    finally:
        map.fd.release()


def push_rows(MapCore map not None, Rows values not None, uint64_t flags, errnos=None):
    """Push each of `values`, or add it; return how many were.

    Stops at the first that fails; where `errnos` are given, an int32 array, attempts all and writes
    one each. What leaves it carries ``applied``.
    """
    cdef int32_t *codes = NULL
    cdef Block scratch = Block(map.value.size)
    cdef Py_ssize_t i = 0, applied = 0
    cdef long result = 0
    cdef uint64_t last = 0
    cdef char *row
    cdef int fd
    if errnos is not None:
        if errnos.nbytes != values.count * 4:
            raise ValueError(f"{errnos.nbytes} bytes for {values.count} errnos")
        codes = <int32_t *>data_of(errnos)
    fd = map.fd.acquire()
    try:
        with nogil:
            for i in range(values.count):
                if i & 255 == 0:
                    look_for_signals(&last)
                if values.in_place:
                    row = <char *>values.base + i * values.row_stride
                else:
                    row = scratch.data
                    values.put(i, row)
                result = fm_elem(FM_MAP_UPDATE_ELEM, fd, NULL, row, flags)
                if result == 0:
                    applied += 1
                elif codes != NULL:
                    codes[i] = <int32_t>-result
                else:
                    break
        if result < 0 and codes == NULL:
            raise errors.batch_error(<int>-result, FM_MAP_UPDATE_ELEM, map.kind, applied, i)
        # A Ctrl-C that came meanwhile is raised here, where `applied` is at hand.
        PyErr_CheckSignals()
    except BaseException as error:
        error.applied = applied
        raise
    finally:
        map.fd.release()
    return applied


def pop_rows(MapCore map not None, rows, done, Py_ssize_t stop):
    """Pop into ``rows[done[0]:stop]``, bytes, counting ``done[0]`` up; tell whether it got there.

    `done` is an array of one int64: right also when this is left by an exception. False: the queue
    was empty.
    """
    cdef char *to = data_of(rows)
    cdef int64_t *at = <int64_t *>data_of(done)
    cdef Py_ssize_t size = map.value.size
    cdef long result = 0
    cdef uint64_t last = 0
    cdef int fd
    if not 0 <= at[0] <= stop or rows.nbytes < stop * size:
        raise ValueError(f"{rows.nbytes} bytes for {stop} rows of {size}")
    fd = map.fd.acquire()
    try:
        with nogil:
            while at[0] < stop:
                if at[0] & 255 == 0:
                    look_for_signals(&last)
                # Written before the command that takes the value away, and could fail on the page.
                memset(to + at[0] * size, 0, size)
                result = fm_elem(FM_MAP_LOOKUP_AND_DELETE_ELEM, fd, NULL, to + at[0] * size, 0)
                if result < 0:
                    break
                at[0] += 1
        if result < 0 and result != -ENOENT:
            raise errors.from_errno(<int>-result, FM_MAP_LOOKUP_AND_DELETE_ELEM, map.kind)
        PyErr_CheckSignals()
    finally:
        map.fd.release()
    return result == 0
