"""bcc's Table classes, as its users drive them: ctypes keys and values, callbacks for a ring.

A Table normally comes out of a compiled module, which takes the kernel's headers. Here one is made
over an inherited descriptor, its fields set as bcc's `__init__` sets them, so that it sees the very
map the others see; its methods are bcc's own.
"""

import ctypes as ct

import bcc
from bcc.table import HashTable, PerfEventArray, RingBuf
from bcc.utils import get_online_cpus
from child import serve


class Event(ct.Structure):
    """A record of the ring."""

    _fields_ = [(name, ct.c_uint64) for name in "nxyz"]


def table(kind, bpf, fd, room):
    """Return a Table of bcc's over `fd`."""
    made = kind.__new__(kind)
    made.bpf, made.map_id, made.map_fd, made.flags, made.ttype = bpf, 0, fd, 0, 1
    made.Key = made.Leaf = ct.c_uint64
    made.max_entries, made._cbs, made._name = room, {}, None
    return made


class Bcc:
    """The peer."""

    version = bcc.__version__

    def __init__(self, config):
        bpf = bcc.BPF.__new__(bcc.BPF)
        bpf._ringbuf_manager = None
        self.config = config
        if config.map >= 0:
            self.table = table(HashTable, bpf, config.map, config.room)
        if config.ring >= 0:
            self.bpf, self.seen, self.total = bpf, 0, 0
            ring = table(RingBuf, bpf, config.ring, config.room)

            def each(context, data, size):
                self.total += ct.cast(data, ct.POINTER(Event)).contents.n
                self.seen += 1

            ring.open_ring_buffer(each)
            self.kept = ring
        if config.perf >= 0:
            self.bpf, self.seen, self.total, self.lost = bpf, 0, 0, 0
            bpf.perf_buffers = {}
            events = table(PerfEventArray, bpf, config.perf, max(get_online_cpus()) + 1)
            events.Key = events.Leaf = ct.c_int
            events._open_key_fds, events._event_class = {}, None

            def sample(cpu, data, size):
                self.total += ct.cast(data, ct.POINTER(Event)).contents.n
                self.seen += 1

            def lost(count):
                self.lost += count

            events.open_perf_buffer(sample, page_cnt=config.pages, lost_cb=lost,
                                    wakeup_events=config.records)
            self.kept = events

    def keys(self, numbers):
        return [ct.c_uint64(n) for n in numbers]

    values = keys

    def lookup(self, keys):
        found, got = self.table, []
        for key in keys:
            got.append(found[key])
        return len(got), got

    given = lookup

    def update(self, keys, values):
        into = self.table
        for key, value in zip(keys, values, strict=True):
            into[key] = value
        return len(keys), []

    def delete(self, keys):
        gone = self.table
        for key in keys:
            del gone[key]
        return len(keys), []

    def read(self):
        got = list(self.table.items_lookup_batch())
        return len(got), got

    def drain(self):
        got = list(self.table.items_lookup_and_delete_batch())
        return len(got), got

    def array(self, numbers):
        return (ct.c_uint64 * len(numbers))(*numbers)

    def put(self, keys, values):
        self.table.items_update_batch(keys, values)
        return len(keys), []

    def walk(self):
        got = self.table.items()
        return len(got), got

    def ring(self):
        self.seen = self.total = 0
        while self.seen < self.config.records:
            self.bpf.ring_buffer_consume()
        return self.seen, self.total

    def perf(self):
        self.seen = self.total = 0
        while self.seen + self.lost < self.config.records:
            self.bpf.perf_buffer_consume()
        return self.seen, self.total

    def sums(self, op, got):
        if op in ("ring", "perf"):
            return 0, got
        if op in ("lookup", "given"):
            return 0, sum(value.value for value in got)
        # items_lookup_batch gives plain ints for simple types, items() ctypes objects
        return (sum(getattr(key, "value", key) for key, _ in got),
                sum(getattr(value, "value", value) for _, value in got))


serve(Bcc)
