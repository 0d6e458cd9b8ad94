"""From rows as the kernel writes them to rows as the caller wants them.

`Columns` reduces per-CPU values over their CPUs, keeps chosen fields, and drops rows that a
condition does not pass, row by row, without the GIL. A column is one run of equal numbers (or of
bytes) at a fixed place of the value; what a dtype and a user's words mean in columns is worked out
once, in `fastmap.dtypes`.
"""

from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t)
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

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
    OR

#: The operations of a column, by the words users type; "copy" is for values that have no CPUs.
OPS = {"copy": COPY, "any": ANY, "sum": SUM, "max": MAX, "min": MIN, "or": OR}

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
            if first:
                kept = each
                first = False
            elif column.op == MAX:
                if each > kept:
                    kept = each
            elif column.op == MIN:
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
            if not is_zero(row + cpu * slot, value_size):
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
                if not is_zero(row + cpu * self.slot, self.value_size):
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
        cdef Py_ssize_t i, kept = 0
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
