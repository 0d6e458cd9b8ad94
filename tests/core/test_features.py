"""What the kernel has, as it says itself."""

from __future__ import annotations

import pytest
from privileges import drop_capabilities
from support import in_child

import fastmap
from fastmap.enums import (
    PROGRAM_FEATURES,
    Command,
    MapFlag,
    MapType,
    running_kernel,
)
from fastmap.kernel.capabilities import missing_capabilities
from fastmap.kernel.map_facts import smallest_kernel
from fastmap.probes import features, forget

pytestmark = pytest.mark.quick

#: Only a struct of the kernel's own tells.
UNTOLD = {"STRUCT_OPS"}


def test_a_kernel_has_what_came_before_it_and_nothing_that_came_after() -> None:
    for feature in features().values():
        if feature.name in UNTOLD:
            continue
        assert feature.supported is not None, feature
        new_enough = feature.since is not None and running_kernel() >= feature.since
        assert feature.supported == new_enough, feature


def test_every_type_and_every_batch_command_is_there() -> None:
    names = set(features())
    assert {t.name for t in MapType if t} <= names
    assert "MAP_LOOKUP_BATCH on LPM_TRIE" in names
    assert {f.name for f in features().ways} == {"element", "batch", "memory", "in-kernel"}
    assert {f.name for f in features().programs} == set(PROGRAM_FEATURES)
    assert features()["HASH"] and features()["batch"]
    assert not features()["MAP_DELETE_BATCH on ARRAY"]


def test_the_reason_names_the_kernel() -> None:
    for feature in features().values():
        if feature.supported is False:
            assert "needs Linux" in feature.reason or feature.reason == "no kernel has it", feature
            assert feature.reason in str(feature)


def test_probes_run_once() -> None:
    assert features() is features()


def test_without_capabilities_it_cannot_be_told() -> None:
    def check() -> None:
        drop_capabilities()
        forget()
        told = features()
        assert told["HASH"].supported is None
        assert "CAP_BPF is missing" in told["HASH"].reason
        assert "CAP_PERFMON is missing" in told["in-kernel"].reason
        assert missing_capabilities("CAP_BPF", "CAP_PERFMON") == ["CAP_BPF", "CAP_PERFMON"]

    in_child(check)



@pytest.mark.parametrize(("command", "kind", "since"), [
    (Command.MAP_LOOKUP_BATCH, MapType.LPM_TRIE, (5, 13)),
    (Command.MAP_LOOKUP_BATCH, MapType.HASH, (5, 6)),
    (Command.MAP_LOOKUP_AND_DELETE_ELEM, MapType.LRU_HASH, (5, 14)),
    (Command.MAP_DELETE_BATCH, MapType.ARRAY, None),
])
def test_smallest_kernels(
    command: Command, kind: MapType, since: tuple[int, int] | None
) -> None:
    assert smallest_kernel(command, kind) == since


@pytest.mark.needs("MMAPABLE")
def test_needs_lets_a_kernel_pass_that_has_it() -> None:
    assert running_kernel() >= MapFlag.MMAPABLE.since
    assert fastmap.features()["memory"]


def test_a_flag_of_a_later_kernel_is_said_to_be_one() -> None:
    for flag in (f for f in MapFlag if f.since > running_kernel()):  # none, on the latest
        major, minor = flag.since
        with pytest.raises(fastmap.NotSupported, match=f"{flag.name} needs Linux {major}.{minor}"):
            fastmap.create("hash", key="u4", value="u4", max_entries=1, flags=flag)


def test_all_flags_of_now_are_not_called_late() -> None:
    with pytest.raises(fastmap.BpfError) as caught:
        fastmap.create("hash", key="u4", value="u4", max_entries=1, flags=MapFlag.MMAPABLE)
    assert not isinstance(caught.value, fastmap.NotSupported)
    assert caught.value.errno == 22
