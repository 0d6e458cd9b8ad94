"""Which class a map of a type has: the one list."""

from __future__ import annotations

from fastmap.enums import MapType
from fastmap.errors import NotSupported
from fastmap.maptypes import (
    arena,
    arrays,
    code,
    nested,
    queues,
    references,
    rings,
    storage,
    table,
    trie,
)
from fastmap.maptypes.handle import Map

CLASSES: dict[MapType, type[Map]] = {
    **table.CLASSES, **arrays.CLASSES, **trie.CLASSES, **queues.CLASSES, **nested.CLASSES,
    **references.CLASSES, **storage.CLASSES, **code.CLASSES, **rings.CLASSES, **arena.CLASSES,
}


def class_of(kind: MapType) -> type[Map]:
    """Return the class for maps of a type."""
    try:
        return CLASSES[kind]
    except KeyError:
        raise NotSupported(95, f"fastmap has no class for {kind.name} maps") from None
