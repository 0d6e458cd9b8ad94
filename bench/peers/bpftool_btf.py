"""`bpftool btf dump -j` and json: the kernel's types by a process of its own, as scripts do it."""

import json
import os
import subprocess

from child import serve

COMPOSITE = ("STRUCT", "UNION")
#: What stands between a member and its type.
BETWEEN = ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG")


class Types:
    """The peer."""

    def __init__(self, config):
        self.file, self.type = config.file, config.type
        self.tool = os.environ["BPFTOOL"]
        told = subprocess.run([self.tool, "version", "-j"], stdout=subprocess.PIPE, check=True)
        self.version = json.loads(told.stdout)["version"]

    def btf(self):
        told = subprocess.run([self.tool, "-j", "btf", "dump", "file", self.file],
                              stdout=subprocess.PIPE, check=True).stdout
        types = {each["id"]: each for each in json.loads(told)["types"]}
        found = next(each for each in types.values()
                     if each["kind"] == "STRUCT" and each["name"] == self.type)

        def resolved(type_id):
            while types[type_id]["kind"] in BETWEEN:
                type_id = types[type_id]["type_id"]
            return types[type_id]

        def size(each):
            if each["kind"] == "ARRAY":
                return each["nr_elems"] * size(resolved(each["type_id"]))
            return 8 if each["kind"] == "PTR" else each["size"]

        def members(of, base):
            for m in of["members"]:
                offset, inner = base + m["bits_offset"], resolved(m["type_id"])
                if m["name"] == "(anon)":
                    if inner["kind"] in COMPOSITE:
                        yield from members(inner, offset)
                    continue
                bits = m.get("bitfield_size") or 8 * size(inner)
                if bits:
                    yield m["name"], offset, bits

        return 1, (found["size"], list(members(found, 0)))

    def sums(self, op, got):
        size, found = got
        return size, sum(digest(*each) for each in found)


def digest(name, offset, bits):
    """As ``member`` in c/btf.c."""
    value = 0xCBF29CE484222325
    for byte in name.encode() + b"\0" + offset.to_bytes(4, "little") + bits.to_bytes(4, "little"):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


serve(Types)
