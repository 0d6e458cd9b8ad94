"""Stubs of `fastmap._core.maps.trie_reader`."""

from typing_extensions import disjoint_base

from fastmap._core.maps.batch_reader import BatchReader

COUNTS_SINCE: tuple[int, int]

@disjoint_base
class TrieReader(BatchReader): ...
