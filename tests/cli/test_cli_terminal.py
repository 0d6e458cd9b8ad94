"""The command line as a user has it: terminals, pipes, Ctrl-C, exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privileges import drop_capabilities
from support import in_child
from terminal import FASTMAP, environment, on_terminal, piped, terminal

import fastmap
from fastmap.cli.shared import checks, output
from fastmap.cli.shared.background import Behind
from fastmap.cli.shared.output import Column, cut, size_text
from fastmap.text.visible import visible

pytestmark = pytest.mark.native("each test starts processes, which take seconds when emulated")

ESCAPE = "\x1b["


@pytest.fixture
def named(make: Callable[..., Any]) -> Any:
    m = make("hash", key="u8", value=[("packets", "u8"), ("bytes", "u8"), ("comm", "S16")],
             max_entries=1024, name="tty_flows")
    keys = np.arange(300, dtype="u8")
    values = np.zeros(300, m.value_dtype)
    values["packets"], values["comm"] = keys, b"a_process_name"
    m.update_many(keys, values)
    return m


@pytest.mark.parametrize("arguments", [("list",), ("doctor",), ("features",)])
def test_colours_on_a_terminal_only(named: Any, arguments: tuple[str, ...]) -> None:
    shown, status = on_terminal(*arguments)
    assert ESCAPE in shown and status == 0
    done = piped(*arguments)
    assert ESCAPE not in done.stdout + done.stderr and done.returncode == 0
    assert ESCAPE not in on_terminal(*arguments, NO_COLOR="1")[0]


def test_lines_fit_the_terminal_and_pipes_have_all(named: Any) -> None:
    shown, status = on_terminal("dump", named.id, columns=40, NO_COLOR="1")
    lines = shown.splitlines()
    assert status == 0 and len(lines) == 301
    assert max(map(len, lines)) == 40 and lines[0].endswith("…")
    assert all(re.fullmatch(r" *\d+ +\d+ +0  a_proc…", line) for line in lines[1:])
    wide = piped("dump", named.id).stdout.splitlines()
    assert len(wide) == 301 and all(line.endswith("a_process_name") for line in wide[1:])
    assert wide[0].split() == ["key", "value.packets", "value.bytes", "value.comm"]


@pytest.mark.parametrize("form", [(), ("--csv",), ("--json",), ("--csv", "--as", "value=comm")])
def test_what_is_not_printable_does_nothing_to_a_terminal(
    make: Callable[..., Any], form: tuple[str, ...]
) -> None:
    """The name of a process may hold the sequences of a terminal, also those of one character."""
    m = make("array", value="S16", max_entries=1, name="tty_escape")
    m[0] = "\x1b]0;x\x07\x9b31m\n".encode()
    shown, status = on_terminal("dump", m.id, *form, NO_COLOR="1")
    assert status == 0 and "]0;x" in shown and "31m" in shown
    assert not re.search("[\x1b\x07\x9b]", shown)
    if "--json" in form:
        assert json.loads(shown)[0]["value"] == "\x1b]0;x\x07\x9b31m\n"
    elif form:
        assert "\x1b]0;x\x07" in piped("dump", m.id, *form).stdout


def test_an_error_does_nothing_to_a_terminal() -> None:
    done = piped("show", "\x1b]0;x\x07")
    assert done.returncode == 1 and "\x1b" not in done.stderr and "x1b]0;x" in done.stderr


def test_a_table_cuts_text_and_never_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [Column("key"), Column("value/s", True), Column("other/s", True), Column("pins")]
    rows = [["a_process_of_a_long_name", "384,213,777", "1", "/sys/fs/bpf/flows"]]

    def table(limit: int) -> list[str]:
        monkeypatch.setattr(output, "width", lambda: limit)
        return [re.sub(r" +", " ", line) for line in output.table_lines(columns, rows)]

    assert table(80)[1] == "a_process_of_a_long_name 384,213,777 1 /sys/fs/bpf/flows"
    assert table(60)[1] == "a_process_of_a_lon… 384,213,777 1 /sys/fs/bpf/flows"
    assert table(38)[1] == "a_proc… 384,213,777 1 /sys/f…"
    assert table(35) == ["key value/s other/s …", "a_process… 384,213,777 1 …"]
    assert table(24) == ["key value/s …", "a_proce… 384,213,777 …"]
    for limit in range(20, 80):
        assert all(len(line) <= limit for line in table(limit))
    # Behind the rows that settle the widths: what does not fit is left out.
    rows = [["a", "1", "2", "b"]] * 1000 + [["a", "9" * 20, "2", "b"]]
    assert table(30)[-1] == "a " + "9" * 20 + " …"


def test_a_histogram_fits_the_terminal(make: Callable[..., Any]) -> None:
    m = make("array", value="u8", max_entries=8, name="tty_lat")
    m[3] = 5
    shown, status = on_terminal("dump", m.id, "--histogram", columns=40)
    bare = re.sub(r"\x1b\[\d*m", "", shown)
    assert status == 0 and ESCAPE in shown and max(map(len, bare.splitlines())) <= 40


@pytest.mark.parametrize("size", [1, 300])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_pipe_that_closes_early_is_no_error(make: Callable[..., Any], form: tuple[str, ...],
                                              size: int) -> None:
    m = make("hash", key="u8", value="u8", max_entries=1 << 15, name="tty_pipe")
    keys = np.arange(1 << 15, dtype="u8")
    m.update_many(keys, keys)
    with subprocess.Popen([*FASTMAP, "dump", str(m.id), *form], env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(size)) == size
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_ctrl_c_while_it_waits(make: Callable[..., Any]) -> None:
    rb = make("ringbuf", max_entries=4096, name="tty_ring")
    with terminal("watch", rb.id) as process:
        process.until(lambda said: "takes the records" in said)
        time.sleep(0.2)
        process.interrupt()
        said, status = process.end()
    assert status == 130 and "Traceback" not in said
    assert said.replace("^C", "").count("\n") == 1


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ctrl_c_while_nobody_reads_the_pipe(make: Callable[..., Any],
                                            form: tuple[str, ...]) -> None:
    m = make("hash", key="u8", value="u8", max_entries=1 << 17, name="tty_stuck")
    keys = np.arange(1 << 17, dtype="u8")
    m.update_many(keys, keys)
    read, write = os.pipe()
    try:
        with terminal("dump", m.id, *form, stdout=write) as process:
            os.read(read, 1)
            time.sleep(0.5)  # the pipe is full, and stays so
            process.interrupt()
            said, status = process.end()
    finally:
        os.close(read), os.close(write)
    assert status == 130 and "Traceback" not in said and "Fatal" not in said


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_full_disk_is_one_line(named: Any, form: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*FASTMAP, "dump", str(named.id), *form], env=environment(),
                              stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "fastmap: No space left on device\n"


def test_no_stdout_and_other_encodings(make: Callable[..., Any]) -> None:
    m = make("hash", key="u4", value="S8", max_entries=2, name="tty_names")
    m[1] = "né".encode()
    done = subprocess.run(["sh", "-c", f"{' '.join(FASTMAP)} dump {m.id} >&-"],
                          env=environment(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    for encoding, text in (("latin-1", b"n\xe9"), ("ascii", b"n\\xe9"), ("utf-8", "né".encode())):
        done = subprocess.run([*FASTMAP, "dump", str(m.id)], capture_output=True,
                              env=environment(PYTHONIOENCODING=encoding))
        assert done.stdout.splitlines()[1].split() == [b"1", text]
    done = subprocess.run([*FASTMAP, "dump", str(m.id), "--json"], capture_output=True,
                          env=environment(PYTHONIOENCODING="latin-1"))
    assert json.loads(done.stdout.decode()) == [{"key": 1, "value": "né"}]


def test_progress_shows_beside_a_file_only(make: Callable[..., Any], tmp_path: Path) -> None:
    m = make("hash", key="u8", value="u8", max_entries=1 << 20, name="tty_long")
    keys = np.arange(1 << 20, dtype="u8")
    m.update_many(keys, keys)
    read, write = os.pipe()
    with terminal("dump", m.id, "--json", stdout=write) as process:
        os.close(write)
        text = os.read(read, 10)
        time.sleep(0.8)  # longer than work takes that shows no progress
        with open(read, "rb") as file:
            text += file.read()
        said, status = process.end()
    assert status == 0 and len(json.loads(text)) == 1 << 20
    assert "reading tty_long" in said
    done = piped("dump", m.id, "--json", "-o", str(tmp_path / "out"))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_exit_status_and_stderr(named: Any) -> None:
    done = piped("dump", "no_such_map")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fastmap: no map is named 'no_such_map'\n"
    done = piped("dump")
    assert done.returncode == 2 and done.stderr.startswith("usage: fastmap dump")
    done = piped("dump", "x", "--frob")
    assert done.returncode == 2 and done.stderr.startswith("usage: fastmap dump")
    assert "unrecognized arguments: --frob" in done.stderr
    done = piped("list", "--type", "quue")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fastmap: no such map type: quue; did you mean queue?\n"
    done = piped("list", "--type", "~")
    assert done.returncode == 2 and "one of hash, array" in done.stderr
    done = piped("show", f"id={named.id}")
    assert done.returncode == 2
    assert done.stderr == f"fastmap: id={named.id}: say id:{named.id}, or {named.id}\n"
    done = piped("--version")
    assert (done.returncode, done.stdout) == (0, f"fastmap {fastmap.__version__}\n")
    json.loads(piped("list", "--type", "HASH", "--json").stdout)


def test_unbuffered_python_writes_all_of_it(named: Any) -> None:
    done = piped("dump", named.id, "--json", PYTHONUNBUFFERED="1")
    assert len(json.loads(done.stdout)) == 300


def test_without_rich(named: Any) -> None:
    code = ("import sys; sys.modules['rich'] = None\n"
            "from fastmap.cli.main import main; sys.exit(main(sys.argv[1:]))")
    for arguments in (("list",), ("dump", str(named.id), "--limit", "2"), ("doctor",)):
        shown, status = on_terminal(*arguments, command=(sys.executable, "-c", code))
        assert status == 0 and "Traceback" not in shown and ESCAPE in shown


def test_the_console_script_is_the_same() -> None:
    script = Path(sys.executable).parent / "fastmap"
    done = subprocess.run([script, "features", "--json"], capture_output=True, env=environment())
    assert json.loads(done.stdout)["ways"]["element"]["supported"] is True


def test_only_what_a_subcommand_needs_is_imported(named: Any) -> None:
    """Nothing of the extras for a dump, whose start is most of what a small one takes."""
    code = ("import sys; from fastmap.cli.main import main; status = main(sys.argv[1:])\n"
            "print(sorted({'rich', 'pyarrow', 'asyncio', 'polars'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, "dump", str(named.id), "--limit", "1"],
                          capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- the doctor on machines that lack something -------------------------------------------------



def test_the_doctor_without_capabilities(capfd: pytest.CaptureFixture[str]) -> None:
    """What another user sees: what is missing, the command that fixes it, and status 1."""
    def look() -> None:
        from fastmap.cli.main import main

        drop_capabilities()
        assert main(["doctor"]) == 1

    in_child(look)
    said = capfd.readouterr().out
    assert re.search(r"MISSING +CAP_BPF", said) and re.search(r"MISSING +bpf\(2\) ", said)
    assert f"fix: sudo {sys.executable} -m fastmap doctor" in said and "nothing works" in said


@pytest.mark.parametrize(("path", "text", "what", "state"), [
    ("proc/sys/net/core/bpf_jit_enable", "0\n", checks.jit, "missing"),
    ("proc/sys/net/core/bpf_jit_enable", "1\n", checks.jit, "ok"),
    ("proc/sys/kernel/unprivileged_bpf_disabled", "0\n", checks.unprivileged, "note"),
    ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n", checks.unprivileged, "ok"),
    ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n", checks.lockdown,
     "missing"),
    ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", checks.lockdown, "ok"),
    ("sys/kernel/nothing", "", checks.types, "missing"),
    ("nothing", "", checks.types, "note"), ("nothing", "", checks.lockdown, "note"),
])
def test_findings(tmp_path: Path, path: str, text: str,
                  what: Callable[[checks.Machine], checks.Finding], state: str) -> None:
    place = tmp_path / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    found = what(checks.Machine(tmp_path))
    assert found.state == state
    assert bool(found.fix) == (state != "ok" and what is not checks.types
                                and "/sys" not in found.text)


# ---- the parts ----------------------------------------------------------------------------------


def test_work_behind_is_done_in_order_and_its_errors_come_back() -> None:
    done: list[int] = []
    with Behind(done.append) as behind:
        for number in range(50):
            behind.give(number)
    assert done == list(range(50))

    def fail(number: int) -> None:
        raise OSError(number, "no")

    with pytest.raises(OSError, match="no") as caught, Behind(fail) as failing:
        failing.give(7)
    assert caught.value.errno == 7
    with pytest.raises(OSError, match="no"), Behind(fail) as failing:
        for number in range(1, 9):
            failing.give(number)
            time.sleep(0.01)


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1048500, "1023.9 KiB"),
    (1048575, "1.0 MiB"), (5 << 40, "5.0 TiB"), (None, "?"),
])
def test_sizes(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_lines_and_names() -> None:
    assert cut("abcdef", 4) == "abc…" and cut("abcd", 4) == "abcd" and cut("abc", None) == "abc"
    assert visible("ok") == "ok" and visible("\x1b]0;x\x07") == r"\x1b]0;x\x07"




def test_the_doctor_in_a_user_namespace(tmp_path: Path) -> None:
    for path, text in (("uid_map", "0 1000 1\n"), ("status", "CapEff:\t000001ffffffffff\n")):
        file = tmp_path / "proc/self" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = {each.what: each for each in checks.capabilities(checks.Machine(tmp_path))}
    assert "token" in found["user namespace"].text
    assert {each.state for each in found.values()} == {"note"}, "capabilities there mean little"


def test_the_doctor_in_a_real_user_namespace() -> None:
    done = subprocess.run(["unshare", "-Ur", sys.executable, "-m", "fastmap", "doctor"], text=True,
                          capture_output=True, check=False)
    assert done.returncode == 1 and "this is a user namespace" in done.stdout, done


def test_the_doctor_under_a_filter(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    assert checks.Machine(tmp_path).filtered() and not checks.Machine(tmp_path / "x").filtered()
