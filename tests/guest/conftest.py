"""Inside a guest there is no emulator: the harness itself is tested outside of it only."""

import os

collect_ignore_glob = ["test_*.py"] if os.environ.get("FASTMAP_GUEST") else []
