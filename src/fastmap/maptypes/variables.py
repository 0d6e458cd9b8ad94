"""Global variables of a program: the values of its `.bss`, `.data` or `.rodata` map, live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmap._core.rows.codec import codec_of


class Variables(Mapping[str, npt.NDArray[Any]]):
    """Live views of global variables by name; ``variables[name] = value`` writes one.

    A view is 0-d for a scalar: ``int(variables["runs"])`` reads it now, ``variables["runs"][...]``
    too. The memory lives as long as the views.
    """

    def __init__(self, section: npt.NDArray[Any]) -> None:
        # `section` is (1,), on the mapping that it keeps alive.
        self._views = {name: section[name][0, ...] for name in section.dtype.names or ()}
        self._dtypes = {name: section.dtype[name] for name in section.dtype.names or ()}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        try:
            return self._views[name]
        except KeyError:
            raise KeyError(f"no variable {name!r}; there are: {', '.join(self._views)}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        view = self[name]
        if not view.flags.writeable:
            raise ValueError(f"{name!r} is read-only: the map is RDONLY_PROG or frozen")
        # As the value of a map is packed: what does not fit is an error, not another number.
        dtype = self._dtypes[name]
        base, shape = dtype.subdtype or (dtype, ())
        view[...] = np.frombuffer(codec_of(dtype, "variable").pack(value), base).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        parts = (f"{name}={view.tolist()!r}" for name, view in self._views.items())
        return f"<fastmap.Variables {' '.join(parts)}>"
