"""Work over many elements, split over threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from threading import Event
from time import monotonic

#: The fewest elements a thread of `in_threads` works through before it looks for a Ctrl-C.
SLICE = 16384


def in_threads(part: Callable[[int, int], int], count: int, threads: int) -> int:
    """Call ``part(start, stop)`` over `count` elements in `threads` threads; add up the results.

    The first failure in the order of the elements is raised, when all parts have ended; its
    ``applied`` counts over all of them, its ``index`` from the first element.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: at least 1")
    # Here, where it is needed: importing it takes as long as a quarter of fastmap.
    from concurrent.futures import ThreadPoolExecutor, wait
    edges = [count * i // threads for i in range(threads + 1)]
    interrupted = Event()

    def work(start: int, stop: int) -> tuple[int, BaseException | None]:
        # In slices of about 0.1 s: only the main thread hears of a Ctrl-C, this one in between.
        done, at, step = 0, start, SLICE
        while not interrupted.is_set():
            began = monotonic()
            try:
                done += part(at, min(at + step, stop))
            except BaseException as error:
                if hasattr(error, "index"):
                    error.index += at
                return done + getattr(error, "applied", 0), error
            at += step
            if at >= stop:
                break
            step = 2 * step if monotonic() - began < 0.05 else max(step // 2, SLICE)
        return done, None

    with ThreadPoolExecutor(threads, "fastmap") as pool:
        futures = [pool.submit(work, start, stop) for start, stop in pairwise(edges)]
        failure: BaseException | None = None
        try:
            wait(futures)
        except BaseException as error:
            interrupted.set()
            failure = error
        results = [future.result() for future in futures]
    total = sum(done for done, _ in results)
    failure = failure or next((error for _, error in results if error is not None), None)
    if failure is not None:
        failure.applied = total  # type: ignore[attr-defined]
        raise failure
    return total
