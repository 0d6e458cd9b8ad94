"""Stubs of `fastmap._core.trie`."""

from typing_extensions import disjoint_base

from fastmap._core.batch import BatchReader

@disjoint_base
class TrieReader(BatchReader): ...
