"""Maps without keys: queues, stacks, Bloom filters."""

from __future__ import annotations

from fastmap.enums import MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import ABSENT


class Keyless(Map):
    """Values without keys."""

    keys_are = ABSENT
    described = "never"


class Queue(Keyless):
    """QUEUE: first in, first out."""


class Stack(Keyless):
    """STACK: last in, first out."""


class BloomFilter(Keyless):
    """BLOOM_FILTER: a set that can answer "perhaps" for what is not in it."""


CLASSES: dict[MapType, type[Map]] = {
    MapType.QUEUE: Queue,
    MapType.STACK: Stack,
    MapType.BLOOM_FILTER: BloomFilter,
}
