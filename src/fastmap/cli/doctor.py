"""``fastmap doctor``."""

from __future__ import annotations

import argparse

from fastmap.cli.shared.checks import findings
from fastmap.cli.shared.command import Command, add_json
from fastmap.cli.shared.output import BOLD, GREEN, RED, YELLOW, as_json, styled

_WORDS = {"ok": ("ok", GREEN), "note": ("note", YELLOW), "missing": ("missing", RED),
          "essential": ("MISSING", RED)}


def _run(given: argparse.Namespace) -> int:
    found = list(findings())
    broken = any(each.state == "essential" for each in found)
    if given.json:
        as_json([each.as_dict() for each in found])
        return int(broken)
    longest = max(len(each.what) for each in found)
    for each in found:
        word, style = _WORDS[each.state]
        print(f"{styled(f'{word:<7}', style)}  {each.what:<{longest}}  {each.text}")
        if each.fix:
            print(f"{'':<7}  {'':<{longest}}  fix: {styled(each.fix, BOLD)}")
    print()
    count = sum(each.state == "missing" for each in found)
    if broken:
        print("Without what is MISSING nothing works.")
    else:
        print("Everything works." if not count else
              f"fastmap works; {count} thing{'s do' if count > 1 else ' does'} not.")
    return int(broken)


DOCTOR = Command(
    "Look at the kernel, the capabilities, sysctls and file systems; say what works, what does "
    "not, and the command that fixes it. The exit status is 1 where something is missing that "
    "nothing works without.",
    ("fastmap doctor", "fastmap doctor --json"), add_json, _run)
