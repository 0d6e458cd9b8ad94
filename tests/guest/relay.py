"""Pass a guest's output to this terminal, and for a shell, this terminal's keys to the guest."""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator

LEAVE = b"\x1d"  # Ctrl-]


class Relay:
    """The other end of the port that a guest's command writes to."""

    def __init__(self, *, keyboard: bool) -> None:
        self._keyboard = keyboard
        self._finished = asyncio.Event()
        self.left = asyncio.Event()  # the user asked to leave

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        self._finished.clear()  # a guest may be started a second time
        if self._keyboard:
            loop.add_reader(0, self._keys, writer)
        try:
            while data := await reader.read(1 << 16):
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
        except ConnectionError:
            pass
        finally:
            if self._keyboard:
                loop.remove_reader(0)
            writer.close()
            self._finished.set()

    async def drained(self) -> None:
        """Wait until all output of a guest that has ended is passed on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._finished.wait(), 2.0)

    def _keys(self, writer: asyncio.StreamWriter) -> None:
        data = os.read(0, 4096)
        if LEAVE in data or not data:
            self.left.set()
        else:
            writer.write(data)


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Hand every key to the program as it is typed, and restore the terminal afterwards."""
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
