"""Programs: load, run, attach."""

from fastmap._core.syscall cimport Fd


cdef class Program:
    cdef readonly Fd _fd
    cdef readonly object name
    cdef readonly int type
    # What the instructions name by descriptor (maps): they stay open as long as the program.
    cdef object _uses


cdef class Link:
    cdef readonly Fd _fd
