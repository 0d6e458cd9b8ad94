"""Whole reads of an LPM trie, whose batch commands promise less than those of a hash."""

from functools import cache

from fastmap import errors
from fastmap.enums import MapFlag, MapType

from libc.errno cimport EINTR, EINVAL, ENOENT, EOPNOTSUPP
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from fastmap._core.maps.batch_reader cimport BatchReader
from fastmap._core.rows.columns cimport Columns
from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Block
from fastmap._core.maps.prefix cimport comes_after
from fastmap._core.system.syscall cimport Fd, check, look_for_signals
from fastmap._core.system.uapi cimport *
from fastmap._core.system import syscall

cdef enum:
    ENOTSUPP = 524

#: The first Linux that tells how much memory the prefixes take.
COUNTS_SINCE = (6, 4)


@cache
def _overhead():
    """Return the bytes of a prefix besides its address and its value; 0 where none can be told.

    What is raised, for want of a descriptor or of memory, is not kept.
    """
    cdef Fd trial
    cdef char key[5]
    cdef char value = 0
    key[:] = [0, 0, 0, 0, 0]
    try:
        trial = syscall.map_create(MapType.LPM_TRIE, 5, 1, 1, MapFlag.NO_PREALLOC, b"fastmap_trial")
        if int(syscall.fdinfo(trial)["memlock"]):
            return 0  # an older kernel: that is for all entries that it can hold
        check(fm_elem(FM_MAP_UPDATE_ELEM, trial.get(), key, &value, 0), FM_MAP_UPDATE_ELEM)
        return int(syscall.fdinfo(trial)["memlock"]) - 2
    except (OSError, KeyError) as error:  # for want of a capability, or of /proc
        if errors.is_shortage(error):
            raise
        return 0


cdef object entries_of(MapCore map, Py_ssize_t sizes):
    """Return how many prefixes a trie has, whose address and value take `sizes` bytes, or None."""
    try:
        overhead = _overhead()
        if not overhead:
            return None
        return int(syscall.fdinfo(map.fd)["memlock"]) // (overhead + sizes)
    except (OSError, MemoryError, KeyError):
        return None


cdef class TrieReader(BatchReader):
    """A `BatchReader` for LPM tries.

    The kernel's cursor is the last key. Where that key is deleted meanwhile, the kernel starts over
    at the first key, without a word. But it walks in an order that is known: what does not come
    after the last key was handed over before, and is passed over.

    What it leaves out cannot be seen: it finds the way on from the last key by comparing a node
    with its parent's first child, and where that child is replaced at this moment, it takes the
    node for the second one and passes over all that is below the real second. One read in a hundred
    beside a busy writer misses an entry that way. So ``exact`` is said of a whole read only if the
    kernel counts as many entries before it and after it as came (after a drain: none).

    There is no command that looks up and deletes: a drain looks up a batch, then deletes it.
    """

    def __cinit__(self, MapCore map not None, Py_ssize_t max_entries, bint is_array,
                  Columns columns, Py_ssize_t chunk):
        self.last = Block(self.key_size)
        try:
            _overhead()  # before capabilities are given up
        except (OSError, MemoryError):  # the next read asks again
            pass

    def rewind(self):
        """Start over at the map's first entry."""
        BatchReader.rewind(self)
        self.begun = False
        self.seen = 0

    def fill(self, bint drain, bint whole):
        """Do what `BatchReader.fill` does, and see by the kernel's count whether all came."""
        cdef Py_ssize_t sizes = self.key_size - 4 + self.row_size
        before = entries_of(self.map, sizes) if whole and not drain else None
        BatchReader.fill(self, drain, whole)
        if whole and self.exact:
            after = entries_of(self.map, sizes)
            self.exact = after == 0 if drain else after == before == self.seen
        return self.filled

    cdef int _run(self, bint drain, bint whole, int fd) except -1 nogil:
        # Where cursors are deleted again and again the kernel could start over for ever.
        cdef Py_ssize_t limit = 4 * self.max_entries + 1024
        cdef bint plain = self.columns is None
        cdef Py_ssize_t room, taken
        cdef uint32_t count
        cdef uint64_t last = 0
        cdef int command
        cdef long result, deletion
        cdef char *keys
        cdef char *rows
        self.exact = True
        if self.map.no_read_batch:
            return self._walk(drain, whole, fd)
        while not self.ended:
            look_for_signals(&last)
            room = self.capacity - self.filled
            if room == 0:
                with gil:
                    self._grow(self.chunk)
                continue
            count = <uint32_t>min(self.chunk, room)
            keys = self.keys.data + self.filled * self.key_size
            rows = self.values.data + self.filled * self.row_size if plain else self.scratch.data
            if drain:
                self._touch(count)
            command = FM_MAP_LOOKUP_BATCH
            # What a drain has read is gone: it goes on at the first key.
            result = fm_batch(command, fd,
                              self.cursor.data if self.started and not drain else NULL,
                              self.cursor.data, keys, rows, &count, 0)
            if result < 0 and result != -ENOENT:
                if not self.started and result in (-EINVAL, -ENOTSUPP, -EOPNOTSUPP):
                    self.map.no_read_batch = True  # before Linux 5.13
                    return self._walk(drain, whole, fd)
                if result != -EINTR:  # keys went away under it, on older kernels: go on
                    with gil:
                        raise errors.from_errno(<int>-result, command, self.map.kind)
            self.walked += max(count, 1)
            if count:
                self.started = True
            deletion = 0
            if drain:
                command = FM_MAP_DELETE_BATCH
                deletion = self._delete(fd, keys, rows, count, &taken)
            else:
                taken = self._keep_new(keys, rows, count)
            self.seen += taken
            if plain:
                self.filled += taken
            else:
                self.filled += self.columns.run(
                    keys, self.key_size, rows, self.row_size,
                    self.values.data + self.filled * self.out_size, taken)
            if deletion < 0:
                with gil:
                    raise errors.from_errno(<int>-deletion, command, self.map.kind)
            if result == -ENOENT:
                self.ended = True
            elif self.walked >= limit:
                self.ended = True
                self.exact = False
            if not whole and (self.filled or self.ended):
                break
        return 0

    cdef Py_ssize_t _keep_new(self, char *keys, char *rows, Py_ssize_t count) noexcept nogil:
        """Move together those of `count` rows that come after the last one; return how many."""
        cdef Py_ssize_t i, kept = 0
        cdef const char *last = self.last.data if self.begun else NULL
        for i in range(count):
            if last != NULL and not comes_after(keys + i * self.key_size, last):
                continue
            if kept != i:
                memcpy(keys + kept * self.key_size, keys + i * self.key_size, self.key_size)
                memcpy(rows + kept * self.row_size, rows + i * self.row_size, self.row_size)
            last = keys + kept * self.key_size
            kept += 1
        if kept:
            memcpy(self.last.data, last, self.key_size)
            self.begun = True
        return kept

    cdef long _delete(self, int fd, char *keys, char *rows, Py_ssize_t count,
                      Py_ssize_t *deleted) noexcept nogil:
        """Delete `count` keys; move together the rows of those that were there, and count them."""
        cdef Py_ssize_t at = 0
        cdef uint32_t done, offered
        cdef long result = 0
        deleted[0] = 0
        while at < count:
            done = offered = <uint32_t>(count - at)
            result = fm_batch(FM_MAP_DELETE_BATCH, fd, NULL, NULL, keys + at * self.key_size, NULL,
                              &done, 0)
            if result < 0 and done == offered:
                done = 0  # the kernel refused the whole, and left the count alone
            if deleted[0] != at and done:
                memmove(keys + deleted[0] * self.key_size, keys + at * self.key_size,
                        done * self.key_size)
                memmove(rows + deleted[0] * self.row_size, rows + at * self.row_size,
                        done * self.row_size)
            deleted[0] += done
            at += done
            if result == -ENOENT:
                at += 1  # someone else was faster
            elif result < 0:
                return result
        return 0
