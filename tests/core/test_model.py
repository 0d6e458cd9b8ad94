"""Random sequences of operations, against a dict that does the same."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support import examples

import fastmap
from fastmap import EXIST, NOEXIST, KeyExists, KeyNotFound, MapFull

CPUS = len(fastmap.possible_cpus())
SIZE = 12
BOUND = 16  # keys beyond what an array has, and more than a hash holds

keys = st.integers(0, BOUND - 1)
many_keys = st.lists(keys, max_size=20)
values = st.tuples(*[st.integers(0, 2**32 - 1)] * CPUS)
flags = st.sampled_from([fastmap.ANY, NOEXIST, EXIST])
chunks = st.sampled_from([1, 2, 3, 7, None])


class Model(RuleBasedStateMachine):
    """A map and a dict of tuples, one number for each CPU (for one, where it is not per-CPU)."""

    kind = "hash"

    @initialize()
    def create(self) -> None:
        self.map = fastmap.create(self.kind, key="u4", value="u4", max_entries=SIZE)
        self.indexed, self.width = self.map.indexed, CPUS if self.map.per_cpu else 1
        zeros = (0,) * self.width
        self.model = dict.fromkeys(range(SIZE), zeros) if self.indexed else {}

    def teardown(self) -> None:
        if hasattr(self, "map"):
            self.map.close()

    # ---- both sides of a value, and what an update means ---------------------------------------

    def plain(self, value: Any) -> tuple[int, ...]:
        return tuple(np.atleast_1d(value).tolist())

    def given(self, value: tuple[int, ...]) -> Any:
        return list(value[:self.width]) if self.width > 1 or self.map.per_cpu else value[0]

    def set(self, key: int, value: tuple[int, ...], flag: int) -> int:
        """Update the dict as the kernel updates the map; return the errno."""
        if self.indexed:
            if key >= SIZE:
                return errno.E2BIG
            if flag == NOEXIST:
                return errno.EEXIST
        elif key in self.model and flag == NOEXIST:
            return errno.EEXIST
        elif key not in self.model and flag == EXIST:
            return errno.ENOENT
        elif key not in self.model and len(self.model) == SIZE:
            return errno.E2BIG
        self.model[key] = value[:self.width]
        return 0

    def expect(self, code: int, call: Callable[[], Any]) -> None:
        if not code:
            call()
            return
        full = KeyNotFound if self.indexed else MapFull
        known = {errno.EEXIST: KeyExists, errno.ENOENT: KeyNotFound, errno.E2BIG: full}
        with pytest.raises(known[code]) as caught:
            call()
        assert caught.value.errno == code

    # ---- one element ---------------------------------------------------------------------------

    @rule(key=keys, value=values, flag=flags)
    def update(self, key: int, value: tuple[int, ...], flag: int) -> None:
        code = self.set(key, value, flag)
        self.expect(code, lambda: self.map.update(key, self.given(value), flags=flag))

    @rule(key=keys)
    def lookup(self, key: int) -> None:
        found = self.map.get(key)
        assert (None if found is None else self.plain(found)) == self.model.get(key)
        assert (key in self.map) == (key in self.model)

    @rule(key=keys)
    def delete(self, key: int) -> None:
        if not self.indexed:
            code = 0 if self.model.pop(key, None) else errno.ENOENT
            self.expect(code, lambda: self.map.delete(key))

    @rule(key=keys, value=values)
    def setdefault_and_pop(self, key: int, value: tuple[int, ...]) -> None:
        if self.indexed or (len(self.model) == SIZE and key not in self.model):
            return
        self.model.setdefault(key, value[:self.width])
        found = self.map.setdefault(key, self.given(value))
        assert self.plain(found) == self.model[key]
        if value[0] % 2:
            assert self.plain(self.map.pop(key)) == self.model.pop(key)

    @rule()
    def popitem(self) -> None:
        if not self.indexed and self.model:
            key, value = self.map.popitem()
            assert self.plain(value) == self.model.pop(key)

    # ---- many ----------------------------------------------------------------------------------

    @rule(given=st.lists(st.tuples(keys, values), max_size=20), flag=flags,
          mode=st.sampled_from(["raise", "return"]), as_array=st.booleans())
    def update_many(self, given: Any, flag: int, mode: str, as_array: bool) -> None:
        codes = []
        for key, value in given:
            codes.append(self.set(key, value, flag))
            if codes[-1] and mode == "raise":
                break
        ks: Any = [key for key, _ in given]
        vs: Any = [self.given(value) for _, value in given]
        if as_array:
            ks = np.array(ks, "u4")
            vs = np.array(vs, "u4").reshape((len(ks), CPUS) if self.map.per_cpu else len(ks))
        if mode == "return":
            found = self.map.update_many(ks, vs, flags=flag, errors="return")
            assert found.tolist() == codes
        elif not codes or codes[-1] == 0:
            assert self.map.update_many(ks, vs, flags=flag) == len(given)
        else:
            with pytest.raises(fastmap.BatchError) as caught:
                self.map.update_many(ks, vs, flags=flag)
            assert caught.value.applied == caught.value.index == len(codes) - 1
            assert caught.value.errno == codes[-1]

    @rule(given=many_keys, threads=st.sampled_from([1, 1, 2]))
    def lookup_many(self, given: list[int], threads: int) -> None:
        read, found = self.map.lookup_many(given, threads=threads)
        assert found.tolist() == [key in self.model for key in given]
        zeros = (0,) * self.width
        assert [self.plain(v) for v in read] == [self.model.get(key, zeros) for key in given]

    @rule(given=many_keys, mode=st.sampled_from(["ignore", "return", "raise", "take"]))
    def delete_many(self, given: list[int], mode: str) -> None:
        if self.indexed:
            return
        there, rest = [], dict(self.model)
        for key in given:
            there.append(rest.pop(key, None))
        if mode == "ignore":
            assert self.map.delete_many(given) == sum(v is not None for v in there)
        elif mode == "return":
            codes = self.map.delete_many(given, errors="return").tolist()
            assert codes == [0 if v else errno.ENOENT for v in there]
        elif mode == "take":
            read, found = self.map.lookup_and_delete_many(given)
            assert found.tolist() == [v is not None for v in there]
            assert [self.plain(v) for v, f in zip(read, found, strict=True) if f] == [
                v for v in there if v]
        elif None in there:
            stop = there.index(None)
            with pytest.raises(KeyNotFound) as caught:
                self.map.delete_many(given, errors="raise")
            assert caught.value.applied == stop  # type: ignore[attr-defined]
            rest = {k: v for k, v in self.model.items() if k not in given[:stop]}
        else:
            assert self.map.delete_many(given, errors="raise") == len(given)
        self.model = rest

    # ---- whole reads ---------------------------------------------------------------------------

    @rule(chunk=chunks, how=st.sampled_from(["drain", "chunks", "clear", "map"]))
    def empty(self, chunk: int | None, how: str) -> None:
        if self.indexed:
            return
        if how == "clear":
            self.map.clear()
        else:
            reader = self.map.reader(chunk=chunk)
            batches = (reader.drain_chunks() if how == "chunks" else
                       [reader.drain() if how == "drain" else self.map.drain()])
            assert {k: self.plain(v) for b in batches for k, v in b.items()} == self.model
        self.model = {}

    @rule(chunk=chunks)
    def read(self, chunk: int | None) -> None:
        reader = self.map.reader(chunk=chunk)
        for batches in ([reader.read()], reader, [self.map.snapshot()]):
            pairs = [(k, self.plain(v)) for batch in batches for k, v in batch.items()]
            assert len(pairs) == len(self.model) and dict(pairs) == self.model

    @invariant()
    def equal(self) -> None:
        if hasattr(self, "map"):
            assert len(self.map) == len(self.model) and bool(self.map) == bool(self.model)
            assert {k: self.plain(v) for k, v in self.map.items()} == self.model


@pytest.mark.parametrize("kind", ("hash", "percpu_hash", "array", "percpu_array"))
def test_model(kind: str) -> None:
    machine = type("Machine", (Model,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=examples(40), stateful_step_count=25, deadline=None))
