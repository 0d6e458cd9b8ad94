"""Two reads of a map, matched by key, and the differences of their counters.

A read mostly has its keys in the order of the one before: an entry is looked for where the last
match left off, and a few places further on. What is not found there is put aside; when all are
through, what was passed over on the other side goes into a hash, and the rest is looked up in it.
So a read in which little came and went costs one pass and hashes next to nothing; a read in any
other order costs two.

A counter that stands lower than before has wrapped or restarted; `fastmap.collect.Delta` says how
the two are told apart.
"""

import os

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from fastmap._core.rows.codec cimport data_of
from fastmap._core.rows.columns cimport Columns, _copy
from fastmap._core.delta.keyhash cimport TAKEN, Table, find, put, same, words_for
from fastmap._core.system.memory cimport Block
from fastmap._core.system.syscall cimport look_for_signals

ctypedef fused number:
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double

cdef enum:
    # So far behind the last match an entry is looked for before it is put aside.
    WINDOW = 8
    # After so many misses in a row the order is another: only the next place is looked at.
    LOST = 64
    # Entries between looks for a signal.
    SLICE = 4096
    # So many entries are matched and subtracted at once where their order is the same.
    STRETCH = 32

# What is done with a run of counters: `careful` is so with or without a doubt.
cdef enum:
    QUICK
    CAREFUL
    DOUBT
    ADD
    FINITE

#: The kinds of counters, by numpy's letter and size: signed ones from 8 on.
KINDS = {"u1": 0, "u2": 1, "u4": 2, "u8": 3, "f4": 4, "f8": 5, "i1": 8, "i2": 9, "i4": 10, "i8": 11}


cdef inline bint quick(const char *now, const char *last, char *out, Py_ssize_t count, bint signed,
                       number *like) noexcept nogil:
    """Subtract a run of native numbers; tell whether one stepped back."""
    cdef Py_ssize_t i
    cdef number a, b, d
    cdef bint back = False
    cdef number half = 0
    if number is not float and number is not double:
        half = <number>(<number>1 << (8 * sizeof(number) - 1))
    for i in range(count):
        memcpy(&a, now + i * sizeof(number), sizeof(number))
        memcpy(&b, last + i * sizeof(number), sizeof(number))
        d = <number>(a - b)
        memcpy(out + i * sizeof(number), &d, sizeof(number))
        if number is float or number is double:
            # Also where one is no number or infinite: what compares with that is false.
            back |= not (d >= 0 and d - d == 0)
        else:
            # Of signed numbers one that wrapped is as one that rose, unless others restarted.
            back |= (d >= half or (a ^ half) < (b ^ half)) if signed else a < b
    return back


cdef inline int careful(const char *now, const char *last, char *out, Py_ssize_t count,
                        bint swapped, bint signed, bint doubt, number *like) noexcept nogil:
    """Subtract a run of numbers; return 1 where one restarted, 2 where one wrapped, or both.

    With `doubt`, what looks wrapped restarted too.
    """
    cdef Py_ssize_t i
    cdef number a, b, d
    cdef int seen = 0
    cdef number half = 0, close = 0
    cdef bint back, far
    if number is not float and number is not double:
        half = <number>(<number>1 << (8 * sizeof(number) - 1))
        close = <number>(<number>1 << (8 * sizeof(number) - 8))
    for i in range(count):
        _copy(<char *>&a, now + i * sizeof(number), sizeof(number), swapped)
        _copy(<char *>&b, last + i * sizeof(number), sizeof(number), swapped)
        d = <number>(a - b)
        if number is float or number is double:
            if a - a != 0:  # no number, or infinite: that is nothing that grew
                d = 0
                back = far = False
            else:
                back = far = a < b or b - b != 0
        else:
            back = (a ^ half) < (b ^ half) if signed else a < b
            if signed and d >= half:
                back = True
            # At zero is where counters begin: few wrap onto it, if they were not close before.
            far = d >= half or (a == 0 and d > close)
        if back and (far or doubt):
            d = a
            seen |= 1
        elif back:
            seen |= 2
        _copy(out + i * sizeof(number), <char *>&d, sizeof(number), swapped)
    return seen


cdef inline void added(char *to, const char *other, Py_ssize_t count, bint swapped,
                       number *like) noexcept nogil:
    cdef Py_ssize_t i
    cdef number a, b
    for i in range(count):
        _copy(<char *>&a, to + i * sizeof(number), sizeof(number), swapped)
        _copy(<char *>&b, other + i * sizeof(number), sizeof(number), swapped)
        a = <number>(a + b)
        _copy(to + i * sizeof(number), <char *>&a, sizeof(number), swapped)


cdef inline void finite(char *to, Py_ssize_t count, bint swapped, number *like) noexcept nogil:
    """Let what is no number or infinite be 0."""
    cdef Py_ssize_t i
    cdef number a
    if number is float or number is double:
        for i in range(count):
            _copy(<char *>&a, to + i * sizeof(number), sizeof(number), swapped)
            if a - a != 0:
                memset(to + i * sizeof(number), 0, sizeof(number))


cdef inline int apply(int what, const char *now, const char *last, char *out, const Run *run,
                      number *like) noexcept nogil:
    cdef bint signed = run.kind >= 8
    if what == QUICK:
        return run.swapped or quick(now, last, out, run.count, signed, like)
    if what == FINITE:
        finite(out, run.count, run.swapped, like)
        return 0
    if what == ADD:
        added(out, now, run.count, run.swapped, like)
        return 0
    return careful(now, last, out, run.count, run.swapped, signed, what == DOUBT, like)


cdef int work(int what, const Run *run, const char *now, const char *last,
              char *out) noexcept nogil:
    """Do with a run of counters what `quick`, `careful` and so on do with one kind of number."""
    cdef int kind = run.kind & 7
    now += run.at
    last += run.at
    out += run.at
    if kind == 0:
        return apply(what, now, last, out, run, <uint8_t *>NULL)
    if kind == 1:
        return apply(what, now, last, out, run, <uint16_t *>NULL)
    if kind == 2:
        return apply(what, now, last, out, run, <uint32_t *>NULL)
    if kind == 3:
        return apply(what, now, last, out, run, <uint64_t *>NULL)
    if kind == 4:
        return apply(what, now, last, out, run, <float *>NULL)
    return apply(what, now, last, out, run, <double *>NULL)


cdef Block roomy(Block block, Py_ssize_t size):
    """Return `block` if it has `size` bytes, or a larger one: what was in it is not needed."""
    if block is not None and block.size >= size:
        return block
    return Block(size if block is None else max(size, block.size + block.size // 2))


cdef class Join:
    """The differences of the counters of two reads, and the memory for them, kept.

    The keys of a read lie side by side; the values of its CPUs at any strides.

    Parameters
    ----------
    key_size : int
    padding : sequence of (offset, length)
        Bytes of a key that no field covers.
    value_size, cpus : int
        Bytes of a value, and how many each entry has.
    runs : sequence of (kind, swapped, offset, count)
        The counters of a value. All else is taken from the later read as it is.
    columns : Columns or None
        What to make of the `cpus` values of an entry's differences, which lie side by side.
    aligned : bool
        Whether the entries of all reads are the same, in the same order: those of an array.
    """

    def __cinit__(self, Py_ssize_t key_size, padding, Py_ssize_t value_size, Py_ssize_t cpus,
                  runs, Columns columns, bint aligned):
        cdef Py_ssize_t i, bytes_of_counters = 0
        self.key_size = key_size
        self.value_size = value_size
        self.cpus = cpus
        self.aligned = aligned
        self.columns = columns
        self.out_size = cpus * value_size if columns is None else columns.out_size
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.used = len(runs)
        self.run_owner = Block(self.used * sizeof(Run))
        self.runs = <Run *>self.run_owner.data
        for i, (kind, swapped, at, count) in enumerate(runs):
            self.runs[i] = Run(KINDS[kind], swapped, at, count)
            bytes_of_counters += int(kind[1:]) * count
        self.covered = bytes_of_counters == value_size
        self.uniform = self.covered and self.used == 1 and cpus == 1 and columns is None
        self.paddings = len(padding)
        self.padding_owner = Block(self.paddings * 2 * sizeof(Py_ssize_t))
        self.padding = <Py_ssize_t *>self.padding_owner.data
        for i, (at, length) in enumerate(padding):
            self.padding[2 * i] = at
            self.padding[2 * i + 1] = length
        self.scratch = Block(cpus * value_size)
        self._reserve(0, 0)
        self.gone = Block(1)

    cdef int _side(self, Side *side, object keys, object values) except -1:
        if keys.shape[0] != values.shape[0] or keys.shape[0] > 0xfffffff0:
            raise ValueError(f"{keys.shape[0]} keys with {values.shape[0]} values")
        if keys.shape[0] > 1 and keys.strides[0] != self.key_size:
            raise ValueError("the keys do not lie side by side")
        side.keys = data_of(keys)
        side.rows = data_of(values)
        side.count = keys.shape[0]
        side.row_stride = values.strides[0]
        side.cpu_stride = values.strides[1] if self.cpus > 1 else 0
        return 0

    cdef int _reserve(self, Py_ssize_t now, Py_ssize_t last) except -1:
        # Never empty: arrays are made on these.
        self.out = roomy(self.out, max(now * self.out_size, 1))
        self.new = roomy(self.new, max(now, 1))
        self.restarted = roomy(self.restarted, max(now, 1))
        self.aside = roomy(self.aside, now * sizeof(uint32_t))
        self.passed = roomy(self.passed, last * sizeof(uint32_t))
        return 0

    cdef int _table(self, Table *table, Py_ssize_t entries, const char *keys) except -1:
        """Let `table` be an empty one for so many entries, whose keys lie there."""
        cdef Py_ssize_t size = words_for(entries)
        self.words = roomy(self.words, size * sizeof(uint64_t))
        table.words = <uint64_t *>self.words.data
        table.mask = size - 1
        table.seed = self.seed
        table.keys = keys
        table.size = self.key_size
        memset(table.words, 0, size * sizeof(uint64_t))
        return 0

    cdef int _begin(self) except -1:
        """Refuse a second call meanwhile: it would exchange the memory that the first works on."""
        if self.busy:
            raise RuntimeError("the join is in use")
        self.busy = True
        return 0

    def tidy(self, keys not None, values not None, bint repeats):
        """Make the keys of a read unique, in place; return how many entries are left, in front.

        Padding becomes zeros, and the counters of keys that differ in nothing else are added up.
        Of a key that came more than once in one read, as `repeats` says may be, the first is kept.
        """
        cdef Side now
        self._side(&now, keys, values)
        self._begin()
        try:
            self._reserve(now.count, 0)
            if repeats or self.paddings:
                with nogil:
                    if repeats:
                        self._compact(&now, False)
                    if self._clean(&now):
                        self._compact(&now, True)
        finally:
            self.busy = False
        return now.count

    def differences(self, keys not None, values not None, last_keys not None,
                    last_values not None):
        """Match a read, whose keys are unique, with the last one.

        Then ``out`` has the differences of each entry, ``new`` and ``restarted`` a byte for each,
        and ``gone`` the ``gone_count`` keys that are not there any more; ``restarts`` tells for
        how many keys a counter restarted.
        """
        cdef Side now, last
        self._side(&now, keys, values)
        self._side(&last, last_keys, last_values)
        self._begin()
        try:
            self._reserve(now.count, last.count)
            self.restarts = 0
            self.gone_count = 0
            with nogil:
                memset(self.new.data, 0, now.count)
                memset(self.restarted.data, 0, now.count)
                if self.aligned and now.count == last.count:
                    self._all_aligned(&now, &last)
                else:
                    self._match(&now, &last)
        finally:
            self.busy = False

    cdef int _all_aligned(self, Side *now, Side *last) except -1 nogil:
        cdef Py_ssize_t i = 0, step
        cdef uint64_t time = 0
        while i < now.count:
            look_for_signals(&time)
            step = min(SLICE, now.count - i)
            self._subtract_stretch(now, i, last, i, step)
            i += step
        return 0

    cdef int _match(self, Side *now, Side *last) except -1 nogil:
        cdef uint32_t *passed = <uint32_t *>self.passed.data
        cdef uint32_t *aside = <uint32_t *>self.aside.data
        cdef Py_ssize_t size = self.key_size, i = 0, j, k, stop, next_one = 0
        cdef Py_ssize_t misses = 0, looked = 0
        cdef Py_ssize_t passed_over = 0, put_aside = 0, taken = 0, gone = 0
        cdef uint64_t time = 0
        cdef const char *key
        cdef Table table
        while i < now.count:
            if i >= looked:
                look_for_signals(&time)
                looked = i + SLICE
            key = now.keys + i * size
            if (misses == 0 and now.count - i >= STRETCH and last.count - next_one >= STRETCH
                    and memcmp(key, last.keys + next_one * size, STRETCH * size) == 0):
                self._subtract_stretch(now, i, last, next_one, STRETCH)
                i += STRETCH
                next_one += STRETCH
                continue
            stop = min(last.count, next_one + (WINDOW if misses < LOST else 1))
            j = next_one
            if j == stop or not same(key, last.keys + j * size, size):
                j = min(j + 1, stop)
                k = self._recall(last, passed, &passed_over, key)
                if k >= 0:
                    self._subtract(now, i, last, k)
                    i += 1
                    continue
            while j < stop and not same(key, last.keys + j * size, size):
                j += 1
            if j == stop:
                aside[put_aside] = <uint32_t>i
                put_aside += 1
                misses += 1
                i += 1
                continue
            misses = 0
            for k in range(next_one, j):
                passed[passed_over] = <uint32_t>k
                passed_over += 1
            next_one = j + 1
            self._subtract(now, i, last, j)
            i += 1
        for k in range(next_one, last.count):
            passed[passed_over] = <uint32_t>k
            passed_over += 1
        if passed_over and put_aside:
            with gil:
                self._table(&table, passed_over, last.keys)
            for k in range(passed_over):
                if k % SLICE == 0:
                    look_for_signals(&time)
                put(&table, passed, k)
        for k in range(put_aside):
            if k % SLICE == 0:
                look_for_signals(&time)
            i = aside[k]
            j = find(&table, passed, now.keys + i * size) if passed_over else -1
            if j < 0:
                self._take(now, i)
                self.new.data[i] = 1
            else:
                self._subtract(now, i, last, passed[j])
                # Found once: the hash keeps it, and it is not gone.
                passed[j] = TAKEN
                taken += 1
        if passed_over > taken:
            with gil:
                self.gone = roomy(self.gone, (passed_over - taken) * size)
            for k in range(passed_over):
                if passed[k] != TAKEN:
                    memcpy(self.gone.data + gone * size, last.keys + <Py_ssize_t>passed[k] * size,
                           size)
                    gone += 1
        self.gone_count = gone
        return 0

    cdef Py_ssize_t _recall(self, Side *last, uint32_t *passed, Py_ssize_t *passed_over,
                            const char *key) noexcept nogil:
        """Look for a key among those just passed over; return its entry, taken from them, or -1.

        An update puts an entry first in its bucket: neighbours change places.
        """
        cdef Py_ssize_t at = passed_over[0], stop = max(at - WINDOW, 0), entry
        while at > stop:
            at -= 1
            entry = passed[at]
            if same(key, last.keys + entry * self.key_size, self.key_size):
                passed_over[0] -= 1
                memmove(passed + at, passed + at + 1, (passed_over[0] - at) * sizeof(uint32_t))
                return entry
        return -1

    cdef bint _clean(self, Side *now) noexcept nogil:
        """Let the padding of the keys be zeros; tell whether some was not."""
        cdef Py_ssize_t i, pad, at
        cdef bint dirty = False
        cdef char *key
        for i in range(now.count):
            key = now.keys + i * self.key_size
            for pad in range(self.paddings):
                for at in range(self.padding[2 * pad + 1]):
                    if key[self.padding[2 * pad] + at]:
                        key[self.padding[2 * pad] + at] = 0
                        dirty = True
        return dirty

    cdef int _compact(self, Side *now, bint add) except -1 nogil:
        """Keep one entry of each key, the first, and (to `add`) count the others' counters in."""
        cdef uint32_t *kept = <uint32_t *>self.aside.data
        cdef Py_ssize_t i, found, count = 0
        cdef char *key
        cdef char *row
        cdef Table table
        with gil:
            self._table(&table, now.count, now.keys)
        # Not to be interrupted: entries move.
        for i in range(now.count):
            key = now.keys + i * self.key_size
            row = now.rows + i * now.row_stride
            found = find(&table, kept, key)
            if found >= 0:
                if add:
                    self._add(now.rows + found * now.row_stride, row, now.cpu_stride)
                continue
            if i != count:
                memmove(now.keys + count * self.key_size, key, self.key_size)
                memmove(now.rows + count * now.row_stride, row, now.row_stride)
            kept[count] = <uint32_t>count
            put(&table, kept, count)
            count += 1
        now.count = count
        return 0

    cdef void _add(self, char *row, const char *other, Py_ssize_t stride) noexcept nogil:
        cdef Py_ssize_t cpu, r
        for cpu in range(self.cpus):
            for r in range(self.used):
                work(ADD, &self.runs[r], other + cpu * stride, other, row + cpu * stride)

    cdef void _take(self, Side *now, Py_ssize_t i) noexcept nogil:
        """Let the differences of entry `i` be its counters as they are, but 0 if not finite."""
        cdef const char *row = now.rows + i * now.row_stride
        cdef char *out = self.out.data + i * self.out_size
        cdef char *whole = out if self.columns is None else self.scratch.data
        cdef char *at
        cdef Py_ssize_t cpu, r
        for cpu in range(self.cpus):
            at = whole + cpu * self.value_size
            memcpy(at, row + cpu * now.cpu_stride, self.value_size)
            for r in range(self.used):
                if self.runs[r].kind & 7 >= 4:  # floats
                    work(FINITE, &self.runs[r], at, at, at)
        if self.columns is not None:
            self.columns.fill(whole, out)

    cdef void _subtract_stretch(self, Side *now, Py_ssize_t i, Side *last, Py_ssize_t j,
                                Py_ssize_t count) noexcept nogil:
        """Subtract `count` entries from `i` on, and `j` on: at once where values are alike."""
        cdef Py_ssize_t k
        cdef Run whole
        if self.uniform and now.row_stride == last.row_stride == self.value_size:
            whole = self.runs[0]
            whole.count *= count
            if not work(QUICK, &whole, now.rows + i * self.value_size,
                        last.rows + j * self.value_size, self.out.data + i * self.out_size):
                return
        for k in range(count):
            self._subtract(now, i + k, last, j + k)

    cdef void _subtract(self, Side *now, Py_ssize_t i, Side *last, Py_ssize_t j) noexcept nogil:
        """Let the differences of entry `i` be those to entry `j` of the last read."""
        cdef const char *row = now.rows + i * now.row_stride
        cdef const char *before = last.rows + j * last.row_stride
        cdef char *out = self.out.data + i * self.out_size
        cdef char *whole = out if self.columns is None else self.scratch.data
        cdef char *at
        cdef Py_ssize_t cpu, r
        cdef bint back = False, doubt = False
        cdef int seen
        for cpu in range(self.cpus):
            at = whole + cpu * self.value_size
            if not self.covered:
                memcpy(at, row + cpu * now.cpu_stride, self.value_size)
            for r in range(self.used):
                back |= work(QUICK, &self.runs[r], row + cpu * now.cpu_stride,
                             before + cpu * last.cpu_stride, at)
        while back:
            seen = 0
            for cpu in range(self.cpus):
                for r in range(self.used):
                    seen |= work(DOUBT if doubt else CAREFUL, &self.runs[r],
                                 row + cpu * now.cpu_stride, before + cpu * last.cpu_stride,
                                 whole + cpu * self.value_size)
            # A counter that surely restarted tells of the others: the key was made anew.
            back = seen == 3 and not doubt
            doubt = True
            if seen & 1 and not back:
                self.restarted.data[i] = 1
                self.restarts += 1
        if self.columns is not None:
            self.columns.fill(whole, out)
