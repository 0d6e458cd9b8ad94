"""Programs: load, run, attach."""

from fastmap._core.system.syscall cimport Handle


cdef class Program(Handle):
    cdef readonly object name
    cdef readonly int type
    # What the instructions name by descriptor (maps): they stay open as long as the program.
    cdef object _uses


cdef class Link(Handle):
    pass
