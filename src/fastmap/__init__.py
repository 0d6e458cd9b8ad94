"""Linux BPF maps as numpy arrays, at the speed of C.

The public names stand in ``__init__.pyi``. A name's module is loaded when the name is first used
(PEP 562): importing fastmap costs next to nothing, and a program that never touches a ring never
loads one.
"""

import re as _re
from importlib import import_module as _import_module

__version__ = "0.1.0"

with open(f"{__path__[0]}/__init__.pyi") as _stub:
    #: The module of each public name; of a documented module, the package itself.
    _HOMES = {
        name: home
        for home, name in _re.findall(r"^from (fastmap[\w.]*) import (\w+) as \2$",
                                      _stub.read(), _re.MULTILINE)
    }
__all__ = sorted(name for name, home in _HOMES.items() if home != __name__)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if home == __name__:
        return _import_module(f"{__name__}.{name}")
    globals()[name] = found = getattr(_import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
