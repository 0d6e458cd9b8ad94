"""BPF tokens: what lets a process inside a user namespace use BPF."""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

from fastmap._core.system import syscall
from fastmap.enums import Command, running_kernel, version_text
from fastmap.errors import BpfError, NotSupported


class Token:
    """What a bpffs delegates to the processes of a user namespace.

    Parameters
    ----------
    path : path or int
        The root folder of a bpffs that belongs to this process's user namespace and delegates
        something, or a descriptor of it.

    Raises
    ------
    NotSupported
        The kernel is older than Linux 6.9, or this process is in no user namespace.
    PermissionDenied
        CAP_BPF within the namespace is missing, or the bpffs delegates nothing.

    Notes
    -----
    Linux 6.9. Such a bpffs is made by two processes. The one in the namespace calls fsopen(2)
    for "bpf", and sends the descriptor to one that has CAP_SYS_ADMIN outside; this sets
    ``delegate_cmds``, ``delegate_maps``, ``delegate_progs`` and ``delegate_attachs`` with
    fsconfig(2) (masks, or "any"), and creates the superblock; the first one mounts it with
    fsmount(2) and move_mount(2).

    Examples
    --------
    >>> with fastmap.Token("/sys/fs/bpf") as token:
    ...     m = fastmap.create("hash", key="u4", value="u8", max_entries=64, token=token)
    """

    def __init__(self, path: str | os.PathLike[str] | int) -> None:
        given = isinstance(path, int)
        folder = path if isinstance(path, int) else os.open(path, os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fd = syscall.token_create(folder)
        except BpfError as error:
            since = Command.TOKEN_CREATE.since
            if error.errno != errno.EINVAL or running_kernel() >= since:
                raise
            raise NotSupported(errno.EINVAL, f"BPF tokens need Linux {version_text(since)}; this "
                                             f"is {os.uname().release}") from None
        finally:
            if not given:
                os.close(folder)

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed."""
        return self._fd.closed

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the descriptor; maps made with the token stay."""
        self._fd.close()

    def __enter__(self) -> Self:
        self._fd.fileno()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fastmap.Token {'closed' if self.closed else f'fd {self.fileno()}'}>"
