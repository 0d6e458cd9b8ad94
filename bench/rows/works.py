"""A few calls of fastmap's, made ready, that the counting tools (not the clocks) look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

import fastmap

from .cases import RECORD, records, scattered

#: So many entries that a whole read takes several chunks' worth of nothing but one, and so few that
#: a count of instructions is over soon.
ENTRIES = 10_000
SOME = 1_000

Work = Callable[[], object]


@contextmanager
def works() -> Iterator[dict[str, Work]]:
    """Each call by its name, on maps that it leaves as they were."""
    keys = scattered(ENTRIES)
    some, few = keys[:SOME], keys[:8]
    with ExitStack() as stack:
        def made(kind: str, **sizes: Any) -> fastmap.Map:
            return stack.enter_context(fastmap.create(kind, **sizes))

        plain = made("hash", key="u8", value="u8", max_entries=ENTRIES)
        plain.update_many(keys, keys)
        flows = made("hash", key="u8", value=RECORD, max_entries=ENTRIES)
        flows.update_many(keys, records(keys))
        each = made("percpu_hash", key="u8", value="u8", max_entries=ENTRIES)
        each.update_many(keys, keys[:, None])
        trie = made("lpm_trie", key="ipv4", value="u4", max_entries=SOME)
        prefixes = np.zeros(SOME, trie.key_dtype)
        prefixes["prefixlen"] = 24
        prefixes["addr"][:, 1:3] = np.arange(SOME, dtype=">u2").view("u1").reshape(-1, 2)
        trie.update_many(prefixes, np.arange(SOME, dtype="u4"))
        queue = made("queue", value="u8", max_entries=SOME)
        for m in (plain, flows, each, trie, queue):
            m.prepare()
        key, values = int(keys[0]), some * np.uint64(3)
        steady, summed = flows.reader(via="syscall"), each.reader(reduce="sum", via="syscall")
        walk = flows.reader(exact=False, via="kernel")

        def again() -> None:
            del plain[key]
            plain[key] = key

        def through() -> None:
            queue.push_many(values)
            queue.pop_many(SOME)

        def emptied() -> None:
            got = flows.drain(via="syscall")
            flows.update_many(*got, via="syscall")

        yield {
            "m[k]": lambda: plain[key],
            "m[k] = v": lambda: plain.__setitem__(key, key),
            "del m[k]; m[k] = v": again,
            "k in m": lambda: key in plain,
            "lookup_many, 8 keys, in-kernel": lambda: plain.lookup_many(few, via="kernel"),
            "lookup_many, 8 keys, syscall": lambda: plain.lookup_many(few, via="syscall"),
            f"lookup_many, {SOME:,} keys, in-kernel": lambda: plain.lookup_many(some, via="kernel"),
            f"lookup_many, {SOME:,} keys, syscall":
                lambda: plain.lookup_many(some, via="syscall"),
            f"update_many, {SOME:,} keys, in-kernel":
                lambda: plain.update_many(some, some, via="kernel"),
            f"update_many, {SOME:,} keys, syscall":
                lambda: plain.update_many(some, some, via="syscall"),
            f"snapshot(), {ENTRIES:,} entries": lambda: flows.snapshot(),
            f"reader.read(), {ENTRIES:,} entries": lambda: steady.read(),
            f"reader(exact=False).read(), {ENTRIES:,} entries, in-kernel": lambda: walk.read(),
            f'reader(reduce="sum").read(), {ENTRIES:,} entries': lambda: summed.read(),
            f"drain() and update_many, {ENTRIES:,} entries": emptied,
            f"push_many and pop_many, {SOME:,} values": through,
            f"LPM lookup_many, {SOME:,} prefixes": lambda: trie.lookup_many(prefixes),
        }
