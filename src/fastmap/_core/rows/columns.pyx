"""From rows as the kernel writes them to rows, or columns, as the caller wants them.

`Columns` reduces per-CPU values over their CPUs, keeps chosen fields, and drops rows that a
condition does not pass, row by row, without the GIL. A column is one run of equal numbers (or of
bytes) at a fixed place of the value; what a dtype and a user's words mean in columns is worked out
once, in `fastmap.dtypes`. `copy_columns` and `cut` take rows apart into columns of their own.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t)
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

cdef extern from *:
    uint16_t __builtin_bswap16(uint16_t) noexcept nogil
    uint32_t __builtin_bswap32(uint32_t) noexcept nogil
    uint64_t __builtin_bswap64(uint64_t) noexcept nogil

ctypedef fused number:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double

cdef enum:
    COPY
    ANY
    SUM
    MAX
    MIN
    MIN_NONZERO
    OR

#: The operations of a column, by the words users type; "copy" is for values that have no CPUs.
OPS = {"copy": COPY, "any": ANY, "sum": SUM, "max": MAX, "min": MIN,
       "min_nonzero": MIN_NONZERO, "or": OR}

#: The kinds of numbers, by numpy's letter and size; "bytes" is anything else.
KINDS = {"i1": 0, "i2": 1, "i4": 2, "i8": 3, "u1": 4, "u2": 5, "u4": 6, "u8": 7, "f4": 8, "f8": 9,
         "bytes": 10}

cdef enum:
    EQ
    NE
    LT
    LE
    GT
    GE
    ALWAYS
    NEVER

#: What a condition compares with; the last two are what one out of a dtype's range comes to.
COMPARISONS = {"==": EQ, "!=": NE, "<": LT, "<=": LE, ">": GT, ">=": GE,
               "always": ALWAYS, "never": NEVER}

cdef enum:
    AS_SIGNED
    AS_UNSIGNED
    AS_REAL
    AS_BYTES


cdef inline bint is_zero(const char *at, Py_ssize_t size) noexcept nogil:
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, at, 8)
        if word:
            return False
        at += 8
        size -= 8
    while size:
        if at[0]:
            return False
        at += 1
        size -= 1
    return True


ctypedef fused word:
    uint16_t
    uint32_t
    uint64_t


cdef inline void _spread(const char *src, Py_ssize_t src_step, char *dst, Py_ssize_t dst_step,
                         bint swapped, Py_ssize_t count, word *like) noexcept nogil:
    cdef Py_ssize_t i
    cdef word each
    for i in range(count):
        memcpy(&each, src + i * src_step, sizeof(word))
        if swapped:
            if word is uint16_t:
                each = __builtin_bswap16(each)
            elif word is uint32_t:
                each = __builtin_bswap32(each)
            else:
                each = __builtin_bswap64(each)
        memcpy(dst + i * dst_step, &each, sizeof(word))


cdef void gather(const char *src, Py_ssize_t src_step, char *dst, Py_ssize_t dst_step,
                 Py_ssize_t size, bint swapped, Py_ssize_t count) noexcept nogil:
    """Copy `count` items of `size` bytes that lie `src_step` apart to places `dst_step` apart."""
    cdef Py_ssize_t i
    if not swapped and src_step == size == dst_step:
        memcpy(dst, src, size * count)
    elif size == 8:
        _spread(src, src_step, dst, dst_step, swapped, count, <uint64_t *>NULL)
    elif size == 4:
        _spread(src, src_step, dst, dst_step, swapped, count, <uint32_t *>NULL)
    elif size == 2:
        _spread(src, src_step, dst, dst_step, swapped, count, <uint16_t *>NULL)
    elif size == 1:
        for i in range(count):
            dst[i * dst_step] = src[i * src_step]
    else:
        for i in range(count):
            _copy(dst + i * dst_step, src + i * src_step, size, swapped)


cdef inline void fold(const char *row, char *dst, const Column *column, Py_ssize_t cpus,
                      Py_ssize_t slot, Py_ssize_t value_size, number *like) noexcept nogil:
    """Reduce the numbers of `column` over the CPUs of one row."""
    cdef Py_ssize_t i, cpu
    cdef number each, kept = 0
    cdef double real
    cdef uint64_t total
    cdef bint first
    cdef const char *src
    for i in range(column.count):
        src = row + column.src + i * sizeof(number)
        if column.op == SUM:
            if number is float or number is double:
                real = 0
                for cpu in range(cpus):
                    _copy(<char *>&each, src + cpu * slot, sizeof(number), column.swapped)
                    real += each
                memcpy(dst + column.dst + 8 * i, &real, 8)
            else:
                total = 0
                for cpu in range(cpus):
                    _copy(<char *>&each, src + cpu * slot, sizeof(number), column.swapped)
                    total += <uint64_t>each
                memcpy(dst + column.dst + 8 * i, &total, 8)
            continue
        first = True
        kept = 0
        for cpu in range(cpus):
            # All zeros: this CPU never wrote the entry.
            if column.op == MIN and is_zero(row + cpu * slot, value_size):
                continue
            _copy(<char *>&each, src + cpu * slot, sizeof(number), column.swapped)
            if column.op == MIN_NONZERO and each == 0:
                continue
            if first:
                kept = each
                first = False
            elif column.op == MAX:
                if each > kept:
                    kept = each
            elif column.op == MIN or column.op == MIN_NONZERO:
                if each < kept:
                    kept = each
            else:
                if number is float or number is double:
                    pass
                else:
                    kept |= each
        _copy(dst + column.dst + i * sizeof(number), <char *>&kept, sizeof(number), column.swapped)


cdef void _fill_one(const Column *column, const char *row, char *dst, Py_ssize_t cpus,
                    Py_ssize_t slot, Py_ssize_t value_size) noexcept nogil:
    cdef Py_ssize_t cpu
    cdef int kind = column.kind
    if column.op == COPY:
        memcpy(dst + column.dst, row + column.src, column.count)
    elif column.op == ANY:
        for cpu in range(cpus):
            if not is_zero(row + cpu * slot + column.src, column.count):
                memcpy(dst + column.dst, row + cpu * slot + column.src, column.count)
                return
        memset(dst + column.dst, 0, column.count)
    elif kind == 0:
        fold(row, dst, column, cpus, slot, value_size, <int8_t *>NULL)
    elif kind == 1:
        fold(row, dst, column, cpus, slot, value_size, <int16_t *>NULL)
    elif kind == 2:
        fold(row, dst, column, cpus, slot, value_size, <int32_t *>NULL)
    elif kind == 3:
        fold(row, dst, column, cpus, slot, value_size, <int64_t *>NULL)
    elif kind == 4:
        fold(row, dst, column, cpus, slot, value_size, <uint8_t *>NULL)
    elif kind == 5:
        fold(row, dst, column, cpus, slot, value_size, <uint16_t *>NULL)
    elif kind == 6:
        fold(row, dst, column, cpus, slot, value_size, <uint32_t *>NULL)
    elif kind == 7:
        fold(row, dst, column, cpus, slot, value_size, <uint64_t *>NULL)
    elif kind == 8:
        fold(row, dst, column, cpus, slot, value_size, <float *>NULL)
    elif kind == 9:
        fold(row, dst, column, cpus, slot, value_size, <double *>NULL)


cdef void _widen(Word *word, const char *src, int kind, bint swapped) noexcept nogil:
    """Read one number of `kind` as the widest of its sort."""
    cdef int8_t i1
    cdef int16_t i2
    cdef int32_t i4
    cdef float f4
    cdef Py_ssize_t size = 1 << (kind & 3) if kind < 8 else 4 << (kind - 8)
    cdef char raw[8]
    memset(raw, 0, 8)
    _copy(raw, src, size, swapped)
    memcpy(word, raw, 8)
    if kind == 0:
        memcpy(&i1, raw, 1)
        word.signed = i1
    elif kind == 1:
        memcpy(&i2, raw, 2)
        word.signed = i2
    elif kind == 2:
        memcpy(&i4, raw, 4)
        word.signed = i4
    elif kind == 8:
        memcpy(&f4, raw, 4)
        word.real = f4


cdef class Columns:
    """How one row of the kernel becomes one row of the result.

    Parameters
    ----------
    columns : sequence of (op, kind, swapped, src, dst, count)
        `op` of `OPS`, `kind` of `KINDS`; `src` and `dst` in bytes; `count` numbers, or bytes for
        "copy" and "any".
    cpus, slot, value_size : int
        How many values of how many bytes a row holds, and how far apart (1 and the value's size
        where the map is not per-CPU).
    out_size : int
        Bytes of a row of the result.
    """

    def __cinit__(self, columns, Py_ssize_t cpus, Py_ssize_t slot, Py_ssize_t value_size,
                  Py_ssize_t out_size):
        cdef Py_ssize_t i
        self.given = tuple(columns)
        self.used = len(columns)
        self.columns = <Column *>calloc(max(self.used, 1), sizeof(Column))
        if self.columns == NULL:
            raise MemoryError("columns")
        for i in range(self.used):
            _set(&self.columns[i], columns[i])
        self.cpus = cpus
        self.slot = slot
        self.value_size = value_size
        self.out_size = out_size
        self.copies = all(column[0] == "copy" for column in columns)

    def __dealloc__(self):
        free(self.columns)

    def keep(self, column, str compare, bint on_key, bound):
        """Keep only rows whose `column` (of the key, or of the reduced value) compares so."""
        _set(&self.filter, column)
        self.condition = (column, compare, on_key, bound)
        self.filtered = True
        self.filter_key = on_key
        self.compare = COMPARISONS[compare]
        # What the column holds after its operation: sums are 64 bits wide.
        cdef int kind = self.filter.kind
        if kind == 10:
            self.compare_as = AS_BYTES
            self.bound_bytes = bound
            self.bound_at = self.bound_bytes
            if len(bound) != self.filter.count:
                raise ValueError(f"{len(bound)} bytes to compare with {self.filter.count}")
        elif self.compare in (ALWAYS, NEVER):
            self.compare_as = AS_UNSIGNED
        elif kind >= 8:
            self.compare_as = AS_REAL
            self.bound.real = bound
        elif kind >= 4:
            self.compare_as = AS_UNSIGNED
            self.bound.unsigned = bound
        else:
            self.compare_as = AS_SIGNED
            self.bound.signed = bound

    cdef bint keeps(self, const char *key, const char *row) noexcept nogil:
        cdef Word word
        cdef char raw[8]
        cdef const char *at
        cdef int order
        cdef Py_ssize_t cpu
        if self.compare == ALWAYS:
            return True
        if self.compare == NEVER:
            return False
        if self.filter_key:
            at = key + self.filter.src
        elif self.filter.op == COPY:
            at = row + self.filter.src
        elif self.filter.op == ANY:
            at = row + self.filter.src
            for cpu in range(self.cpus):
                if not is_zero(row + cpu * self.slot + self.filter.src, self.filter.count):
                    at = row + cpu * self.slot + self.filter.src
                    break
        else:
            _fill_one(&self.filter, row, raw, self.cpus, self.slot, self.value_size)
            at = raw
        if self.compare_as == AS_BYTES:
            order = memcmp(at, self.bound_at, self.filter.count)
        else:
            if at == raw and self.filter.op == SUM:
                memcpy(&word, raw, 8)
            else:
                _widen(&word, at, self.filter.kind, self.filter.swapped)
            if self.compare_as == AS_SIGNED:
                order = (word.signed > self.bound.signed) - (word.signed < self.bound.signed)
            elif self.compare_as == AS_UNSIGNED:
                order = (word.unsigned > self.bound.unsigned) - (
                    word.unsigned < self.bound.unsigned)
            elif word.real != word.real or self.bound.real != self.bound.real:
                return self.compare == NE
            else:
                order = (word.real > self.bound.real) - (word.real < self.bound.real)
        if self.compare == EQ:
            return order == 0
        if self.compare == NE:
            return order != 0
        if self.compare == LT:
            return order < 0
        if self.compare == LE:
            return order <= 0
        if self.compare == GT:
            return order > 0
        return order >= 0

    cdef void fill(self, const char *row, char *dst) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.used):
            _fill_one(&self.columns[i], row, dst, self.cpus, self.slot, self.value_size)

    cdef Py_ssize_t run(self, char *keys, Py_ssize_t key_size, const char *rows,
                        Py_ssize_t row_size, char *out, Py_ssize_t count) noexcept nogil:
        """Work through `count` rows; keys of rows that are dropped are closed up. Return the kept.

        `out` may be `rows` where nothing but whole values is copied.
        """
        cdef Py_ssize_t i, some, kept = 0
        if self.copies and not self.filtered and out != rows:
            while kept < count:
                some = min(count - kept, _rows_at_once(row_size))
                for i in range(self.used):
                    gather(rows + kept * row_size + self.columns[i].src, row_size,
                           out + kept * self.out_size + self.columns[i].dst, self.out_size,
                           self.columns[i].count, False, some)
                kept += some
            return count
        for i in range(count):
            if self.filtered:
                if not self.keeps(keys + i * key_size, rows + i * row_size):
                    continue
                if kept != i:
                    memmove(keys + kept * key_size, keys + i * key_size, key_size)
            self.fill(rows + i * row_size, out + kept * self.out_size)
            kept += 1
        return kept


cdef int _set(Column *column, given) except -1:
    op, kind, swapped, src, dst, count = given
    column.op = OPS[op]
    column.kind = KINDS[kind]
    column.swapped = swapped
    column.src = src
    column.dst = dst
    column.count = count
    if column.kind == 10 and column.op not in (COPY, ANY):
        raise ValueError(f"{op!r} of bytes")
    return 0


cdef inline Py_ssize_t _rows_at_once(Py_ssize_t row_size) noexcept nogil:
    """How many rows stay in the nearest cache while one column after the other is taken."""
    return max(16384 // max(row_size, 1), 16)


cdef struct Job:
    const char *src
    char *dst
    Py_ssize_t row_step
    # So many items in a row, and how far apart.
    Py_ssize_t items
    Py_ssize_t item_step
    Py_ssize_t size
    bint swapped


cdef void _work(const Job *job, Py_ssize_t start, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    cdef Py_ssize_t width = job.items * job.size
    cdef const char *src = job.src + start * job.row_step
    cdef char *dst = job.dst + start * width
    if job.items == 1:
        gather(src, job.row_step, dst, job.size, job.size, job.swapped, count)
    elif job.row_step == job.items * job.item_step:
        gather(src, job.item_step, dst, job.size, job.size, job.swapped, count * job.items)
    else:
        for i in range(count):
            gather(src + i * job.row_step, job.item_step, dst + i * width, job.size, job.size,
                   job.swapped, job.items)


cdef bint _job(Job *job, source, out) except -1:
    """Tell how `source` is copied to `out`; False where numpy has to."""
    cdef Py_ssize_t size = source.dtype.itemsize
    cdef bint swapped = not source.dtype.isnative
    cdef Py_ssize_t items = 1, item_step = 0
    if swapped and source.dtype.kind not in "iufmM":
        return False
    # From the innermost axis on: what lies together in a row is one item; one axis may be left.
    for extent, step in zip(reversed(source.shape[1:]), reversed(source.strides[1:])):
        if extent == 1:
            continue
        if items == 1 and step == size and not swapped:
            size *= extent
        elif items == 1 or step == items * item_step:
            item_step = item_step if items > 1 else step
            items *= extent
        else:
            return False
    job.src = <const char *><uintptr_t>source.__array_interface__["data"][0]
    job.dst = <char *><uintptr_t>out.__array_interface__["data"][0]
    job.row_step = source.strides[0]
    job.items = items
    job.item_step = item_step
    job.size = size
    job.swapped = swapped
    return True


def copy_columns(sources, outs):
    """Copy each of `sources` to the one of `outs` beside it, in one pass over all of their rows.

    Without the GIL, which is given up once for each 256 MiB.

    Parameters
    ----------
    sources : sequence of ndarray
        ``(n, ...)``, all of one n, any strides and byte order; no records, no objects.
    outs : sequence of ndarray
        Each of the shape of its source, of its dtype in native byte order, C-contiguous.
    """
    cdef Py_ssize_t n, i, used = 0, start = 0, stop, some, at_once, row = 1
    cdef Job *jobs
    if not sources:
        return
    n = len(sources[0])
    for source, out in zip(sources, outs, strict=True):
        if (len(source) != n or source.shape != out.shape or source.dtype.hasobject
                or source.dtype.newbyteorder("=") != out.dtype or not out.flags.c_contiguous
                or not out.flags.writeable):
            raise ValueError(f"a column of {source.dtype} {source.shape} for one of {out.dtype} "
                             f"{out.shape}, of {n} rows")
    jobs = <Job *>calloc(len(sources), sizeof(Job))
    if jobs == NULL:
        raise MemoryError("columns")
    try:
        for source, out in zip(sources, outs):
            if not source.size:
                continue
            if _job(&jobs[used], source, out):
                row = max(row, abs(jobs[used].row_step))
                used += 1
            else:
                out[...] = source
        at_once = _rows_at_once(row)
        while start < n and used:
            stop = min(n, start + max((256 << 20) // row, 1))
            with nogil:
                while start < stop:
                    some = min(stop - start, at_once)
                    for i in range(used):
                        _work(&jobs[i], start, some)
                    start += some
            PyErr_CheckSignals()
    finally:
        free(jobs)


def cut(source, ends, out):
    """Write the text of each row, up to its first NUL, one behind the other.

    Parameters
    ----------
    source : ndarray
        ``(n,)`` of bytes or void, any strides.
    ends : ndarray of int32
        ``(n + 1,)``: receives 0, and where each text ends.
    out : ndarray of uint8
        Room for n times the item size, which fits int32.

    Returns
    -------
    ascii : bool
        Whether no byte is above 127.
    """
    cdef Py_ssize_t size = source.dtype.itemsize, n = len(source), step, i, j
    cdef const char *src
    cdef const char *nul
    cdef char *to
    cdef int32_t *end
    cdef int32_t at = 0
    cdef uint8_t high = 0
    if source.ndim != 1 or ends.dtype != "i4" or len(ends) != n + 1 or out.dtype != "u1" \
            or out.size != n * size or n * size > 0x7fffffff \
            or not (ends.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError(f"{n} texts of {size} bytes for {len(ends)} ends and {out.size} bytes")
    step = source.strides[0]
    src = <const char *><uintptr_t>source.__array_interface__["data"][0]
    end = <int32_t *><uintptr_t>ends.__array_interface__["data"][0]
    to = <char *><uintptr_t>out.__array_interface__["data"][0]
    with nogil:
        end[0] = 0
        for i in range(n):
            nul = <const char *>memchr(src, 0, size)
            for j in range(size if nul == NULL else nul - src):
                high |= <uint8_t>src[j]
                to[at] = src[j]
                at += 1
            end[i + 1] = at
            src += step
    return high < 128
