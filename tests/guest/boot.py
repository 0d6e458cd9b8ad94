"""Boot one guest, follow it until it has done its job, and leave nothing of it behind."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common import process_group
from .emulator import Emulator

COMMAND_LINE = (
    "console=ttyS0 loglevel=5",
    "panic=-1 oops=panic",  # with -no-reboot: a kernel that fails ends the emulator
    "mitigations=off nokaslr",  # half the price of a system call, and of the boot
    "rcupdate.rcu_expedited=1",  # freeing a map of maps waits for RCU: 10s of ms when emulated
    "init_on_alloc=0",  # Debian clears each page twice: dear when emulated
    "random.trust_cpu=on",
    "clocksource=tsc tsc=reliable lpj=10000000",  # no calibrating, CPU by CPU
)
# All features, apart from two that cost: a fifth level of page tables, and string instructions
# that tell kernel and libc to copy and clear memory byte by byte, as emulation then does.
CPU = "max,la57=off,erms=off,fsrm=off"
# A thread for each CPU of a guest pays where this machine has CPUs to spare; otherwise one thread
# for all of them costs a fifth less. A CPU that is unplugged must have had its own.
ONE_THREAD, MANY_THREADS = "tcg,thread=single", "tcg,thread=multi"
SPARE_CPUS = (os.cpu_count() or 1) > 2
BOOT_LIMIT = 300.0  # seconds; a busy machine has needed 80 instead of the usual 5
PREFIX = "fastmap-guest-"


@dataclass(frozen=True)
class Topology:
    """The CPUs of a guest."""

    name: str
    possible: int
    present: int
    offline: tuple[int, ...] = ()  # of the present ones
    started: int | None = None  # of the present ones; the others are offline from the start

    @property
    def at_boot(self) -> int:
        """How many CPUs the kernel starts."""
        return self.present if self.started is None else self.started


TOPOLOGIES = {
    topology.name: topology
    for topology in (
        Topology("2cpu", 2, 2),
        Topology("1cpu", 1, 1),
        Topology("8cpu", 8, 8),
        # possible 0-15, present 0-4, online 0-1,3-4: three different numbers, and a hole
        Topology("holes", 16, 5, (2,)),
    )
}


def topology_of(name: str) -> Topology:
    """Return one of the above, or for ``64possible`` so many CPUs, of which one is started."""
    number = name.removesuffix("possible")
    if name != number and number.isdecimal() and int(number):
        return Topology(name, int(number), int(number), started=1)
    return TOPOLOGIES[name]


@dataclass
class Outcome:
    """What a guest came to."""

    status: int | None = None  # of its command; None if the guest did not get that far
    error: str | None = None  # why not
    cpus: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tainted: int = 0
    console: str = ""
    boot: float = 0.0  # seconds until its init ran
    work: float = 0.0  # seconds from there to the end

    @property
    def booted(self) -> bool:
        return bool(self.cpus)


@dataclass
class Machine:
    """All that is needed to start a guest."""

    emulator: Emulator
    kernel: Path
    topology: Topology
    memory: int  # MiB
    write_image: Callable[[Path], None]
    output: str = "console"  # where its command writes: "console", "pipe" or "terminal"
    accelerator: str | None = None
    echo: bool = False  # show the console while it is written


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Give a folder for one guest, with a short path (sockets are in it), and remove it."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{PREFIX}*"):  # of harnesses that were killed
        owner = old.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        yield Path(folder)


def _arguments(machine: Machine, folder: Path) -> list[str]:
    """Return the emulator's command line."""
    device = "virtconsole" if machine.output == "terminal" else "virtserialport"
    unplugs = machine.topology.possible > machine.topology.present
    emulation = MANY_THREADS if SPARE_CPUS or unplugs else ONE_THREAD
    arguments = [
        *machine.emulator.command(),
        *("-machine", "q35", "-cpu", CPU, "-accel", machine.accelerator or emulation),
        *("-smp", str(machine.topology.possible), "-m", str(machine.memory)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(machine.kernel), "-initrd", str(folder / "initramfs")),
        # The CPUs that shall not be present are not started; init.py has them ejected.
        *("-append", " ".join([*COMMAND_LINE, f"maxcpus={machine.topology.at_boot}"])),
        *("-serial", f"file:{folder / 'console'}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=control,path={folder / 'control'}"),
        *("-device", "virtserialport,chardev=control,name=fastmap.control,nr=2"),
    ]
    if machine.output != "console":
        arguments += ["-chardev", f"socket,id=output,path={folder / 'output'}"]
        # Port 0 is kept for consoles: a second one must not make a console of the other kind.
        named = ",name=fastmap.output,nr=1" if device == "virtserialport" else ",nr=0"
        arguments += ["-device", f"{device},chardev=output{named}"]
    return arguments


class Guest:
    """One boot of a machine."""

    def __init__(self, machine: Machine, *, on_up: Callable[[Outcome], None]) -> None:
        self._machine = machine
        self._on_up = on_up
        self._up = asyncio.Event()
        self._done = asyncio.Event()
        self.outcome = Outcome()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the guest's messages (see init.py) until it hangs up."""
        try:
            while line := await reader.readline():
                message: dict[str, Any] = json.loads(line)
                data = await reader.readexactly(message["size"])
                if message["kind"] == "up":
                    self.outcome.cpus = message["cpus"]
                    self._up.set()
                elif message["kind"] == "file":
                    self.outcome.files[message["name"]] = data
                elif message["kind"] == "exit":
                    self.outcome.status = message["status"]
                    self.outcome.tainted = message["tainted"]
                    self._done.set()
        except (asyncio.IncompleteReadError, ValueError):
            pass  # cut off in the middle: the end of the emulator tells the rest
        finally:
            writer.close()

    async def run(self, limit: float, relay: "Callable[..., Any] | None" = None) -> Outcome:
        """Boot, wait for the end of the job, `limit` seconds at most, and clean up."""
        outcome = self.outcome
        with workspace() as folder:
            self._machine.write_image(folder / "initramfs")
            async with contextlib.AsyncExitStack() as stack:
                servers = [await asyncio.start_unix_server(self._listen, folder / "control")]
                if relay is not None:
                    servers.append(await asyncio.start_unix_server(relay, folder / "output"))
                for server in servers:
                    stack.callback(server.close)
                process = await stack.enter_async_context(
                    process_group(_arguments(self._machine, folder), folder / "emulator")
                )
                started = time.monotonic()
                ended = asyncio.create_task(process.wait())
                tasks = [ended]
                if self._machine.echo:
                    tasks.append(asyncio.create_task(_echo(folder / "console")))
                try:
                    await self._follow(ended, folder, limit, started)
                finally:
                    for task in tasks:
                        task.cancel()
                    outcome.console = _text(folder / "console")
            if outcome.status is None and outcome.error is None:
                words = _text(folder / "emulator").strip().splitlines()
                where = "with its job unfinished" if outcome.booted else "before it was up"
                outcome.error = f"the guest ended {where}" + (f": {words[-1]}" if words else "")
        return outcome

    async def _follow(
        self, ended: "asyncio.Task[int]", folder: Path, limit: float, started: float
    ) -> None:
        """Wait for the phases of the guest, each with its limit."""
        outcome = self.outcome
        if not await _first(self._up, ended, BOOT_LIMIT):
            if not ended.done():
                outcome.error = f"not up after {BOOT_LIMIT:.0f} s"
            return
        outcome.boot = time.monotonic() - started
        # The emulator has read it; a harness that is killed now leaves little behind.
        (folder / "initramfs").unlink()
        self._on_up(outcome)
        if not await _first(self._done, ended, limit) and not ended.done():
            outcome.error = f"hung: ended after {limit:.0f} s"
        outcome.work = time.monotonic() - started - outcome.boot
        if outcome.status is not None:
            # It reboots by itself, which ends the emulator and flushes what was printed last.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), 5.0)


async def _first(event: asyncio.Event, ended: "asyncio.Task[int]", limit: float) -> bool:
    """Wait for an event, the end of the emulator, or a time limit; tell if it was the event."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, ended}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not event.is_set():
            await asyncio.sleep(0.05)  # its last words may still be on the way
        return event.is_set()
    finally:
        waiting.cancel()


async def _echo(console: Path) -> int:
    """Print what is added to a console, for ever."""
    shown = 0
    while True:
        await asyncio.sleep(0.2)
        text = _text(console)
        print(text[shown:], end="", flush=True)
        shown = len(text)


def _text(path: Path) -> str:
    """Return what a console has recorded."""
    if not path.exists():
        return ""
    return path.read_text(errors="replace").replace("\r", "")


async def boot(
    machine: Machine, limit: float, *, on_up: Callable[[Outcome], None], relay: Any = None
) -> Outcome:
    """Run a guest; a kernel that dies before our own code runs is given one more chance.

    That is for emulators with bugs: no line of the project has run by then.
    """
    outcome = await Guest(machine, on_up=on_up).run(limit, relay)
    if not outcome.booted:
        first = outcome
        outcome = await Guest(machine, on_up=on_up).run(limit, relay)
        if not outcome.booted:
            outcome = dataclasses.replace(outcome, error=f"{first.error}; again: {outcome.error}")
    return outcome
