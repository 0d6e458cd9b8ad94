"""By hand, `python tests/helpers/soak.py [SECONDS]`: a ring between four producers and a reader.

Every number that was made is received once, in the order of its producer, or counted as dropped;
ends with status 1 where one is not.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from producers import Producer, beside

import fastmap

PRODUCERS, RUN = 4, 2000
EVENT = [("n", "u8"), ("size", "u8")]


def soak(seconds: float) -> int:
    """Run, print the account, and return the exit status."""
    made, dropped = [0] * PRODUCERS, [0] * PRODUCERS
    received, disorder = [0] * PRODUCERS, 0
    newest = [-1] * PRODUCERS
    end = time.monotonic() + seconds
    with fastmap.create("ringbuf", max_entries=1 << 18, record=EVENT) as ring:

        def produce(which: int) -> None:
            with Producer(ring, 16) as run:
                while time.monotonic() < end:
                    dropped[which] += run((which << 48) + made[which], RUN)
                    made[which] += RUN

        done = beside(produce, PRODUCERS)
        while True:
            ended = done.is_set()
            with ring.lease(timeout=0.05) as batch:
                found = batch.records["n"].astype("i8")
            if ended and not len(found):
                break
            for which in range(PRODUCERS):
                own = found[found >> 48 == which] & ((1 << 48) - 1)
                if len(own):
                    disorder += int((np.diff(own) <= 0).sum()) + int(own[0] <= newest[which])
                    newest[which] = int(own[-1])
                    received[which] += len(own)
        left = ring.available
    missing = sum(made) - sum(received) - sum(dropped)
    print(f"{seconds:g} s: made {sum(made):,}, received {sum(received):,}, "
          f"dropped {sum(dropped):,}, missing {missing}, out of order {disorder}, left {left}")
    return int(bool(missing or disorder or left))


if __name__ == "__main__":
    sys.exit(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 600))
