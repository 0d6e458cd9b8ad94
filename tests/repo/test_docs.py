"""The pages of docs/ are true: their examples run, and the guide does, command by command.

``>>>`` examples are doctests. Of the guide, `sh` blocks are run as well, in the order of the page;
`console` blocks are not. The table of capabilities is tried line by line.
"""

from __future__ import annotations

import contextlib
import ctypes
import doctest
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from codeop import compile_command
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tools
from privileges import keep_only
from support import in_child, mounted
from tools import free_port

import fastmap
from fastmap.asm import R0, Assembler
from fastmap.cli.main import main
from fastmap.kernel.capabilities import CAPABILITIES

pytestmark = pytest.mark.native("no libraries of the extras in the emulated kernels")

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "guide.md"
PAGES = sorted(DOCS.glob("*.md"))
#: Modules whose docstrings' examples run by themselves.
EXAMPLES = ("kernel.capabilities", "maptypes.queues", "maptypes.rings", "maptypes.trie",
            "text.decoders")
OPTIONS = doctest.ELLIPSIS
#: What a command of the guide may take until it answers; a reader takes longer to type the next.
PATIENCE = 30


def ran(text: str, page: Path, names: dict[str, Any]) -> int:
    """Run the examples in `text`, which see and define `names`; return how many there were."""
    test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)
    names |= test.globs
    test.globs = names
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)
    return runner.tries


# ---- the pages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != GUIDE and ">>>" in page.read_text()],
    ids=lambda page: page.stem)
def test_the_examples_of_a_page(page: Path, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert ran(page.read_text(), page, names) > 3


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_docstrings(module: str) -> None:
    failed, tried = doctest.testmod(import_module(f"fastmap.{module}"), optionflags=OPTIONS,
                                    extraglobs={"fastmap": fastmap, "np": np})
    assert tried and not failed


def test_each_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    toctrees = " ".join(re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL)).split()
    assert {page.stem for page in PAGES} - {"index"} <= set(toctrees)


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "api.md").read_text()
    documented = set(re.findall(r"(?:auto\w+|py:data):: fastmap\.(\w+)", text))
    inherited = {name for name, at in vars(import_module("fastmap.errors")).items()
                 if isinstance(at, type)}  # by automodule
    constants = {"ANY", "EXIST", "NOEXIST"}  # members of UpdateFlag
    assert set(fastmap.__all__) - constants - inherited <= documented


def test_the_ten_lines_of_top_talkers(make: Callable[..., Any],
                                 capsys: pytest.CaptureFixture[str]) -> None:
    """It is run as it stands there, over a map like that of README's ten lines."""
    text = (DOCS / "collect.md").read_text()
    code = text.partition("\n## Top talkers, in ten lines\n")[2].partition("```python\n")[
        2].partition("```")[0]
    name = f"flows{os.getpid()}"  # a "flows" could be another's
    flows = make("percpu_hash", key=[("saddr", "u4"), ("dport", "u4")], max_entries=64,
                 value=[("packets", "u8"), ("bytes", "u8")], name=name)
    before, after = code.replace('"flows"', f'"{name}"').split("batch =")
    names: dict[str, Any] = {}
    exec(before, names)
    flows[1, 443] = (1, 1500)
    exec(f"batch ={after}", names)
    assert capsys.readouterr().out.startswith("443 ")


# ---- pasted ------------------------------------------------------------------------------------


def pasted(block: str) -> str:
    """Return what a reader copies of a block: of one with prompts, the code alone."""
    if not block.startswith(">>> "):
        return block
    return "".join(re.sub(r"^(>>> |\.\.\. ?)", "", line) for line in block.splitlines(True)
                   if line.startswith((">>> ", "...")))


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))],
                         ids=lambda page: page.stem)
def test_blocks_can_be_pasted(page: Path) -> None:
    """Line by line, as a terminal gets them: statements of several lines end with an empty one."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        lines: list[str] = []
        for line in [*pasted(block).splitlines(), ""]:
            lines.append(line)
            if compile_command("\n".join(lines), symbol="single") is not None:
                lines = []
        assert not any(lines), f"not complete when pasted: {lines}"


# ---- the guide ---------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    """One at a time on a machine: the guide finds its maps by their names."""
    with (Path(tempfile.gettempdir()) / "fastmap-guide.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def shell(folder: Path) -> Iterator[Callable[[str], str]]:
    """Return what runs commands in `folder`, and returns what they say; jobs end with the block.

    It waits until they say something and succeed: a server takes a moment to be there.
    """
    groups = []

    def run(script: str) -> str:
        end = time.monotonic() + PATIENCE
        background = script.rstrip().endswith("&")
        while True:
            with (folder / "said").open("w+b") as said:
                job = subprocess.Popen(["bash", "-eo", "pipefail", "-c", script], cwd=folder,
                                       stdout=said, stderr=said, start_new_session=True)
                groups.append(job.pid)
                status = job.wait(PATIENCE)
                while background and not said.seek(0, os.SEEK_END) and time.monotonic() < end:
                    time.sleep(0.05)
                said.seek(0)
                text = said.read().decode()
            if (status == 0 and text) or background or time.monotonic() > end:
                break
            time.sleep(0.2)
        assert status == 0 and text, f"{script}\nended with {status}: {text}"
        if background:
            (folder / "said").unlink()  # it writes on
        return text

    try:
        yield run
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while groups and time.monotonic() < end:
            try:
                os.killpg(groups[-1], 0)
            except ProcessLookupError:
                groups.pop()
            else:
                time.sleep(0.02)
        assert not groups, "a job of the guide does not end"


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_the_guide_word_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it tells to type, from the second command on; ports and Prometheus are ours."""
    text = GUIDE.read_text()
    for port in ("9435", "9091"):
        assert f"127.0.0.1:{port}" in text
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv(
        "PATH", f"{tools.unpacked('prometheus')}/usr/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "docs").symlink_to(DOCS)
    names: dict[str, Any] = {}
    answers = []
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    with shell(tmp_path) as run:
        for kind, block in blocks:
            if kind == "sh":
                answers.append(run(block))
            else:
                assert ran(block, GUIDE, names)
        names["calls"].close()
        for each in ("delta", "gaps"):
            del names[each]
        names.clear()
    assert len(blocks) > 10
    # What Prometheus says comes from the maps.
    assert re.search(r'{process="\w+', answers[-1]) and "=> " in answers[-1]


# ---- the page about privileges -----------------------------------------------------------------

PRIVILEGES = DOCS / "privileges.md"
U4 = {"key": "u4", "value": "u4", "max_entries": 16}


def nothing() -> Any:
    a = Assembler()
    a.mov(R0, 0)
    a.exit()
    return a.assemble()


class Deeds:
    """What the table's lines are about: a method for each, in the order of the lines."""

    def __init__(self, make: Callable[..., Any], folder: Path) -> None:
        self.folder = folder
        self.map = make("hash", **U4, pin=folder / "map", name="privileges")
        self.perf = make("perf_event_array", max_entries=len(fastmap.possible_cpus()))
        self.ring = make("ringbuf", max_entries=4096, record="u8")
        self.array = make("array", value="u8", max_entries=4, flags=fastmap.MapFlag.MMAPABLE)
        self.sums = make("percpu_hash", **U4)
        self.trie = make("lpm_trie", key="ipv4", value="u4", max_entries=4)
        self.queue = make("queue", value="u8", max_entries=4)

    def use(self) -> None:
        with fastmap.open(fd=self.map.fileno(), key="u4", value="u4") as m:
            m[1] = 2
            assert m[1] == 2 and m.update_many([3, 4], [5, 6]) == 2
            assert len(m.snapshot()) == len(m.drain()) == 3
        assert len(self.ring.read(timeout=0)) == 0
        self.array.memory(writable=True)[1] = 5
        assert self.array[1] == 5

    def open_pin(self) -> None:
        fastmap.open(self.folder / "map", key="u4", value="u4").close()

    def pin(self) -> None:
        self.map.pin(self.folder / "other")
        self.map.unpin(self.folder / "other")

    def create(self) -> None:
        for kind in ("hash", "lru_percpu_hash"):
            fastmap.create(kind, **U4).close()
        fastmap.create("ringbuf", max_entries=4096).close()

    def create_network(self) -> None:
        for kind in ("devmap", "sockmap", "xskmap"):
            fastmap.create(kind, max_entries=1).close()

    def open_other(self) -> None:
        fastmap.open(id=self.map.id, key="u4", value="u4").close()
        fastmap.open(name="privileges", key="u4", value="u4").close()

    def walk(self) -> None:
        next(fastmap.maps())
        next(fastmap.programs())

    def read_btf(self) -> None:
        fastmap.open(self.folder / "map", btf="require").close()

    def read_vmlinux(self) -> None:
        fastmap.btf_dtype("tcphdr", "vmlinux")

    def load_plain(self) -> None:
        self.map.lookup_many([1, 2], via="kernel")
        self.map.increment_many([1, 2], [3, 4])
        self.map.snapshot(exact=False, via="kernel")
        self.array.lookup_many([1, 2], via="kernel")

    def load_more(self) -> None:
        self.trie.lookup_many(["10.0.0.1"], via="kernel")
        self.queue.push_many([1, 2], via="kernel")
        self.sums.snapshot(reduce="sum", exact=False, via="kernel")

    def run(self) -> None:
        self.sums.lookup_many([1, 2], via="kernel")

    def trace(self) -> None:
        with fastmap.Program("raw_tracepoint", nothing()) as program:
            program.attach_raw_tracepoint("sys_enter").close()

    def xdp(self) -> None:
        fastmap.Program("xdp", nothing()).close()

    def perf_buffer(self) -> None:
        fastmap.PerfBuffer(self.perf).close()

    def mount(self) -> None:
        where = self.folder.parent / "another"
        where.mkdir(exist_ok=True)
        fastmap.bpffs(where).unmount()


DEEDS = [name for name in vars(Deeds) if not name.startswith("_")]
LINES = re.findall(r"^\| (.*) \| (nothing|CAP_[A-Z_, ]+) \|$", PRIVILEGES.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("deed", "takes"), [(deed, takes) for deed, (_, takes) in zip(DEEDS, LINES, strict=True)],
    ids=[what[:40] for what, _ in LINES])
def test_what_takes_which_capability(make: Callable[..., Any], bpffs: Path, deed: str,
                                     takes: str) -> None:
    """It works with exactly what the line names, and not without any one of it."""
    named = [] if takes == "nothing" else [CAPABILITIES[name] for name in takes.split(", ")]
    deeds = Deeds(make, bpffs)

    def with_only(capabilities: list[int]) -> None:
        def task() -> None:
            deeds.sums.prepare()  # a child has programs of its own
            keep_only(*capabilities)
            getattr(deeds, deed)()

        in_child(task)

    with_only(named)
    for left_out in named:
        others = [c for c in CAPABILITIES.values()
                  if c != left_out and c != CAPABILITIES["CAP_SYS_ADMIN"]]

        def refused(others: list[int] = others) -> None:
            keep_only(*others)
            # NotSupported: of two programs that could serve, neither may be loaded.
            with pytest.raises((fastmap.PermissionDenied, fastmap.NotSupported)):
                getattr(deeds, deed)()

        in_child(refused)


def test_prepared_then_dropped() -> None:
    """The page's program, as it stands there."""
    code = PRIVILEGES.read_text().partition("```python\nimport os\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", f"import os\n{code}"], text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "needs CAP_SYS_ADMIN" in done.stdout


def test_a_reader_of_a_pin_needs_no_capability(make: Callable[..., Any], bpffs: Path) -> None:
    """The command of the page, by a user who may read the pin and nothing else."""
    m = make("hash", key="u4", value=[("packets", "u8"), ("bytes", "u8")], max_entries=4,
             pin=bpffs / "flows")
    m[7] = (3, 4500)
    bpffs.chmod(0o711)
    (bpffs / "flows").chmod(0o644)
    command = re.search(r"^fastmap (dump .*)$", PRIVILEGES.read_text(), re.MULTILINE)
    assert command is not None
    arguments = shlex.split(command[1].replace("/sys/fs", str(bpffs.parent)).replace(
        f"{bpffs.parent}/bpf/", f"{bpffs}/"))

    def task() -> None:
        keep_only()
        assert main(arguments) == 0
        with pytest.raises(fastmap.PermissionDenied):
            fastmap.open(name="flows")

    in_child(task)


def test_a_bpffs_that_is_mounted_read_only(make: Callable[..., Any], bpffs: Path,
                                           tmp_path: Path) -> None:
    """As in a container: nothing can be pinned; maps open, and are written to."""
    make("hash", **U4, pin=bpffs / "map")
    libc = ctypes.CDLL(None, use_errno=True)
    with mounted("tmpfs", tmp_path / "container") as where:
        bind, read_only = 4096, 4096 | 32 | 1  # MS_BIND, with MS_REMOUNT and MS_RDONLY
        assert libc.mount(os.fsencode(bpffs), os.fsencode(where), None, bind, None) == 0
        try:
            assert libc.mount(None, os.fsencode(where), None, read_only, None) == 0
            with fastmap.open(where / "map") as m:
                m[1] = 2
                with pytest.raises(OSError, match="Read-only"):
                    m.pin(where / "other")
        finally:
            assert libc.umount2(os.fsencode(where), 2) == 0
