"""mount(2) and umount2(2): Python has neither."""

from libc.errno cimport errno


cdef extern from "<sys/mount.h>" nogil:
    int mount(const char *source, const char *target, const char *fstype, unsigned long flags,
              const void *data)
    int umount2(const char *target, int flags)


def mount_bpf(bytes target, bytes options):
    """Mount a new bpffs on a folder; return 0 or the errno."""
    cdef const char *where = target
    cdef const char *data = options
    cdef int result
    with nogil:
        result = mount(b"bpf", where, b"bpf", 0, data)
        result = errno if result else 0
    return result


def unmount(bytes target):
    """Detach what is mounted on a folder; return 0 or the errno."""
    cdef const char *where = target
    cdef int result
    with nogil:
        # MNT_DETACH, UMOUNT_NOFOLLOW: away at once for new users, and never through a symlink.
        result = umount2(where, 2 | 8)
        result = errno if result else 0
    return result
