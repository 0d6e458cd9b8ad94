"""Maps about programs' own code: stack traces, struct_ops, tables of instructions."""

from __future__ import annotations

from fastmap.enums import MapType
from fastmap.maps.base import Map
from fastmap.maps.rules import INDEX, fixed


class StackTrace(Map):
    """STACK_TRACE: stacks that programs took, under the ids they got for them."""

    keys_are = fixed("u4")
    described = "never"


class StructOps(Map):
    """STRUCT_OPS: functions of a kernel struct, implemented by programs."""

    keys_are = fixed("u4")
    entries_are = 1


class InsnArray(Map):
    """INSN_ARRAY: where instructions of a program went, by index (Linux 6.19)."""

    keys_are = INDEX
    values_are = fixed([("orig_off", "u4"), ("xlated_off", "u4"), ("jitted_off", "u4"),
                        ("pad", "u4")])
    described = "never"


CLASSES: dict[MapType, type[Map]] = {
    MapType.STACK_TRACE: StackTrace,
    MapType.STRUCT_OPS: StructOps,
    MapType.INSN_ARRAY: InsnArray,
}
