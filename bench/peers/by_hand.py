"""bpf(2) by ctypes, as one writes it without a library: one attr, reused buffers, lists of ints."""

import ctypes as ct
import errno
import os
import platform

from child import serve

LOOKUP, UPDATE, DELETE, LOOKUP_BATCH, TAKE_BATCH, UPDATE_BATCH = 1, 2, 3, 24, 25, 26
NUMBER = {"x86_64": 321, "aarch64": 280}[platform.machine()]
CHUNK = 16384

libc = ct.CDLL(None, use_errno=True)
syscall = libc.syscall
syscall.argtypes = [ct.c_long, ct.c_int, ct.c_void_p, ct.c_uint]
syscall.restype = ct.c_long


class Element(ct.Structure):
    """The attr of the element commands."""

    _fields_ = [("map_fd", ct.c_uint32), ("key", ct.c_uint64), ("value", ct.c_uint64),
                ("flags", ct.c_uint64)]


class Batch(ct.Structure):
    """The attr of the batch commands."""

    _fields_ = [("in_batch", ct.c_uint64), ("out_batch", ct.c_uint64), ("keys", ct.c_uint64),
                ("values", ct.c_uint64), ("count", ct.c_uint32), ("map_fd", ct.c_uint32),
                ("elem_flags", ct.c_uint64), ("flags", ct.c_uint64)]


class ByHand:
    """The peer."""

    version = "ctypes of Python " + platform.python_version()

    def __init__(self, config):
        self.key, self.value = ct.c_uint64(), ct.c_uint64()
        self.attr = Element(config.map, ct.addressof(self.key), ct.addressof(self.value), 0)
        self.at, self.size, self.fd = ct.addressof(self.attr), ct.sizeof(Element), config.map
        self.some_keys, self.some_values = (ct.c_uint64 * CHUNK)(), (ct.c_uint64 * CHUNK)()

    def keys(self, numbers):
        return numbers

    values = keys

    def fail(self):
        code = ct.get_errno()
        raise OSError(code, os.strerror(code))

    def lookup(self, keys):
        key, value, got = self.key, self.value, []
        for k in keys:
            key.value = k
            if syscall(NUMBER, LOOKUP, self.at, self.size):
                self.fail()
            got.append(value.value)
        return len(got), got

    given = lookup

    def update(self, keys, values):
        key, value = self.key, self.value
        for k, v in zip(keys, values, strict=True):
            key.value, value.value = k, v
            if syscall(NUMBER, UPDATE, self.at, self.size):
                self.fail()
        return len(keys), []

    def delete(self, keys):
        key = self.key
        for k in keys:
            key.value = k
            if syscall(NUMBER, DELETE, self.at, 16):  # what lies beyond the key must be 0
                self.fail()
        return len(keys), []

    def array(self, numbers):
        return (ct.c_uint64 * len(numbers))(*numbers)

    def put(self, keys, values):
        attr = Batch(0, 0, ct.addressof(keys), ct.addressof(values), len(keys), self.fd)
        if syscall(NUMBER, UPDATE_BATCH, ct.addressof(attr), ct.sizeof(attr)):
            self.fail()
        return attr.count, []

    def drain(self):
        return self.read(TAKE_BATCH)

    def read(self, command=LOOKUP_BATCH):
        got, cursor = {}, ct.c_uint64()
        keys, values = self.some_keys, self.some_values
        attr = Batch(0, ct.addressof(cursor), ct.addressof(keys), ct.addressof(values), 0, self.fd)
        while True:
            attr.count = CHUNK
            failed = syscall(NUMBER, command, ct.addressof(attr), ct.sizeof(attr))
            if failed and ct.get_errno() != errno.ENOENT:
                self.fail()
            got.update(zip(keys[: attr.count], values[: attr.count],
                           strict=True))
            if failed:
                return len(got), got
            attr.in_batch = ct.addressof(cursor)

    def sums(self, op, got):
        return (sum(got), sum(got.values())) if op in ("read", "drain") else (0, sum(got))


serve(ByHand)
