"""What the guide reads: two programs that count this machine's system calls, until Ctrl-C.

`calls`, a per-CPU LRU hash, has the calls by process and number. `call_gaps`, a per-CPU array, is a
histogram of the microseconds between two calls on a CPU: slot n counts from 2**n to 2**(n+1) - 1.
"""

from __future__ import annotations

import signal

import fastmap
from fastmap.asm import FP, R0, R1, R2, R6, R7, R8, Assembler, Code, Helper
from fastmap.cli.system_calls import KEY, VALUE, counter

SLOTS = 32


def gaps(last: fastmap.Map, slots: fastmap.Map) -> Code:
    """Assemble the program: count in `slots` the time since `last`, which becomes now."""
    a = Assembler()

    def element(of: fastmap.Map) -> None:
        """R0 becomes the address of the element whose index is on the stack."""
        a.ld_map(R1, of)
        a.mov(R2, FP)
        a.add(R2, -4)
        a.call(Helper.MAP_LOOKUP_ELEM)
        a.jeq(R0, 0, "out")

    a.call(Helper.KTIME_GET_NS)
    a.mov(R6, R0)
    a.st(4, FP, -4, 0)
    element(last)
    a.ldx(8, R7, R0, 0)
    a.stx(8, R0, 0, R6)
    a.jeq(R7, 0, "out")  # the first call
    a.sub(R6, R7)
    a.div(R6, 1000)
    a.mov(R8, 0)  # becomes the logarithm
    for bits in (16, 8, 4, 2, 1):
        a.jlt(R6, 1 << bits, f"less than {bits} bits")
        a.rsh(R6, bits)
        a.add(R8, bits)
        a.label(f"less than {bits} bits")
    a.stx(4, FP, -4, R8)
    element(slots)
    a.mov(R1, 1)
    a.atomic_add(8, R0, 0, R1)
    a.label("out")
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


def main() -> None:
    """Count until a signal comes."""
    with (
        fastmap.create("lru_percpu_hash", key=KEY, value=VALUE, max_entries=65536,
                       name="calls") as calls,
        fastmap.create("percpu_array", value="u8", max_entries=1, name="call_last") as last,
        fastmap.create("percpu_array", value="u8", max_entries=SLOTS, name="call_gaps") as slots,
        fastmap.Program("raw_tracepoint", counter(calls), name="calls") as by_process,
        fastmap.Program("raw_tracepoint", gaps(last, slots), name="call_gaps") as by_gap,
        by_process.attach_raw_tracepoint("sys_enter"),
        by_gap.attach_raw_tracepoint("sys_enter"),
    ):
        print("counting system calls in the maps 'calls' and 'call_gaps'", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    # Blocked first: what comes before sigwait waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
