"""``fastmap features``."""

from __future__ import annotations

import argparse

from fastmap.cli.shared.command import Command, add_json
from fastmap.cli.shared.output import BOLD, GREEN, RED, YELLOW, as_json, styled
from fastmap.enums import version_text
from fastmap.probes import Feature, features


def _run(given: argparse.Namespace) -> int:
    found = features()
    groups = {"map types": found.map_types, "commands": found.commands, "flags": found.flags,
              "ways": found.ways, "programs": found.programs}
    if given.json:
        as_json({group: {each.name: {"supported": each.supported, "reason": each.reason,
                                     "since": each.since and version_text(each.since)}
                         for each in members} for group, members in groups.items()})
        return 0
    for number, (group, members) in enumerate(groups.items()):
        if number:
            print()
        print(styled(group, BOLD))
        for each in members:
            print(f"  {_word(each)} {each.name}{f': {each.reason}' if each.reason else ''}")
    return 0


def _word(each: Feature) -> str:
    word, style = {True: ("yes", GREEN), False: ("no", RED), None: ("?", YELLOW)}[each.supported]
    return styled(f"{word:<3}", style)


FEATURES = Command(
    "Ask this kernel for each map type, command and flag: whether it has it, and why not.",
    ("fastmap features", "fastmap features --json | jq '.[\"map types\"].ARENA'"),
    add_json, _run)
