"""Waiting until no program holds what it found before: a grace period of RCU."""

from __future__ import annotations

import errno
import os
from typing import Any

from fastmap._core.live.table import membarrier
from fastmap.errors import NotSupported, PermissionDenied
from fastmap.maptypes.create import create


class Grace:
    """Waits for the programs that run now. Made once; a few milliseconds of sleep each time.

    The kernel promises it of an update of a map of maps (BPF_MAP_UPDATE_ELEM of ARRAY_OF_MAPS,
    Linux 4.20): on one CPU and under nohz_full, too. Where such a map may not be created,
    membarrier(2) does it, but neither on one CPU nor under nohz_full.
    """

    def __init__(self) -> None:
        self._outer: Any = None
        self._inner: Any = None

    def prepare(self) -> None:
        """Make sure that `wait` can; nothing has happened yet where it cannot.

        Raises
        ------
        NotSupported
            Neither way is there: the message says why.
        """
        if self._outer is not None:
            return
        try:
            self._inner = create("array", value="u4", max_entries=1)
            self._outer = create("array_of_maps", max_entries=1, inner=self._inner)
        except PermissionDenied:
            self.close()
            if os.cpu_count() == 1:
                raise NotSupported(
                    errno.EOPNOTSUPP, "expiry waits for the programs that run: with CAP_BPF by a "
                    "map of maps; membarrier(2) does nothing on one CPU") from None
            if number := membarrier():
                raise NotSupported(
                    number, "expiry waits for the programs that run: with CAP_BPF by a map of "
                    f"maps; membarrier(2) fails ({os.strerror(number)}), as it does under "
                    "nohz_full") from None

    def wait(self) -> None:
        """Return when every program that runs now has ended (those that are sleepable aside)."""
        if self._outer is not None:
            self._outer.update(0, self._inner)
        elif number := membarrier():
            raise OSError(number, "membarrier(2): " + os.strerror(number))

    def close(self) -> None:
        """Close the maps."""
        for each in (self._outer, self._inner):
            if each is not None:
                each.close()
        self._outer = self._inner = None
