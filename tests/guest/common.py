"""What every part of the harness uses: cache folder, progress lines, commands that die with us."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = Path(__file__).with_name("launch.py")
STARTED = time.monotonic()


class HarnessError(Exception):
    """The harness cannot do what was asked; its text is for the user, one line where possible."""


def cache_folder() -> Path:
    """Return the folder that outlives a run: kernels, emulator, base images, last results."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "fastmap"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Give a fresh folder that becomes `target` at the end, and only if nothing failed.

    The rename makes a cache entry whole or absent, also when two runs build the same one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        yield folder
        with contextlib.suppress(OSError):  # another run was faster: its result is as good
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    """Print one progress line, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def guarded(command: Sequence[str | Path]) -> list[str]:
    """Return `command` wrapped so that it dies with this process."""
    return [sys.executable, "-IS", str(LAUNCH), str(os.getpid()), *map(str, command)]


def output_of(command: Sequence[str | Path], *, cwd: Path | None = None, **env: str) -> str:
    """Run a command and return what it printed; raise HarnessError with its last words."""
    done = subprocess.run(
        guarded(command),
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise HarnessError(f"{Path(command[0]).name} failed: {words[-1]}")
    return done.stdout


@contextlib.asynccontextmanager
async def process_group(
    arguments: Sequence[str], log: Path, *, cwd: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command in a process group of its own, and kill that group on the way out."""
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            *guarded(arguments),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # a terminal's Ctrl-C is for the harness, which ends this
        )
    try:
        yield process
    finally:
        if process.returncode is None:  # else its number may be another process's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def version_key(version: str) -> tuple[int, ...]:
    """Sort key of a version: its numbers (6.12.107-1 after 6.12.95-1~bpo12+1)."""
    return tuple(map(int, re.findall(r"\d+", version)))
