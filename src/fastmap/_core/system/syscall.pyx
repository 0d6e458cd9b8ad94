"""Descriptors and the commands of bpf(2) that are not about elements.

One function per command; each checks what the kernel said and raises from the table in
`fastmap.errors`. Commands that can take long (creating a large map, loading a program) run without
the GIL; the others are shorter than handing it over.
"""

import fcntl
import os

from fastmap import errors
from fastmap.enums import Command, MapFlag

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOENT
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmap._core.system.uapi cimport *


cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)(), void (*parent)(), void (*child)())

# How often this process was forked off: a child sees another number than the parent did.
cdef unsigned int _forks = 0


cdef void _in_child() noexcept nogil:
    global _forks
    _forks += 1


cdef unsigned int forks() noexcept nogil:
    """Return a number that differs between a process and its forked children."""
    return _forks


if pthread_atfork(NULL, NULL, _in_child) != 0:
    raise MemoryError("pthread_atfork")


cdef long check(long result, int command, int map_type=0, str detail="") except -1:
    """Return `result`, or raise what the negative errno in it means for `command`."""
    if result < 0:
        raise errors.from_errno(<int>-result, command, map_type, detail)
    return result


cdef int look_for_signals(uint64_t *last) except -1 nogil:
    """Let signal handlers run, at most ten times a second: a loop without the GIL calls it often.

    Taking the GIL back can cost a whole switch interval (5 ms) beside a busy thread, so the clock
    is asked first. `last` holds the time of the last look; 0 starts it.
    """
    cdef uint64_t now = fm_monotonic_ns()
    if last[0] == 0:
        last[0] = now
    elif now - last[0] > 100000000:
        with gil:
            PyErr_CheckSignals()
        last[0] = fm_monotonic_ns()
    return 0


def rescue(error, make):
    """Hand what was taken out of a map to the exception that leaves the call, as ``.batch``.

    Compiled, so that no signal is heard between the exception and this; one that comes while
    `make` puts the batch together starts that anew. Where `make` returns None, an exception that
    this one interrupted may have a batch to pass on.
    """
    cdef int tries = 0
    while True:
        try:
            batch = make()
            break
        except BaseException:  # of a handler, whatever it raises; a hundred in a row are no signals
            tries += 1
            if tries == 100:
                raise
    earlier = error.__context__
    while batch is None and earlier is not None:
        batch = getattr(earlier, "batch", None)
        earlier = earlier.__context__
    if batch is not None:
        error.batch = batch


cdef class Fd:
    """A descriptor that is closed once, and never while a call is inside it.

    A call that gives up the GIL brackets itself with ``acquire`` and ``release``; ``close`` in
    another thread then waits for the last of them, so that the number cannot be given to another
    file while the kernel is still told to work on it.
    """

    def __cinit__(self, int number):
        self.number = number
        self.generation = _forks

    def __dealloc__(self):
        if self.number >= 0:
            close(self.number)

    cdef int get(self) except -1:
        """Return the number, for a call that keeps the GIL."""
        if self.closing:
            raise ValueError("operation on a closed map, program or link")
        return self.number

    cdef int acquire(self) except -1:
        cdef int number = self.get()
        self._settle()
        self.inflight += 1
        return number

    cdef void release(self) noexcept:
        self._settle()
        if self.inflight > 0:
            self.inflight -= 1
        if self.closing and self.inflight == 0 and self.number >= 0:
            close(self.number)
            self.number = -1

    cdef void _settle(self) noexcept:
        # The threads that were inside a call when this process was forked off are not here.
        if self.generation != _forks:
            self.generation = _forks
            self.inflight = 0

    @property
    def closed(self):
        return self.closing

    def fileno(self):
        return self.get()

    def close(self):
        self._settle()
        self.closing = True
        if self.inflight == 0 and self.number >= 0:
            close(self.number)
            self.number = -1


cdef class Handle:
    """What holds a descriptor of the kernel's: a map, a program, a link."""


cdef class Held:
    """Descriptors that stay open in a ``with`` block: `Fd.close` in another thread waits for it."""

    cdef list fds
    cdef Py_ssize_t count

    def __init__(self, fds):
        self.fds = list(fds)

    def __enter__(self):
        cdef Fd fd
        for fd in self.fds:
            try:
                fd.acquire()
            except BaseException:
                self.__exit__()
                raise
            self.count += 1

    def __exit__(self, *_):
        cdef Fd fd
        for fd in self.fds[:self.count]:
            fd.release()
        self.count = 0


def map_create(int map_type, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
               uint32_t flags=0, bytes name=b"", uint32_t numa_node=0, int inner_map_fd=0,
               unsigned long long map_extra=0, int btf_fd=0, uint32_t btf_key_type_id=0,
               uint32_t btf_value_type_id=0, uint32_t btf_vmlinux_value_type_id=0,
               int value_type_btf_obj_fd=0, int map_token_fd=0):
    """BPF_MAP_CREATE: return the new map's `Fd`."""
    cdef fm_map_create attr
    cdef long result
    memset(&attr, 0, sizeof(attr))
    attr.map_type = map_type
    attr.key_size = key_size
    attr.value_size = value_size
    attr.max_entries = max_entries
    attr.map_flags = flags
    attr.numa_node = numa_node
    attr.inner_map_fd = inner_map_fd
    attr.map_extra = map_extra
    attr.btf_fd = btf_fd
    attr.btf_key_type_id = btf_key_type_id
    attr.btf_value_type_id = btf_value_type_id
    attr.btf_vmlinux_value_type_id = btf_vmlinux_value_type_id
    attr.value_type_btf_obj_fd = value_type_btf_obj_fd
    attr.map_token_fd = map_token_fd
    _copy_name(attr.map_name, name)
    with nogil:
        result = fm_bpf(FM_MAP_CREATE, &attr, sizeof(attr))
    return Fd(<int>check(result, FM_MAP_CREATE, map_type))


cdef int _copy_name(char *where, bytes name) except -1:
    if len(name) > 15:
        raise ValueError(f"the kernel keeps 15 bytes of a name; {name!r} has {len(name)}")
    memcpy(where, <const char *>name, len(name))
    return 0


cdef bytes _encoded(path):
    cdef bytes encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"a path holds no NUL: {path!r}")
    return encoded


def obj_pin(Fd fd, path):
    """BPF_OBJ_PIN."""
    cdef fm_obj attr
    cdef bytes encoded = _encoded(path)
    memset(&attr, 0, sizeof(attr))
    attr.pathname = fm_ptr(<const char *>encoded)
    attr.bpf_fd = fd.get()
    check(fm_bpf(FM_OBJ_PIN, &attr, sizeof(attr)), FM_OBJ_PIN, 0, os.fsdecode(encoded))


def obj_get(path, uint32_t file_flags=0):
    """BPF_OBJ_GET: return the `Fd` of what is pinned at `path`."""
    cdef fm_obj attr
    cdef bytes encoded = _encoded(path)
    memset(&attr, 0, sizeof(attr))
    attr.pathname = fm_ptr(<const char *>encoded)
    attr.file_flags = file_flags
    cdef long result = fm_bpf(FM_OBJ_GET, &attr, sizeof(attr))
    cdef Fd own = Fd(<int>check(result, FM_OBJ_GET, 0, os.fsdecode(encoded)))
    own.given = f"the pin {os.fsdecode(encoded)}"
    return own


def duplicate(int fd):
    """Return an `Fd` of its own for an open descriptor, close-on-exec."""
    cdef Fd own = Fd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    own.given = f"descriptor {fd}"
    return own


cdef object _fd_by_id(int command, uint32_t number, uint32_t open_flags, str what):
    cdef fm_get_id attr
    memset(&attr, 0, sizeof(attr))
    attr.id = number
    attr.open_flags = open_flags
    cdef long result = fm_bpf(command, &attr, sizeof(attr))
    return Fd(<int>check(result, command, 0, f"{what} id {number}"))


def map_get_fd_by_id(uint32_t number, uint32_t open_flags=0):
    """BPF_MAP_GET_FD_BY_ID."""
    return _fd_by_id(FM_MAP_GET_FD_BY_ID, number, open_flags, "map")


def prog_get_fd_by_id(uint32_t number):
    """BPF_PROG_GET_FD_BY_ID."""
    return _fd_by_id(FM_PROG_GET_FD_BY_ID, number, 0, "program")


def btf_get_fd_by_id(uint32_t number):
    """BPF_BTF_GET_FD_BY_ID."""
    return _fd_by_id(FM_BTF_GET_FD_BY_ID, number, 0, "BTF")


cdef object _next_id(int command, uint32_t start):
    cdef fm_get_id attr
    memset(&attr, 0, sizeof(attr))
    attr.id = start
    cdef long result = fm_bpf(command, &attr, sizeof(attr))
    if result == -ENOENT:  # that was the last
        return None
    check(result, command)
    return attr.next_id


def map_get_next_id(uint32_t start):
    """BPF_MAP_GET_NEXT_ID: return the smallest map id above `start`, or None."""
    return _next_id(FM_MAP_GET_NEXT_ID, start)


def prog_get_next_id(uint32_t start):
    """BPF_PROG_GET_NEXT_ID: return the smallest program id above `start`, or None."""
    return _next_id(FM_PROG_GET_NEXT_ID, start)


cdef _get_info(Fd fd, void *info, uint32_t size):
    cdef fm_info attr
    memset(&attr, 0, sizeof(attr))
    attr.bpf_fd = fd.get()
    attr.info_len = size
    attr.info = fm_ptr(info)
    check(fm_bpf(FM_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)), FM_OBJ_GET_INFO_BY_FD)


def map_info(Fd fd):
    """BPF_OBJ_GET_INFO_BY_FD of a map, as a dict under the kernel's field names."""
    cdef fm_map_info info
    memset(&info, 0, sizeof(info))
    _require(fd, "bpf-map")
    _get_info(fd, &info, sizeof(info))
    cdef dict fields = info
    fields["name"] = (<bytes>info.name[:16]).split(b"\0", 1)[0].decode(errors="replace")
    return fields


def prog_info(Fd fd):
    """BPF_OBJ_GET_INFO_BY_FD of a program, as a dict under the kernel's field names."""
    cdef fm_prog_info info
    cdef uint32_t room = 64
    cdef bytearray ids
    _require(fd, "bpf-prog")
    while True:
        ids = bytearray(room * sizeof(uint32_t))
        memset(&info, 0, sizeof(info))
        info.map_ids = fm_ptr(<char *>ids)
        info.nr_map_ids = room
        _get_info(fd, &info, sizeof(info))
        if info.nr_map_ids <= room:
            break
        room = info.nr_map_ids
    cdef dict fields = info
    fields["map_ids"] = tuple(memoryview(ids).cast("I")[:info.nr_map_ids])
    fields["name"] = (<bytes>info.name[:16]).split(b"\0", 1)[0].decode(errors="replace")
    fields["tag"] = (<bytes>info.tag[:8]).hex()
    fields["gpl_compatible"] = bool(info.gpl_compatible & 1)
    del fields["nr_map_ids"]
    return fields


cdef int _require(Fd fd, str kind) except -1:
    # The kernel answers for any BPF object, and would fill a struct of another kind.
    try:
        target = os.readlink(f"/proc/self/fd/{fd.get()}")
    except FileNotFoundError:
        # A sandbox without /proc: ask the kernel itself.
        target = f"anon_inode:{kind}" if _is(fd, kind) else "something else"
    if target != f"anon_inode:{kind}":
        given = fd.given or f"descriptor {fd.number}"
        raise ValueError(f"{given} is {target}, not a {kind}")
    return 0


cdef bint _is(Fd fd, str kind) except -1:
    """Ask for nothing of the object: EINVAL where it is of another kind."""
    cdef fm_bind_map attr
    cdef uint32_t count = 0
    if kind == "bpf-map":
        return fm_batch(FM_MAP_LOOKUP_BATCH, fd.get(), NULL, NULL, NULL, NULL, &count,
                        0) != -EINVAL
    memset(&attr, 0, sizeof(attr))
    attr.prog_fd = fd.get()
    attr.map_fd = 0xffffffff  # refused, but later
    return fm_bpf(FM_PROG_BIND_MAP, &attr, sizeof(attr)) != -EINVAL


def fdinfo(Fd fd):
    """Return what ``/proc/self/fdinfo`` says of a descriptor, as a dict of text."""
    cdef int number = fd.acquire()  # reading the file gives up the GIL
    try:
        with open(f"/proc/self/fdinfo/{number}") as file:
            pairs = [line.split(":", 1) for line in file if ":" in line]
    finally:
        fd.release()
    return {name: text.strip() for name, text in pairs}


def map_freeze(Fd fd, int map_type=0):
    """BPF_MAP_FREEZE."""
    cdef fm_map_elem attr
    memset(&attr, 0, sizeof(attr))
    attr.map_fd = fd.get()
    check(fm_bpf(FM_MAP_FREEZE, &attr, sizeof(attr)), FM_MAP_FREEZE, map_type)


def btf_load(bytes btf, int token_fd=0):
    """BPF_BTF_LOAD: return the `Fd`. A refusal comes with the kernel's log."""
    cdef fm_btf_load attr
    cdef bytearray log
    cdef long result
    memset(&attr, 0, sizeof(attr))
    attr.btf = fm_ptr(<const char *>btf)
    attr.btf_size = len(btf)
    if token_fd:
        attr.btf_flags = MapFlag.TOKEN_FD
        attr.btf_token_fd = token_fd
    # Without a log first: a log buffer that is too small fails good BTF with ENOSPC.
    result = fm_bpf(FM_BTF_LOAD, &attr, sizeof(attr))
    if result >= 0:
        return Fd(<int>result)
    log = bytearray(1 << 16)
    attr.btf_log_buf = fm_ptr(<char *>log)
    attr.btf_log_size = len(log)
    attr.btf_log_level = 1
    fm_bpf(FM_BTF_LOAD, &attr, sizeof(attr))
    check(result, FM_BTF_LOAD, 0, bytes(log).split(b"\0", 1)[0].decode(errors="replace").strip())


def btf_bytes(Fd fd):
    """BPF_OBJ_GET_INFO_BY_FD of BTF: return its bytes."""
    cdef fm_btf_info info
    cdef bytearray data
    memset(&info, 0, sizeof(info))
    _get_info(fd, &info, sizeof(info))
    data = bytearray(info.btf_size)
    memset(&info, 0, sizeof(info))
    info.btf = fm_ptr(<char *>data)
    info.btf_size = len(data)
    _get_info(fd, &info, sizeof(info))
    return bytes(data)


def token_create(int bpffs_fd):
    """BPF_TOKEN_CREATE: return the token's `Fd`."""
    cdef fm_token_create attr
    memset(&attr, 0, sizeof(attr))
    attr.bpffs_fd = bpffs_fd
    return Fd(<int>check(fm_bpf(FM_TOKEN_CREATE, &attr, sizeof(attr)), FM_TOKEN_CREATE))


def prog_load(int prog_type, bytes insns, bytes license, bytes name, uint32_t flags,
              uint32_t expected_attach_type, uint32_t attach_btf_id, Fd btf,
              bytes func_info, uint32_t func_info_rec_size):
    """BPF_PROG_LOAD: return the `Fd`. A refusal comes with the verifier's log."""
    cdef fm_prog_load attr
    cdef bytearray log
    cdef long result
    cdef int _
    memset(&attr, 0, sizeof(attr))
    attr.prog_type = prog_type
    attr.insn_cnt = len(insns) // 8
    attr.insns = fm_ptr(<const char *>insns)
    attr.license = fm_ptr(<const char *>license)
    attr.prog_flags = flags
    attr.expected_attach_type = expected_attach_type
    attr.attach_btf_id = attach_btf_id
    if btf is not None:
        attr.prog_btf_fd = btf.get()
        attr.func_info = fm_ptr(<const char *>func_info)
        attr.func_info_rec_size = func_info_rec_size
        attr.func_info_cnt = len(func_info) // func_info_rec_size
    _copy_name(attr.prog_name, name)
    for _ in range(10):
        with nogil:
            result = fm_bpf(FM_PROG_LOAD, &attr, sizeof(attr))
        # The verifier gives up with EAGAIN while a signal is pending: let its handler run.
        if result != -EAGAIN and result != -EINTR:
            break
    if result >= 0:
        return Fd(<int>result)
    log = bytearray(1 << 20)
    attr.log_buf = fm_ptr(<char *>log)
    attr.log_size = len(log)
    attr.log_level = 1
    with nogil:
        fm_bpf(FM_PROG_LOAD, &attr, sizeof(attr))
    text = bytes(log).split(b"\0", 1)[0].decode(errors="replace").strip()
    check(result, FM_PROG_LOAD, 0, _tail(text))


cdef str _tail(str text, Py_ssize_t lines=40):
    kept = text.splitlines()[-lines:]
    return "\n" + "\n".join(kept) + "\n" if kept else ""


def raw_tracepoint_open(Fd prog, bytes name):
    """BPF_RAW_TRACEPOINT_OPEN: return the link's `Fd`; the program runs until it is closed."""
    cdef fm_raw_tracepoint attr
    memset(&attr, 0, sizeof(attr))
    attr.name = fm_ptr(<const char *>name)
    attr.prog_fd = prog.get()
    cdef long result = fm_bpf(FM_RAW_TRACEPOINT_OPEN, &attr, sizeof(attr))
    return Fd(<int>check(result, FM_RAW_TRACEPOINT_OPEN, 0, name.decode(errors="replace")))


#: Commands that `probe` can ask about.
PROBED = tuple(Command(c) for c in (
    FM_MAP_LOOKUP_ELEM, FM_MAP_UPDATE_ELEM, FM_MAP_DELETE_ELEM, FM_MAP_GET_NEXT_KEY,
    FM_PROG_TEST_RUN, FM_PROG_GET_FD_BY_ID, FM_MAP_GET_FD_BY_ID, FM_OBJ_GET_INFO_BY_FD,
    FM_BTF_GET_FD_BY_ID, FM_MAP_LOOKUP_AND_DELETE_ELEM, FM_MAP_FREEZE, FM_MAP_LOOKUP_BATCH,
    FM_MAP_LOOKUP_AND_DELETE_BATCH, FM_MAP_UPDATE_BATCH, FM_MAP_DELETE_BATCH,
    FM_TOKEN_CREATE))


def probe(int command):
    """Call `command` with a descriptor (or id) that none has; return 0 or -errno.

    A kernel that does not know the command says EINVAL, one that does says EBADF or the like.
    """
    cdef uint32_t attr[32]
    memset(attr, 0, sizeof(attr))
    attr[0] = 0xffffffff
    if command == FM_TOKEN_CREATE:
        attr[0] = 0
        attr[1] = 0xffffffff
    elif command >= FM_MAP_LOOKUP_BATCH:
        attr[0] = 0
        attr[9] = 0xffffffff
    return fm_bpf(command, attr, 128)


def probe_batch(Fd fd, int command):
    """Call a batch command on nothing; raises where the map's type does not have it."""
    cdef uint32_t count = 0
    check(fm_batch(command, fd.get(), NULL, NULL, NULL, NULL, &count, 0), command)


def probe_update(Fd fd, uint64_t flags):
    """Update the first element of a per-CPU array of 8-byte values; raises where refused."""
    cdef uint32_t key = 0
    cdef bytes value = bytes(8 * len(possible_cpus()))
    check(fm_elem(FM_MAP_UPDATE_ELEM, fd.get(), &key, <char *>value, flags), FM_MAP_UPDATE_ELEM)


def cpu_list(str text):
    """Return the CPU numbers that a list of the kernel's names: ``"0,3-4"`` is ``(0, 3, 4)``."""
    numbers = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


cdef tuple _possible = None


def possible_cpus():
    """Return the numbers of the CPUs this machine could have, ascending.

    A per-CPU value has one slot for each of them, also for those that are not online: column j
    of a per-CPU array is CPU ``possible_cpus()[j]``. It never changes while a kernel runs.

    Returns
    -------
    tuple of int
        From ``/sys/devices/system/cpu/possible``.
    """
    global _possible
    if _possible is None:
        with open("/sys/devices/system/cpu/possible") as file:
            _possible = cpu_list(file.read())
    return _possible
