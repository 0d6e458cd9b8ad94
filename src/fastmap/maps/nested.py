"""Maps whose values are maps."""

from __future__ import annotations

from fastmap.enums import MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import INDEX, fixed


class MapOfMaps(Map):
    """What both share: a map is written by its descriptor, and read by its id."""

    values_are = fixed("u4")
    described = "never"


class ArrayOfMaps(MapOfMaps):
    """ARRAY_OF_MAPS: a map, or none, under each index."""

    keys_are = INDEX


class HashOfMaps(MapOfMaps):
    """HASH_OF_MAPS: maps under keys of any bytes."""


CLASSES: dict[MapType, type[Map]] = {
    MapType.ARRAY_OF_MAPS: ArrayOfMaps,
    MapType.HASH_OF_MAPS: HashOfMaps,
}
