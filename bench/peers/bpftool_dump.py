"""`bpftool map dump -j` and json: a whole read by a process of its own, as scripts do it.

The map's values have no BTF, so each byte comes as a string of hexadecimal digits; putting the
integers together belongs to the work.
"""

import json
import os
import subprocess

from child import serve


def number(digits):
    return int.from_bytes(bytes(int(digit, 16) for digit in digits), "little")


class Dump:
    """The peer."""

    def __init__(self, config):
        with open(f"/proc/self/fdinfo/{config.map}") as info:
            self.id = next(line.split()[1] for line in info if line.startswith("map_id"))
        self.tool = os.environ["BPFTOOL"]
        told = subprocess.run([self.tool, "version", "-j"], stdout=subprocess.PIPE, check=True)
        self.version = json.loads(told.stdout)["version"]

    def keys(self, numbers):
        return numbers

    def read(self):
        told = subprocess.run([self.tool, "-j", "map", "dump", "id", self.id],
                              stdout=subprocess.PIPE, check=True).stdout
        got = {}
        for entry in json.loads(told):
            plain = entry.get("formatted")
            if plain:
                got[plain["key"]] = plain["value"]
            else:
                got[number(entry["key"])] = number(entry["value"])
        return len(got), got

    def sums(self, op, got):
        return sum(got), sum(got.values())


serve(Dump)
