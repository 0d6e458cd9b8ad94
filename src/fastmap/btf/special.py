"""The structs of a map's value that the kernel itself acts on: spin locks, timers and their kind.

The kernel knows them by the name of their type in the map's BTF. A dtype says the same by a title:
numpy keeps the titles of fields wherever it keeps the fields, and compares them. (Metadata would
get lost in comparing: a dtype with a lock would equal one without.)
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np

DType: TypeAlias = "np.dtype[Any]"


class _Declaration(NamedTuple):
    field: str
    base: str
    words: int

    @property
    def alignment(self) -> int:
        return np.dtype(self.base).itemsize

    @property
    def size(self) -> int:
        return self.alignment * self.words


#: By the name of the struct: the one field in it, as the kernel's headers declare it.
SPECIAL = {
    "bpf_spin_lock": _Declaration("val", "u4", 1),
    "bpf_res_spin_lock": _Declaration("val", "u4", 1),
    "bpf_timer": _Declaration("__opaque", "u8", 2),
    "bpf_wq": _Declaration("__opaque", "u8", 2),
    "bpf_task_work": _Declaration("__opaque", "u8", 1),
    "bpf_list_head": _Declaration("__opaque", "u8", 2),
    "bpf_list_node": _Declaration("__opaque", "u8", 3),
    "bpf_rb_root": _Declaration("__opaque", "u8", 2),
    "bpf_rb_node": _Declaration("__opaque", "u8", 4),
    "bpf_refcount": _Declaration("__opaque", "u4", 1),
}
#: Pointers the kernel acts on, by the type tag right behind them.
SPECIAL_POINTERS = ("kptr", "kptr_untrusted", "percpu_kptr", "uptr")
# Of these, and of nothing else, a value may have several.
_MANY = ("bpf_list_head", "bpf_list_node", "bpf_rb_root", "bpf_rb_node")
LOCKS = ("bpf_spin_lock", "bpf_res_spin_lock")


def _declared(name: str) -> DType:
    field, base, words = SPECIAL[name]
    unit: Any = base if words == 1 else (base, (words,))
    return np.dtype([((name, field), unit)], align=True)


_DECLARED = {name: _declared(name) for name in SPECIAL}

#: A field of this dtype, in the value of `create`, is a `struct bpf_spin_lock`.
spin_lock = _DECLARED["bpf_spin_lock"]


def marked(name: str, size: int) -> DType | None:
    """The dtype that stands for the struct `name`, None where it is none of the kernel's."""
    return _DECLARED[name] if name in SPECIAL and SPECIAL[name].size == size else None


def special_kind(dtype: DType) -> str:
    """The name of the kernel's struct that `dtype` stands for, "" where it is a plain one."""
    if dtype.names and dtype.fields is not None:
        field = dtype.fields[dtype.names[0]]
        title = field[2] if len(field) > 2 else None
        if isinstance(title, str) and _DECLARED.get(title) == dtype:
            return title
    return ""


class Place(NamedTuple):
    """Where one of the kernel's own structs lies in a value; in an array of them, the first."""

    kind: str
    offset: int
    elements: int


def special_fields(dtype: DType) -> dict[str, Place]:
    """The kernel's own structs in a value of `dtype`, by their dotted paths ("": all of it)."""
    found: dict[str, Place] = {}
    _collect(dtype, "", 0, 1, found)
    return found


def _collect(dtype: DType, path: str, offset: int, count: int, found: dict[str, Place]) -> None:
    if dtype.subdtype is not None:
        count *= prod(dtype.shape)
        dtype = dtype.subdtype[0]
    if kind := special_kind(dtype):
        found[path] = Place(kind, offset, count)
    elif dtype.names is not None and dtype.fields is not None:
        for name in dtype.names:
            field, step = dtype.fields[name][:2]
            _collect(field, f"{path}.{name}" if path else name, offset + step, count, found)


def check_special(key: DType | None, value: DType | None) -> None:
    """Raises ValueError where the kernel would fail, or not see them (it says nothing then)."""
    if key is not None and special_fields(key):
        raise ValueError(f"the kernel looks for a {_kinds(key)} in values only, not in keys")
    seen: dict[str, str] = {}
    for path, (kind, offset, count) in special_fields(value).items() if value is not None else ():
        if not path:
            raise ValueError(f"a value cannot be a {kind} alone: the kernel looks into a record")
        if offset % SPECIAL[kind].alignment:
            raise ValueError(
                f"{path}, a {kind}, lies at offset {offset}, which is no multiple of "
                f"{SPECIAL[kind].alignment}: np.dtype(..., align=True) puts it right"
            )
        alike = "lock" if kind in LOCKS else kind
        if kind not in _MANY and (count > 1 or alike in seen):
            where = f"{seen[alike]} and {path}" if alike in seen else f"an array, {path}"
            raise ValueError(f"a value has at most one {kind}, not {where}")
        seen[alike] = path


def _kinds(dtype: DType) -> str:
    return " or ".join(sorted({place.kind for place in special_fields(dtype).values()}))
