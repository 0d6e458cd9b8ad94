"""Whole reads of a map by one run of a program."""

from libc.stdint cimport uint64_t

from fastmap._core.maps.map cimport MapCore
from fastmap._core.system.memory cimport Mapping
from fastmap._core.system.syscall cimport Fd


cdef class Walker:
    cdef Fd program
    cdef readonly Fd head_map
    cdef readonly Fd keys_map
    cdef readonly Fd values_map
    cdef Mapping head
    # The pages of the arrays that the program writes to: views of them keep them.
    cdef readonly Mapping keys
    cdef readonly Mapping values
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t out_size
    # How many buckets a run goes over.
    cdef public Py_ssize_t run_length
    cdef readonly bint exact
    cdef readonly Py_ssize_t filled
    cdef readonly uint64_t started_ns
    cdef readonly uint64_t ended_ns
    cdef bint busy
    cdef unsigned int generation
