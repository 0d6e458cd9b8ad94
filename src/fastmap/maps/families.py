"""Which class a map of a type has: the one list."""

from __future__ import annotations

from fastmap.enums import MapType
from fastmap.errors import NotSupported
from fastmap.maps import (
    arena,
    arrays,
    code,
    nested,
    queues,
    references,
    storage,
    streams,
    tables,
    trie,
)
from fastmap.maps.base import Map

CLASSES: dict[MapType, type[Map]] = {
    **tables.CLASSES, **arrays.CLASSES, **trie.CLASSES, **queues.CLASSES, **nested.CLASSES,
    **references.CLASSES, **storage.CLASSES, **code.CLASSES, **streams.CLASSES, **arena.CLASSES,
}


def class_of(kind: MapType) -> type[Map]:
    """Return the class for maps of a type."""
    try:
        return CLASSES[kind]
    except KeyError:
        raise NotSupported(95, f"fastmap has no class for {kind.name} maps") from None
