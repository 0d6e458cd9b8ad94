"""What error messages say of a value of a declaration: enough to find it, however large it is."""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import Repr
from typing import Any

_MOST = 60


class _Short(Repr):
    """Looks at few values: a tree that is small in memory may have no end when it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxdict = self.maxlist = self.maxtuple = 3
        self.maxstring = self.maxother = _MOST

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out what has thousands of digits.
        return repr(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"


def said(value: Any) -> str:
    """Return a value in a few words."""
    return cut(_Short().repr(value), _MOST)


def cut(text: str, most: int) -> str:
    """Return a text, without its middle where it is long."""
    return text if len(text) <= most else f"{text[:most // 2]}...{text[-most // 2:]}"


def meant(word: str, words: Iterable[str]) -> str | None:
    """Return which of the words another is most like, as a misspelled one is."""
    from difflib import get_close_matches  # few need it

    return next(iter(get_close_matches(word[:_MOST], list(words), 1)), None)
