"""Element commands, and loops over given keys."""

from libc.stdint cimport int32_t, uint64_t

from fastmap._core.rows.codec cimport Codec
from fastmap._core.rows.columns cimport Columns
from fastmap._core.rows.rows cimport Rows
from fastmap._core.system.syscall cimport Fd, Handle


cdef class MapCore(Handle):
    cdef readonly int kind
    # BPF_F_LOCK where the values hold a spin lock: they are read and written under it. Else 0.
    cdef public uint64_t lock_flag
    cdef readonly Codec key
    cdef readonly Codec value
    # Batch commands that this kernel turned out to lack for this map are not tried again.
    cdef readonly bint no_batch
    # A walk of it may repeat or miss entries, and EAGAIN says to begin anew: it resizes itself.
    cdef public bint resizes
    cdef bint no_read_batch

    cdef uint64_t _checked(self, uint64_t flags) except? 0xffffffff
    cdef Rows _settled(self, Rows rows, object doubtful)
    cdef int _encode_key(self, object key, char *dst) except -1
    cdef object _take(self, int command, object key, Codec codec, uint64_t flags)
    cdef int _put(self, object key, object value, Codec codec, uint64_t flags) except -1
    cdef int _drop(self, object key) except -1
    cdef object _failed(self, long result, int command, object key)
    cdef int _look(self, int command, Rows keys, char *rows, char *found, Columns columns,
                   char *key_scratch, char *row_scratch, uint64_t flags, int fd,
                   Py_ssize_t *done, Py_ssize_t *hits) except -1 nogil
    cdef int _apply(self, int command, Rows keys, Rows values, uint64_t flags, int mode,
                    int32_t *errnos, Py_ssize_t chunk, char *key_scratch, char *row_scratch,
                    int fd, Py_ssize_t *applied) except -1 nogil


cdef class KeyedCore(MapCore):
    pass
