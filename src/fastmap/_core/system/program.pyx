"""Programs: load, run, attach.

For demos, tests and the in-kernel path: raw instructions in, no ELF loader.
"""

from fastmap.enums import NAME_BYTES, ProgType

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy, memset

from fastmap._core.system import syscall

from fastmap._core.system.syscall cimport Fd, Handle, check
from fastmap._core.system.uapi cimport *


cdef class Program(Handle):
    """A loaded BPF program.

    Parameters
    ----------
    type : ProgType or str
        What the program may be attached to; a lower-case name will do.
    code : bytes or object
        Raw instructions, 8 bytes each; or what an assembler made: an object with ``insns`` and,
        where there are subprograms, ``btf``, ``func_info`` and ``func_info_rec_size``
        (`fastmap.asm.Code`).
    license : str
        Helpers may ask for "GPL".
    name : str
        At most 15 bytes.
    flags : int
        Such as BPF_F_SLEEPABLE (16).
    expected_attach_type, attach_btf_id : int

    Raises
    ------
    PermissionDenied
        CAP_BPF or CAP_PERFMON is missing, or the verifier refuses the program.
    BpfError
        Any other failure. The end of the verifier's log is part of the message.

    Notes
    -----
    Linux 3.18 and later; what the program does may need more.
    """

    def __init__(self, type, code, *, str license="GPL", str name="", int flags=0,
                 int expected_attach_type=0, int attach_btf_id=0):
        cdef bytes insns = code if isinstance(code, bytes) else getattr(code, "insns", None)
        cdef bytes btf = getattr(code, "btf", None) or b""
        cdef Fd btf_fd = None
        kind = ProgType.__members__.get(type.upper()) if isinstance(type, str) else ProgType(type)
        if kind is None:
            raise ValueError(f"no program type is called {type!r}")
        if insns is None:
            raise TypeError("code is bytes, or what an assembler made")
        if insns.startswith(b"\x7fELF"):
            raise ValueError("code is an ELF object file, not instructions: let libbpf or bpftool "
                             "load it, and open its maps by their pins or names")
        if len(insns) == 0 or len(insns) % 8:
            raise ValueError(f"instructions have 8 bytes each; given were {len(insns)} bytes")
        encoded = name.encode()
        if len(encoded) > NAME_BYTES:
            raise ValueError(f"the kernel keeps {NAME_BYTES} bytes of a name, not {len(encoded)}")
        if btf:
            btf_fd = syscall.btf_load(btf)
        self._uses = code
        self.name = name
        self.type = kind
        cdef list held = []
        try:
            # The instructions name maps by number: none of them may close before the load.
            for used in getattr(code, "maps", ()):
                if isinstance(used, Handle):
                    (<Handle>used).fd.acquire()
                    held.append(used)
            self.fd = syscall.prog_load(
                kind, insns, license.encode(), encoded, flags, expected_attach_type,
                attach_btf_id, btf_fd, getattr(code, "func_info", b"") if btf else b"",
                getattr(code, "func_info_rec_size", 8))
        finally:
            for used in held:
                (<Handle>used).fd.release()

    @staticmethod
    def open(path=None, *, id=None, fd=None):
        """Open a program that is there, by one of a pin, its id and a descriptor.

        Parameters
        ----------
        path : path, optional
            A pin.
        id : int, optional
            The kernel's number of the program. Needs CAP_SYS_ADMIN.
        fd : int, optional
            A descriptor; the program gets a duplicate of its own.

        Raises
        ------
        ObjectNotFound
            Nothing has that path or id (also a `FileNotFoundError`).
        ValueError
            What is there is no program.

        Notes
        -----
        Linux 4.13.
        """
        cdef Program program = Program.__new__(Program)
        if (path is not None) + (id is not None) + (fd is not None) != 1:
            raise TypeError("Program.open takes one of a path, id= and fd=")
        if path is not None:
            program.fd = syscall.obj_get(path)
        elif id is not None:
            program.fd = syscall.prog_get_fd_by_id(id)
        else:
            program.fd = syscall.duplicate(fd)
        info = syscall.prog_info(program.fd)
        program.name = info["name"]
        program.type = info["type"]
        return program

    @property
    def closed(self):
        """Whether the descriptor is closed."""
        return self.fd.closed

    @property
    def id(self):
        """The kernel's number of the program."""
        return syscall.prog_info(self.fd)["id"]

    def fileno(self):
        """Return the descriptor."""
        return self.fd.fileno()

    def run(self, ctx=None, *, data=None, int repeat=0, int flags=0, int cpu=0):
        """Run the program once (or `repeat` times) with BPF_PROG_TEST_RUN.

        Parameters
        ----------
        ctx : bytes-like, optional
            The context. A writable buffer gets back what a SYSCALL program left in it.
        data : bytes-like, optional
            The packet, for types that work on one.
        repeat, flags, cpu : int
            As bpf(2) takes them.

        Returns
        -------
        int
            What the program returned, as an unsigned 32-bit number.

        Notes
        -----
        Needs Linux 4.12 (5.14 for SYSCALL programs, 5.10 for raw tracepoints), and no capability.
        """
        cdef fm_test_run attr
        cdef long result
        cdef int fd
        cdef bytearray copy
        memset(&attr, 0, sizeof(attr))
        copy = None
        if ctx is not None:
            if not memoryview(ctx).c_contiguous:
                raise ValueError("ctx is not C-contiguous")
            copy = bytearray(memoryview(ctx))
            attr.ctx_in = fm_ptr(<char *>copy)
            attr.ctx_size_in = len(copy)
        cdef bytes packet = b"" if data is None else bytes(memoryview(data))
        if data is not None:
            attr.data_in = fm_ptr(<const char *>packet)
            attr.data_size_in = len(packet)
        attr.repeat = repeat
        attr.flags = flags
        attr.cpu = cpu
        fd = self.fd.acquire()
        attr.prog_fd = fd
        try:
            with nogil:
                result = fm_bpf(FM_PROG_TEST_RUN, &attr, sizeof(attr))
        finally:
            self.fd.release()
        check(result, FM_PROG_TEST_RUN, 0, self.name)
        if ctx is not None:
            _give_back(ctx, copy)
        return attr.retval

    def attach_raw_tracepoint(self, str name):
        """Attach to a raw tracepoint, such as "sys_enter"; return the `Link` that holds it.

        Notes
        -----
        Linux 4.17, CAP_BPF and CAP_PERFMON. The program runs until the link is closed.
        """
        return Link(syscall.raw_tracepoint_open(self.fd, name.encode()))

    def pin(self, path):
        """Pin the program at `path`, on a bpffs."""
        syscall.obj_pin(self.fd, path)

    def close(self):
        """Close the descriptor; the program lives on while it is attached or pinned."""
        self.fd.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        state = "closed" if self.fd.closed else f"fd {self.fd.fileno()}"
        return f"<fastmap.Program {self.name!r} {ProgType(self.type).name} {state}>"


cdef int _give_back(object ctx, bytearray left) except -1:
    # Not through a memoryview: it writes to no array of records.
    cdef Py_buffer view
    if memoryview(ctx).readonly:
        return 0
    PyObject_GetBuffer(ctx, &view, PyBUF_WRITABLE)
    memcpy(view.buf, <const char *>left, min(view.len, len(left)))
    PyBuffer_Release(&view)
    return 0


cdef class Link(Handle):
    """A program's attachment; it ends with `close`, or when the object goes."""

    def __init__(self, Fd fd not None):
        self.fd = fd

    @property
    def closed(self):
        """Whether the attachment has ended."""
        return self.fd.closed

    def fileno(self):
        """Return the descriptor."""
        return self.fd.fileno()

    def close(self):
        """Detach."""
        self.fd.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
