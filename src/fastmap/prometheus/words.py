"""The words of a declaration, one mapping at a time: each is checked, and its place known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from fastmap.prometheus.said import cut, meant, said

_MISSING: Any = object()
#: What no number of a declaration goes beyond: nothing in the kernel does.
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_WORD = re.compile(r"\w{1,60}", re.ASCII)

Built = TypeVar("Built")


class Words:
    """A mapping of the declaration: hands out its words, and knows the path of each."""

    def __init__(self, given: Any, path: str, what: str = "",
                 problems: list[ValueError] | None = None) -> None:
        self.path = path
        self._problems = problems
        if not isinstance(given, Mapping):
            raise ValueError(f"{path or what}: words with values, not {said(given)}")
        self._given = given
        self._asked: list[str] = []

    def at(self, word: str) -> str:
        return f"{self.path}.{word}" if self.path else word

    def take(self, word: str, default: Any = _MISSING) -> Any:
        self._asked.append(word)
        found = self._given.get(word)
        if found is None:
            if default is _MISSING:
                raise ValueError(f"{self.at(word)}: missing{self._near(word)}")
            return default
        return found

    def _near(self, word: str) -> str:
        """Say which of the words that are there may be meant to be one that is not."""
        others = [each for each in self._given if isinstance(each, str) and _WORD.fullmatch(each)
                  and each not in self._asked]
        near = meant(word, others)
        return f"; is it meant by {near}?" if near else ""

    def text(self, word: str, default: Any = _MISSING, like: re.Pattern[str] | None = None) -> Any:
        found = self.take(word, default)
        if found is default:
            return found
        if not isinstance(found, str) or not found:
            raise ValueError(f"{self.at(word)}: text, not {said(found)}")
        if like is not None and like.fullmatch(found) is None:
            raise ValueError(f"{self.at(word)}: Prometheus does not take {said(found)} as a name")
        return encodable(found, self.at(word))

    def number(self, word: str, default: Any = _MISSING, above: float | None = None) -> Any:
        found = self.take(word, default)
        if found is default:
            return found
        if isinstance(found, (np.integer, np.floating)):
            found = found.item()  # of a program's own: their text is not that of numbers
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise ValueError(f"{self.at(word)}: a number, not {said(found)}")
        try:
            finite = math.isfinite(found)
        except OverflowError:
            finite = False
        if not finite:
            raise ValueError(f"{self.at(word)}: a finite number, not {said(found)}")
        if above is not None and not found > above:
            raise ValueError(f"{self.at(word)}: {said(found)} is not above {above}")
        return found

    def integer(self, word: str, default: Any = _MISSING, least: int = _LEAST,
                most: int = _MOST) -> Any:
        found = self.number(word, default)
        if found is default:
            return found
        if not isinstance(found, int):
            raise ValueError(f"{self.at(word)}: an integer, not {said(found)}")
        if found < least:
            raise ValueError(f"{self.at(word)}: {said(found)} is below {least}")
        if found > most:
            raise ValueError(f"{self.at(word)}: {said(found)} is above {most}")
        return found

    def choice(self, word: str, words: tuple[str, ...], default: str) -> str:
        found = self.take(word, default)
        if not isinstance(found, str) or found not in words:
            raise ValueError(f"{self.at(word)}: one of {', '.join(words)}, not {said(found)}")
        return found

    def dtype(self, word: str) -> np.dtype[Any] | None:
        found = self.take(word, None)
        if found is None:
            return None
        if isinstance(found, Mapping):
            found = list(found.items())
        elif isinstance(found, list):
            found = [tuple(each) if isinstance(each, list) else each for each in found]
        try:
            dtype: np.dtype[Any] = np.dtype(found)
        except Exception as error:  # numpy's are of many types
            raise ValueError(f"{self.at(word)}: {cut(str(error), 200)}") from None
        if dtype.hasobject or not dtype.itemsize:
            raise ValueError(f"{self.at(word)}: {said(found)} is nothing that lies in a map")
        return dtype

    def raw(self, word: str, least: int = 0) -> Iterator[tuple[Any, str]]:
        found = self.take(word, _MISSING if least else [])
        if not isinstance(found, (list, tuple)) or len(found) < least:
            raise ValueError(f"{self.at(word)}: a list, not {said(found)}")
        for i, each in enumerate(found):
            yield each, f"{self.at(word)}[{i}]"

    def each(self, word: str, build: Callable[[Words], Built], problems: list[ValueError],
             least: int = 0) -> list[Built]:
        """Build something of each in a list; those that are wrong are left out and told."""
        built: list[Built] = []
        try:
            for each, path in self.raw(word, least):
                try:
                    built.append(build(Words(each, path, problems=problems)))
                except ValueError as error:
                    problems.append(error)
        except ValueError as error:
            problems.append(error)
        return built

    def done(self) -> None:
        """Refuse words that nothing has asked for: raise for the last, tell the others before."""
        wrong = [word for word in self._given if word not in self._asked]
        if self._problems is not None:
            self._problems += [self._unknown(word) for word in wrong[:-1]]
            wrong = wrong[-1:]
        for word in wrong:
            raise self._unknown(word)

    def _unknown(self, word: Any) -> ValueError:
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            return ValueError(f"{self.at('')}{said(word)}: no such word")
        near = meant(word, self._asked)
        return ValueError(f"{self.at(word)}: no such word; " + (
            f"did you mean {near}?" if near else f"there are {', '.join(self._asked)}"))


def encodable(text: str, path: str) -> str:
    """Return a text; refuse one that no answer can have: it would be missed at each scrape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: {said(text)} is no Unicode text: it has half of a character"
                         ) from None
    return text
