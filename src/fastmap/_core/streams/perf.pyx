"""Perf buffers: the rings of several CPUs, walked without the GIL.

Each CPU has a perf event and a ring of its own: a control page, then the data. A record is a header
(u32 type, u16 misc, u16 size) and what the type says: a sample has its length as a u32 and its
bytes. The data is mapped once, so that records wrap: behind each ring lies a piece of memory of the
size of the largest record, to which the wrapped rest of one is copied. So every record lies in one
piece, and all rings lie in one mapping.

An overwritable ring is written backwards: from its head on lie the records, the newest first. It
is read while it is paused.
"""

import os

from fastmap import errors

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EACCES, EBADMSG, EINVAL, ENODEV, EPERM, errno
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from fastmap._core.system.memory cimport Block, Mapping
from fastmap._core.system.syscall cimport forks
from fastmap._core.system.uapi cimport *


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int milliseconds)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    uint32_t EPOLLIN

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    void *mremap(void *old, size_t length, size_t new_length, int flags, void *new)
    int munmap(void *address, size_t length)
    int MREMAP_FIXED
    int MREMAP_MAYMOVE
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    void *MAP_FAILED

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int usleep(unsigned int microseconds)
    long read(int fd, void *to, size_t size)
    long sysconf(int name)
    int _SC_PAGESIZE

cdef extern from *:
    """
    #include <sys/syscall.h>
    /* struct perf_event_attr, as long as is needed: VER1. */
    struct fm_perf_attr {
        uint32_t type, size;
        uint64_t config, sample_period, sample_type, read_format, flags;
        uint32_t wakeup, bp_type;
        uint64_t bp_addr, bp_len;
    };

    static int fm_perf_event_open(int cpu, int watermark, int wakeup, int backward, int losses)
    {
        struct fm_perf_attr attr = {
            .type = 1, .size = sizeof attr, .config = 10, /* software, BPF output */
            .sample_period = 1, .sample_type = 1 << 10,   /* raw */
            /* The time since it was enabled; lost, from Linux 6.0 on. */
            .read_format = 1 | (losses ? 1 << 4 : 0),
            .flags = (watermark ? 1ull << 14 : 0) | (backward ? 1ull << 27 : 0),
            .wakeup = watermark ? watermark : wakeup};
        return syscall(SYS_perf_event_open, &attr, -1, cpu, -1, 8 /* CLOEXEC */);
    }
    #define FM_PERF_ENABLE 0x2400
    #define FM_PERF_PAUSE 0x40042409
    """
    int fm_perf_event_open(int cpu, int watermark, int wakeup, int backward, int losses) nogil
    unsigned long FM_PERF_ENABLE
    unsigned long FM_PERF_PAUSE

#: So often the events are looked after, in seconds.
cdef double WATCH = 1.0

cdef enum:
    HEAD = 1024
    TAIL = 1032
    LOST = 2
    SAMPLE = 9
    # In front of a sample's bytes: the header, and their length.
    LEAD = 12
    # More than the largest record, whose size has 16 bits.
    SPARE = 1 << 16
    NOTHING = 0
    RECORD = 1


cdef inline uint64_t head_of(const Cpu *cpu) noexcept nogil:
    return fm_load64(<uint64_t *>(cpu.control + HEAD))


@cython.no_gc_clear  # the table lasts until the descriptors in it are closed
cdef class PerfRings:
    """The rings of several CPUs. Belong to one thread at a time, and the process that made them.

    Parameters
    ----------
    cpus : sequence of int
    size : int
        Bytes of data in each ring: a power of two, and whole pages.
    watermark, wakeup : int
        Bytes, or where that is 0 records, until a ring wakes its reader.
    overwrite : bool
    skip_offline : bool
        Leave out a CPU that is not online, or is not any more.

    After `lease` the attributes tell what was found: `count` records, each of `length` bytes and
    `step` after the other from offset `first` of `pages` on; or, where `length` is -1, at `offsets`
    (int64) and of `lengths` (uint32). `numbers` (int32) are their CPUs, and `lost` is how many
    records the kernel dropped in between.
    """

    def __cinit__(self, cpus, Py_ssize_t size, int watermark, int wakeup, bint overwrite,
                  bint skip_offline):
        cdef Block table
        cdef Cpu *cpu
        self.epoll = -1
        self.exact = True
        self.watermark = watermark
        self.wakeup = wakeup
        self.due = fm_deadline(WATCH)
        self.page = sysconf(_SC_PAGESIZE)
        self.size = size
        self.overwrite = overwrite
        self.generation = forks()
        self.stride = self.page + size + SPARE
        self.offsets = Block(0)
        self.lengths = Block(0)
        self.numbers = Block(0)
        table = Block(len(cpus) * sizeof(Cpu))
        self.table_owner = table
        self.table = <Cpu *>table.data
        # Not in a forked child: the kernel leaves its pages out there.
        self.pages = Mapping(len(cpus) * self.stride, None, 0, True, 0, False)
        self.pages.readonly = True
        found = []
        try:
            self.epoll = epoll_create1(EPOLL_CLOEXEC)
            if self.epoll < 0:
                PyErr_SetFromErrno(OSError)
            for number in cpus:
                cpu = &self.table[self.ncpus]
                memset(cpu, 0, sizeof(Cpu))
                cpu.number = number
                cpu.control = self.pages.data + self.ncpus * self.stride
                cpu.fd = fm_perf_event_open(number, watermark, wakeup, overwrite, self.exact)
                if cpu.fd < 0 and errno == EINVAL and self.exact:
                    self.exact = False
                    cpu.fd = fm_perf_event_open(number, watermark, wakeup, overwrite, False)
                if cpu.fd < 0:
                    if errno == ENODEV and skip_offline:
                        continue
                    self._refused(number)
                self.ncpus += 1
                self._open(cpu, cpu.fd)
                found.append(number)
        except BaseException:
            self._shut()
            raise
        self.cpus = tuple(found)

    cdef int _refused(self, int number) except -1:
        if errno == EPERM or errno == EACCES:
            raise errors.PermissionDenied(
                errno, f"the perf event of CPU {number}: needs CAP_PERFMON, and CAP_IPC_LOCK for "
                       "more pages than sysctl kernel.perf_event_mlock_kb")
        raise errors.BpfError(errno, f"the perf event of CPU {number}: {os.strerror(errno)}")

    cdef int _open(self, Cpu *cpu, int fd) except -1:
        """Put the ring of an event where the CPU's is; where that fails, nothing is changed there.

        It is mapped elsewhere and moved: mapping it there could fail when what was there is gone,
        and views of earlier leases are of that.
        """
        cdef int protection = PROT_READ if self.overwrite else PROT_READ | PROT_WRITE
        cdef size_t size = self.page + self.size
        cdef epoll_event event
        cdef void *ring = mmap(NULL, size, protection, MAP_SHARED, fd, 0)
        if ring == MAP_FAILED:
            self._refused(cpu.number)
        event.events = EPOLLIN
        event.data.fd = fd
        if (ioctl(fd, FM_PERF_ENABLE, 0) < 0
                or self.paused and ioctl(fd, FM_PERF_PAUSE, <unsigned long>1) < 0
                or epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) < 0
                or mremap(ring, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, cpu.control)
                == MAP_FAILED):
            try:
                PyErr_SetFromErrno(OSError)
            finally:
                munmap(ring, size)
        return 0

    def __dealloc__(self):
        self._shut()

    cdef void _shut(self) noexcept:
        cdef int i
        for i in range(self.ncpus):
            if self.table[i].fd >= 0:
                close(self.table[i].fd)
                self.table[i].fd = -1
        if self.epoll >= 0:
            close(self.epoll)
            self.epoll = -1

    def fds(self):
        """Return the descriptors of the events, in the order of `cpus`."""
        self._own()
        return [self.table[i].fd for i in range(self.ncpus)]

    def fileno(self):
        """Return a descriptor that is ready when one of the rings is."""
        if self.closed:
            raise ValueError("operation on a closed perf buffer")
        return self.epoll

    def close(self):
        """Close the descriptors, once calls of other threads are out of them."""
        self.closed = True
        if self.inflight == 0 or self.generation != forks():
            self._shut()

    def hold(self):
        """Return `fileno`, which stays open until `let_go`."""
        self._own()
        self.inflight += 1
        return self.epoll

    def let_go(self):
        """End `hold`."""
        self.inflight -= 1
        if self.closed and self.inflight == 0:
            self._shut()

    cdef int _own(self) except -1:
        if self.closed:
            raise ValueError("operation on a closed perf buffer")
        if self.generation != forks():
            raise RuntimeError("a perf buffer belongs to the process that made it")
        return 0

    cdef int _enter(self) except -1:
        self._own()
        if self.busy:
            raise RuntimeError("the perf buffer is in use: by another thread, or by a lease that "
                               "has not ended")
        self.busy = True
        self.inflight += 1
        return 0

    cdef void _leave(self) noexcept:
        self.busy = False
        self.inflight -= 1
        if self.closed and self.inflight == 0:
            self._shut()

    # ---- pausing, losses -----------------------------------------------------------------------

    cdef int _toggle(self, bint pause) except -1:
        cdef int i
        for i in range(self.ncpus):
            if ioctl(self.table[i].fd, FM_PERF_PAUSE, <unsigned long>pause) < 0:
                PyErr_SetFromErrno(OSError)
        return 0

    def toggle(self, bint pause):
        """Pause all rings, in which the kernel drops what comes then, or let them go on."""
        self._own()
        self._toggle(pause)
        self.paused = pause

    def dropped(self):
        """Return how many records were dropped so far, for each of `cpus`."""
        self._own()
        if not self.exact:
            return [self.table[i].lost for i in range(self.ncpus)]
        return [self.table[i].past + self._counts(i)[1] for i in range(self.ncpus)]

    cdef tuple _counts(self, int i):
        """Return the time since an event was enabled, in ns, and what it dropped."""
        cdef uint64_t counts[3]  # the third one's last: value, time, lost
        cdef Py_ssize_t size = 24 if self.exact else 16
        cdef long got = read(self.table[i].fd, counts, size)
        if got == 0:
            return 0, 0  # it is in error, and says nothing
        if got < 0:
            PyErr_SetFromErrno(OSError)
        return counts[1], counts[2] if self.exact else 0

    # ---- events that went away -----------------------------------------------------------------

    def enabled(self, int i):
        """Return for how long the `i`-th event has been enabled, in ns: it stands still once the
        event was taken from its CPU, which happens when that goes offline.
        """
        self._own()
        return self._counts(i)[0]

    def reopen(self, int i):
        """Open the `i`-th event anew; tell whether it was: not while its ring has records left.

        It is for `watch` alone, which is called while no lease is out.
        """
        cdef Cpu *cpu = &self.table[i]
        cdef int old = cpu.fd, fd
        self._own()
        if head_of(cpu) != cpu.begin:
            return False
        lost = self._counts(i)[1]
        fd = fm_perf_event_open(cpu.number, self.watermark, self.wakeup, self.overwrite, self.exact)
        if fd < 0:
            self._refused(cpu.number)
        try:
            self._open(cpu, fd)
        except BaseException:
            close(fd)
            raise
        cpu.fd = fd
        cpu.begin = cpu.end = 0
        cpu.past += lost
        close(old)
        return True

    cdef int _look(self) except -1:
        """Let `watch` look after the events, once a second."""
        if fm_nap_ms(self.due) == 0:
            self.due = fm_deadline(WATCH)
            if self.watch is not None:
                self.watch(self)
        return 0

    # ---- waiting -------------------------------------------------------------------------------

    cdef bint _any(self) noexcept nogil:
        cdef int i
        for i in range(self.ncpus):
            if head_of(&self.table[i]) != self.table[i].begin:
                return True
        return False

    def head(self):
        """Tell whether something is there (1), or nothing (0)."""
        self._own()
        if not self.busy and fm_nap_ms(self.due) == 0:
            self._enter()
            try:
                self._look()
            finally:
                self._leave()
            self._own()
        return RECORD if self._any() else NOTHING

    def wait(self, double seconds):
        """Wait for a record, so many seconds (below 0: for ever); tell whether there is one."""
        cdef uint64_t deadline = fm_deadline(seconds)
        cdef bint found = False
        cdef int ms
        cdef unsigned int nap = 50
        cdef epoll_event event
        self._enter()
        try:
            with nogil:
                while True:
                    found = self._any()
                    if found:
                        break
                    ms = fm_nap_ms(deadline)
                    if ms == 0:
                        break
                    if epoll_wait(self.epoll, &event, 1, ms) > 0 and not self._any():
                        # An event that hung up, whose CPU went away, is always ready.
                        usleep(min(nap, <unsigned int>ms * 1000))
                        nap = min(nap * 2, <unsigned int>10000)
                    with gil:
                        PyErr_CheckSignals()
                        self._own()
                        self._look()
        finally:
            self._leave()
        return found

    # ---- leases --------------------------------------------------------------------------------

    def lease(self, Py_ssize_t most):
        """Find up to `most` records, which stay where they are until `give_back`.

        Returns whether there are any; without any, nothing is leased. What is overwritable pauses
        meanwhile.
        """
        self._enter()
        try:
            if self.overwrite and not self.paused:
                self._toggle(True)
            with nogil:
                self._walk(most)
        except BaseException:
            self.put_back()
            raise
        if self.count == 0:
            self._end()
        return self.count > 0

    def give_back(self):
        """End the lease: the kernel may write there again."""
        if self.busy and self.generation == forks():
            self._end()

    def put_back(self):
        """End the lease, and let the next one find the same records."""
        cdef int i
        if self.busy and self.generation == forks():
            for i in range(self.ncpus):
                self.table[i].end = self.table[i].begin
                self.table[i].pending = 0
            self._end()

    def _end(self):
        cdef int i
        cdef Cpu *cpu
        try:
            for i in range(self.ncpus):
                cpu = &self.table[i]
                cpu.begin = cpu.end
                cpu.lost += cpu.pending
                cpu.pending = 0
                if not self.overwrite:
                    fm_store64(<uint64_t *>(cpu.control + TAIL), cpu.end)
            if self.overwrite and not self.paused:
                self._toggle(False)
        finally:
            self._leave()

    cdef int _walk(self, Py_ssize_t most) except -1 nogil:
        cdef int i
        cdef int64_t *offsets
        cdef uint32_t *lengths
        self.count = 0
        self.lost = 0
        self.length = 0
        self.step = 0
        for i in range(self.ncpus):
            self.table[i].end = self.table[i].begin
            self.table[i].pending = 0
        # Each time another CPU comes first: none starves where `most` is small.
        for i in range(self.ncpus):
            if self.overwrite:
                self._walk_back(&self.table[(self.turn + i) % self.ncpus], most)
            else:
                self._walk_cpu(&self.table[(self.turn + i) % self.ncpus], most)
        self.turn = (self.turn + 1) % max(self.ncpus, 1)
        if self.count == 0:
            return 0
        # Records of one size and one CPU, one behind the other, are what most batches are on an
        # idle machine: these need no list.
        offsets = <int64_t *>self.offsets.data
        lengths = <uint32_t *>self.lengths.data
        self.first = offsets[0]
        self.length = lengths[0]
        self.step = (lengths[0] + LEAD + 7) & ~7
        for i in range(1, self.count):
            if offsets[i] != offsets[i - 1] + self.step or lengths[i] != lengths[0]:
                self.length = -1
                break
        return 0

    cdef char *_whole(self, Cpu *cpu, uint64_t position, uint32_t size) noexcept nogil:
        """Return the record at `position`, in one piece."""
        cdef Py_ssize_t at = position & (self.size - 1)
        cdef char *data = cpu.control + self.page
        if at + <Py_ssize_t>size > self.size:
            memcpy(data + self.size, data, at + size - self.size)
        return data + at

    cdef int _walk_cpu(self, Cpu *cpu, Py_ssize_t most) except -1 nogil:
        cdef uint64_t head = head_of(cpu)
        cdef const char *data = cpu.control + self.page
        cdef char *record
        cdef uint16_t size
        if head - cpu.begin > <uint64_t>self.size:
            with gil:
                raise self._broken(cpu.number, cpu.begin, head)
        while cpu.end != head and self.count < most:
            size = (<const uint16_t *>(data + (cpu.end & (self.size - 1))))[3]
            if size < 8 or size & 7 or size > head - cpu.end:
                with gil:
                    raise self._broken(cpu.number, cpu.end, head)
            record = self._whole(cpu, cpu.end, size)
            if (<uint32_t *>record)[0] == SAMPLE:
                self._note(cpu, record)
            elif (<uint32_t *>record)[0] == LOST and size >= 24:
                cpu.pending += (<uint64_t *>record)[2]
                self.lost += (<uint64_t *>record)[2]
            cpu.end += size
        return 0

    cdef int _walk_back(self, Cpu *cpu, Py_ssize_t most) except -1 nogil:
        """Note what a paused ring holds that was not read yet, the oldest first."""
        cdef uint64_t head = head_of(cpu)
        cdef uint64_t position = head, span = cpu.begin - head
        cdef const char *data = cpu.control + self.page
        cdef Py_ssize_t start = self.count, i, j
        cdef uint64_t at
        cdef int64_t *offsets
        cdef uint32_t *lengths
        cdef uint16_t size
        cdef char *record
        cpu.end = head
        if span > <uint64_t>self.size:
            span = self.size
        while position - head < span:
            size = (<const uint16_t *>(data + (position & (self.size - 1))))[3]
            if size < 8 or size & 7 or size > span - (position - head):
                break  # the oldest one, half overwritten
            record = self._whole(cpu, position, size)
            if (<uint32_t *>record)[0] == SAMPLE:
                self._note(cpu, record)
            position += size
        offsets = <int64_t *>self.offsets.data
        lengths = <uint32_t *>self.lengths.data
        if self.count > most:
            # The oldest of them: the next read goes on behind these.
            i = self.count - most + start if start < most else self.count
            cpu.end = cpu.begin
            if i < self.count:
                at = offsets[i] - LEAD - (data - self.pages.data)
                cpu.end = head + ((at - head) & (self.size - 1))
                memmove(&offsets[start], &offsets[i], (self.count - i) * sizeof(int64_t))
                memmove(&lengths[start], &lengths[i], (self.count - i) * sizeof(uint32_t))
            self.count = most
        i, j = start, self.count - 1
        while i < j:
            offsets[i], offsets[j] = offsets[j], offsets[i]
            lengths[i], lengths[j] = lengths[j], lengths[i]
            i += 1
            j -= 1
        return 0

    cdef int _note(self, Cpu *cpu, char *record) except -1 nogil:
        cdef uint16_t size = (<uint16_t *>record)[3]
        cdef uint32_t length = 0
        if size > LEAD:
            length = (<uint32_t *>record)[2]
        if size < LEAD or length > <uint32_t>size - LEAD:
            with gil:
                raise self._broken(cpu.number, length, size)
        if self.count >= self.numbers.size // 4:
            with gil:
                self._room(max(2 * self.count, 1024))
        (<int64_t *>self.offsets.data)[self.count] = record + LEAD - self.pages.data
        (<uint32_t *>self.lengths.data)[self.count] = length
        (<int32_t *>self.numbers.data)[self.count] = cpu.number
        self.count += 1
        return 0

    def _broken(self, cpu, position, head):
        return errors.BpfError(EBADMSG, f"the ring of CPU {cpu} was overwritten: at {position}, "
                                        f"its head is {head}")

    cdef int _room(self, Py_ssize_t records) except -1:
        cdef Block offsets = Block(8 * records), lengths = Block(4 * records)
        cdef Block numbers = Block(4 * records)
        memcpy(offsets.data, self.offsets.data, self.offsets.size)
        memcpy(lengths.data, self.lengths.data, self.lengths.size)
        memcpy(numbers.data, self.numbers.data, self.numbers.size)
        self.offsets, self.lengths, self.numbers = offsets, lengths, numbers
        return 0
