"""Process 1 of a guest: set up the system, run one command, send home what came of it.

It is copied to /init, runs with the base Python's standard library alone (``-IS``), and learns
from job.json what to do. What it has to say goes through a virtio port as JSON lines, each
followed by as many bytes as it announces; the serial console is for people.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import signal
import socket
import struct
import sys
import time
from typing import Any

GUEST = pathlib.Path("/guest")
MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
    ("debugfs", "/sys/kernel/debug"),
)  # no bpffs: the tests mount their own
CPUS = pathlib.Path("/sys/devices/system/cpu")
CONTROL, OUTPUT = "fastmap.control", "fastmap.output"
LINUX_REBOOT_CMD_RESTART = 0x01234567
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, where: str) -> None:
    """Mount a kernel file system, if this kernel has it."""
    with contextlib.suppress(OSError):
        os.makedirs(where, exist_ok=True)
        libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)


def load_modules() -> None:
    """Load the kernel modules that the harness sent, in their order."""
    for path in sorted((GUEST / "modules").glob("*.ko")):
        with path.open("rb") as stream:
            if libc.syscall(313, stream.fileno(), b"", 0):  # finit_module
                print(f"guest: {path.name}: {os.strerror(ctypes.get_errno())}")


def loopback_up() -> None:
    """Bring the interface lo up; an emulated Linux starts with it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def shape_cpus(present: int, offline: list[int]) -> None:
    """Unplug all CPUs but the first `present`, and take those of `offline` offline.

    Booting with all of them and unplugging some is what makes them possible, yet not present:
    CPUs that may be plugged in later are not counted by newer kernels (6.12.y since the end of
    2025), unless they know the hypervisor, which software emulation is not.
    """
    for device in pathlib.Path("/sys/bus/acpi/devices").glob("LNXCPU:*"):
        if int(device.name.partition(":")[2], 16) >= present:
            (device / "eject").write_text("1")
    for cpu in offline:
        (CPUS / f"cpu{cpu}/online").write_text("0")
    wanted = "0" if present == 1 else f"0-{present - 1}"
    for _ in range(1000):  # ejecting goes on behind our back
        if (CPUS / "present").read_text().strip() == wanted:
            return
        time.sleep(0.01)
    raise SystemExit(f"guest: CPUs {wanted} wanted, present are {(CPUS / 'present').read_text()}")


def port(name: str) -> str:
    """Return the device of a virtio port; a driver that was just loaded needs a moment."""
    for _ in range(500):
        for entry in pathlib.Path("/sys/class/virtio-ports").glob("*"):
            # A port appears before its name and its device node do.
            device = f"/dev/{entry.name}"
            with contextlib.suppress(FileNotFoundError):
                if (entry / "name").read_text().strip() == name and os.path.exists(device):
                    return device
        time.sleep(0.01)
    raise SystemExit(f"guest: no virtio port {name}")


class Home:
    """The line to the harness."""

    def __init__(self) -> None:
        self._line = os.open(port(CONTROL), os.O_WRONLY)

    def tell(self, kind: str, data: bytes = b"", **facts: Any) -> None:
        """Send one message."""
        head = json.dumps({"kind": kind, "size": len(data), **facts}).encode()
        rest = memoryview(head + b"\n" + data)
        while rest:
            rest = rest[os.write(self._line, rest) :]


def start(job: dict[str, Any]) -> int:
    """Start the job's command in a session of its own and return its process id."""
    terminal = {"console": "/dev/console", "terminal": "/dev/hvc0"}.get(job["output"])
    device = terminal or port(OUTPUT)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        output = os.open(device, os.O_RDWR)
        if job["output"] == "terminal":
            import termios

            fcntl.ioctl(output, termios.TIOCSWINSZ, struct.pack("4H", *job["window"], 0, 0))
            fcntl.ioctl(output, termios.TIOCSCTTY, 0)
            os.dup2(output, 0)
        else:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(job["folder"])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would keep that
        os.execvpe(job["command"][0], job["command"], job["environment"])
    except BaseException as error:
        os.write(2, f"guest: {job['command'][0]}: {error}\n".encode())
        os._exit(127)


def wait(pid: int) -> int:
    """Reap children, orphans too, until `pid` has ended; return its status as a shell would."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    """Do the job. An exception here ends process 1, hence the guest, with a traceback to see."""
    for kind, where in MOUNTS:
        mount(kind, where)
    if not os.path.isdir("/tmp"):  # else something of the host's /tmp is part of the image
        mount("tmpfs", "/tmp")
    os.chmod("/tmp", 0o1777)
    os.chmod("/dev/shm", 0o1777)
    with contextlib.suppress(OSError):
        os.symlink("/proc/self/fd", "/dev/fd")
    job = json.loads((GUEST / "job.json").read_text())
    load_modules()
    loopback_up()
    socket.sethostname(job["host"])
    shape_cpus(job["present"], job["offline"])
    home = Home()
    kinds = ("possible", "present", "online")
    home.tell("up", cpus={kind: (CPUS / kind).read_text().strip() for kind in kinds})
    status = wait(start(job))
    if job["output"] == "terminal":
        import termios

        termios.tcdrain(os.open("/dev/hvc0", os.O_RDWR))
    for name in job["files"]:
        if (path := pathlib.Path(name)).exists():
            home.tell("file", path.read_bytes(), name=path.name)
    tainted = int(pathlib.Path("/proc/sys/kernel/tainted").read_text())
    home.tell("exit", status=status, tainted=tainted)
    sys.stdout.flush()
    libc.reboot(LINUX_REBOOT_CMD_RESTART)


if __name__ == "__main__":
    main()
