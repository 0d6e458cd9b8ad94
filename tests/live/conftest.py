"""A guest of tests/guest has no compiler: there, programs of fastmap.asm alone count."""

from __future__ import annotations

from support import EMULATED

collect_ignore = (["test_live_exact.py", "test_live_hooks.py", "test_live_table.py"]
                  if EMULATED else [])
