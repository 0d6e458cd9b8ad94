"""Two reads of a map, matched by key, and the differences of their counters."""

from libc.stdint cimport uint32_t, uint64_t

from fastmap._core.rows.columns cimport Columns
from fastmap._core.delta.keyhash cimport Table
from fastmap._core.system.memory cimport Block


cdef struct Run:
    int kind
    bint swapped
    Py_ssize_t at
    Py_ssize_t count


cdef struct Side:
    # Where the entries of a read lie: of each the key, and the values of all CPUs.
    char *keys
    char *rows
    Py_ssize_t count
    Py_ssize_t row_stride
    Py_ssize_t cpu_stride


cdef class Join:
    cdef Py_ssize_t key_size
    cdef Py_ssize_t value_size
    cdef Py_ssize_t cpus
    cdef bint aligned
    cdef readonly Py_ssize_t out_size
    cdef Columns columns
    cdef uint64_t seed
    # The runs of counters; whether nothing else is in a value.
    cdef Block run_owner
    cdef Run *runs
    cdef Py_ssize_t used
    cdef bint covered
    # Whether values are one run of counters, and the result too.
    cdef bint uniform
    # (offset, length) pairs of the key's padding.
    cdef Block padding_owner
    cdef Py_ssize_t *padding
    cdef Py_ssize_t paddings
    # The differences, and a byte an entry: is it new, did it restart; the keys that went.
    cdef readonly Block out
    cdef readonly Block new
    cdef readonly Block restarted
    cdef readonly Block gone
    cdef readonly Py_ssize_t gone_count
    cdef readonly Py_ssize_t restarts
    # One row of differences, before `columns` makes a row of the result of it.
    cdef Block scratch
    # Entries of the last read that were passed over, and of this one that were put aside.
    cdef Block passed
    cdef Block aside
    cdef Block words
    # Whether a call is under way, of another thread or under a signal handler.
    cdef readonly bint busy

    cdef int _begin(self) except -1
    cdef int _side(self, Side *side, object keys, object values) except -1
    cdef int _reserve(self, Py_ssize_t now, Py_ssize_t last) except -1
    cdef int _table(self, Table *table, Py_ssize_t entries, const char *keys) except -1
    cdef int _all_aligned(self, Side *now, Side *last) except -1 nogil
    cdef int _match(self, Side *now, Side *last) except -1 nogil
    cdef Py_ssize_t _recall(self, Side *last, uint32_t *passed, Py_ssize_t *passed_over,
                            const char *key) noexcept nogil
    cdef bint _clean(self, Side *now) noexcept nogil
    cdef int _compact(self, Side *now, bint add) except -1 nogil
    cdef void _add(self, char *row, const char *other, Py_ssize_t stride) noexcept nogil
    cdef void _take(self, Side *now, Py_ssize_t i) noexcept nogil
    cdef void _subtract_stretch(self, Side *now, Py_ssize_t i, Side *last, Py_ssize_t j,
                                Py_ssize_t count) noexcept nogil
    cdef void _subtract(self, Side *now, Py_ssize_t i, Side *last, Py_ssize_t j) noexcept nogil
