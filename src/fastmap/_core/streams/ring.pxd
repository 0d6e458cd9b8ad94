"""The consumer's end of ring buffers, walked without the GIL."""

from libc.stdint cimport uint32_t, uint64_t

from fastmap._core.system.memory cimport Block, Mapping
from fastmap._core.system.syscall cimport Fd


cdef class Ring:
    cdef Fd _fd
    # The consumer's page: the only one that may be written.
    cdef Mapping consumer
    # The producer's page, then the data twice, so that no record wraps.
    cdef readonly Mapping pages
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t page
    cdef unsigned int generation
    cdef bint busy
    # Programs overwrite what was not read in time.
    cdef readonly bint overwriting
    # What the last walk walked over: the ring, or a copy of it from position `origin` on; and
    # from where its offsets count.
    cdef const char *data
    cdef uint64_t origin
    cdef Py_ssize_t lead
    cdef readonly Block copied
    # What the last walk found: where the span ends, and the records in it.
    cdef uint64_t end
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t length
    cdef readonly Py_ssize_t first
    cdef readonly Block offsets
    cdef readonly Block lengths

    cdef uint64_t *_consumed(self) noexcept nogil
    cdef uint64_t _produced(self) noexcept nogil
    cdef uint64_t _overwritten(self) noexcept nogil
    cdef const char *_at(self, uint64_t position) noexcept nogil
    cdef int _own(self) except -1
    cdef int _enter(self) except -1
    cdef int _bounds(self, uint64_t *position, uint64_t *produced) except -1 nogil
    cdef int _head(self, bint give_back) except -1 nogil
    cdef int _copy(self, uint64_t *position, uint64_t *produced, Py_ssize_t most) except -1 nogil
    cdef int _walk(self, Py_ssize_t most, Py_ssize_t only) except -1 nogil
    cdef int _list(self, uint64_t position, uint64_t produced, Py_ssize_t most) except -1 nogil
    cdef int _room(self, Py_ssize_t records) except -1
    cdef _leave(self)
    cdef Py_ssize_t _take(self, char *to, Py_ssize_t length, Py_ssize_t most) except -1 nogil
