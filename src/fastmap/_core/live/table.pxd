"""A live table's memory, whole reads of it, and the steps of an expiry."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmap._core.rows.columns cimport Columns
from fastmap._core.system.memory cimport Mapping


cdef extern from "live/live.h" nogil:
    enum:
        LIVE_BLOCK
        FASTMAP_CONFIRMED
    const uint64_t FASTMAP_TOMB
    const uint64_t FASTMAP_LOST
    const uint64_t FASTMAP_DYING
    const uint64_t FASTMAP_OWN

    struct fastmap_head:
        uint64_t abi
        uint32_t capacity
        uint32_t columns
        uint32_t line_mask
        uint32_t column_mask
        uint64_t used
        uint64_t tombs
        uint64_t free_head
        uint64_t free_tail
        uint64_t free_next
        uint64_t epoch

    struct fastmap_line:
        uint64_t e[7]
        uint64_t over

    struct live:
        fastmap_head *head
        fastmap_line *index
        const char *keys
        uint64_t *born
        uint64_t *values
        uint32_t *ring
        uint64_t capacity
        uint32_t line_mask
        uint32_t columns
        uint32_t key_size
        uint32_t key_stride
        uint32_t words

    struct live_rows:
        uint64_t *seen
        uint32_t *starts
        char *keys
        uint64_t *born
        uint32_t *slots
        uint64_t *sums
        uint64_t *before
        unsigned char *fresh

    unsigned long long FASTMAP_ABI(unsigned long long key_size, unsigned long long value_size)
    uint64_t live_used(const live *t)
    int64_t live_find(const live *t, const char *key, uint64_t **entry)
    void live_find_many(const live *t, const char *want, uint64_t n, int64_t *slots)
    void live_sums(uint64_t *out, const uint64_t *v, uint64_t columns, uint64_t stride,
                   uint64_t count)
    void live_gather(const live *t, uint64_t slot, uint64_t *row)
    uint64_t live_block(const live *t, live_rows *r, uint64_t start, uint64_t n, uint64_t row,
                        uint64_t *now)
    void live_block_sums(const live *t, live_rows *r, uint64_t start, uint64_t n, uint64_t row,
                         uint64_t alive, const uint64_t *now, uint64_t *scratch)
    void live_seen(live_rows *r, uint64_t start, uint64_t n, const uint64_t *now)
    int64_t live_unlink(const live *t, uint32_t slot)
    void live_clear(const live *t, uint32_t slot)
    void live_publish_free(const live *t)
    void live_recycle(const live *t, const uint32_t *slots, uint64_t n)


cdef class LiveCore:
    cdef live t
    cdef tuple owners
    cdef readonly Py_ssize_t value_size

    cdef void rows_of(self, const int64_t *slots, Py_ssize_t count, Columns columns, char *out,
                      Py_ssize_t out_size, unsigned char *found, uint64_t *row) noexcept nogil


cdef class LiveReader:
    cdef LiveCore core
    cdef Columns columns
    cdef live_rows r
    cdef Mapping seen_memory
    cdef Mapping starts_memory
    cdef Mapping before_memory
    cdef readonly Mapping keys
    cdef readonly Mapping born
    cdef readonly Mapping slots
    cdef readonly Mapping values
    cdef readonly Mapping fresh
    cdef readonly Py_ssize_t out_size
    cdef readonly Py_ssize_t filled
    cdef readonly uint64_t started_ns
    cdef readonly uint64_t ended_ns
    cdef bint busy

    cdef Py_ssize_t pass_sums(self, uint64_t n, uint64_t *scratch) except -1 nogil
    cdef Py_ssize_t pass_columns(self, uint64_t n, uint64_t *scratch) except -1 nogil
    cdef Py_ssize_t drop_changed(self, Py_ssize_t rows) noexcept nogil
