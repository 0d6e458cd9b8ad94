"""Which series an entry of a map belongs to: from the columns of a read to label values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import repeat
from typing import Any

import numpy as np

from fastmap.dtypes import locate
from fastmap.prometheus.config import Label
from fastmap.text.decoders import Column, How, decode


class Series:
    """Which series a row belongs to: that of its label values.

    Rows, the bytes of their label fields, are known from scrape to scrape. A set of label values
    has a number for as long as one of its rows is there, and a place if it has a series of its own:
    the first `limit` sets have, of those that come at once the largest. The others share place 0,
    and keep to it: a series neither jumps there nor back.
    """

    def __init__(self, names: tuple[str, ...], limit: int, overflow: str) -> None:
        self._names = names
        #: By place; those of free places are left over.
        self.labels: list[dict[str, str]] = [dict.fromkeys(names, overflow)]
        self.overflowed = False
        self._extended: dict[Any, tuple[list[dict[str, str]], list[list[dict[str, str]]]]] = {}
        self._room = limit
        self._free_places: list[int] = []
        #: By number; with spare numbers likewise.
        self._places = [0]
        self._spare: list[int] = []
        self._known: dict[bytes, int] = {}
        self._numbers: dict[tuple[str, ...], int] = {(overflow,) * len(names): 0} if names else {}
        self._texts: dict[int, tuple[str, ...]] = {}

    def places(self, rows: list[bytes], texts: Callable[[list[int]], Iterable[tuple[str, ...]]],
               weights: Callable[[], Column]) -> Column:
        """Return the place of each row.

        Parameters
        ----------
        rows : list of bytes
        texts : callable
            Takes the indexes of rows that are new; gives their label values.
        weights : callable
            Gives how large each row is.
        """
        numbers: list[Any] = list(map(self._known.get, rows))
        new = [i for i, number in enumerate(numbers) if number is None] if None in numbers else []
        if new or len(self._known) > 2 * len(rows) + 64:
            self._forget(rows, numbers)
            self._add(rows, numbers, new, list(texts(new)), weights)
        found: Column = np.array(self._places)[np.array(numbers, np.intp)]
        return found

    def _forget(self, rows: list[bytes], numbers: list[Any]) -> None:
        """Give up what is gone from the map: its places are for what is new."""
        for row in self._known.keys() - rows:
            del self._known[row]
        for number in self._texts.keys() - numbers:
            del self._numbers[self._texts.pop(number)]
            self._spare.append(number)
            if place := self._places[number]:
                self._free_places.append(place)
                self._room += 1

    def _add(self, rows: list[bytes], numbers: list[Any], new: list[int],
             texts: list[tuple[str, ...]], weights: Callable[[], Column]) -> None:
        chosen = None if len(new) <= self._room else self._largest(texts, weights()[new].tolist())
        for i, text in zip(new, texts, strict=True):
            number = self._numbers.get(text)
            if number is None:
                number = self._enter(text, chosen is None or text in chosen)
            self._known[rows[i]] = numbers[i] = number

    def _largest(self, texts: list[tuple[str, ...]], weights: list[float]) -> set[tuple[str, ...]]:
        """Return those of the label values without a number that there is room for."""
        unseen: dict[tuple[str, ...], float] = {}
        for text, weight in zip(texts, weights, strict=True):
            if text not in self._numbers:
                unseen[text] = unseen.get(text, 0.0) + weight
        self.overflowed |= len(unseen) > self._room
        return set(nlargest(self._room, unseen, key=unseen.__getitem__))

    def _enter(self, text: tuple[str, ...], own: bool) -> int:
        """Give label values a number, and with `own` a place of their own."""
        place = 0
        if own:
            self._room -= 1
            labels = dict(zip(self._names, text, strict=True))
            if self._free_places:
                place = self._free_places.pop()
                self.labels[place] = labels
                for more, found in self._extended.values():
                    if place < len(found):
                        found[place] = [{**labels, **each} for each in more]
            else:
                place = len(self.labels)
                self.labels.append(labels)
        if self._spare:
            number = self._spare.pop()
            self._places[number] = place
        else:
            number = len(self._places)
            self._places.append(place)
        self._numbers[text] = number
        self._texts[number] = text
        return number

    def extended(self, key: Any, more: list[dict[str, str]]) -> list[list[dict[str, str]]]:
        """Return the labels with each of `more`, by place; kept under `key`."""
        more, found = self._extended.setdefault(key, (more, []))
        for labels in self.labels[len(found):]:
            found.append([{**labels, **each} for each in more])
        return found


class Field:
    """A field of key or value, found in a map's dtypes."""

    def __init__(self, m: Any, field: str, side: str, whole: bool, path: str) -> None:
        first, _, rest = field.partition(".")
        self.side, self.field = (first, rest) if first in ("key", "value") else (side, field)
        dtype = m.key_dtype if self.side == "key" else m.value_dtype
        self._layouts = getattr(m, "layouts", {})
        if whole and dtype.names is None and self.field == field:
            self.field = ""  # a plain key, by whatever name
        try:
            self.dtype = locate(dtype, self.field)[0] if self.field else dtype
        except ValueError as error:
            raise ValueError(f"{path}: the {self.side} has {error}") from None

    def names(self) -> dict[int, str] | None:
        """Return the names of an enum's values, by number, where BTF has them."""
        layout = self._layouts.get(self.side)
        if layout is None or self.field not in layout.enums or self.dtype.base.kind not in "iu":
            return None
        # Of several names of a number, the first.
        return {number: name for name, number in reversed(layout.enums[self.field].items())}

    def column(self, keys: Column, values: Column) -> Column:
        """Return the column; that of a value's field as `fields=` of a reader names it."""
        column = keys if self.side == "key" else values
        names = column.dtype.names or ()
        if not self.field:
            return column
        for name in [self.field] if self.field in names else self.field.split("."):
            column = column[name]
        return column

    def number(self, path: str, what: str, kinds: str = "iufb") -> None:
        if self.dtype.base.kind not in kinds or self.dtype.base.names:
            raise ValueError(f"{path}: {what} is a number; {self.field or self.side} is "
                             f"{self.dtype}")


class LabelSet:
    """The labels of some metrics of a map: from the columns to places."""

    def __init__(self, m: Any, labels: tuple[Label, ...], limit: int, overflow: str) -> None:
        self.fields: list[Field] = []
        self._hows: list[How] = []
        layout = []
        for i, label in enumerate(labels):
            field = Field(m, label.field, "key", label.field == label.name, label.path)
            how = field.names() if label.decode is None else label.decode
            self._hows.append(how)
            try:
                decode(np.zeros(0, field.dtype), how)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{label.path}: {error}") from None
            self.fields.append(field)
            # Interfaces are renamed: their names, not their numbers, are what is known. Of 15 bytes
            # as \\xff each.
            layout.append((str(i), "S60" if label.decode == "interface" else field.dtype))
        self._layout = np.dtype(layout)
        self.series = Series(tuple(label.name for label in labels), limit, overflow)
        self._raw: bytes | None = None
        self._last: Column = np.zeros(0, np.intp)

    def places(self, keys: Column, values: Column, weights: Callable[[], Column]) -> Column:
        """Return the place of each entry's series."""
        packed = np.zeros(len(keys), self._layout)
        hows = list(self._hows)
        for i, field in enumerate(self.fields):
            column = field.column(keys, values)
            if hows[i] == "interface":
                packed[str(i)] = [name.encode() for name in decode(column, "interface")]
                hows[i] = "comm"
            else:
                packed[str(i)] = column
        raw = packed.tobytes()
        if raw == self._raw and len(keys) == len(self._last):
            return self._last  # the same entries as at the last scrape, as mostly
        width = self._layout.itemsize
        rows = packed.view(f"V{width}").tolist() if width else [b""] * len(keys)

        def texts(new: list[int]) -> Iterable[tuple[str, ...]]:
            some = packed[new]
            columns = [decode(some[str(i)], how) for i, how in enumerate(hows)]
            return zip(*columns, strict=True) if columns else repeat((), len(new))

        self._last = self.series.places(rows, texts, weights)
        self._raw = raw
        return self._last
