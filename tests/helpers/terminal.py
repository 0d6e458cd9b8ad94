"""The command line as a user has it: in a process of its own, in a pipe or on a terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

FASTMAP = (sys.executable, "-m", "fastmap")
#: What a process may take on a busy machine, in seconds.
PATIENCE = 60


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a user's shell: nothing that styles or unstyles."""
    kept = {name: value for name, value in os.environ.items()
            if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED")}
    return {**kept, "TERM": "xterm-256color", **more}


def piped(*arguments: str | int, **more: str) -> subprocess.CompletedProcess[str]:
    """Run fastmap with its output in pipes."""
    return subprocess.run([*FASTMAP, *map(str, arguments)], env=environment(**more), text=True,
                          capture_output=True, timeout=PATIENCE)


class Terminal:
    """fastmap on a pseudo-terminal, which sends Ctrl-C as one does.

    Parameters
    ----------
    arguments : str
    columns : int
    stdout : file, optional
        Where stdout goes instead; stderr stays on the terminal.
    """

    def __init__(self, *arguments: str | int, columns: int = 80, stdout: Any = None,
                 command: tuple[str, ...] = FASTMAP, **more: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)], stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave, env=environment(**more), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.said = ""
        # A read may end inside of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def _more(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # EIO: the last process on the terminal has gone
            return False
        self.said += self._decoder.decode(data)
        return bool(data)

    def until(self, test: Callable[[str], bool]) -> str:
        """Read until what was said passes a test; fail where it never does."""
        end = time.monotonic() + PATIENCE
        while not test(self.said):
            assert self._more(0.1) and time.monotonic() < end, self.said
        return self.said

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._master, b"\x03")

    def end(self) -> tuple[str, int]:
        """Wait for the end; return all that was said, lines ended by LF, and the status."""
        stop = time.monotonic() + PATIENCE
        while self._more(0.1) and (self.process.poll() is None or self._drained()):
            assert time.monotonic() < stop, self.said
        return self.said.replace("\r\n", "\n"), self.process.wait(PATIENCE)

    def _drained(self) -> bool:
        return bool(select.select([self._master], [], [], 0)[0])

    def close(self) -> None:
        """Kill what is still there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(*arguments: str | int, **options: Any) -> Iterator[Terminal]:
    """Run fastmap on a terminal meanwhile."""
    found = Terminal(*arguments, **options)
    try:
        yield found
    finally:
        found.close()


def on_terminal(*arguments: str | int, **options: Any) -> tuple[str, int]:
    """Run fastmap on a terminal; return what it said there, and its status."""
    with terminal(*arguments, **options) as found:
        return found.end()
