"""Runs of the in-kernel path's programs over a buffer that user space has mapped.

A `Runner` belongs to one call at a time, and to the process that made it: a forked child shares the
pages of its buffer, and makes a runner of its own.
"""

from fastmap import errors
from fastmap.enums import MapFlag, MapType, ProgType

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, ENOENT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmap._core.system import syscall

from fastmap._core.rows.codec cimport bytes_of, data_of
from fastmap._core.rows.columns cimport Columns
from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Mapping
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport Fd, forks, look_for_signals
from fastmap._core.system.uapi cimport *

cdef enum:
    SLEEPABLE = 16
    HEAD = 64

#: What a run does about an element that fails: `fastmap.inkernel.key_programs`.
MODES = {"raise": 0, "return": 1, "ignore": 2}


def load(MapCore map not None, code, str name, bint sleepable=True):
    """Load a program that names `map` by its descriptor, which stays open meanwhile.

    Sleepable ones are of type SYSCALL; some map types serve only others, which are of type
    RAW_TRACEPOINT: BPF_PROG_TEST_RUN runs either.
    """
    cdef Fd btf = None
    map.fd.acquire()
    try:
        if code.btf:
            btf = syscall.btf_load(code.btf)
        return syscall.prog_load(
            ProgType.SYSCALL if sleepable else ProgType.RAW_TRACEPOINT, code.insns,
            b"Dual MIT/GPL", name.encode(), SLEEPABLE if sleepable else 0, 0, 0, btf,
            code.func_info, code.func_info_rec_size)
    finally:
        map.fd.release()


def find_types(bytes blob, wanted):
    """Return ``(id, byte offset)`` of the first type of each ``(name, kind)`` in a BTF blob.

    For the kernel's own, of some 150,000 types; KeyError where one is missing. What is not well
    formed is a `ValueError`.
    """
    cdef const unsigned char *data = blob
    cdef uint32_t header[6]
    cdef uint32_t info, kind, vlen, name, number = 0
    cdef uint32_t names[8]
    cdef uint32_t kinds[8]
    cdef Py_ssize_t at, end, i, count = len(wanted)
    if len(blob) < 24 or count > 8:
        raise ValueError("no BTF")
    memcpy(header, data, 24)
    strings = blob[header[1] + header[4]:header[1] + header[4] + header[5]]
    found = [None] * count
    for i, (word, number) in enumerate(wanted):
        kinds[i] = number
        place = strings.find(b"\0" + word + b"\0")
        if place < 0:
            raise KeyError(word)
        names[i] = place + 1
    at = header[1] + header[2]
    end = min(<Py_ssize_t>(at + header[3]), <Py_ssize_t>len(blob))
    number = 0
    while at + 12 <= end:
        number += 1
        memcpy(&name, data + at, 4)
        memcpy(&info, data + at + 4, 4)
        kind = info >> 24 & 0x1f
        vlen = info & 0xffff
        for i in range(count):
            if name == names[i] and kind == kinds[i] and found[i] is None:
                found[i] = (number, at)
        at += 12
        if kind in (1, 14, 17):
            at += 4
        elif kind == 3:
            at += 12
        elif kind in (4, 5, 15, 19):
            at += 12 * vlen
        elif kind in (6, 13):
            at += 8 * vlen
    if None in found:
        raise KeyError(wanted[found.index(None)][0])
    return found


cdef long run(int fd) noexcept nogil:
    """BPF_PROG_TEST_RUN of a program whose arguments stand in its buffer."""
    cdef fm_test_run attr
    memset(&attr, 0, sizeof(attr))
    attr.prog_fd = fd
    return fm_bpf(FM_PROG_TEST_RUN, &attr, sizeof(attr))


cdef long finish(int fd, Head *head, uint64_t *last) except? -1 nogil:
    """Run a program until it has gone over all elements of its buffer.

    The kernel ends a loop of `may_goto` that it finds too long, a quarter of a second where others
    held the CPU meanwhile: the program is run again, and goes on where it was. One of bpf_loop
    does all of them, and leaves `at` alone.
    """
    cdef long result
    while True:
        result = run(fd)
        if result == -EAGAIN or result == -EINTR:
            if head.at == 0:  # nothing is done yet that an exception would lose
                look_for_signals(last)
        elif result < 0 or head.error or head.at == 0 or head.at >= head.count:
            return result


def returned(MapCore map not None, Fd program not None):
    """Run a program that is about `map`, and return what it returns, 32 bits of it."""
    cdef fm_test_run attr
    cdef uint64_t last = 0
    cdef long result = -EINTR
    map.fd.acquire()
    try:
        with nogil:
            while result == -EAGAIN or result == -EINTR:
                look_for_signals(&last)
                memset(&attr, 0, sizeof(attr))
                attr.prog_fd = program.number
                result = fm_bpf(FM_PROG_TEST_RUN, &attr, sizeof(attr))
    finally:
        map.fd.release()
    if result < 0:
        raise errors.from_errno(<int>-result, FM_PROG_TEST_RUN, map.kind)
    return attr.retval


cdef tuple mapped(Py_ssize_t size, Py_ssize_t entries, bytes name):
    """Return an array map of the in-kernel path, and its pages."""
    cdef Fd fd = syscall.map_create(MapType.ARRAY, 4, size, entries, MapFlag.MMAPABLE, name)
    return fd, Mapping((size + 7) // 8 * 8 * entries, fd)


cdef class Runner:
    """A buffer, and the programs made for it.

    Parameters
    ----------
    layout : Layout
        Of `fastmap.inkernel.key_programs`.
    large : bool
        Whether values are copied to an array of their own, not into the buffer.
    scratch : int
        Bytes of an array that is the programs' alone.
    """

    def __cinit__(self, layout, bint large=False, Py_ssize_t scratch=0):
        cdef Py_ssize_t i
        cdef uint32_t *numbers
        self.layout = layout
        self.chunk = layout.chunk
        self.keys_at = layout.keys_at
        self.codes_at = layout.codes_at
        self.values_at = layout.values_at
        self.rounds = max(len(layout.cpus), 1)
        self.programs = {}
        self.generation = forks()
        self.buffer, self.memory = mapped(layout.size, 1, b"fastmap_keys")
        if scratch:
            self.scratch = syscall.map_create(MapType.ARRAY, 4, scratch, 1, 0, b"fastmap_scratch")
        if large:
            self.large, self.large_memory = mapped(
                layout.value_size, layout.chunk * self.rounds, b"fastmap_values")
        numbers = <uint32_t *>(self.memory.data + HEAD)
        for i, cpu in enumerate(layout.cpus):
            numbers[i] = cpu

    @property
    def other_process(self):
        """Whether this process was forked off since: the buffer is its parent's."""
        return self.generation != forks()

    def has(self, str work):
        """Whether the program for `work` is loaded."""
        return work in self.programs

    def add(self, str work, Fd program not None):
        """Keep the program for `work`."""
        self.programs[work] = program

    cdef Head *head(self) noexcept nogil:
        return <Head *>self.memory.data

    cdef int start(self, str work, MapCore map) except -1:
        """Return the descriptor of the program; the map's own stays open until `release`."""
        cdef Fd program = self.programs[work]
        if self.other_process:
            raise RuntimeError("a runner of another process")
        map.fd.acquire()
        return program.number

    def lookup_rows(self, str work, MapCore map not None, Rows keys not None, rows, found,
                    Columns columns, int command):
        """Do what `MapCore._lookup_rows` does, by the program for `work`."""
        cdef Py_ssize_t room = bytes_of(rows)
        cdef char *to = data_of(rows) if room else NULL
        cdef char *flag = data_of(found)
        cdef Py_ssize_t done = 0, hits = 0
        cdef Py_ssize_t row = map.value.size if columns is None else columns.out_size
        cdef int fd
        if room != keys.count * row or bytes_of(found) != keys.count:
            raise ValueError(f"{room} bytes for {keys.count} rows of {row}")
        fd = self.start(work, map)
        try:
            with nogil:
                self._look(fd, map, keys, to, flag, columns, command, &done, &hits)
            if command == FM_MAP_LOOKUP_AND_DELETE_ELEM:
                PyErr_CheckSignals()
        except BaseException as error:
            error.applied = done
            raise
        finally:
            map.fd.release()
        return hits

    cdef int _look(self, int fd, MapCore map, Rows keys, char *rows, char *found, Columns columns,
                   int command, Py_ssize_t *done, Py_ssize_t *hits) except -1 nogil:
        cdef Head *head = self.head()
        cdef Py_ssize_t n, i = 0
        cdef Py_ssize_t step = map.value.size if columns is None else columns.out_size
        cdef uint64_t last = 0
        cdef long result
        while i < keys.count:
            n = min(self.chunk, keys.count - i)
            put(keys, i, n, self.memory.data + self.keys_at)
            head.count = <uint32_t>n
            head.at = 0
            head.error = 0
            result = finish(fd, head, &last)
            if result >= 0 and head.error:
                result = -<long>head.error
            if result < 0:
                with gil:
                    raise errors.batch_error(<int>-result, FM_PROG_TEST_RUN, map.kind, i, i)
            memcpy(found + i, self.memory.data + self.codes_at, n)
            self._take_rows(n, map.value.size, rows + i * step, found + i, columns)
            hits[0] += ones(found + i, n)
            i += n
            done[0] = i
            look_for_signals(&last)
        return 0

    cdef void _take_rows(self, Py_ssize_t n, Py_ssize_t size, char *to, const char *found,
                         Columns columns) noexcept nogil:
        """Copy the rows of a run out of the buffer, or turn them into the caller's."""
        cdef bint large = self.large_memory is not None
        cdef char *rows = self.large_memory.data if large else self.memory.data + self.values_at
        cdef Py_ssize_t i, step = size if columns is None else columns.out_size
        cdef Py_ssize_t stride = (size + 7) // 8 * 8 if large else size
        if columns is None and not large and self.rounds == 1:
            memcpy(to, rows, n * size)
            return
        for i in range(n):
            if not found[i]:
                memset(to + i * step, 0, step)
            elif columns is None:
                memcpy(to + i * step, rows + i * stride, size)
            else:
                columns.fill(rows + i * stride, to + i * step)

    def apply_rows(self, str work, MapCore map not None, int command, Rows keys,
                   Rows values, uint64_t flags, str mode, codes=None):
        """Do what `MapCore._apply_rows` does, by the program for `work`.

        `keys` is None for a map that has none, `values` where none are needed.
        `codes`, where given, gets what the program leaves for each element: an errno of 4 bytes,
        or a byte.
        """
        cdef Py_ssize_t applied = 0, code = 0
        cdef char *to = NULL
        cdef int fd, how = MODES[mode]
        cdef Py_ssize_t count = values.count if keys is None else keys.count
        if values is not None and values.count != count:
            raise ValueError(f"{count} keys, but {values.count} values")
        if codes is not None:
            code = codes.itemsize
            to = data_of(codes)
            if codes.nbytes != count * code or code > 4:
                raise ValueError(f"{codes.nbytes} bytes for {count} errnos")
        fd = self.start(work, map)
        self.head().flags = flags
        try:
            with nogil:
                self._apply(fd, map, command, keys, values, count, how, to, code, &applied)
            # A Ctrl-C that came meanwhile is raised here, where `applied` is at hand.
            PyErr_CheckSignals()
        except BaseException as error:
            error.applied = applied
            raise
        finally:
            map.fd.release()
        return applied

    cdef int _apply(self, int fd, MapCore map, int command, Rows keys, Rows values,
                    Py_ssize_t count, int mode, char *codes, Py_ssize_t code,
                    Py_ssize_t *applied) except -1 nogil:
        cdef Head *head = self.head()
        cdef char *left = self.memory.data + self.codes_at
        cdef Py_ssize_t n, i = 0
        cdef uint64_t last = 0
        cdef long result
        while i < count:
            n = min(self.chunk, count - i)
            if keys is not None:
                put(keys, i, n, self.memory.data + self.keys_at)
            if values is not None:
                put(values, i, n, self.memory.data + self.values_at)
            head.count = <uint32_t>n
            head.at = 0
            head.mode = <uint32_t>mode
            head.failed = 0
            head.error = 0
            if codes != NULL:
                memset(left, 0, n * code)
            look_for_signals(&last)
            result = finish(fd, head, &last)
            if result < 0:
                with gil:
                    raise errors.batch_error(
                        <int>-result, FM_PROG_TEST_RUN, map.kind, applied[0], i)
            if codes != NULL:
                memcpy(codes + i * code, left, n * code)
            if head.error:
                applied[0] += head.index - head.failed
                with gil:
                    raise errors.batch_error(<int>head.error, command, map.kind, applied[0],
                                             i + head.index)
            applied[0] += n - head.failed
            i += n
        return 0

    def pop_rows(self, str work, MapCore map not None, rows, done, Py_ssize_t stop):
        """Pop into ``rows[done[0]:stop]``, counting ``done[0]`` up; tell whether it got there.

        `done` is an array of one int64: right also when this is left by an exception. What a run
        has popped is in `rows` and counted before anything can raise.
        """
        cdef char *to = data_of(rows)
        cdef int64_t *at = <int64_t *>data_of(done)
        cdef Py_ssize_t size = map.value.size
        cdef int fd
        if not 0 <= at[0] <= stop or rows.nbytes < stop * size:
            raise ValueError(f"{rows.nbytes} bytes for {stop} rows of {size}")
        fd = self.start(work, map)
        try:
            with nogil:
                self._pop(fd, map, to, stop, size, at)
            PyErr_CheckSignals()
        finally:
            map.fd.release()
        return at[0] == stop

    cdef int _pop(self, int fd, MapCore map, char *to, Py_ssize_t stop, Py_ssize_t size,
                  int64_t *popped) except -1 nogil:
        cdef Head *head = self.head()
        cdef Py_ssize_t n
        cdef uint64_t last = 0
        cdef long result
        while popped[0] < stop:
            look_for_signals(&last)
            n = min(self.chunk, stop - popped[0])
            memset(head, 0, sizeof(Head))
            head.count = <uint32_t>n
            result = finish(fd, head, &last)
            if result < 0:
                with gil:
                    raise errors.from_errno(<int>-result, FM_PROG_TEST_RUN, map.kind)
            if head.error:
                n = min(n, <Py_ssize_t>head.index)
            memcpy(to + popped[0] * size, self.memory.data + self.values_at, n * size)
            popped[0] += n
            if head.error == ENOENT:
                break
            if head.error:
                with gil:
                    raise errors.from_errno(<int>head.error, FM_MAP_LOOKUP_AND_DELETE_ELEM,
                                            map.kind)
        return 0


cdef Py_ssize_t ones(const char *flags, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i, total = 0
    for i in range(count):
        total += flags[i]
    return total


cdef void put(Rows rows, Py_ssize_t start, Py_ssize_t count, char *to) noexcept nogil:
    """Copy rows to the buffer, one behind the other, as the kernel wants them."""
    cdef Py_ssize_t i
    if rows.packed:
        memcpy(to, rows.base + start * rows.size, count * rows.size)
        return
    for i in range(count):
        rows.put(start + i, to + i * rows.size)
