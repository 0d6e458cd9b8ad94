"""Ring buffers: created, opened, described."""

from __future__ import annotations

import mmap

from fastmap.enums import MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import ABSENT, Shape


class Ring(Map):
    """What both rings share: neither keys nor values, and a size in bytes as `max_entries`."""

    keys_are = ABSENT
    values_are = ABSENT
    described = "never"

    @classmethod
    def settle(cls, shape: Shape) -> None:
        """Refuse a size that is no power of two, or no whole pages."""
        size = shape.max_entries
        if size & (size - 1) or size % mmap.PAGESIZE:
            raise ValueError(f"max_entries={size}: a ring's size in bytes is a power of two, and "
                             f"at least a page ({mmap.PAGESIZE})")


class RingBuffer(Ring):
    """RINGBUF: records from programs to user space."""


class UserRingBuffer(Ring):
    """USER_RINGBUF: records from user space to programs."""


CLASSES: dict[MapType, type[Map]] = {
    MapType.RINGBUF: RingBuffer,
    MapType.USER_RINGBUF: UserRingBuffer,
}
