"""Tell whether bpf(2) may be used here: status 0, or 1 with one line that says why not."""

import sys

import fastmap
from fastmap.kernel.capabilities import missing_capabilities


def main() -> int:
    """Try it: in a container the capabilities can be there, and bpf(2) forbidden all the same."""
    missing = missing_capabilities("CAP_BPF", "CAP_PERFMON")
    try:
        with fastmap.create("hash", key="u4", value="u4", max_entries=1):
            if not missing:
                return 0
            reason = f"{' and '.join(missing)} missing"
    except OSError as error:
        reason = f"{' and '.join(missing)} missing" if missing else str(error)
    print(f"fastmap: bpf(2) may not be used here ({reason}): an emulated Linux instead")
    return 1


if __name__ == "__main__":
    sys.exit(main())
