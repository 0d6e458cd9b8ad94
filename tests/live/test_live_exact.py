"""Live tables lose nothing, whatever programs, readers and expiries do at the same instant."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_programs import COUNTERS, KEY, Programs, key_of, loaded
from support import child

import fastmap
from fastmap.live.expiry import Expiry

EVENTS = 1 << 20


@pytest.fixture
def table(bpffs: Path) -> Iterator[Any]:
    with fastmap.LiveTable.create(key=KEY, value=COUNTERS, capacity=1 << 10,
                                  pin=bpffs / "flows") as t:
        yield t


@pytest.fixture
def programs(bpffs: Path, table: Any) -> Iterator[Programs]:
    with loaded(bpffs, table) as them:
        yield them


def at_once(*tasks: Callable[[], Any]) -> None:
    """Run tasks in threads; raise what one of them raised."""
    failures: list[BaseException] = []

    def one(task: Callable[[], Any]) -> None:
        try:
            task()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def check_rows(batch: Any) -> None:
    """Each key once, none of them half written."""
    numbers = batch.keys["low"].astype("u8")
    assert len(np.unique(numbers)) == len(batch)
    assert (batch.keys == key_of(numbers)).all()
    assert (batch.born & 1).all()


def by_number(batch: Any, keys: int) -> Any:
    events = np.zeros(keys, "u8")
    np.add.at(events, batch.keys["low"], batch.values["events"])
    return events


def test_two_writers(table: Any, programs: Programs) -> None:
    at_once(*(lambda i=i: programs.count(EVENTS, 900, state=77 + i) for i in range(2)))
    batch = table.read()
    check_rows(batch)
    assert table.full == 0 and len(batch) == len(table) <= 900
    assert (by_number(batch, 900) == programs.truth[:900]).all()
    assert batch.values["events"].sum() == 2 * EVENTS
    assert (batch.values["bytes"] == batch.keys["low"] * batch.values["events"]).all()


def test_the_same_new_keys_from_two_cpus(table: Any, programs: Programs) -> None:
    for first in range(0, 64000, 1000):
        at_once(*(lambda: programs.count(1000, 0, first) for _ in range(2)))  # noqa: B023
        gone = table.expire(idle=0)
        check_rows(gone)
        assert (np.sort(gone.keys["low"]) == np.arange(first, first + 1000)).all()
        assert (gone.values["events"] == 2).all()
    assert table.full == 0


def test_a_full_table_counts_what_it_does_not_keep(table: Any, programs: Programs) -> None:
    missed = programs.count(EVENTS, 5000)
    batch = table.read()
    check_rows(batch)
    assert 900 < len(batch) <= table.capacity
    assert table.full == missed > 0
    assert batch.values["events"].sum() + missed == EVENTS


def test_expiry_under_fire(table: Any, programs: Programs) -> None:
    """FASTMAP_LIVE_ROUNDS=100000 keeps it up for an hour."""
    keys, rounds = 1000, int(os.environ.get("FASTMAP_LIVE_ROUNDS", "60"))
    flushed = np.zeros(keys, "u8")
    over = threading.Event()
    seen = [0, 0]  # events that found room

    def write(i: int) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            # A key that comes back while its old slot leaves takes another: there may be none.
            seen[i] += (1 << 14) - programs.count(1 << 14, keys, state=1000 * turn + i)

    def expire() -> None:
        random = np.random.default_rng(1)
        try:
            for turn in range(rounds):
                if turn % 3 == 2:
                    gone = table.evict(keep=0.2)
                else:
                    gone = table.expire(key_of(random.integers(0, keys, 400)))
                check_rows(gone)
                np.add.at(flushed, gone.keys["low"], gone.values["events"])
        finally:
            over.set()

    def read() -> None:
        reader = table.reader()
        plain = table.reader(where=("value.events", ">", 3), fields=["value.bytes"])
        while not over.is_set():
            check_rows(reader.read())
            check_rows(plain.read())
            check_rows(table.read())

    at_once(lambda: write(0), lambda: write(1), expire, read)
    live = by_number(table.read(), keys)
    assert flushed.sum() + live.sum() == sum(seen)
    assert (flushed + live == programs.truth[:keys]).all()


def held_across(table: Any, programs: Programs, wait: bool, monkeypatch: Any) -> int:
    """Expire a key while a program holds its value; return the events that are told of it."""
    if not wait:
        monkeypatch.setattr(Expiry, "wait", lambda self: None)
    variables = programs.variables

    def go() -> None:
        variables["go"] = 1

    def step(self: Expiry, name: str) -> None:
        if name == "unlinked" and wait:
            go()  # while the expiry waits, and it waits for this program

    monkeypatch.setattr(Expiry, "step", step)
    program = threading.Thread(target=programs.hold, args=(7,))
    program.start()
    while not variables["held"]:
        pass
    gone = table.expire(key_of([7]))
    go()
    program.join()
    assert len(gone) == 1
    live = table.get(key_of([7])[0])
    return int(gone.values["events"].sum()) + (0 if live is None else int(live["events"]))


def test_an_expiry_waits_for_programs(table: Any, programs: Programs, monkeypatch: Any) -> None:
    assert held_across(table, programs, True, monkeypatch) == 1000


def test_without_the_wait_events_are_lost(table: Any, programs: Programs,
                                          monkeypatch: Any) -> None:
    assert held_across(table, programs, False, monkeypatch) != 1000


@pytest.mark.parametrize("at", ["unlinked", "waited", "told"])
def test_the_next_one_tells_what_a_killed_collector_did_not(
        at: str, table: Any, programs: Programs, bpffs: Path, monkeypatch: Any) -> None:
    programs.count(EVENTS, 900)
    before = by_number(table.read(), 900)

    def die(self: Expiry, name: str) -> None:
        if name == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def collect() -> None:
        monkeypatch.setattr(Expiry, "step", die)
        with fastmap.LiveTable.open(bpffs / "flows") as other:
            other.expire(key_of(np.arange(0, 900, 2)))

    with child(collect) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert (table.read().keys["low"] % 2 == 1).all()  # a key that leaves is no row any more
    programs.count(1 << 14, 900, state=5)
    gone = table.expire(key_of(np.arange(0)))
    check_rows(gone)
    assert (np.sort(gone.keys["low"]) == np.arange(0, 900, 2)).all()
    assert (by_number(gone, 900)[::2] == before[::2]).all()
    assert (by_number(gone, 900) + by_number(table.read(), 900) == programs.truth[:900]).all()
    all_usable(table, programs)


@pytest.mark.parametrize("at", ["unlinked", "waited", "told", "cleared"])
def test_an_interrupted_expiry_loses_nothing(at: str, table: Any, programs: Programs,
                                             monkeypatch: Any) -> None:
    programs.count(EVENTS, 900)
    before = by_number(table.read(), 900)

    def interrupt(self: Expiry, name: str) -> None:
        if name == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(Expiry, "step", interrupt)
        table.expire(key_of(np.arange(0, 900, 2)))
    told = getattr(caught.value, "batch", None)
    assert (told is not None) == (at == "cleared")
    gone = table.expire(key_of([1]))
    flushed = by_number(gone, 900) + (0 if told is None else by_number(told, 900))
    assert (flushed[::2] == before[::2]).all() and flushed[1] == before[1]
    del caught, told
    all_usable(table, programs)


def test_a_collector_that_is_killed_while_it_empties_slots(
        table: Any, programs: Programs, bpffs: Path, monkeypatch: Any) -> None:
    programs.count(900, 0)

    def die(self: Expiry, name: str) -> None:
        if name == "cleared":
            os.kill(os.getpid(), signal.SIGKILL)

    def collect() -> None:
        monkeypatch.setattr(Expiry, "step", die)
        with fastmap.LiveTable.open(bpffs / "flows") as other:
            other.expire(idle=0)

    with child(collect) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert len(table) == 0 and len(table.expire(key_of([1]))) == 0
    all_usable(table, programs)


def all_usable(table: Any, programs: Programs) -> None:
    """Every slot can be used again, and is in use once."""
    table.expire(idle=0)
    assert len(table) == 0
    full = table.full
    missed = programs.count(1 << 16, 0)
    assert table.full - full == missed
    batch = table.read()
    check_rows(batch)
    # Some slots may wait as a CPU's spare; a line's neighbourhood may be full a little before.
    assert len(batch) >= 0.95 * table.capacity
    assert len(np.unique(batch.slots)) == len(batch)


def test_one_expiry_at_a_time(table: Any, bpffs: Path, monkeypatch: Any) -> None:
    with fastmap.LiveTable.open(bpffs / "flows") as other:
        def step(self: Expiry, name: str) -> None:
            monkeypatch.undo()
            with pytest.raises(RuntimeError, match="another thread"):
                other.expire(idle=0)

        monkeypatch.setattr(Expiry, "step", step)
        table.expire(idle=0)
        other.expire(idle=0)


class Index:
    """The index, to be written to: what a CPU that stands still at some point leaves."""

    def __init__(self, folder: Path) -> None:
        self.map = fastmap.open(folder / "flows_x")
        self.lines = self.map.memory(writable=True)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        del self.lines
        self.map.close()

    def entries(self) -> list[tuple[int, int, int]]:
        lines, ways = np.nonzero(self.lines["e"].copy())
        return [(int(i), int(j), int(self.lines["e"][i, j])) for i, j in zip(lines, ways,
                                                                             strict=True)]


CONFIRMED, TOMB = 1 << 32, (1 << 64) - 1


def test_an_entry_that_its_cpu_did_not_confirm(table: Any, programs: Programs,
                                               bpffs: Path) -> None:
    programs.count(1, 0, 5)
    with Index(bpffs) as index:
        (line, way, entry), = index.entries()
        index.lines["e"][line, way] = entry & ~CONFIRMED
        assert key_of([5])[0] not in table and programs.peek(5) == 0
        programs.count(1, 0, 5)  # confirms it on the way
        assert index.entries() == [(line, way, entry)]
    assert table[key_of([5])[0]]["events"] == 2


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_key_whose_line_got_room_while_two_inserted_it(
        confirmed: bool, table: Any, programs: Programs, bpffs: Path) -> None:
    """One CPU took way 3, for ways 0 to 2 were in use; they were freed; another took way 0."""
    programs.count(1, 0, 5)
    programs.count(1, 0, 6)  # whose slot plays the other CPU's
    with Index(bpffs) as index:
        first, other = sorted(index.entries(), key=lambda each: each[2] & 0xFFFFFFFF)
        line, way, entry = first
        index.lines["e"][other[0], other[1]] = 0
        index.lines["e"][line, :] = 0
        tentative = entry & ~CONFIRMED
        second = tentative & ~0xFFFFFFFF | other[2] & 0xFFFFFFFF
        with fastmap.open(bpffs / "flows_k") as m:
            m.memory(writable=True)[(other[2] & 0xFFFFFFFF) - 1] = key_of([5])[0]
        index.lines["e"][line, 0] = second
        index.lines["e"][line, 3] = entry if confirmed else tentative
        for _ in range(2):
            programs.count(1, 0, 5)
        ways = {way: e for at, way, e in index.entries() if at == line}
        if confirmed:  # the other has yet to see that it was late
            assert ways == {0: second, 3: entry}
        else:
            assert ways == {0: second | CONFIRMED, 3: TOMB}
        table.expire(key_of([5]))
        assert confirmed or not index.entries()  # the tomb was swept as well
