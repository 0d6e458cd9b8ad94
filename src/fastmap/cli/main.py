"""The command line: ``python -m fastmap``."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from fastmap.cli.shared.command import Command
from fastmap.cli.shared.output import Failure, Misuse, warn

FAILED, USAGE, INTERRUPTED = 1, 2, 130

#: The subcommands, each in a few words; `command` has the rest.
COMMANDS = {
    "list": "the maps of this machine",
    "show": "one map",
    "dump": "the entries of a map",
    "top": "the entries that grow fastest, live",
    "watch": "the records of a ring buffer, as they come",
    "doctor": "what works here, and how to fix the rest",
    "features": "what this kernel has",
    "include": "the folder of fastmap.bpf.h, for clang -I",
    "exporter": "serve maps to Prometheus",
    "demo": "this machine's system calls, live",
}


def command(name: str) -> Command:
    """Return a subcommand; only its own module is imported, which is what most of a start takes."""
    if name in ("list", "show"):
        from fastmap.cli import listing
        return listing.LIST if name == "list" else listing.SHOW
    if name == "dump":
        from fastmap.cli import dump
        return dump.DUMP
    if name == "top":
        from fastmap.cli import top
        return top.TOP
    if name == "watch":
        from fastmap.cli import watch
        return watch.WATCH
    if name == "doctor":
        from fastmap.cli import doctor
        return doctor.DOCTOR
    if name == "features":
        from fastmap.cli import features
        return features.FEATURES
    if name == "include":
        from fastmap.cli import include
        return include.INCLUDE
    if name == "exporter":
        from fastmap.cli import exporter
        return exporter.EXPORTER
    from fastmap.cli import demo
    return demo.DEMO


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line, complete for the `chosen` subcommand."""
    top = argparse.ArgumentParser(
        prog="fastmap", description="Linux BPF maps: list, read, watch them.",
        epilog="exit status: 0 done; 1 failed, with a line on stderr; 2 usage; 130 Ctrl-C")
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                  parser_class=_Subcommand)
    for name, short in COMMANDS.items():
        each = commands.add_parser(name, help=short, formatter_class=_Help)
        if name == chosen:
            found = command(name)
            each.description = found.description
            each.epilog = "examples:\n  " + "\n  ".join(found.examples)
            found.add(each)
            each.set_defaults(run=found.run)
    return top


class _Subcommand(argparse.ArgumentParser):
    """Says itself what it does not know: the usage that helps is its own, not the top's."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest


class _Version(argparse.Action):
    """Prints the version."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version, and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"fastmap {sys.modules['fastmap'].__version__}")
        parser.exit()


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves the examples as they are, and fills the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        status = _run(_started() if arguments is None else _parsed(arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _give_up()  # a pipe that nobody reads would keep us from ending
        return INTERRUPTED
    except BrokenPipeError:
        _give_up()  # whoever read our output has gone: nothing more to say, not even at exit
        return 0
    except OSError as error:  # of what was still to be written
        _give_up()
        return _failed(_said(error), FAILED)


def _give_up() -> None:
    """Have what is still to be written go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    # The command comes first: before it there is nothing but --help.
    return parser(next(iter(arguments), None)).parse_args(arguments)


def _started() -> argparse.Namespace:
    """Parse the arguments of this process, which is ours alone: imports leave no garbage.

    Looking for some while they run and once more at the end takes an eighth of a short command.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        # A terminal or a file of another encoding has names, too.
        getattr(sys, name).reconfigure(errors="backslashreplace")
    gc.disable()
    given = _parsed(sys.argv[1:])
    gc.freeze()
    gc.enable()
    return given


def _run(given: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = given.run(given)
            return status
    except BrokenPipeError:
        raise
    except Misuse as error:
        return _failed(error, USAGE)
    except OSError as error:
        return _failed(_said(error), FAILED)
    except (Failure, ValueError, TypeError, OverflowError, ImportError) as error:
        return _failed(error, FAILED)


def _said(error: OSError) -> str:
    """Return what an error of the system means, without its number."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename is not None else text


def _failed(error: object, status: int) -> int:
    sys.stdout.flush()
    warn(" ".join(str(error).split()))
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    warn(message)
