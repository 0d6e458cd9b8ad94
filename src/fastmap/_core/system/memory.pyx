"""The only owners of memory: `Block` (aligned heap) and `Mapping` (mmap).

Both export the buffer protocol and count the exports. Arrays are made with ``np.frombuffer(owner)``
and sliced from there, so that every view, through any chain of slices, keeps its owner alive.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free

from fastmap._core.system.syscall cimport Fd, forks


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    int MAP_NORESERVE
    int MAP_FIXED_NOREPLACE
    int MADV_HUGEPAGE
    void *MAP_FAILED

cdef Py_ssize_t PAGE = 4096
# From here on pages are huge ones where the kernel has them: a fault for each 2 MiB, not for 4 KiB.
cdef Py_ssize_t HUGE = 8 << 20
cdef Py_ssize_t _live_bytes = 0
cdef Py_ssize_t _live_owners = 0


def live():
    """Return ``(owners, bytes)`` that are alive in this process: the ledger of the tests."""
    return _live_owners, _live_bytes


cdef class Owner:
    """What `Block` and `Mapping` share: the count of exports and the buffer protocol."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.data == NULL:
            raise ValueError("the memory is closed")
        if self.lost:
            raise RuntimeError("this memory belongs to the process that mapped it: a forked child "
                               "maps it anew")
        PyBuffer_FillInfo(view, self, self.data, self.size, self.readonly, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    def __len__(self):
        return self.size

    @property
    def address(self):
        """Where the memory starts: for arguments that a program takes."""
        return <uintptr_t>self.data

    @property
    def lost(self):
        """Whether the pages are not in this process, which was forked off since."""
        return self.bound and self.generation != forks()


cdef class Block(Owner):
    """Heap memory on a cache line of its own, not initialised."""

    def __cinit__(self, Py_ssize_t size):
        global _live_bytes, _live_owners
        cdef void *memory = NULL
        if size < 0:
            raise ValueError(f"a block of {size} bytes")
        if posix_memalign(&memory, 64, max(size, 64)) != 0:
            raise MemoryError(f"no memory for {size} bytes")
        self.data = <char *>memory
        self.size = size
        _live_bytes += size
        _live_owners += 1

    def __dealloc__(self):
        global _live_bytes, _live_owners
        if self.data != NULL:
            free(self.data)
            self.data = NULL
            _live_bytes -= self.size
            _live_owners -= 1


cdef class Mapping(Owner):
    """Pages of one mmap, unmapped when the last view of them is gone.

    Parameters
    ----------
    size : int
        Bytes.
    fd : Fd, optional
        What to map, shared; without it the pages are anonymous, private, and only reserved: they
        cost memory from the first write on.
    offset : int
        Where in the file the mapping starts.
    writable : bool
    address : int
        Where the pages must lie, and nothing else does; 0 for anywhere.
    forked : bool
        Whether a forked child has them too. Where it has not, the child leaves the place alone,
        which is another's there, and takes no new view of it.
    """

    def __cinit__(self, Py_ssize_t size, Fd fd=None, long offset=0, bint writable=True,
                  uintptr_t address=0, bint forked=True):
        global _live_bytes, _live_owners
        cdef int protection = PROT_READ | PROT_WRITE if writable else PROT_READ
        cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        cdef int number = -1
        cdef void *memory
        if size <= 0:
            raise ValueError(f"a mapping of {size} bytes")
        if fd is not None:
            flags = MAP_SHARED
            number = fd.get()
        if address:
            flags |= MAP_FIXED_NOREPLACE
        memory = mmap(<void *>address, size, protection, flags, number, offset)
        if memory == MAP_FAILED:
            if fd is None:
                raise MemoryError(f"no address space for {size} bytes")
            raise OSError(errno, f"mmap of {size} bytes failed")
        if fd is None and size >= HUGE:
            madvise(memory, size, MADV_HUGEPAGE)  # advice: a kernel without them says EINVAL
        self.data = <char *>memory
        self.size = size
        self.readonly = not writable
        self.bound = not forked
        self.generation = forks()
        _live_bytes += size
        _live_owners += 1

    def __dealloc__(self):
        self._unmap()

    def _unmap(self):
        global _live_bytes, _live_owners
        cdef char *data = self.data
        cdef bint lost = self.lost
        if data != NULL:
            self.data = NULL
            _live_bytes -= self.size
            _live_owners -= 1
            if lost:
                return
            with nogil:
                munmap(data, self.size)

    def close(self):
        """Unmap now; refuses with `BufferError` while views live."""
        if self.exports:
            raise BufferError(f"{self.exports} views of the mapping are alive")
        self._unmap()

    cdef void touch(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        """Make the pages of ``[start, stop)``, which holds nothing yet, present for writing.

        So that the kernel cannot fail on them. Written without a read before, which would fault
        once more: for the page of zeros that stands behind what was never written.
        """
        cdef volatile char *data = self.data
        cdef Py_ssize_t at = start
        while at < stop:
            data[at] = 0
            at = (at // PAGE + 1) * PAGE
