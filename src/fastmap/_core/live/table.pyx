"""A live table's memory, whole reads of it, and the steps of an expiry.

The algorithms are in ``live.h``, the layout in ``fastmap.bpf.h``; here are their loops over a whole
table, without the GIL. `LiveCore` trusts nothing it reads from the maps to be within bounds.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmap._core.rows.codec cimport data_of
from fastmap._core.rows.columns cimport Columns
from fastmap._core.system.memory cimport Block, Mapping
from fastmap._core.system.syscall cimport look_for_signals

cdef extern from *:
    """
    #include <time.h>
    static inline uint64_t live_clock(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000000000ull + now.tv_nsec;
    }
    static inline uint64_t live_acquire(const void *p)
    {
        return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE);
    }
    static inline void live_release(void *p, uint64_t x)
    {
        __atomic_store_n((uint64_t *)p, x, __ATOMIC_SEQ_CST);
    }
    static inline void live_fence(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline int live_claim(uint64_t *p, uint64_t old, uint64_t desired)
    {
        return __atomic_compare_exchange_n(p, &old, desired, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
    }
    #include <errno.h>
    #include <unistd.h>
    #include <sys/syscall.h>
    static inline int live_membarrier(void)
    {
        return syscall(SYS_membarrier, 1 /* MEMBARRIER_CMD_GLOBAL */, 0, 0) ? errno : 0;
    }
    """
    uint64_t live_clock() noexcept nogil
    uint64_t live_acquire(const void *p) noexcept nogil
    void live_release(void *p, uint64_t x) noexcept nogil
    void live_fence() noexcept nogil
    bint live_claim(uint64_t *p, uint64_t old, uint64_t desired) noexcept nogil
    int live_membarrier() noexcept nogil

OWN = int(FASTMAP_OWN)
#: States of `born` that a table left behind by a killed collector shows; odd is live.
LOST, DYING = int(FASTMAP_LOST), int(FASTMAP_DYING)


def abi(key_size, value_size):
    """Return the word that says a table's version and sizes, without `OWN`."""
    return int(FASTMAP_ABI(key_size, value_size))


def membarrier():
    """Wait for a grace period of RCU (MEMBARRIER_CMD_GLOBAL); return an errno, or 0.

    0 also where the kernel did not wait: with one CPU online.
    """
    cdef int number
    with nogil:
        number = live_membarrier()
    return number


def claim(Mapping memory not None, Py_ssize_t offset, uint64_t old, uint64_t desired):
    """Store a u64 in mapped memory if `old` is there, as one atomic step; return whether it was."""
    if not 0 <= offset <= memory.size - 8 or offset % 8 or memory.readonly:
        raise ValueError(f"no writable word at {offset}")
    return live_claim(<uint64_t *>(memory.data + offset), old, desired)


cdef class LiveCore:
    """The six arrays of a live table, mapped.

    Parameters
    ----------
    head, index, keys, born, values, ring : Mapping
        The maps, whole; the head is set up.
    key_size, value_size : int
        Bytes; of a value a multiple of 8.
    """

    def __cinit__(self, Mapping head not None, Mapping index not None, Mapping keys not None,
                  Mapping born not None, Mapping values not None, Mapping ring not None,
                  uint32_t key_size, uint32_t value_size):
        self.owners = (head, index, keys, born, values, ring)
        self.t.head = <fastmap_head *>head.data
        self.t.index = <fastmap_line *>index.data
        self.t.keys = keys.data
        self.t.born = <uint64_t *>born.data
        self.t.values = <uint64_t *>values.data
        self.t.ring = <uint32_t *>ring.data
        if <uint64_t>head.size < sizeof(fastmap_head):
            raise ValueError("the map is smaller than a table's head")
        self.t.capacity = self.t.head.capacity
        self.t.line_mask = self.t.head.line_mask
        self.t.columns = self.t.head.columns
        self.t.key_size = key_size
        self.t.key_stride = (key_size + 7) // 8 * 8
        self.t.words = value_size // 8
        self.value_size = value_size
        if not (self.t.capacity and self.t.columns and key_size and value_size % 8 == 0
                and <uint64_t>index.size >= (self.t.line_mask + <uint64_t>1) * 64
                and <uint64_t>keys.size >= self.t.capacity * self.t.key_stride
                and <uint64_t>born.size >= self.t.capacity * 8
                and <uint64_t>values.size >= self.t.capacity * self.t.columns * value_size
                and <uint64_t>ring.size >= self.t.capacity * 4):
            raise ValueError("the maps are smaller than the table's head says")

    @property
    def capacity(self):
        return self.t.capacity

    @property
    def used(self):
        """Slots that programs ever took: all rows are below."""
        return live_used(&self.t)

    def find(self, keys not None):
        """Return a `Block` with the slot of each key (int64), -1 where there is none.

        Parameters
        ----------
        keys : ndarray
            ``(n,)`` keys of `key_size` bytes, side by side.
        """
        cdef Py_ssize_t n = keys.shape[0], at = 0, step
        cdef Block slots = Block(max(8 * n, 8))
        cdef const char *data
        cdef uint64_t time = 0
        if not keys.flags.c_contiguous or keys.itemsize != <Py_ssize_t>self.t.key_size:
            raise ValueError("the keys do not lie side by side")
        data = data_of(keys)
        with nogil:
            while at < n:
                look_for_signals(&time)
                step = min(n - at, 1 << 18)
                live_find_many(&self.t, data + at * self.t.key_size, step,
                               <int64_t *>slots.data + at)
                at += step
        return slots

    def rows(self, slots not None, Columns columns, Py_ssize_t out_size):
        """Return the values of slots, and which were live throughout, as two `Block`.

        Parameters
        ----------
        slots : ndarray
            ``(n,)`` of int64; negative ones are not live, and zeros.
        columns : Columns or None
            What makes a row of the values of all columns; None: sums of 8-byte words.
        out_size : int
            Bytes of a row.
        """
        cdef Py_ssize_t n = slots.shape[0], at = 0, step
        cdef Block out = Block(max(n * out_size, 8)), found = Block(max(n, 1))
        cdef Block row = Block(self.t.columns * self.value_size)
        cdef const int64_t *which
        cdef uint64_t time = 0
        if not slots.flags.c_contiguous or slots.itemsize != 8:
            raise ValueError("slots are int64, side by side")
        which = <const int64_t *>data_of(slots)
        with nogil:
            while at < n:
                look_for_signals(&time)
                step = min(n - at, 1 << 16)
                self.rows_of(which + at, step, columns, out.data + at * out_size, out_size,
                             <unsigned char *>found.data + at, <uint64_t *>row.data)
                at += step
        return out, found

    cdef void rows_of(self, const int64_t *slots, Py_ssize_t count, Columns columns, char *out,
                      Py_ssize_t out_size, unsigned char *found, uint64_t *row) noexcept nogil:
        cdef Py_ssize_t i
        cdef uint64_t slot, before, w = self.t.words
        for i in range(count):
            slot = <uint64_t>slots[i]
            found[i] = False
            if slot < self.t.capacity:
                before = live_acquire(&self.t.born[slot])
                if before & 1:
                    if columns is None:
                        live_sums(<uint64_t *>(out + i * out_size), self.t.values + slot * w,
                                  self.t.columns, self.t.capacity * w, w)
                    else:
                        live_gather(&self.t, slot, row)
                        columns.fill(<char *>row, out + i * out_size)
                    live_fence()
                    found[i] = live_acquire(&self.t.born[slot]) == before
            if not found[i]:
                memset(out + i * out_size, 0, out_size)

    # ---- expiry: by one process at a time -----------------------------------------------------

    def begin(self):
        """Begin an expiry; return whether the one before was not ended."""
        cdef uint64_t epoch = live_acquire(&self.t.head.epoch)
        # Odd from here on: readers look at each row a second time.
        live_release(&self.t.head.epoch, epoch + 1 + (epoch & 1))
        return bool(epoch & 1)

    def end(self):
        """End it."""
        live_release(&self.t.head.epoch, live_acquire(&self.t.head.epoch) + 1)

    def finish_journal(self):
        """End what a killed collector had begun to give back."""
        if self.t.head.free_next - self.t.head.free_tail <= self.t.capacity:
            with nogil:
                live_publish_free(&self.t)

    def left(self, uint64_t state):
        """Return a `Block` of the slots (u32) in a state that is not live, and how many.

        Parameters
        ----------
        state : int
            `DYING` or `LOST`.
        """
        cdef uint64_t used = live_used(&self.t), i
        cdef Py_ssize_t count = 0
        cdef Block slots
        for i in range(used):
            count += self.t.born[i] & 7 == state
        slots = Block(max(4 * count, 4))
        used, count = live_used(&self.t), 0
        for i in range(used):
            if self.t.born[i] & 7 == state and 4 * count < slots.size:
                (<uint32_t *>slots.data)[count] = <uint32_t>i
                count += 1
        return slots, count

    def unlink(self, slots not None):
        """Take slots out of the index; return a `Block` of the entries' places (int64, -1: none).

        Parameters
        ----------
        slots : ndarray
            ``(n,)`` of u32, below the capacity.
        """
        cdef Py_ssize_t n = slots.shape[0], i
        cdef Block places = Block(max(8 * n, 8))
        cdef const uint32_t *which = <const uint32_t *>data_of(slots)
        with nogil:
            for i in range(n):
                if which[i] < self.t.capacity:
                    (<int64_t *>places.data)[i] = live_unlink(&self.t, which[i])
                else:
                    (<int64_t *>places.data)[i] = -1
        return places

    def tombs(self):
        """Return a `Block` of the places of all tombs (int64), and how many; looks at the index."""
        cdef uint64_t lines = <uint64_t>self.t.line_mask + 1, i
        cdef const uint64_t *words = <const uint64_t *>self.t.index
        cdef Py_ssize_t count = 0
        cdef Block places
        with nogil:
            for i in range(8 * lines):
                count += words[i] == FASTMAP_TOMB and i & 7 != 7
        places = Block(max(8 * count, 8))
        count = 0
        with nogil:
            for i in range(8 * lines):  # programs may have made more since: another time
                if words[i] == FASTMAP_TOMB and i & 7 != 7 and 8 * count < places.size:
                    (<int64_t *>places.data)[count] = <int64_t>i
                    count += 1
        return places, count

    def last(self, slots not None, Columns columns, Py_ssize_t out_size):
        """Return the values of unlinked slots and their keys as two `Block`.

        After the grace period: no program holds them any more.
        """
        cdef Py_ssize_t n = slots.shape[0], i
        cdef Block out = Block(max(n * out_size, 8)), keys = Block(max(n * self.t.key_size, 8))
        cdef Block row = Block(self.t.columns * self.value_size)
        cdef const uint32_t *which = <const uint32_t *>data_of(slots)
        cdef uint64_t slot, w = self.t.words
        with nogil:
            for i in range(n):
                slot = which[i]
                memcpy(keys.data + i * self.t.key_size, self.t.keys + slot * self.t.key_stride,
                       self.t.key_size)
                if columns is None:
                    live_sums(<uint64_t *>(out.data + i * out_size), self.t.values + slot * w,
                              self.t.columns, self.t.capacity * w, w)
                else:
                    live_gather(&self.t, slot, <uint64_t *>row.data)
                    columns.fill(row.data, out.data + i * out_size)
        return keys, out

    def clear(self, slots not None):
        """Empty slots whose last counts were taken."""
        cdef Py_ssize_t n = slots.shape[0], i
        cdef const uint32_t *which = <const uint32_t *>data_of(slots)
        with nogil:
            for i in range(n):
                live_clear(&self.t, which[i])

    def give_back(self, slots not None, places not None):
        """Let programs use slots (u32), and entries of the index at `places` (int64), again."""
        cdef Py_ssize_t n = places.shape[0], freed = slots.shape[0], i
        cdef uint64_t words = 8 * (<uint64_t>self.t.line_mask + 1)
        cdef uint64_t *index = <uint64_t *>self.t.index
        cdef const int64_t *where = <const int64_t *>data_of(places)
        cdef const uint32_t *which = <const uint32_t *>data_of(slots)
        with nogil:
            for i in range(n):
                if <uint64_t>where[i] < words and index[where[i]] == FASTMAP_TOMB:
                    live_release(&index[where[i]], 0)
            live_recycle(&self.t, which, freed)


cdef class LiveReader:
    """Whole reads of a live table into memory that is kept: keys and sums, or what Columns makes.

    Parameters
    ----------
    core : LiveCore
    columns : Columns or None
        What makes a row of the values of all columns; None: sums of 8-byte words.
    out_size : int
        Bytes of a row of values.
    differences : bool
        Whether values are those since the last read; without `columns` alone.
    """

    def __cinit__(self, LiveCore core not None, Columns columns, Py_ssize_t out_size,
                  bint differences=False):
        cdef Py_ssize_t rows = core.t.capacity
        cdef Py_ssize_t blocks = (rows + LIVE_BLOCK - 1) // LIVE_BLOCK
        if differences and columns is not None:
            raise ValueError("differences are of sums")
        self.core, self.columns, self.out_size = core, columns, out_size
        self.seen_memory = Mapping(8 * rows)
        self.starts_memory = Mapping(4 * blocks)
        self.keys = Mapping(rows * core.t.key_size)
        self.born = Mapping(8 * rows)
        self.slots = Mapping(4 * rows)
        self.values = Mapping(max(rows * out_size, 8))
        self.r.seen = <uint64_t *>self.seen_memory.data
        self.r.starts = <uint32_t *>self.starts_memory.data
        self.r.keys = self.keys.data
        self.r.born = <uint64_t *>self.born.data
        self.r.slots = <uint32_t *>self.slots.data
        self.r.sums = <uint64_t *>self.values.data
        if differences:
            self.before_memory = Mapping(rows * core.value_size)
            self.fresh = Mapping(rows)
            self.r.before = <uint64_t *>self.before_memory.data
            self.r.fresh = <unsigned char *>self.fresh.data

    @property
    def idle(self):
        """Whether no array shows what was read: the next read overwrites nobody's."""
        return not (self.keys.exports or self.born.exports or self.slots.exports
                    or self.values.exports or self.fresh is not None and self.fresh.exports)

    def fill(self):
        """Read the table. The rows are ``filled`` then."""
        cdef LiveCore core = self.core
        cdef uint64_t n, epoch
        cdef Block scratch
        if self.busy:
            raise RuntimeError("another thread is inside this reader")
        scratch = Block(max(LIVE_BLOCK * core.value_size, core.t.columns * core.value_size))
        self.busy = True
        try:
            with nogil:
                self.started_ns = live_clock()
                epoch = live_acquire(&core.t.head.epoch)
                n = live_used(&core.t)
                if self.columns is None:
                    self.filled = self.pass_sums(n, <uint64_t *>scratch.data)
                else:
                    self.filled = self.pass_columns(n, <uint64_t *>scratch.data)
                live_fence()
                if epoch & 1 or live_acquire(&core.t.head.epoch) != epoch:
                    self.filled = self.drop_changed(self.filled)
                self.ended_ns = live_clock()
        finally:
            self.busy = False
        return self.filled

    cdef Py_ssize_t pass_sums(self, uint64_t n, uint64_t *scratch) except -1 nogil:
        cdef uint64_t now[LIVE_BLOCK]
        cdef uint64_t start = 0, row = 0, alive, time = 0
        while start < n:
            alive = live_block(&self.core.t, &self.r, start, n, row, now)
            live_block_sums(&self.core.t, &self.r, start, n, row, alive, now, scratch)
            live_seen(&self.r, start, n, now)
            row += alive
            start += LIVE_BLOCK
            # One that is interrupted in the middle would lose differences.
            if self.r.before == NULL and start % (1 << 20) == 0:
                look_for_signals(&time)
        return row

    cdef Py_ssize_t pass_columns(self, uint64_t n, uint64_t *scratch) except -1 nogil:
        cdef const live *t = &self.core.t
        cdef const char *key
        cdef uint64_t i, born, time = 0, size = t.key_size
        cdef Py_ssize_t row = 0
        for i in range(n):
            if i % 4096 == 0:
                look_for_signals(&time)
            born = live_acquire(&t.born[i])
            if not born & 1:
                continue
            key = t.keys + i * t.key_stride
            live_gather(t, i, scratch)
            if self.columns.filtered and not self.columns.keeps(key, <char *>scratch):
                continue
            memcpy(self.r.keys + row * size, key, size)
            self.r.born[row] = born
            self.r.slots[row] = <uint32_t>i
            self.columns.fill(<char *>scratch, <char *>self.r.sums + row * self.out_size)
            row += 1
        return row

    cdef Py_ssize_t drop_changed(self, Py_ssize_t rows) noexcept nogil:
        """Beside an expiry: keep the rows whose slots are what they were.

        A key that went and came back meanwhile may have been read in two slots. The first stopped
        being live before the second was published, so that this look finds it changed.
        """
        cdef Py_ssize_t i, kept = 0, size = self.core.t.key_size
        for i in range(rows):
            if live_acquire(&self.core.t.born[self.r.slots[i]]) != self.r.born[i]:
                # Its differences are not told: it is new to the next read.
                self.r.seen[self.r.slots[i]] = 0
                continue
            if kept != i:
                memcpy(self.r.keys + kept * size, self.r.keys + i * size, size)
                self.r.born[kept] = self.r.born[i]
                self.r.slots[kept] = self.r.slots[i]
                memcpy(<char *>self.r.sums + kept * self.out_size,
                       <char *>self.r.sums + i * self.out_size, self.out_size)
                if self.r.fresh != NULL:
                    self.r.fresh[kept] = self.r.fresh[i]
            kept += 1
        if kept != rows:
            memset(self.r.starts, 0, self.starts_memory.size)
        return kept
