"""Whole reads of a map by one run of a program.

A `Walker` owns the arrays that its program writes to, mapped: what is read is not copied again.
"""

from fastmap import errors

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastmap._core.maps.map cimport MapCore
from fastmap._core.maps.runner cimport Head, mapped, run
from fastmap._core.system.syscall cimport Fd, forks, look_for_signals
from fastmap._core.system.uapi cimport *


cdef enum:
    RUN = 65536
    SHORTEST = 256
    MOST_BROKEN = 64


cdef class Walker:
    """Buffers for the entries of a map, and the program that fills them.

    Parameters
    ----------
    key_size, out_size : int
        Bytes of a key, and of a row of the result.
    capacity : int
        How many entries there is room for.
    exact : bool
        Whether the walk returns each entry once, also while the map changes.
    """

    def __cinit__(self, Py_ssize_t key_size, Py_ssize_t out_size, Py_ssize_t capacity, bint exact):
        self.capacity = capacity
        self.out_size = out_size
        self.exact = exact
        self.run_length = RUN
        self.generation = forks()
        self.head_map, self.head = mapped(64, 1, b"fastmap_head")
        self.keys_map, self.keys = mapped(capacity * key_size, 1, b"fastmap_keys")
        self.values_map, self.values = mapped(max(capacity * out_size, 1), 1, b"fastmap_values")

    @property
    def exports(self):
        """How many arrays were made on the buffers and are alive."""
        return self.keys.exports + self.values.exports

    @property
    def other_process(self):
        """Whether this process was forked off since: the buffers are its parent's."""
        return self.generation != forks()

    def use(self, Fd program not None):
        """Take the program that fills the buffers."""
        self.program = program

    def fill(self, MapCore map not None):
        """Walk the map; return whether there was room for all that passed.

        ``filled`` tells how many entries are in the buffers.
        """
        cdef Head *head = <Head *>self.head.data
        cdef uint64_t last = 0
        cdef long result
        cdef uint32_t at = 0, copied = 0, length = <uint32_t>self.run_length
        cdef int fd = self.program.number, broken = 0
        if self.busy:
            raise RuntimeError("the reader is in use: by another thread, or by the call that "
                               "this signal handler interrupted")
        map.fd.acquire()
        self.busy = True
        self.filled = 0
        self.started_ns = fm_monotonic_ns()
        try:
            memset(head, 0, sizeof(Head))
            with nogil:
                while True:
                    # Where the program goes over buckets itself, a run is about so many.
                    head.count = at + length
                    head.at = at
                    head.error = 0
                    head.copied = copied
                    result = run(fd)
                    look_for_signals(&last)
                    if result == -EAGAIN or result == -EINTR:
                        continue
                    if result < 0 or head.buckets == 0 or head.error not in (0, EAGAIN):
                        break
                    if head.error == EAGAIN or head.at < head.count:
                        # The kernel found the run too long and ended it, perhaps within a
                        # bucket: once more, from where it began, and a shorter one.
                        broken += 1
                        if broken > MOST_BROKEN:
                            result = -EAGAIN
                            break
                        length = max(length // 2, SHORTEST)
                        continue
                    at, copied = head.count, head.copied
                    if at >= head.buckets:
                        break
            if result < 0:
                raise errors.from_errno(<int>-result, FM_PROG_TEST_RUN, map.kind)
            self.filled = head.copied
            PyErr_CheckSignals()
        finally:
            self.ended_ns = fm_monotonic_ns()
            self.busy = False
            map.fd.release()
        return head.error == 0
