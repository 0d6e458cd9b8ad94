"""LPM tries: values under prefixes of addresses."""

from __future__ import annotations

from fastmap.enums import MapFlag, MapType
from fastmap.maps.base import Map
from fastmap.maps.tables import HashMap


class LpmTrie(HashMap):
    """LPM_TRIE: a value under each prefix; a lookup finds the longest one that matches."""

    always = MapFlag.NO_PREALLOC


CLASSES: dict[MapType, type[Map]] = {MapType.LPM_TRIE: LpmTrie}
