"""Text of anybody's, such as names of processes, where people see it."""

from __future__ import annotations


def visible(text: str) -> str:
    """Return text that does nothing to a terminal: names of processes are chosen by anybody."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
