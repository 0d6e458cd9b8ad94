"""Work over many elements, split over threads that all have ended when the call does.

Compiled: here a signal's handler runs where it is looked for, and nowhere else. In Python it may
run, and raise, between any two steps of what starts the threads or waits for them; what it leaves
behind then are threads that write on, and a count of theirs that nobody has.
"""

from _thread import start_new_thread

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
)
from libc.stdint cimport uint64_t

from fastmap._core.system.uapi cimport *

cdef extern from "pythread.h" nogil:
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)

cdef enum:
    # The fewest elements that a thread works through before it asks whether to stop.
    SLICE = 16384
    # A slice that took less is followed by a longer one, in nanoseconds.
    SHORT = 50000000
    # How often the caller looks for a signal that another thread got, in microseconds.
    LOOK = 50000


cdef class Work:
    """Parts of the elements, which threads take in turn. All of it happens under the GIL.

    Parameters
    ----------
    part : callable
        ``part(start, stop)`` works through elements, and returns how many it applied.
    count : int
        How many elements there are.
    parts : int
    """

    def __cinit__(self, part not None, Py_ssize_t count, Py_ssize_t parts):
        self.part = part
        self.count = count
        self.parts = parts
        self.failures = [None] * parts
        self.running = 1  # the caller
        self.ended = PyThread_allocate_lock()
        if self.ended == NULL:
            raise MemoryError("a lock")
        PyThread_acquire_lock(self.ended, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.ended != NULL:
            PyThread_free_lock(self.ended)

    def run(self):
        """Take parts until there are none left: what each thread does."""
        cdef Py_ssize_t which
        while self.taken < self.parts and not self.stopped:
            which = self.taken
            self.taken += 1
            self._do(which)
        self.running -= 1
        if self.running == 0:
            PyThread_release_lock(self.ended)

    cdef _do(self, Py_ssize_t which):
        """Work through one part, in slices of about 0.1 s: the caller alone hears of a Ctrl-C."""
        cdef Py_ssize_t at = self.count * which // self.parts
        cdef Py_ssize_t stop = self.count * (which + 1) // self.parts
        cdef Py_ssize_t step = SLICE, applied
        cdef uint64_t began
        while at < stop and not self.stopped:
            began = fm_monotonic_ns()
            try:
                applied = self.part(at, min(at + step, stop))
                self.done += applied
            except BaseException as error:
                applied = getattr(error, "applied", 0)
                self.done += applied
                if hasattr(error, "index"):
                    error.index += at
                self.failures[which] = error
                return
            at += step
            step = 2 * step if fm_monotonic_ns() - began < SHORT else max(step // 2, SLICE)

    cdef _stop(self, error):
        """Let no thread begin another slice; `error` goes before what they raise."""
        self.stopped = True
        self.failures.insert(0, error)


def in_threads(part, Py_ssize_t count, Py_ssize_t threads):
    """Call ``part(start, stop)`` over `count` elements in `threads` threads; add up the results.

    The first failure in the order of the elements is raised, when all parts have ended; its
    ``applied`` counts over all of them, its ``index`` from the first element. So does what a
    signal's handler raises meanwhile: no thread is left when it leaves this, and its ``applied`` is
    exact. Where fewer threads can be had, fewer do the work; where none, the caller does.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: at least 1")
    cdef Work work = Work(part, count, threads)
    run = work.run
    cdef Py_ssize_t started = 0
    cdef int ended
    for _ in range(threads):
        work.running += 1
        try:
            start_new_thread(run, ())
            started += 1
        except (RuntimeError, MemoryError):
            work.running -= 1
            break
        except BaseException as error:  # of an audit hook, in which a signal may be heard
            work.running -= 1
            work._stop(error)
            break
    if started == 0 and not work.stopped:
        return part(0, count)
    work.running -= 1
    if work.running:
        while True:
            with nogil:
                ended = PyThread_acquire_lock_timed(work.ended, LOOK, 1)
            if ended == 1:
                break
            if not work.stopped:
                try:
                    PyErr_CheckSignals()
                except BaseException as error:
                    work._stop(error)
    if not work.stopped:
        try:
            PyErr_CheckSignals()  # one that came meanwhile is raised here, where `applied` is
        except BaseException as error:
            work._stop(error)
    work.part = None
    failure = next(filter(None, work.failures), None)
    if failure is not None:
        failure.applied = work.done
        raise failure
    return work.done
