"""The harness itself, with an emulator that is a script: nothing is booted or fetched here."""

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import boot, emulator, image, kernels, report
from .common import REPOSITORY, HarnessError, building, version_key
from .compiled import compiled_forms
from .cpio import Archive
from .debian import Apt

# Plays qemu: finds the control socket among its arguments and behaves as the environment says.
FAKE = """\
import json, os, socket, subprocess, sys, time
if "--version" in sys.argv:
    sys.exit(print("QEMU emulator version 10.0.2"))
behaviour, folder = os.environ["FAKE"], os.environ["FAKE_FOLDER"]
with open(f"{folder}/starts", "a") as starts:
    starts.write(f"{os.getpid()}\\n")
if behaviour == "dies":
    sys.exit("cannot set up guest memory")
option = lambda start: next(a[len(start):] for a in sys.argv if a.startswith(start))
with open(option("file:"), "w") as console:
    console.write("a line of the console\\r\\n")
if behaviour == "mute":
    child = subprocess.Popen(["sleep", "600"])
    with open(f"{folder}/child", "w") as file:
        file.write(str(child.pid))
    time.sleep(600)
control = socket.socket(socket.AF_UNIX)
control.connect(option("socket,id=control,path="))
def tell(kind, data=b"", **facts):
    control.sendall(json.dumps({"kind": kind, "size": len(data), **facts}).encode() + b"\\n" + data)
tell("up", cpus={"possible": "0-1"})
if behaviour == "hangs":
    time.sleep(600)
if behaviour == "panics":
    sys.exit(0)
tell("file", b"<x/>\\n\\0", name="junit.xml")
tell("exit", status=3, tainted=0)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> boot.Machine:
    """A machine whose emulator is the script above."""
    program = tmp_path / "qemu"
    program.write_text(f"#!{sys.executable}\n{FAKE}")
    program.chmod(0o755)
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    monkeypatch.setattr(boot, "BOOT_LIMIT", 1.0)
    return boot.Machine(
        emulator=emulator.Emulator(program, (), "10.0.2"),
        kernel=tmp_path / "vmlinuz",
        topology=boot.TOPOLOGIES["2cpu"],
        memory=512,
        write_image=lambda target: target.touch(),
    )


def started(folder: Path) -> list[int]:
    """Return the processes that the fake emulator has run in."""
    return [int(line) for line in (folder / "starts").read_text().split()]


def gone(pid: int) -> bool:
    """Tell whether a process has ended, within a few seconds."""
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # an orphan whose new parent has not looked yet
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("behaviour", "status", "error", "starts"),
    [
        ("works", 3, None, 1),
        ("hangs", None, "hung: ended after 1 s", 1),
        ("panics", None, "ended with its job unfinished", 1),
        ("dies", None, "before it was up: cannot set up guest memory; again:", 2),
        ("mute", None, "not up after 1 s; again: not up after 1 s", 2),
    ],
)
def test_the_ways_a_guest_ends(
    machine: boot.Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    behaviour: str,
    status: int | None,
    error: str | None,
    starts: int,
) -> None:
    monkeypatch.setenv("FAKE", behaviour)
    ups: list[boot.Outcome] = []
    outcome = asyncio.run(boot.boot(machine, 1.0, on_up=ups.append))
    assert outcome.status == status
    assert (error or "") in (outcome.error or "")
    assert len(ups) == (behaviour in ("works", "hangs", "panics"))
    assert outcome.console == ("" if behaviour == "dies" else "a line of the console\n")
    assert outcome.files == ({"junit.xml": b"<x/>\n\0"} if status == 3 else {})
    assert len(started(tmp_path)) == starts
    assert all(gone(pid) for pid in started(tmp_path))


DRIVER = """\
import asyncio, sys
from pathlib import Path
from tests.guest import boot, emulator, session
async def main():
    machine = boot.Machine(emulator.Emulator(Path(sys.argv[1]), (), ""), Path("k"),
                           boot.TOPOLOGIES["2cpu"], 1, lambda target: target.touch())
    async with session.ended_by_signals():
        await boot.boot(machine, 600, on_up=print)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process(
    machine: boot.Machine, tmp_path: Path, number: signal.Signals
) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    harness = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(machine.emulator.program)],
        cwd=REPOSITORY,
        env={**os.environ, "FAKE": "mute", "TMPDIR": str(temporary)},
        stderr=subprocess.DEVNULL,
    )
    child = tmp_path / "child"
    for _ in range(1000):
        if child.exists() and child.read_text():
            break
        time.sleep(0.01)
    (pid,) = started(tmp_path)
    harness.send_signal(number)
    assert harness.wait(10) != 0
    assert gone(pid)
    if number == signal.SIGKILL:  # nobody was left to end what the emulator itself had started
        os.kill(int(child.read_text()), signal.SIGKILL)
        assert list(temporary.iterdir())  # removed by the next run: see workspace()
    else:
        assert gone(int(child.read_text()))
        assert not list(temporary.iterdir())


def test_workspaces_of_killed_runs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{boot.PREFIX}4194305-x"  # larger than any process id
    left.mkdir()
    with boot.workspace() as folder:
        assert folder.is_dir() and not left.exists()
    assert not folder.exists()


def unpack(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Return ``{name: (mode, content)}`` of a cpio archive."""
    found, at = {}, 0
    while data[at : at + 6] == b"070701":
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) & ~3
        found[name] = (fields[1], data[at : at + fields[6]])
        at += (fields[6] + 3) & ~3
    assert data[at:].strip(b"\0") == b""
    return found


def test_an_archive_mirrors_files_and_the_links_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/program").write_bytes(b"odd")
    (tmp_path / "real/program").chmod(0o700)
    (tmp_path / "link").symlink_to("real/../real")
    (tmp_path / "real/alias").symlink_to(tmp_path / "link/program")
    with (tmp_path / "cpio").open("wb") as stream:
        archive = Archive(stream)
        archive.mirror(tmp_path / "link/alias")
        archive.character_device("/dev/console", 5, 1)
        archive.close()
    data = (tmp_path / "cpio").read_bytes()
    assert len(data) % 512 == 0
    found = unpack(data)
    inside = str(tmp_path).lstrip("/")
    assert found[f"{inside}/link"] == (stat.S_IFLNK | 0o777, b"real/../real")
    assert found[f"{inside}/real/alias"][1] == str(tmp_path / "link/program").encode()
    assert found[f"{inside}/real/program"] == (stat.S_IFREG | 0o755, b"odd")
    assert found["dev/console"][0] == stat.S_IFCHR | 0o600
    assert list(found)[-1] == "TRAILER!!!"
    assert all(str(Path(name).parent) in ("", ".", *found) for name in found)


def test_the_newest_unpacked_kernel_is_found(tmp_path: Path) -> None:
    assert kernels.find(tmp_path, "6.1") is None
    for version, release in (("6.1.176-1", "6.1.0-50-x"), ("6.1.9-1", "6.1.0-9-x")):
        folder = tmp_path / "kernels/6.1" / version
        (folder / "boot").mkdir(parents=True)
        (folder / f"boot/vmlinuz-{release}").touch()
        (folder / "lib/modules" / release).mkdir(parents=True)
    kernel = kernels.find(tmp_path, "6.1")
    assert kernel is not None and kernel.release == "6.1.0-50-x"
    assert version_key("6.12.107-1") > version_key("6.12.95-1~bpo12+1")


def test_a_kernel_beside_its_modules_is_found(tmp_path: Path) -> None:
    modules = tmp_path / "kernels/7.3/7.3.4-1/usr/lib/modules/7.3.4-x"
    modules.mkdir(parents=True)
    assert kernels.find(tmp_path, "7.3") is None
    (modules / "vmlinuz").touch()
    found = kernels.Kernel("7.3", "7.3.4-x", modules / "vmlinuz", modules)
    assert kernels.find(tmp_path, "7.3") == found


def test_a_base_image_that_others_may_use_is_kept(tmp_path: Path) -> None:
    for number in range(image.BASES_KEPT + 2):
        (tmp_path / f"base-{number}").mkdir()
        os.utime(tmp_path / f"base-{number}", (number, number))
    os.utime(tmp_path / "base-1", (time.time() - 3600,) * 2)
    for number in range(2, image.BASES_KEPT + 2):
        os.utime(tmp_path / f"base-{number}")
    image._forget(tmp_path)
    assert sorted(path.name[5:] for path in tmp_path.iterdir()) == list("1234")


def test_all_parts_of_a_kernel_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {
        "linux-image-7.3.4-cloud-amd64": "7.3.4-1",
        "linux-binary-7.3.4-cloud-amd64": "7.3.4-1",
        "linux-modules-7.3.4-cloud-amd64": "7.3.4-1",
        "linux-image-7.3.3-cloud-amd64": "7.3.3-1",
        "linux-image-7.3.5-rt-cloud-amd64": "7.3.5-1",
    }
    unpacked: list[str] = []

    class Mirror(Apt):
        def update(self, *, force: bool = False) -> None:
            pass

        def candidates(self, prefix: str, pattern: str) -> dict[str, str]:
            return {name: there[name] for name in there if re.fullmatch(pattern, name)}

        def unpack(self, packages: list[str], target: Path) -> None:
            unpacked.extend(packages)
            modules = target / "usr/lib/modules/7.3.4-cloud-amd64"
            modules.mkdir(parents=True)
            (modules / "vmlinuz").touch()

    assert kernels.fetch(tmp_path, Mirror(tmp_path), "7.3").release == "7.3.4-cloud-amd64"
    assert unpacked == list(there)[:3]


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    folder = tmp_path / "kernel/drivers"
    folder.mkdir(parents=True)
    (folder / "virtio_console.ko").write_bytes(b"\0license=GPL\0depends=virtio,virtio-ring\0")
    (folder / "virtio.ko").write_bytes(b"\0depends=virtio_ring\0")
    (folder / "virtio-ring.ko").write_bytes(b"\0depends=\0")
    kernel = kernels.Kernel("6.1", "r", tmp_path, tmp_path)
    found = kernels.modules_in_order(kernel, ("virtio_console", "built_in"))
    assert [name for name, _ in found] == ["virtio_ring", "virtio", "virtio_console"]


JUNIT = b"""<testsuites><testsuite>
<testcase classname="tests.test_a" name="one"/>
<testcase classname="tests.test_a" name="two"><failure message="no"/></testcase>
<testcase classname="tests.test_a" name="three"><skipped message="needs Linux 7.0"/></testcase>
</testsuite></testsuites>"""


def test_results_are_counted_and_shown() -> None:
    result = report.Result("6.1.0", "holes", seconds=1.25)
    result.read(JUNIT, 1)
    assert (result.passed, result.failed, result.skipped, result.good) == (1, 1, 1, False)
    text = report.table([result])
    assert "failed: tests.test_a.two" in text and "skipped 1: needs Linux 7.0" in text


@pytest.mark.parametrize(
    ("junit", "status", "problem"),
    [
        (JUNIT, 0, "pytest ended with status 0"),
        (JUNIT, 3, "pytest ended with status 3"),
        (b"<testsuites/>", 5, "no test was selected"),
        (b"<testsu", 1, "unreadable"),
    ],
)
def test_a_result_that_cannot_be_trusted_is_a_failure(
    junit: bytes, status: int, problem: str
) -> None:
    result = report.Result("6.1.0", "2cpu")
    result.read(junit, status)
    assert not result.good and problem in (result.problem or "")


def test_a_cache_entry_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep/entry"
    with pytest.raises(HarnessError), building(target) as folder:
        (folder / "half").touch()
        raise HarnessError
    assert not target.exists() and not list(target.parent.iterdir())
    with building(target) as folder:
        (folder / "whole").touch()
    assert (target / "whole").exists()


def test_only_valid_compiled_files_are_taken(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    subprocess.run([sys.executable, "-m", "py_compile", str(source)], check=True)
    tag = sys.implementation.cache_tag
    ((found, place),) = compiled_forms(source, tag, tmp_path)
    assert found == place == tmp_path / f"__pycache__/module.{tag}.pyc"
    source.write_text("x = 22\n")
    assert not list(compiled_forms(source, tag, tmp_path))


def test_cpus_may_be_possible_without_running() -> None:
    shape = boot.topology_of("64possible")
    assert (shape.possible, shape.present, shape.at_boot) == (64, 64, 1)
    assert boot.topology_of("holes").at_boot == 5
    for name in ("0possible", "possible", "64"):
        with pytest.raises(KeyError):
            boot.topology_of(name)
