"""The capabilities that BPF asks for, and which of them this process lacks."""

from pathlib import Path

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


def missing_capabilities(*needed: str) -> list[str]:
    """Return which of the capabilities `needed` this process lacks; CAP_SYS_ADMIN stands for all.

    >>> missing_capabilities("CAP_BPF")  # as root
    []
    """
    status = Path("/proc/self/status").read_text()
    mask = int(status.split("CapEff:", 1)[1].split(None, 1)[0], 16)
    if mask >> CAPABILITIES["CAP_SYS_ADMIN"] & 1:
        return []
    return [name for name in needed if not mask >> CAPABILITIES[name] & 1]
