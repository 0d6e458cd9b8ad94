"""bpfmaps from PyPI: a `BPF_Map` of a descriptor, ints in and out through libbpf by ctypes."""

import ctypes as ct
from importlib.metadata import version

from bpfmaps import BPF_Map
from child import serve


class Bpfmaps:
    """The peer."""

    version = version("bpfmaps")

    def __init__(self, config):
        self.map = BPF_Map(1, "", 8, 8, config.room, 0, fd=config.map, key_type=ct.c_uint64,
                           value_type=ct.c_uint64)

    def keys(self, numbers):
        return numbers

    values = keys

    def lookup(self, keys):
        found = self.map
        got = [found[key] for key in keys]
        return len(got), got

    given = lookup

    def update(self, keys, values):
        into = self.map
        for key, value in zip(keys, values, strict=True):
            into[key] = value
        return len(keys), []

    def walk(self):
        got = list(self.map)
        return len(got), got

    def sums(self, op, got):
        if op == "walk":
            return sum(key for key, _ in got), sum(value for _, value in got)
        return 0, sum(got)


serve(Bpfmaps)
