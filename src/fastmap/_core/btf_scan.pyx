"""Where the records of BTF begin: that of a kernel has more than a hundred thousand."""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t

from fastmap._core.rows.codec cimport data_of


def record_starts(words not None, once not None, each not None):
    """Find where each record begins, in words; what is in it is not looked at.

    Parameters
    ----------
    words : ndarray
        The types of a blob as u4, side by side. The second word of a record has the kind in the
        upper bits, and how many members it has in the lower 24.
    once, each : sequence of int
        By kind, the words of a record of it, and those more for a member; 128 of both. A record
        of 0 words ends it.

    Returns
    -------
    starts : ndarray
        Of u4. With those of records that are cut off, or of a kind that has no size, as the last.
    whole : bool
        Whether the last record is not one of these.
    """
    cdef uint64_t base[128]
    cdef uint64_t more[128]
    cdef Py_ssize_t kind, count
    cdef bint whole = True
    for kind in range(128):
        base[kind], more[kind] = once[kind], each[kind]
    if words.dtype != np.uint32 or not words.flags.c_contiguous:
        raise TypeError(f"words are u4 side by side, not {words.dtype}")
    count = _walk(<const uint32_t *>data_of(words), len(words), base, more, NULL, &whole)
    starts = np.empty(count, np.uint32)
    _walk(<const uint32_t *>data_of(words), len(words), base, more, <uint32_t *>data_of(starts),
          &whole)
    return starts, whole


cdef Py_ssize_t _walk(const uint32_t *words, uint64_t end, const uint64_t *base,
                      const uint64_t *more, uint32_t *starts, bint *whole) noexcept nogil:
    """Count the records, and note where they begin where there is room for it."""
    cdef Py_ssize_t count = 0
    cdef uint64_t at = 0
    cdef uint32_t info, kind
    while at < end:
        if starts != NULL:
            starts[count] = <uint32_t>at
        count += 1
        info = words[at + 1] if at + 3 <= end else 0
        kind = info >> 24 & 0x7f
        if base[kind] == 0:
            whole[0] = False
            break
        at += base[kind] + (info & 0xffffff) * more[kind]
    if at > end:
        whole[0] = False
    return count
