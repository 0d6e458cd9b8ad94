"""Whole reads of a map by the batch commands.

A `BatchReader` owns the buffers of one reader, for as long as it lives: address space for every
entry the map can hold is reserved at once and becomes memory only where entries are written, so
that reading grows no buffer, copies nothing, and costs a sparse map little.
"""

from fastmap import errors

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastmap._core.rows.columns cimport Columns
from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Block, Mapping
from fastmap._core.system.syscall cimport forks, look_for_signals
from fastmap._core.system.uapi cimport *

cdef enum:
    CHUNK_BYTES = 4 << 20
    SMALLEST_CHUNK = 256
    # One command cannot be interrupted; so many entries take some tens of milliseconds.
    LARGEST_COMMAND = 131072
    ENOTSUPP = 524
    # So often a walk that lost its place starts over before it gives up.
    STARTS = 8


cdef class BatchReader:
    """The cursor and the buffers of a reader.

    Parameters
    ----------
    map : MapCore
    max_entries : int
        How many entries the map can hold.
    is_array : bool
        Whether the cursor is an index and the end is known.
    columns : Columns or None
        What to make of each row.
    chunk : int
        Entries a command asks for; 0 for what fits about 4 MiB.
    """

    def __cinit__(self, MapCore map not None, Py_ssize_t max_entries, bint is_array,
                  Columns columns, Py_ssize_t chunk):
        self.map = map
        self.columns = columns
        self.key_size = map.key.size
        self.row_size = map.value.size
        self.out_size = self.row_size if columns is None else columns.out_size
        self.is_array = is_array
        self.max_entries = max_entries
        if chunk <= 0:
            chunk = max(SMALLEST_CHUNK, CHUNK_BYTES // (self.key_size + self.row_size))
        # Offsets within one command are 32 bits wide in the kernel, and wrap silently.
        self.command_limit = max(1, 0xffffffff // max(self.key_size, self.row_size))
        self.chunk = min(chunk, self.command_limit, LARGEST_COMMAND)
        if is_array:
            self.chunk = min(self.chunk, max_entries)
        self.cursor = Block(max(self.key_size, 8))
        self.generation = forks()
        if is_array:
            self._reserve(max(max_entries, 1))
        else:
            # Twice what the map can hold: entries that come and go while it is read add up.
            try:
                self._reserve(2 * max_entries + 1024)
            except MemoryError:
                # No such address space (an rlimit, or strict overcommit): grow by copying.
                self._reserve(self.chunk)
        if columns is not None:
            self._grow_scratch(self.chunk)

    def _reserve(self, Py_ssize_t rows):
        # Both or none: rows that were drained stay where they are when memory is short.
        keys, values = Mapping(rows * self.key_size), Mapping(max(rows * self.out_size, 1))
        self.keys = keys
        self.values = values
        self.capacity = rows
        self.touched = 0

    cdef int _grow(self, Py_ssize_t room) except -1:
        """Make room for `room` more rows: the rare way, behind reserved space that is used up."""
        cdef Mapping keys = self.keys, values = self.values
        self._reserve(max(2 * self.capacity, self.filled + room))
        memcpy(self.keys.data, keys.data, self.filled * self.key_size)
        memcpy(self.values.data, values.data, self.filled * self.out_size)
        return 0

    cdef int _grow_scratch(self, Py_ssize_t rows) except -1:
        self.scratch = Mapping(rows * self.row_size)
        self.scratch_rows = rows
        self.touched = 0
        return 0

    cdef int _refuse_second(self) except -1:
        if self.busy and self.generation == forks():
            raise RuntimeError("the reader is in use: by another thread, or by the call that "
                               "this signal handler interrupted")
        return 0

    @property
    def exports(self):
        """How many arrays were made on the buffers and are alive."""
        return self.keys.exports + self.values.exports

    def rewind(self):
        """Start over at the map's first entry."""
        self._refuse_second()
        self.started = False
        self.ended = False
        self.walked = 0
        self.filled = 0

    def fill(self, bint drain, bint whole):
        """Read (and delete, to `drain`) the rest of the map, or (not `whole`) its next chunk.

        Returns how many rows are in the buffers. What leaves it by an exception leaves in
        ``filled`` how many are there: a drain has deleted these.
        """
        cdef int fd
        self._refuse_second()
        if drain and self.is_array:
            raise errors.from_errno(ENOTSUPP, FM_MAP_LOOKUP_AND_DELETE_BATCH, self.map.kind)
        self.generation = forks()
        self.filled = 0
        fd = self.map.fd.acquire()
        self.busy = True
        self.started_ns = fm_monotonic_ns()
        try:
            with nogil:
                self._run(drain, whole, fd)
            # A Ctrl-C that came meanwhile is raised here, where `filled` is at hand.
            PyErr_CheckSignals()
        finally:
            self.ended_ns = fm_monotonic_ns()
            self.busy = False
            self.map.fd.release()
        return self.filled

    cdef int _run(self, bint drain, bint whole, int fd) except -1 nogil:
        cdef int command = FM_MAP_LOOKUP_AND_DELETE_BATCH if drain else FM_MAP_LOOKUP_BATCH
        cdef bint plain = self.columns is None
        cdef Py_ssize_t want = self.chunk, room, kept, starts = 0
        cdef uint32_t count
        cdef uint64_t last = 0
        cdef long result
        cdef char *keys
        cdef char *rows
        # A resizing hash may repeat or miss an entry while it moves them.
        self.exact = not self.map.resizes
        if self.map.no_read_batch:
            return self._walk(drain, whole, fd)
        while not self.ended:
            if self.is_array and self.walked >= self.max_entries:
                self.ended = True
                break
            room = self.capacity - self.filled
            if room < want and not self.is_array and (room == 0 or want > self.chunk):
                with gil:
                    self._grow(want)
                continue
            if not plain and want > self.scratch_rows:
                with gil:
                    self._grow_scratch(want)
            count = <uint32_t>min(want, room)
            keys = self.keys.data + self.filled * self.key_size
            rows = self.values.data + self.filled * self.row_size if plain else self.scratch.data
            if drain:
                self._touch(count)
            result = fm_batch(command, fd, self.cursor.data if self.started else NULL,
                              self.cursor.data, keys, rows, &count, self.map.lock_flag)
            if result == -EAGAIN and self.map.resizes and starts < STARTS:
                # The entry that the cursor names is gone: from the first one again.
                starts += 1
                self.started = False
                if count == 0 or count == <uint32_t>min(want, room):
                    continue
            elif result < 0 and result != -ENOENT:
                if result == -ENOSPC and count == 0 and want < self.command_limit:
                    # The next bucket is larger than the room: once more, from the same cursor.
                    self.started = True
                    if room < want:
                        with gil:
                            self._grow(2 * want)
                    else:
                        want = min(2 * want, self.command_limit)
                    continue
                if not self.started and result in (-EINVAL, -ENOTSUPP, -EOPNOTSUPP):
                    # No such command for this map on this kernel: from key to key, from now on.
                    self.map.no_read_batch = not drain
                    return self._walk(drain, whole, fd)
                if result != -EINTR:
                    with gil:
                        raise errors.from_errno(<int>-result, command, self.map.kind)
            if result == -EINTR and count == 0:
                # Before Linux 6.14 the kernel stops at an index that holds nothing (of an array of
                # maps, say), or at a key that went, and would for ever: walk on from here.
                return self._walk(drain, whole, fd)
            if count:
                self.walked += count
                self.started = True
                if plain:
                    self.filled += count
                else:
                    kept = self.columns.run(keys, self.key_size, rows, self.row_size,
                                            self.values.data + self.filled * self.out_size, count)
                    self.filled += kept
            if result == -ENOENT:
                self.ended = True
            elif result == 0:
                self.started = True
                want = self.chunk
            if not whole and (self.filled or self.ended):
                break
            look_for_signals(&last)
        return 0

    cdef int _walk(self, bint drain, bint whole, int fd) except -1 nogil:
        """Do what `_run` does, an element a call, for kernels without the batch commands."""
        # Where keys come and go, GET_NEXT_KEY starts over now and then: bound the walk.
        cdef Py_ssize_t limit = self.max_entries if self.is_array else 2 * self.max_entries + 1024
        cdef uint64_t last = 0
        cdef long result
        cdef char *key
        cdef char *row
        self.exact = self.is_array
        while not self.ended:
            if self.walked & 255 == 0:
                look_for_signals(&last)
            if self.filled == self.capacity:
                with gil:
                    self._grow(self.chunk)
            if drain:
                self._touch(1)
            key = self.keys.data + self.filled * self.key_size
            row = (self.values.data + self.filled * self.row_size if self.columns is None
                   else self.scratch.data)
            result = self._take_next(drain, fd, key, row)
            if result < 0 and result != -ENOENT:
                with gil:
                    raise errors.from_errno(<int>-result, FM_MAP_GET_NEXT_KEY, self.map.kind)
            self.walked += 1
            self.ended = self.ended or self.walked >= limit
            if result == 0:
                self.filled += 1 if self.columns is None else self.columns.run(
                    key, self.key_size, row, self.row_size,
                    self.values.data + self.filled * self.out_size, 1)
            if not whole and self.filled >= self.chunk:
                break
        return 0

    cdef long _take_next(self, bint drain, int fd, char *key, char *row) noexcept nogil:
        """Copy the next key and its row (and delete it, to `drain`); -ENOENT where it is gone."""
        cdef long result
        # A drain deletes the key it is at: it always takes the first.
        result = fm_elem(FM_MAP_GET_NEXT_KEY, fd,
                         self.cursor.data if self.started and not drain else NULL, key, 0)
        if result < 0:
            self.ended = result == -ENOENT
            return result
        memcpy(self.cursor.data, key, self.key_size)
        self.started = True
        if drain:
            result = fm_elem(FM_MAP_LOOKUP_AND_DELETE_ELEM, fd, key, row, self.map.lock_flag)
            if result not in (-EINVAL, -ENOTSUPP, -EOPNOTSUPP):
                return result
        result = fm_elem(FM_MAP_LOOKUP_ELEM, fd, key, row, self.map.lock_flag)
        if drain and result == 0:  # before Linux 5.14: two steps
            result = fm_elem(FM_MAP_DELETE_ELEM, fd, key, NULL, 0)
        return result

    cdef void _touch(self, Py_ssize_t count) noexcept nogil:
        # A command that deletes and then fails to write loses entries: have the pages there.
        cdef Py_ssize_t start, stop = self.filled + count
        if self.scratch is not None:
            if self.touched < count:
                self.scratch.touch(self.touched * self.row_size, count * self.row_size)
            self.keys.touch(self.filled * self.key_size, stop * self.key_size)
            self.touched = max(self.touched, count)
        elif self.touched < stop:
            # Behind what is filled: pre-faulting writes.
            start = max(self.touched, self.filled)
            self.keys.touch(start * self.key_size, stop * self.key_size)
            self.values.touch(start * self.row_size, stop * self.row_size)
            self.touched = stop
