"""Replace this process by a command that the kernel kills as soon as the harness is gone.

Run as ``python -IS launch.py PARENT COMMAND...``. A program of its own, rather than a
``preexec_fn``, because code between fork and exec must not meet the threads of the parent.
The setting survives execve, and covers what no handler can: a harness that got SIGKILL.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before prctl: nobody would ever end the command
        sys.exit("the harness is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
