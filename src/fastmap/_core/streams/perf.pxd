"""Perf buffers: the rings of several CPUs, walked without the GIL."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmap._core.system.memory cimport Block, Mapping


cdef struct Cpu:
    int fd
    int number
    # The control page, and behind it the data.
    char *control
    # Positions: where the next record begins, and where what is leased ends.
    uint64_t begin
    uint64_t end
    # Of the records that were dropped, those that were told of in the ring.
    uint64_t lost
    # The same, of the records that are leased.
    uint64_t pending
    # What the kernel counted for events that were here before this one.
    uint64_t past


cdef class PerfRings:
    # Address space for all CPUs: control page, data, and behind it room for the rest of a record
    # that begins at the end of the data.
    cdef readonly Mapping pages
    cdef readonly Py_ssize_t size
    cdef readonly tuple cpus
    cdef readonly bint overwrite
    cdef readonly bint closed
    cdef readonly bint paused
    cdef Py_ssize_t page
    cdef Py_ssize_t stride
    cdef unsigned int generation
    # Whether the kernel counts losses itself.
    cdef bint exact
    cdef bint busy
    cdef int inflight
    cdef int epoll
    cdef int turn
    cdef int watermark
    cdef int wakeup
    # Called with these rings when the events are to be looked after, and when that is due.
    cdef public object watch
    cdef uint64_t due
    cdef int ncpus
    cdef Cpu *table
    cdef object table_owner
    # What the last walk found; as in `ring.Ring`.
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t length
    cdef readonly Py_ssize_t step
    cdef readonly Py_ssize_t first
    cdef readonly uint64_t lost
    cdef readonly Block offsets
    cdef readonly Block lengths
    cdef readonly Block numbers

    cdef int _refused(self, int number) except -1
    cdef int _open(self, Cpu *cpu, int fd) except -1
    cdef tuple _counts(self, int i)
    cdef int _look(self) except -1
    cdef int _own(self) except -1
    cdef int _enter(self) except -1
    cdef void _leave(self) noexcept
    cdef void _shut(self) noexcept
    cdef int _toggle(self, bint pause) except -1
    cdef bint _any(self) noexcept nogil
    cdef int _walk(self, Py_ssize_t most) except -1 nogil
    cdef int _walk_cpu(self, Cpu *cpu, Py_ssize_t most) except -1 nogil
    cdef int _walk_back(self, Cpu *cpu, Py_ssize_t most) except -1 nogil
    cdef int _note(self, Cpu *cpu, char *record) except -1 nogil
    cdef int _room(self, Py_ssize_t records) except -1
    cdef char *_whole(self, Cpu *cpu, uint64_t position, uint32_t size) noexcept nogil
