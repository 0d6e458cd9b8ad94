"""A peer's half of the protocol, for peers in Python: one process each, which times itself.

Run by whatever Python has the peer's library, so nothing of this repository is imported. The last
argument is JSON: ``map``, ``ring`` and ``perf`` (inherited descriptors), ``keys`` (a descriptor of
a file of u64), ``entries``, ``room`` (max_entries), ``block``, ``records`` (in the ring at each
turn), ``pages`` (of a CPU's ring), ``file`` (of BTF) and the struct ``type`` in it, and ``cpu``, to
which the working thread pins itself. Each line on stdin is ``OP NUMBER CHECK``; each answer is a
line of JSON: nanoseconds, those in which other work had the CPU, entries and, with CHECK, the sums
of the keys and of the values that came back, modulo 2**64. Keys are made into what the library
takes before the clock starts, and what came back is looked at and given back after it stopped.
"""

import array
import gc
import json
import os
import sys
import time

MASK = 2**64 - 1
SOME = ("lookup", "given", "update", "delete", "put")


class Config:
    """What the parent said."""

    def __init__(self, given):
        self.__dict__.update(given)
        words = array.array("Q")
        if self.keys >= 0:
            size = os.fstat(self.keys).st_size
            words.frombytes(os.pread(self.keys, size, 0))
        self.words = words.tolist()

    def part(self, number):
        """Return the keys of a block, as ints."""
        start = number % (len(self.words) // self.block) * self.block
        return self.words[start : start + self.block]


def waited():
    """Return the nanoseconds in which this thread was ready to run, and other work had its CPU."""
    try:
        with open("/proc/thread-self/schedstat") as told:
            return int(told.read().split()[1])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO
        return 0


def say(**answer):
    """Write one answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def serve(make):
    """Answer until stdin ends. `make(config)` returns the peer.

    A peer has `version`; `keys(numbers)`, `values(numbers)` and, for ``put``, `array(numbers)`,
    untimed; and for each OP a method that gets what these made and returns ``(entries, result)``;
    `sums(op, result)` adds up.
    """
    config = Config(json.loads(sys.argv[-1]))
    os.sched_setaffinity(0, {config.cpu})
    peer = make(config)
    gc.disable()
    say(version=peer.version)
    for line in sys.stdin:
        op, number, check = line.split()
        numbers = config.part(int(number)) if op in SOME else []
        if op == "put":
            arguments = [peer.array(numbers), peer.array([n * 3 & MASK for n in numbers])]
        else:
            arguments = [peer.keys(numbers)] if numbers else []
        if op == "update":
            arguments.append(peer.values([n * 3 & MASK for n in numbers]))
        work = getattr(peer, op)
        gc.collect()
        waits = waited()
        start = time.perf_counter_ns()
        entries, result = work(*arguments)
        took = time.perf_counter_ns() - start
        waits = waited() - waits
        sums = peer.sums(op, result) if check == "1" else (0, 0)
        say(ns=took, waited=waits, entries=entries, keys=sums[0] & MASK, values=sums[1] & MASK)
        del result, arguments
