"""The producer's end of user ring buffers, written without the GIL.

The layout is that of `ring`: a header of 8 bytes, its length with two flags in the upper bits, then
the record, padded to 8 bytes; the data is mapped twice in a row. Here the kernel is the reader: it
stops in front of a BUSY record, and refuses positions that are no multiple of 8.
"""

from fastmap import errors

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADMSG
from libc.stdint cimport uint32_t, uint64_t

from fastmap._core.system.memory cimport Mapping
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport Fd, forks
from fastmap._core.system.uapi cimport *


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *files, unsigned long count, int milliseconds)
    int POLLOUT

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)
    long sysconf(int name)
    int _SC_PAGESIZE

cdef extern from *:
    """
    #include <string.h>
    /* Records one behind the other, with the headers in between; `length` in the usual cases is
       known when this is compiled. */
    static inline __attribute__((always_inline)) void
    fm_rows(char *to, const char *from, size_t stride, size_t length, size_t step, size_t count)
    {
        for (size_t i = 0; i < count; i++, to += step, from += stride) {
            ((uint32_t *)to)[0] = length; /* the final header: neither BUSY nor DISCARD */
            ((uint32_t *)to)[1] = 0;
            memcpy(to + 8, from, length);
        }
    }

    static void
    fm_copy_rows(char *to, const char *from, size_t stride, size_t length, size_t count)
    {
        size_t step = (length + 15) & ~(size_t)7;
        switch (length) {
        case 8: fm_rows(to, from, stride, 8, 16, count); break;
        case 16: fm_rows(to, from, stride, 16, 24, count); break;
        case 24: fm_rows(to, from, stride, 24, 32, count); break;
        case 32: fm_rows(to, from, stride, 32, 40, count); break;
        case 48: fm_rows(to, from, stride, 48, 56, count); break;
        case 64: fm_rows(to, from, stride, 64, 72, count); break;
        default: fm_rows(to, from, stride, length, step, count);
        }
    }
    """
    void fm_copy_rows(char *to, const char *source, size_t stride, size_t length,
                      size_t count) nogil

cdef enum:
    HEADER = 8

cdef uint32_t BUSY = 1u << 31
cdef uint32_t DISCARD = 1u << 30


cdef inline Py_ssize_t step_of(Py_ssize_t length) noexcept nogil:
    return (length + HEADER + 7) & ~<Py_ssize_t>7


cdef class UserRing:
    """A mapped USER_RINGBUF. Belongs to the process that made it."""

    def __cinit__(self, Fd fd not None, Py_ssize_t size):
        self._fd = fd
        self.page = sysconf(_SC_PAGESIZE)
        self.size = size
        self.generation = forks()
        self.consumer = Mapping(self.page, fd, 0, False)
        self.pages = Mapping(self.page + 2 * size, fd, self.page, True)

    @property
    def consumed(self):
        """Bytes that programs ever took."""
        return fm_load64(<uint64_t *>self.consumer.data)

    @property
    def produced(self):
        """Bytes that were ever reserved."""
        return fm_load64(<uint64_t *>self.pages.data)

    cdef int _own(self) except -1:
        if self._fd.closing:
            raise ValueError("operation on a closed ring buffer")
        if self.generation != forks():
            raise RuntimeError("a ring buffer belongs to the process that opened it: "
                               "open it again in a forked child")
        return 0

    cdef int _enter(self) except -1:
        self._own()
        if self.busy:
            raise RuntimeError("another thread is writing to the ring buffer")
        return 0

    cdef Py_ssize_t _room(self, uint64_t *produced) except -1 nogil:
        """Return the bytes that are free; refuse positions that neither side would leave there."""
        cdef uint64_t consumed = fm_load64(<uint64_t *>self.consumer.data)
        produced[0] = fm_load64(<uint64_t *>self.pages.data)
        if (produced[0] | consumed) & 7 or produced[0] - consumed > <uint64_t>self.size:
            with gil:
                raise errors.BpfError(
                    EBADMSG, "the shared pages of the ring buffer were overwritten: the consumer's "
                             f"position is {consumed}, the producer's {produced[0]}")
        return self.size - <Py_ssize_t>(produced[0] - consumed)

    def reserve(self, Py_ssize_t length):
        """Return where in `pages` a record of `length` bytes may be written; -1 without room."""
        cdef uint64_t produced
        cdef char *header
        self._enter()
        if length < 0 or step_of(length) > self.size:
            raise ValueError(f"a record of {length} bytes in a ring of {self.size}")
        if self._room(&produced) < step_of(length):
            return -1
        header = self.pages.data + self.page + (produced & (self.size - 1))
        (<uint32_t *>header)[0] = <uint32_t>length | BUSY
        (<uint32_t *>header)[1] = 0
        fm_store64(<uint64_t *>self.pages.data, produced + step_of(length))
        return header + HEADER - self.pages.data

    def finish(self, Py_ssize_t offset, Py_ssize_t length, bint discard):
        """Submit or discard what was reserved; also when the map is closed: readers wait for it.

        In a forked child it does nothing: the record is the parent's.
        """
        if not self.page + HEADER <= offset < self.page + self.size + HEADER or offset & 7:
            raise ValueError(f"nothing is reserved at {offset}")
        if self.generation == forks():
            fm_store32(<uint32_t *>(self.pages.data + offset - HEADER),
                       <uint32_t>length | (DISCARD if discard else 0))

    def write(self, Rows rows not None, Py_ssize_t start):
        """Submit rows from `start` on, as many as there is room for; return how many."""
        cdef Py_ssize_t count
        if step_of(rows.size) > self.size:
            raise ValueError(f"a record of {rows.size} bytes in a ring of {self.size}")
        if not 0 <= start <= rows.count:
            raise ValueError(f"row {start} of {rows.count}")
        self._enter()
        self.busy = True
        try:
            with nogil:
                count = self._write(rows, start)
        finally:
            self.busy = False
        return count

    cdef Py_ssize_t _write(self, Rows rows, Py_ssize_t start) except -1 nogil:
        cdef uint64_t produced
        cdef Py_ssize_t i, step = step_of(rows.size)
        cdef Py_ssize_t count = min(rows.count - start, self._room(&produced) // step)
        cdef char *to = self.pages.data + self.page + (produced & (self.size - 1))
        if rows.in_place:
            fm_copy_rows(to, rows.base + start * rows.row_stride, rows.row_stride, rows.size, count)
        else:
            for i in range(count):
                (<uint32_t *>(to + i * step))[0] = <uint32_t>rows.size
                (<uint32_t *>(to + i * step))[1] = 0
                rows.put(start + i, to + i * step + HEADER)
        # The one store that shows them to programs.
        fm_store64(<uint64_t *>self.pages.data, produced + count * step)
        return count

    def wait(self, Py_ssize_t length, double seconds):
        """Wait for room for a record, so many seconds (below 0: for ever); tell if there is."""
        cdef uint64_t deadline = fm_deadline(seconds), produced
        cdef Py_ssize_t room
        cdef int ms
        cdef unsigned int nap = 50
        cdef pollfd file
        cdef bint there = False
        self._own()
        file.fd = self._fd.acquire()
        file.events = POLLOUT
        try:
            with nogil:
                while True:
                    room = self._room(&produced)
                    there = room >= step_of(length)
                    if there:
                        break
                    ms = fm_nap_ms(deadline)
                    if ms == 0:
                        break
                    if room == 0:
                        poll(&file, 1, ms)
                    else:
                        # poll(2) would return at once: for it, there is room.
                        usleep(min(nap, <unsigned int>ms * 1000))
                        nap = min(nap * 2, <unsigned int>10000)
                    with gil:
                        PyErr_CheckSignals()
                        self._own()
        finally:
            self._fd.release()
        return there
