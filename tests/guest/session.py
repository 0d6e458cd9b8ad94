"""The guests of one call: what runs in them, and what becomes of the results."""

import argparse
import asyncio
import contextlib
import math
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from .boot import Machine, Outcome, boot, topology_of
from .common import REPOSITORY, HarnessError, process_group, say
from .emulator import Emulator
from .image import GUEST, Python, write
from .kernels import Kernel, modules_in_order
from .relay import Relay, raw_terminal
from .report import Result, table

RUNNING = "running"  # the kernel of this machine, which needs no guest
JUNIT = "/run/junit.xml"
PASSED_ON = ("FASTMAP_", "HYPOTHESIS_", "PYTEST_")  # of the environment
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "--color=no")
TRACE = ("-o", "faulthandler_timeout=300")  # seconds until a test that hangs shows where


class Session:
    """Everything that was prepared, and the two things that can be done with it."""

    def __init__(self, cache: Path, options: argparse.Namespace) -> None:
        self.cache = cache
        self.options = options
        self.kernels: dict[str, Kernel] = {}
        self.emulator: Emulator | None = None
        self.python: Python | None = None
        self.base: Path | None = None
        self.compiled: Path | None = None

    def _environment(self, kernel: Kernel, topology: str) -> dict[str, str]:
        """Return the environment of a command in a guest."""
        assert self.python is not None
        passed = {name: text for name, text in os.environ.items() if name.startswith(PASSED_ON)}
        folder = os.path.dirname(self.python.executable)
        return {
            **passed,
            "FASTMAP_GUEST": "1",
            "FASTMAP_GUEST_KERNEL": kernel.release,
            "FASTMAP_TOPOLOGY": topology,
            "PATH": f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            "COLUMNS": str(shutil.get_terminal_size((100, 24)).columns),
            # nothing of a guest is kept, so caches would be written for nobody
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": f"{GUEST}/hypothesis",
            # numpy starts a thread per CPU otherwise, and no test here does linear algebra
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _machine(self, kernel: Kernel, topology: str, command: list[str], output: str) -> Machine:
        assert self.emulator and self.python and self.base and self.compiled
        base, python, compiled = self.base, self.python, self.compiled
        shape = topology_of(topology)
        size = shutil.get_terminal_size((100, 24))
        job: dict[str, Any] = {
            "command": command,
            "environment": self._environment(kernel, topology),
            "folder": str(REPOSITORY),
            "host": f"linux-{kernel.series}",
            "present": shape.present,
            "offline": shape.offline,
            "output": output,
            "window": [size.lines, size.columns],
            "files": [JUNIT],
        }
        modules = modules_in_order(kernel)
        added = self.options.add

        def write_image(target: Path) -> None:
            write(target, base, python, compiled, modules, job, added)

        return Machine(
            emulator=self.emulator,
            kernel=kernel.image,
            topology=shape,
            memory=self.options.memory,
            write_image=write_image,
            output=output,
            accelerator=self.options.accel,
            echo=self.options.verbose and output == "console",
        )

    def _results(self, kernel: str, topology: str) -> Path:
        folder: Path = self.options.results or self.cache / "results"
        folder = folder / f"{kernel}-{topology}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def _in_guest(self, series: str, topology: str) -> Result:
        """Run the tests in one guest."""
        kernel = self.kernels[series]
        assert self.python is not None
        label = f"{series:<6}  {topology:<5}"
        result = Result(kernel.release, topology)
        options = [*PYTEST, *TRACE, f"--junitxml={JUNIT}", *self.options.arguments]
        command = [self.python.executable, *options]

        def up(outcome: Outcome) -> None:
            cpus = ", ".join(f"{kind} {text}" for kind, text in outcome.cpus.items())
            say(f"{label}  up after {outcome.boot:.1f} s; CPUs: {cpus}")

        machine = self._machine(kernel, topology, command, "console")
        try:
            outcome = await boot(machine, self.options.timeout, on_up=up)
        except OSError as error:  # no disk, no memory: the other guests go on
            outcome = Outcome(error=str(error))
        result.seconds = outcome.boot + outcome.work
        if outcome.error is not None:
            result.problem = outcome.error
        elif "junit.xml" not in outcome.files:
            result.problem = f"no junit result; pytest ended with status {outcome.status}"
        else:
            result.read(outcome.files["junit.xml"], outcome.status or 0)
        if outcome.tainted and result.problem is None:
            result.problem = f"the kernel complained (tainted {outcome.tainted:#x})"
        folder = self._results(series, topology)
        (folder / "console.log").write_text(outcome.console)
        (folder / "junit.xml").write_bytes(outcome.files.get("junit.xml", b""))
        say(f"{label}  tests {outcome.work:.1f} s: {result.summary()}")
        if not result.good and not self.options.verbose:
            print(f"--- console of {kernel.release}, {topology} ({folder}):", flush=True)
            print(outcome.console, "---", sep="\n", flush=True)
        return result

    async def _on_this_machine(self) -> Result:
        """Run the tests on the running kernel."""
        result = Result(platform.release(), RUNNING)
        folder = self._results(RUNNING, "host")
        junit, console = folder / "junit.xml", folder / "console.log"
        junit.unlink(missing_ok=True)
        started = time.monotonic()
        arguments = [*PYTEST, *TRACE, f"--junitxml={junit}", *self.options.arguments]
        command = [str(self.options.python), *arguments]
        status = -1
        async with process_group(command, console, cwd=REPOSITORY) as process:
            try:
                status = await asyncio.wait_for(process.wait(), self.options.timeout)
            except TimeoutError:
                result.problem = f"hung: ended after {self.options.timeout:.0f} s"
        result.seconds = time.monotonic() - started
        if result.problem is None and junit.exists():
            result.read(junit.read_bytes(), status)
        elif result.problem is None:
            result.problem = f"no junit result; pytest ended with status {status}"
        say(f"running host   tests {result.seconds:.1f} s: {result.summary()}")
        if not result.good:
            print(f"--- output on this machine ({folder}):")
            print(console.read_text(errors="replace"), "---", sep="\n", flush=True)
        return result

    async def tests(self) -> int:
        """Run the tests on every kernel with every topology and print the table."""
        turns = asyncio.Semaphore(self.options.jobs)

        async def one(series: str, topology: str) -> Result:
            async with turns:
                if series == RUNNING:
                    return await self._on_this_machine()
                return await self._in_guest(series, topology)

        async with ended_by_signals(), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(series, topology))
                for series in self.options.kernel
                for topology in (["host"] if series == RUNNING else self.options.topology)
            ]
        results = [task.result() for task in tasks]
        print(table(results), flush=True)
        return 0 if all(result.good for result in results) else 1

    async def command(self) -> int:
        """Run one command in a guest, its output on this terminal; return its status."""
        kernel = next(iter(self.kernels.values()), None)
        if kernel is None:
            raise HarnessError("a command of its own needs a guest: name a kernel such as 6.12")
        assert self.python is not None
        shell = self.options.command == "shell"
        if shell and not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise HarnessError("a shell needs a terminal; `run` does not")
        relay = Relay(keyboard=shell)
        machine = self._machine(
            kernel,
            self.options.topology[0],
            self.options.arguments or ["sh"],
            "terminal" if sys.stdout.isatty() else "pipe",
        )
        limit = math.inf if shell else self.options.timeout
        with contextlib.ExitStack() as stack:

            def up(outcome: Outcome) -> None:
                say(f"Linux {kernel.release} is up" + ("; Ctrl-] leaves it" if shell else ""))
                stack.enter_context(raw_terminal(shell))

            async with ended_by_signals():
                running = asyncio.create_task(boot(machine, limit, on_up=up, relay=relay))
                leaving = asyncio.create_task(relay.left.wait())
                await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not running.done():
                    running.cancel()
                    await asyncio.wait({running})
                    return 0
                leaving.cancel()
                await relay.drained()
        outcome = running.result()
        if outcome.error is not None or outcome.status is None:
            print(outcome.console, file=sys.stderr)
            raise HarnessError(f"Linux {kernel.release}: {outcome.error}")
        return outcome.status


@contextlib.asynccontextmanager
async def ended_by_signals() -> AsyncIterator[None]:
    """Let SIGTERM and SIGHUP cancel the work, as SIGINT does already: guests are then ended."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        say(f"ended by {number.name}")
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    yield
