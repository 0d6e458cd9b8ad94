"""Stubs of `fastmap._core.trie`."""

from typing_extensions import disjoint_base

from fastmap._core.batch import BatchReader

COUNTS_SINCE: tuple[int, int]

@disjoint_base
class TrieReader(BatchReader): ...
