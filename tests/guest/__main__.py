"""The command line: ``python -m tests.guest COMMAND [options] [-- ARGUMENTS]``.

  test     run pytest with ARGUMENTS in guests: kernels x topologies, a table at the end
  matrix   the same with all kernels, this machine's own among them, and all topologies
  run      run the command ARGUMENTS in a guest; its output and its status are passed on
  shell    the same with a terminal: ARGUMENTS, or sh; Ctrl-] leaves
  fetch    download what is missing, or with --refresh what is newer, and run nothing

Kernels are named by series (6.1); "running" is this machine's own, without a guest.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from . import emulator, image, kernels
from .boot import TOPOLOGIES, topology_of
from .common import REPOSITORY, HarnessError, cache_folder, say
from .debian import Apt
from .session import RUNNING, Session

COMMANDS = ("test", "matrix", "run", "shell", "fetch")
KNOWN = ", ".join([*TOPOLOGIES, "Npossible"])  # the last one: N CPUs, of which one is started


def names(text: str) -> list[str]:
    """Split an option's comma-separated value."""
    return [name for name in text.replace(" ", ",").split(",") if name]


def topologies(text: str) -> list[str]:
    """Split and check a list of topologies."""
    chosen = list(TOPOLOGIES) if text == "all" else names(text)
    for name in chosen:
        try:
            topology_of(name)
        except KeyError:
            raise argparse.ArgumentTypeError(f"{name} is not one of {KNOWN}, all") from None
    return chosen


def existing(text: str) -> Path:
    """Return an existing path, absolute."""
    path = Path(text).absolute()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return path


def default_python() -> Path:
    """Return the Python of the project's environment, or the one that runs this."""
    local = REPOSITORY / ".venv/bin/python"
    return local if local.exists() else Path(sys.executable)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; what follows ``--`` is left as it is."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    own, rest = arguments[:split], arguments[split + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m tests.guest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--kernel", type=names, metavar="SERIES,...", help=f"default: {','.join(kernels.SERIES)}")
    add("--topology", type=topologies, metavar="NAME,...", help=f"{KNOWN}, or all")
    add("--python", type=Path, default=default_python(), metavar="PATH", help="with fastmap in it")
    add("--package", action="append", default=[], metavar="NAME", help="one more for the guest")
    add("--add", type=existing, action="append", default=[], metavar="PATH", help="one more file")
    add("--timeout", type=float, default=3600, metavar="SECONDS", help="for one guest's work")
    add("--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="guests at once")
    add("--memory", type=int, default=2048, metavar="MIB", help="of each guest")
    add("--accel", help="qemu's accelerator (default: tcg, which is emulation)")
    add("--results", type=existing, metavar="FOLDER", help="for consoles and junit files")
    add("--verbose", "-v", action="store_true", help="show consoles while the guests run")
    add("--refresh", action="store_true", help="look for newer kernels")
    options = parser.parse_args(own)
    options.arguments = rest
    if options.command == "run" and not rest:
        parser.error("run needs a command after --")
    return options


def prepare(options: argparse.Namespace) -> Session:
    """Get everything that guests need: an emulator, kernels, a base image."""
    cache = cache_folder()
    apt = Apt(cache / "apt")
    session = Session(cache, options)
    if all(name == RUNNING for name in options.kernel):
        return session
    session.emulator = emulator.find(cache, apt)
    for series in options.kernel:
        if series != RUNNING:
            kernel = kernels.fetch(cache, apt, series, refresh=options.refresh)
            session.kernels[series] = kernel
    if options.command != "fetch":
        session.python = image.probe(options.python, options.package)
        session.base = image.base(cache, session.python)
        session.compiled = image.compiled(cache, session.python)
    return session


def terminated(*_: object) -> None:
    """Turn SIGTERM and SIGHUP into an exception, so that everything is cleaned up."""
    raise SystemExit(128 + signal.SIGTERM)


def main() -> int:
    options = parse(sys.argv[1:])
    one = options.command in ("run", "shell")
    everything = [*kernels.SERIES, RUNNING] if options.command == "matrix" else kernels.SERIES
    options.kernel = options.kernel or ([kernels.SERIES[-1]] if one else list(everything))
    every = list(TOPOLOGIES) if options.command == "matrix" else ["2cpu"]
    options.topology = options.topology or every
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminated)
    try:
        session = prepare(options)
        for kernel in session.kernels.values():
            say(f"kernel  {kernel.series}: {kernel.release}")
        if options.command == "fetch":
            return 0
        return asyncio.run(session.command() if one else session.tests())
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main())
