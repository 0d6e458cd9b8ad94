"""Arenas: memory that programs and user space share."""

from __future__ import annotations

from fastmap.enums import MapFlag, MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import ABSENT


class Arena(Map):
    """ARENA: pages of memory, `max_entries` of them."""

    keys_are = ABSENT
    values_are = ABSENT
    always = MapFlag.MMAPABLE
    described = "never"


CLASSES: dict[MapType, type[Map]] = {MapType.ARENA: Arena}
