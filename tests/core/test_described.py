"""Maps that are created, opened and described here; their data goes other ways."""

from __future__ import annotations

from collections.abc import Callable
from mmap import PAGESIZE
from typing import Any

import pytest

import fastmap

pytestmark = pytest.mark.quick

RINGS = pytest.mark.parametrize("kind", [
    pytest.param("ringbuf", marks=pytest.mark.needs("RINGBUF")),
    pytest.param("user_ringbuf", marks=pytest.mark.needs("USER_RINGBUF")),
])


@RINGS
def test_rings_are_created_opened_and_described(make: Callable[..., Any], kind: str) -> None:
    m = make(kind, max_entries=4 * PAGESIZE, name="ring")
    info = m.info()
    assert (info.key_size, info.value_size, info.max_entries) == (0, 0, 4 * PAGESIZE)
    assert m.key_dtype is None and m.value_dtype is None and "ring" in repr(m)
    with fastmap.open(id=m.id) as other:
        assert type(other) is type(m) and other.max_entries == m.max_entries
        assert other.type.name.lower() == kind


@RINGS
def test_rings_have_no_elements(make: Callable[..., Any], kind: str) -> None:
    m = make(kind, max_entries=PAGESIZE)
    for name in ("lookup", "update", "delete", "lookup_and_delete", "get", "update_many"):
        assert not hasattr(m, name)
    for call in (lambda: m[0], lambda: list(m), lambda: 0 in m):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError):
        len(m)


@RINGS
@pytest.mark.parametrize("size", [1, PAGESIZE - 1, PAGESIZE + 8, 3 * PAGESIZE])
def test_sizes_that_no_ring_has(kind: str, size: int) -> None:
    with pytest.raises(ValueError, match="power of two") as caught:
        fastmap.create(kind, max_entries=size)
    assert not isinstance(caught.value, OSError)


@RINGS
def test_rings_have_no_dtypes(kind: str) -> None:
    for options in ({"key": "u4"}, {"value": "u4"}):
        with pytest.raises(TypeError, match="has no"):
            fastmap.create(kind, max_entries=PAGESIZE, **options)
