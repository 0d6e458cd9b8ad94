"""Programs that prefetch a hash's memory.

A lookup of a random key waits for memory: for its bucket, then for each element of its list up to
its own. A processor that meets a few hundred instructions between one such load and the next waits
for each alone. So a run goes over the next keys three times before it looks them up: to hash them
and load the heads of their buckets, to load the elements these point to, and to load the second
ones where the first are not theirs. Loads that nothing waits for overlap.

What is touched changes nothing but the time: an element is only taken for a key that has its
bytes, all else is looked up by the kernel; and where the layout is not the one fastmap knows,
its programs are no faster, and right.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastmap._core.maps.runner import find_types
from fastmap.asm import R0, R1, R2, R3, R4, R5, R6, R7, R8, Assembler, HasFileno, Reg
from fastmap.btf.encoder import Kind
from fastmap.errors import is_shortage

#: Keys that are touched before they are looked up: their lines fit the first cache.
BLOCK = 64
#: Bytes of the scratch map: what of the hash is used, then a slot for each key of a block: the
#: pointer to an element that may be the key's, and the key's hash.
SCRATCH = 64 + 16 * BLOCK
#: Longer keys are not hashed once more.
LONGEST_KEY = 64
#: Smaller maps stay in the cache by themselves.
FEWEST_ENTRIES = 2048
#: Larger values are copied no faster from where they were touched: such loads are checked.
LONGEST_TAKEN = 256

_BUCKETS, _MASK, _SEED = 0, 8, 16
#: Where in the scratch map a walk keeps the element that is next.
NEXT = 24
#: Where it keeps what it compares, of all CPUs.
FOLDED = 32
_SLOTS, _ELEMENT, _HASH = 64, 0, 8
_CACHE_LINE = 64
# Lines of a value that are touched.
_MOST_LINES = 5


_KERNEL = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True)
class Inside:
    """Where the running kernel keeps what of a hash: from its BTF."""

    cast: int
    bucket: int
    bucket_size: int
    elem: int
    hash_at: int
    key_at: int
    buckets_at: int
    n_buckets_at: int
    seed_at: int
    #: In an array's struct, its elements' pointers.
    pptrs_at: int


@cache
def inside() -> Inside | None:
    """Return what the kernel's BTF says of its hashes, or None where it says too little.

    What is raised, for want of a descriptor or of memory, is not kept.
    """
    if sys.byteorder != "little":
        return None
    try:
        blob = kernel_btf()
        found = find_types(blob, ((b"bpf_rdonly_cast", Kind.FUNC), (b"bucket", Kind.STRUCT),
                                  (b"htab_elem", Kind.STRUCT), (b"bpf_htab", Kind.STRUCT),
                                  (b"bpf_array", Kind.STRUCT)))
        (cast, _), (bucket, bucket_at), (elem, elem_at), (_, htab_at), (_, array_at) = found
        in_elem, in_htab = _offsets(blob, elem_at), _offsets(blob, htab_at)
        return Inside(cast, bucket, struct.unpack_from("=I", blob, bucket_at + 8)[0], elem,
                      in_elem[b"hash"], in_elem[b"key"], in_htab[b"buckets"],
                      in_htab[b"n_buckets"], in_htab[b"hashrnd"],
                      _offsets(blob, array_at)[b""])
    except (KeyError, ValueError):
        return None


def kernel_btf() -> bytes:
    """Return the kernel's BTF; `KeyError` where there is none."""
    try:
        return _KERNEL.read_bytes()
    except OSError as error:
        if is_shortage(error):
            raise
        raise KeyError("vmlinux") from error


@cache
def map_id_at() -> int | None:
    """Return where the kernel keeps a map's id in its struct, or None where its BTF tells not.

    Raises as `inside` does.
    """
    try:
        blob = kernel_btf()
        ((_, at),) = find_types(blob, ((b"bpf_map", Kind.STRUCT),))
        return _offsets(blob, at)[b"id"]
    except (KeyError, ValueError):
        return None


def _offsets(blob: bytes, at: int) -> dict[bytes, int]:
    """Return the members' offsets in bytes of the struct whose record is at byte `at`."""
    hdr_len, _, _, str_off = struct.unpack_from("=IIII", blob, 4)
    info = struct.unpack_from("=I", blob, at + 4)[0]
    mask = 0xFFFFFF if info >> 31 else 0xFFFFFFFF
    found = {}
    for i in range(info & 0xFFFF):
        name, _, offset = struct.unpack_from("=III", blob, at + 12 + 12 * i)
        start = hdr_len + str_off + name
        found[blob[start:blob.index(b"\0", start)]] = (offset & mask) // 8
    return found


class Toucher:
    """The passes over a block's keys that come before their lookups.

    Parameters
    ----------
    map, scratch : int or object with fileno
        The hash, and an array of one element of `SCRATCH` bytes that no process maps: kernel
        pointers stand in it.
    """

    def __init__(self, map: int | HasFileno, scratch: int | HasFileno, what: Inside,
                 key_size: int, value_size: int) -> None:
        self.map = map
        self.scratch = scratch
        self.what = what
        self.key_size = key_size
        self.value_size = value_size
        #: Where in an element its value begins, or the pointer to those of all CPUs.
        self.value_at = what.key_at + -(-key_size // 8) * 8

    def start(self, a: Assembler) -> None:
        """Put what of the hash is used into the scratch map."""
        a.ld_map(R1, self.map)
        a.ldx(8, R2, R1, self.what.buckets_at)
        a.ldx(4, R3, R1, self.what.n_buckets_at)
        a.ldx(4, R4, R1, self.what.seed_at)
        a.ld_map_value(R5, self.scratch)
        a.stx(8, R5, _BUCKETS, R2)
        a.sub(R3, 1)
        a.stx(8, R5, _MASK, R3)
        a.stx(8, R5, _SEED, R4)

    def slot(self, a: Assembler, register: Reg, index: Reg, scratch: Reg) -> None:
        """Let `register` point to the slot of key `index`."""
        a.mov(scratch, index)
        a.and_(scratch, BLOCK - 1)
        a.lsh(scratch, 4)
        a.ld_map_value(register, self.scratch, _SLOTS)
        a.add(register, scratch)

    def count(self, a: Assembler, register: Reg) -> None:
        """Let `register` be the number of buckets."""
        a.ld_map_value(register, self.scratch)
        a.ldx(8, register, register, _MASK)
        a.add(register, 1)

    def head(self, a: Assembler, done: str) -> None:
        """Load the head of bucket R6, and go to `done`."""
        self.slot(a, R8, R6, R3)
        a.ld_map_value(R2, self.scratch)
        a.ldx(8, R1, R2, _BUCKETS)
        a.mov(R3, R6)
        a.mul(R3, self.what.bucket_size)
        a.add(R1, R3)
        self._load(a)
        a.ja(done)

    def bucket(self, a: Assembler, key: Callable[[Reg, Reg], None], done: str) -> None:
        """Hash key R6, to which ``key(register, scratch)`` points, and load its bucket's head."""
        key(R2, R1)
        a.ld_map_value(R7, self.scratch)
        self._hash(a)
        self.slot(a, R8, R6, R3)
        a.stx(8, R8, _HASH, R5)
        a.ldx(8, R1, R7, _MASK)
        a.and_(R5, R1)
        a.mul(R5, self.what.bucket_size)
        a.ldx(8, R1, R7, _BUCKETS)
        a.add(R1, R5)
        self._load(a)
        a.ja(done)

    def _load(self, a: Assembler) -> None:
        """Load the head of the bucket at R1 into the slot at R8."""
        a.mov(R2, self.what.bucket)
        a.call_kfunc(self.what.cast)
        a.ldx(8, R1, R0, 0)
        a.stx(8, R8, _ELEMENT, R1)

    def first(self, a: Assembler, done: str) -> None:
        """Load from the first element of key R6's bucket, and go to `done`."""
        self.slot(a, R8, R6, R3)
        a.ldx(8, R1, R8, _ELEMENT)
        self._touch(a, done)

    def second(self, a: Assembler, done: str) -> None:
        """Load from the second element where the first is not key R6's, and go to `done`.

        The slot points to it then. (One round before, this would have waited for the memory.)
        """
        self.slot(a, R8, R6, R3)
        self.candidate(a, R8, done)
        a.ldx(4, R1, R0, self.what.hash_at)
        a.ldx(8, R2, R8, _HASH)
        a.jeq(R1, R2, done)
        self._next(a, R8, _ELEMENT)
        self._touch(a, done)

    def follow(self, a: Assembler, done: str) -> None:
        """Load from the second element of bucket R6, and go to `done`."""
        self.slot(a, R8, R6, R3)
        self.candidate(a, R8, done)
        self._next(a, R8, _HASH)
        self._touch(a, done)

    def candidate(self, a: Assembler, slot: Reg, end: str) -> None:
        """Let R0 point to the element that a slot names; go to `end` where it names none."""
        a.ldx(8, R1, slot, _ELEMENT)
        self._cast(a, end)

    def _cast(self, a: Assembler, end: str) -> None:
        """Let R0 point to the element that R1 names; an odd number is a list's end."""
        a.jset(R1, 1, end)
        a.mov(R2, self.what.elem)
        a.call_kfunc(self.what.cast)

    def _next(self, a: Assembler, to: Reg, at: int) -> None:
        """Let R1, and what is at `to` + `at`, name the element after R0."""
        a.ldx(8, R1, R0, 0)
        a.stx(8, to, at, R1)
        a.ldx(8, R1, to, at)  # a number again: the verifier takes the first for a pointer

    def _touch(self, a: Assembler, done: str) -> None:
        """Load what is needed of the element that R1 names, and go to `done`."""
        self._cast(a, done)
        a.ldx(8, R1, R0, 0)
        a.ldx(4, R1, R0, self.what.hash_at)
        last = self.value_at + self.value_size - 1
        for at in range(last, self.what.key_at, -_CACHE_LINE)[:_MOST_LINES]:
            a.ldx(1, R1, R0, at)
        a.ja(done)

    def _hash(self, a: Assembler) -> None:
        """Leave the kernel's jhash of the key at R2 in R5; R7 points to the scratch map."""
        x, y, z = R3, R4, R5
        a.ldx(4, R0, R7, _SEED)
        a.mov32(x, (0xDEADBEEF + self.key_size) & 0xFFFFFFFF)
        a.add32(x, R0)
        a.mov32(y, x)
        a.mov32(z, x)
        at, left = 0, self.key_size
        while left > 12:
            for word, register in enumerate((x, y, z)):
                a.ldx(4, R0, R2, at + 4 * word)
                a.add32(register, R0)
            for one, two, three, bits in ((x, z, y, 4), (y, x, z, 6), (z, y, x, 8), (x, z, y, 16),
                                          (y, x, z, 19), (z, y, x, 4)):
                a.sub32(one, two)
                _rotated(a, two, bits)
                a.xor32(one, R0)
                a.add32(two, three)
            at, left = at + 12, left - 12
        for register in (x, y, z):
            shift = 0
            for width in (4, 2, 1):
                while left >= width and shift + 8 * width <= 32:
                    a.ldx(width, R0, R2, at)
                    if shift:
                        a.lsh32(R0, shift)
                    a.add32(register, R0)
                    at, left, shift = at + width, left - width, shift + 8 * width
        for one, two, bits in ((z, y, 14), (x, z, 11), (y, x, 25), (z, y, 16), (x, z, 4),
                               (y, x, 14), (z, y, 24)):
            a.xor32(one, two)
            _rotated(a, two, bits)
            a.sub32(one, R0)


def _rotated(a: Assembler, source: Reg, bits: int) -> None:
    """Let R0 be `source` rotated left, in 32 bits; R1 is lost."""
    a.mov32(R0, source)
    a.lsh32(R0, bits)
    a.mov32(R1, source)
    a.rsh32(R1, 32 - bits)
    a.or32(R0, R1)
