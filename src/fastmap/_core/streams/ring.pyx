"""The consumer's end of ring buffers, walked without the GIL.

A record lies behind a header of 8 bytes: its length with two flags in the upper bits, then a number
of the kernel's. Records are padded to 8 bytes, and the data is mapped twice in a row, so that none
wraps. Positions only grow; the kernel never writes what lies between the consumer's position and
the producer's. But in overwrite mode it does: then a third position tells up to where it did, and
what is read is copied first, and looked at where it was not overwritten meanwhile.
"""

from fastmap import errors

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EBADMSG
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmap._core.rows.codec cimport data_of
from fastmap._core.system.memory cimport Block, Mapping
from fastmap._core.system.syscall cimport Fd, forks
from fastmap._core.system.uapi cimport *


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *files, unsigned long count, int milliseconds)
    int POLLIN

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)
    long sysconf(int name)
    int _SC_PAGESIZE

cdef extern from *:
    """
    #include <stddef.h>
    #include <string.h>

    /* Copy records of one length that lie one behind the other, up to `count`; return how many
       there were. That the next one has the same header is guessed and then checked, so that no
       load waits for the one before; usual lengths are known when this is compiled. */
    static inline __attribute__((always_inline)) ptrdiff_t
    fm_run(char *to, const char *at, uint32_t header, size_t length, size_t step, ptrdiff_t count)
    {
        ptrdiff_t n = 0;
        for (; n < count && fm_load32((const uint32_t *)at) == header;
             n++, at += step, to += length)
            memcpy(to, at + 8, length);
        return n;
    }

    static ptrdiff_t fm_copy_run(char *to, const char *at, uint32_t length, ptrdiff_t count)
    {
        switch (length) {
        case 8: return fm_run(to, at, 8, 8, 16, count);
        case 16: return fm_run(to, at, 16, 16, 24, count);
        case 24: return fm_run(to, at, 24, 24, 32, count);
        case 32: return fm_run(to, at, 32, 32, 40, count);
        case 40: return fm_run(to, at, 40, 40, 48, count);
        case 48: return fm_run(to, at, 48, 48, 56, count);
        case 64: return fm_run(to, at, 64, 64, 72, count);
        default: return fm_run(to, at, length, length, ((size_t)length + 15) & ~(size_t)7, count);
        }
    }
    """
    ptrdiff_t fm_copy_run(char *to, const char *at, uint32_t length, ptrdiff_t count) nogil

cdef enum:
    HEADER = 8
    # A copy gives space back after so many bytes: the producer waits less, the cache holds them.
    GIVE_BACK = 1 << 18
    # Where in the page of the producer's position that of the overwritten stands.
    OVERWRITTEN = 16
    # So much is copied at once at least, in overwrite mode.
    LEAST_COPY = 1 << 16

cdef uint32_t BUSY = 1u << 31
cdef uint32_t DISCARD = 1u << 30
cdef uint32_t LENGTH = (1u << 30) - 1

cdef enum:
    # What stands at the consumer's position.
    NOTHING = 0
    RECORD = 1
    WAITING = 2  # a record that its producer has not submitted yet


cdef inline uint64_t step_of(uint32_t header) noexcept nogil:
    return ((header & LENGTH) + HEADER + 7) & ~<uint64_t>7


cdef class Ring:
    """A mapped RINGBUF. Belongs to one thread at a time, and to the process that made it.

    In overwrite mode a lease finds records in ``copied``, a new block each time, not in ``pages``.

    After `lease` or `read` the attributes tell what was found: `count` records, all of `length`
    bytes and one behind the other from offset `first` of `pages` on; or, where `length` is -1, at
    `offsets` (int64) and of `lengths` (uint32).
    """

    def __cinit__(self, Fd fd not None, Py_ssize_t size, bint overwriting=False):
        self._fd = fd
        self.overwriting = overwriting
        self.page = sysconf(_SC_PAGESIZE)
        self.size = size
        self.generation = forks()
        self.consumer = Mapping(self.page, fd, 0, True)
        self.pages = Mapping(self.page + 2 * size, fd, self.page, False)
        self.copied = Block(0)
        self.offsets = Block(0)
        self.lengths = Block(0)
        self.data = self.pages.data + self.page
        self.lead = self.page

    cdef uint64_t *_consumed(self) noexcept nogil:
        return <uint64_t *>self.consumer.data

    cdef uint64_t _produced(self) noexcept nogil:
        return fm_load64(<uint64_t *>self.pages.data)

    cdef uint64_t _overwritten(self) noexcept nogil:
        return fm_load64(<uint64_t *>(self.pages.data + OVERWRITTEN)) if self.overwriting else 0

    cdef const char *_at(self, uint64_t position) noexcept nogil:
        return self.data + ((position - self.origin) & (self.size - 1))

    @property
    def consumed(self):
        """Bytes that were ever given back."""
        return fm_load64(self._consumed())

    @property
    def produced(self):
        """Bytes that were ever reserved."""
        return self._produced()

    @property
    def overwritten(self):
        """Up to where records were overwritten, in bytes; 0 without overwrite mode."""
        return self._overwritten()

    @property
    def step(self):
        """Bytes from one record to the next, where all have one length."""
        return step_of(<uint32_t>self.length)

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
            raise RuntimeError("the ring buffer is in use: by another thread, or by a lease that "
                               "has not ended")
        self.busy = True
        return 0

    cdef int _bounds(self, uint64_t *position, uint64_t *produced) except -1 nogil:
        """Read both positions; refuse what a kernel would not have left there."""
        cdef uint64_t over = self._overwritten()
        while True:
            position[0] = max(fm_load64(self._consumed()), over)
            produced[0] = self._produced()
            if not self.overwriting or self._overwritten() == over:
                break
            over = self._overwritten()
        if position[0] & 7 or produced[0] - position[0] > <uint64_t>self.size:
            with gil:
                raise self._forged(f"the consumer's position is {position[0]}, the producer's "
                                   f"{produced[0]}")
        return 0

    def _forged(self, str what):
        return errors.BpfError(EBADMSG, f"the shared pages of the ring buffer were overwritten: "
                                        f"{what}")

    cdef int _head(self, bint give_back) except -1 nogil:
        """Tell what stands behind discarded records; give those back, if that is asked."""
        cdef uint64_t position, produced
        cdef uint32_t header
        cdef const char *data = self.pages.data + self.page
        self._bounds(&position, &produced)
        while position < produced:
            header = fm_load32(<const uint32_t *>(data + (position & (self.size - 1))))
            if self._overwritten() > position:
                self._bounds(&position, &produced)
                continue
            if header & BUSY:
                return WAITING
            if not header & DISCARD:
                return RECORD
            if step_of(header) > produced - position:
                break
            position += step_of(header)
            if give_back:
                fm_store64(self._consumed(), position)
        return NOTHING

    def hold(self):
        """Return the descriptor, which stays open until `let_go`, also if the map is closed."""
        self._own()
        return self._fd.acquire()

    def let_go(self):
        """End `hold`."""
        self._fd.release()

    def head(self):
        """Tell whether a record is there (1), one is being written (2), or none (0)."""
        self._own()
        return self._head(False)

    def wait(self, double seconds):
        """Wait for a record, so many seconds (below 0: for ever); tell whether there is one."""
        cdef uint64_t deadline = fm_deadline(seconds)
        cdef int state, ms
        cdef unsigned int nap = 50
        cdef int fd
        cdef pollfd file
        self._enter()
        try:
            fd = self._fd.acquire()
        except BaseException:
            self.busy = False
            raise
        try:
            file.fd = fd
            file.events = POLLIN
            with nogil:
                while True:
                    # What was discarded is given back, or poll(2) would return for it.
                    state = self._head(True)
                    if state == RECORD:
                        break
                    ms = fm_nap_ms(deadline)
                    if ms == 0:
                        break
                    if state == WAITING:
                        # poll(2) would return at once, again and again: sleep, a little longer
                        # each time.
                        usleep(min(nap, <unsigned int>ms * 1000))
                        nap = min(nap * 2, <unsigned int>10000)
                    else:
                        poll(&file, 1, ms)
                    with gil:
                        PyErr_CheckSignals()
                        self._own()
        finally:
            self.busy = False
            self._fd.release()
        return state == RECORD

    # ---- leases --------------------------------------------------------------------------------

    def lease(self, Py_ssize_t most, Py_ssize_t only=-1):
        """Find up to `most` records, which stay where they are until `give_back`.

        With `only`, those of so many bytes, up to the first of another length; ``length`` is that
        where none comes before it. Returns whether there are any; without any, nothing is leased.
        """
        self._enter()
        self.length = only
        try:
            with nogil:
                self._walk(most, only)
        except BaseException:
            self.busy = False
            raise
        if self.count == 0:
            self._leave()
        return self.count > 0

    def give_back(self):
        """End the lease: the kernel may write there again."""
        if self.busy and self.generation == forks():
            self._leave()

    cdef _leave(self):
        fm_store64(self._consumed(), self.end)
        self.busy = False

    cdef int _copy(self, uint64_t *position, uint64_t *produced, Py_ssize_t most) except -1 nogil:
        """Copy what waits, or as much as `most` records may be, and go past what is overwritten."""
        cdef uint64_t over, size = produced[0] - position[0]
        cdef uint32_t header
        cdef const char *at = self.pages.data + self.page + (position[0] & (self.size - 1))
        if size and most < self.size:
            size = min(size, max(<uint64_t>LEAST_COPY,
                                 most * step_of(fm_load32(<const uint32_t *>at))))
        with gil:
            # A header more: the last record's row, seen with its step, ends there.
            self.copied = Block(<Py_ssize_t>size + HEADER)
        memcpy(self.copied.data, at, size)
        fm_acquire()  # what was copied was so before this position was read
        over = self._overwritten()
        self.data = self.copied.data
        self.origin = position[0]
        self.lead = 0
        produced[0] = position[0] + size
        position[0] = min(max(position[0], over), produced[0])
        while position[0] < produced[0]:  # what was discarded since `_head` looked
            header = fm_load32(<const uint32_t *>self._at(position[0]))
            if header & BUSY or not header & DISCARD:
                break
            position[0] = min(position[0] + step_of(header), produced[0])
        return 0

    cdef int _walk(self, Py_ssize_t most, Py_ssize_t only) except -1 nogil:
        """Find the records of a span; the usual case first: all of one length.

        That the next record is as long as this one is guessed and then checked, so that no load
        has to wait for the one before.
        """
        cdef uint64_t position, produced, step
        cdef uint32_t header
        cdef Py_ssize_t n = 0, limit
        cdef const char *at
        self.count = 0
        self._head(True)
        self._bounds(&position, &produced)
        if self.overwriting:
            self._copy(&position, &produced, most)
        self.end = position
        if position == produced or most <= 0:
            return 0
        at = self._at(position)
        header = fm_load32(<const uint32_t *>at)
        if header & BUSY:
            return 0
        if only >= 0 and header != <uint32_t>only:
            self.length = header & LENGTH
            return 0
        step = step_of(header)
        if not header & DISCARD:
            limit = <Py_ssize_t>min(<uint64_t>most, (produced - position) // step)
            self.first = self.lead + (at - self.data) + HEADER
            while n < limit and fm_load32(<const uint32_t *>at) == header:
                at += step
                n += 1
        self.count = n
        self.length = header & LENGTH
        self.end = position + n * step
        if only >= 0 or n == most or self.end == produced or (
                fm_load32(<const uint32_t *>at) & BUSY and not header & DISCARD):
            return 0
        return self._list(self.end, produced, most)

    cdef int _list(self, uint64_t position, uint64_t produced, Py_ssize_t most) except -1 nogil:
        """Go on record by record, and write down where each lies and how long it is."""
        cdef Py_ssize_t n = self.count, i, room
        cdef uint64_t step = step_of(<uint32_t>self.length)
        cdef uint32_t header, length = <uint32_t>self.length
        cdef int64_t *offsets
        cdef uint32_t *lengths
        cdef bint listed = False
        room = 0
        offsets = NULL
        lengths = NULL
        while n < most and position < produced:
            header = fm_load32(<const uint32_t *>self._at(position))
            if header & BUSY:
                break
            if step_of(header) > produced - position:
                if self.overwriting:  # no more of it was copied
                    break
                with gil:
                    raise self._forged(f"a record of {header & LENGTH} bytes at {position}")
            if header & DISCARD:
                position += step_of(header)
                self.end = position
                continue
            if n >= room:
                with gil:
                    self._room(max(2 * n, 1024))
                offsets = <int64_t *>self.offsets.data
                lengths = <uint32_t *>self.lengths.data
                room = self.lengths.size // 4
            if not listed:
                for i in range(n):
                    offsets[i] = self.first + i * <int64_t>step
                    lengths[i] = length
                listed = True
            offsets[n] = self.lead + (self._at(position) - self.data) + HEADER
            lengths[n] = header & LENGTH
            n += 1
            position += step_of(header)
            self.end = position
        if listed:
            self.count = n
            self.length = -1
        return 0

    cdef int _room(self, Py_ssize_t records) except -1:
        cdef Block offsets, lengths
        if self.lengths.size >= 4 * records:
            return 0
        offsets, lengths = Block(8 * records), Block(4 * records)
        memcpy(offsets.data, self.offsets.data, self.offsets.size)
        memcpy(lengths.data, self.lengths.data, self.lengths.size)
        self.offsets, self.lengths = offsets, lengths
        return 0

    # ---- copies --------------------------------------------------------------------------------

    def peek(self):
        """Return the length of the first record and the bytes that wait; -1 without one."""
        cdef uint64_t position, produced
        self._enter()
        try:
            if self._head(True) != RECORD:
                return -1, 0
            self._bounds(&position, &produced)
            header = fm_load32(<const uint32_t *>(
                self.pages.data + self.page + (position & (self.size - 1))))
            return header & LENGTH, produced - position
        finally:
            self.busy = False

    def take(self, rows, Py_ssize_t length):
        """Copy records of `length` bytes one behind the other into `rows`, and give them back.

        Ends where `rows` is full, and in front of a record of another length or one that is being
        written. Returns how many were copied.
        """
        cdef char *to = data_of(rows)
        cdef Py_ssize_t most = len(rows), n = 0
        if rows.nbytes != most * length:
            raise ValueError(f"{rows.nbytes} bytes for {most} records of {length}")
        self._enter()
        try:
            with nogil:
                n = self._take(to, length, most)
        finally:
            self.busy = False
        return n

    cdef Py_ssize_t _take(self, char *to, Py_ssize_t length, Py_ssize_t most) except -1 nogil:
        cdef uint64_t position, produced, step = step_of(<uint32_t>length)
        cdef uint32_t header
        cdef Py_ssize_t n = 0, run
        cdef const char *at
        cdef const char *data = self.pages.data + self.page
        self._bounds(&position, &produced)
        while n < most and position < produced:
            at = data + (position & (self.size - 1))
            header = fm_load32(<const uint32_t *>at)
            if header == <uint32_t>length and step <= produced - position:
                run = <Py_ssize_t>min(min(<uint64_t>(most - n), (produced - position) // step),
                                      GIVE_BACK // step + 1)
                run = fm_copy_run(to, at, header, run)
                to += run * length
                n += run
                position += run * step
            elif header & BUSY or not header & DISCARD or step_of(header) > produced - position:
                break
            else:
                position += step_of(header)
            # Now and then: the producer waits less.
            fm_store64(self._consumed(), position)
        return n


def gather(data, offsets, Py_ssize_t size, out):
    """Copy `size` bytes from each of `offsets` (int64) in `data` to `out`, one behind the other."""
    cdef const char *source = data_of(data)
    cdef const int64_t *at = <const int64_t *>data_of(offsets)
    cdef char *to = data_of(out)
    cdef Py_ssize_t i, count = len(offsets), limit = data.nbytes - size
    if out.nbytes != count * size:
        raise ValueError(f"{out.nbytes} bytes for {count} records of {size}")
    if count and (offsets.min() < 0 or offsets.max() > limit):
        raise ValueError(f"a record of {size} bytes lies outside of {data.nbytes}")
    with nogil:
        for i in range(count):
            memcpy(to + i * size, source + at[i], size)


def gather_all(data, offsets, lengths, out, starts):
    """Copy a record from each of `offsets` (int64) in `data` to one of `starts` in `out`.

    Parameters
    ----------
    data, out : ndarray of uint8
    offsets, starts : ndarray of int64
    lengths : ndarray of uint32
    """
    cdef const char *source = data_of(data)
    cdef const int64_t *at = <const int64_t *>data_of(offsets)
    cdef const uint32_t *length = <const uint32_t *>data_of(lengths)
    cdef const int64_t *to = <const int64_t *>data_of(starts)
    cdef char *target = data_of(out)
    cdef int64_t there = data.nbytes, room = out.nbytes
    cdef Py_ssize_t i, count = len(offsets)
    cdef bint wrong = len(lengths) != count or len(starts) != count
    if not wrong:
        with nogil:
            for i in range(count):
                wrong = (at[i] < 0 or to[i] < 0 or at[i] + length[i] > there
                         or to[i] + length[i] > room)
                if wrong:
                    break
                memcpy(target + to[i], source + at[i], length[i])
    if wrong:
        raise ValueError("a record lies outside of the arrays")
