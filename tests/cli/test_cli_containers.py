"""Containers from the command line, with a real daemon and a real runtime."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import busybox_image
import pytest

from orlop.client import connect

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]
Orlop = Any


def sh(orlop: Orlop, name: str, script: str, *options: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs a shell script in a container that goes when it ends."""
    done: subprocess.CompletedProcess[str] = orlop("run", "--rm", *options, "busybox", name, "sh", "-c", script, **how)
    return done


def test_a_container_prints_and_leaves_nothing(orlop: Orlop, name: str) -> None:
    done = sh(orlop, name, "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert orlop.is_gone(name)


@pytest.mark.parametrize("status", [1, 42, 255])
def test_the_status_of_the_process_is_that_of_the_command(orlop: Orlop, name: str, status: int) -> None:
    sh(orlop, name, f"exit {status}", status=status)


def test_piped_input_is_read_to_its_end_where_asked_for(orlop: Orlop, name: str) -> None:
    done = orlop("run", "--rm", "-i", "busybox", name, "wc", "-c", stdin=b"x" * 300_000)
    assert done.stdout.strip() == "300000"
    assert orlop("run", "--rm", "-i", "busybox", name, "cat", stdin=b"").stdout == ""
    assert orlop("run", "--rm", "busybox", name, "cat", stdin=b"not passed on").stdout == ""


def test_large_output_arrives_whole(orlop: Orlop, name: str) -> None:
    done = sh(orlop, name, "dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' x")
    assert len(done.stdout) == 8 << 20


def test_options_reach_the_process(orlop: Orlop, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    tmp_path.chmod(0o755)
    options = ["-e", "A=b c", "-e", "PATH=/bin", "-w", "/tmp", "-u", "user", "-v", f"{tmp_path}:/host:ro"]
    done = sh(orlop, name, 'echo "$A" $PATH; pwd; id -un; cat /host/file; touch /host/x || echo kept', *options)
    assert done.stdout.splitlines() == ["b c /bin", "/tmp", "user", "from the host", "kept"]
    assert "Read-only file system" in sh(orlop, name, "touch /x; true", "--read-only").stderr


def test_the_image_says_what_to_run_where_the_caller_does_not(orlop: Orlop, name: str) -> None:
    assert orlop("run", "--rm", "-i", "busybox", name, stdin=b"echo from sh").stdout == "from sh\n"


def test_options_of_the_command_are_not_those_of_orlop(orlop: Orlop, name: str) -> None:
    assert orlop("run", "--rm", "busybox", name, "echo", "--rm", "-t", "--help").stdout == "--rm -t --help\n"


def test_a_container_in_the_background_is_listed_run_in_killed_and_removed(orlop: Orlop, name: str) -> None:
    assert orlop("run", "-d", "-l", "a=b", "busybox", name, "sleep", "600").stdout == f"{name}\n"
    assert name in orlop("ps", "-q").stdout.split()
    row = next(line for line in orlop("ps").stdout.splitlines() if line.startswith(name))
    assert re.fullmatch(rf"{name} +docker\.io/library/busybox:latest +running +\d+ +\d+ seconds?", row)
    assert orlop("exec", name, "echo", "inside").stdout == "inside\n"
    refused = orlop("rm", name, status=1)
    assert f'container "{name}" is running: kill it, or force' in refused.stderr
    assert orlop("kill", "-s", "KILL", name).stdout == f"{name}\n"
    while name in orlop("ps", "-q").stdout.split():
        continue  # killed, and about to be gone
    row = next(line for line in orlop("ps", "-a").stdout.splitlines() if line.startswith(name))
    assert "exited (137)" in row
    assert orlop("rm", name).stdout == f"{name}\n"
    assert orlop.is_gone(name)


def test_a_running_container_is_removed_by_force(orlop: Orlop, container: str) -> None:
    orlop("rm", "-f", container)
    assert orlop.is_gone(container)


def test_a_container_that_has_run_stays_until_it_is_removed(orlop: Orlop, name: str) -> None:
    orlop("run", "busybox", name, "true")
    assert name not in orlop("ps", "-q").stdout.split()
    assert name in orlop("ps", "-aq").stdout.split()
    orlop("rm", name)
    assert orlop.is_gone(name)


def test_exec_passes_status_input_and_environment(orlop: Orlop, container: str) -> None:
    orlop("exec", container, "sh", "-c", "exit 9", status=9)
    assert orlop("exec", "-i", container, "wc", "-c", stdin=b"y" * 100_000).stdout.strip() == "100000"
    done = orlop("exec", "-e", "X=1", "-w", "/tmp", container, "sh", "-c", "echo $X $PWD; echo err >&2")
    assert (done.stdout, done.stderr) == ("1 /tmp\n", "err\n")
    assert orlop.daemon.ctr("tasks", "ps", container).stdout.count("\n") == 2  # no process is left


def test_one_that_fails_does_not_keep_others_from_being_done(orlop: Orlop, container: str) -> None:
    done = orlop("kill", "-s", "0", "nosuch", container, "nosuch2", status=1)
    assert done.stdout == f"{container}\n"
    assert done.stderr.count("not found") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--pull", "never", "nosuch", "{name}"], "Get it with 'orlop pull'"),
        (["run", "busybox", "bad/id"], "bad/id"),
        (["run", "-m", "1q", "busybox", "{name}"], "size '1q': not of the form 64m or 1g"),
        (["run", "-v", "/tmp", "busybox", "{name}"], "volume '/tmp': not of the form SOURCE:TARGET[:ro]"),
        (["run", "-v", "/tmp:/x:rx", "busybox", "{name}"], "option 'rx' is unknown"),
        (["run", "-v", "/nosuch:/x", "busybox", "{name}"], "there is no '/nosuch' on this host"),
        (["run", "-v", "/tmp:x", "busybox", "{name}"], 'mount destination "x" is not absolute'),
        (["run", "-l", "x", "busybox", "{name}"], "label 'x': not of the form KEY=VALUE"),
        (["run", "-e", "=x", "busybox", "{name}"], "NAME=value is needed"),
        (["run", "-u", "nosuch", "busybox", "{name}"], "nosuch"),
        (["run", "-t", "busybox", "{name}"], "--tty needs a terminal as standard input"),
        (["run", "--rm", "-d", "busybox", "{name}"], "--rm and --detach exclude each other"),
        (["run", "busybox", "{name}", "nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        (["run", "--runtime", "no.such.v1", "busybox", "{name}"], "no.such.v1"),
        (["exec", "{name}", "true"], 'container "{name}" in namespace "default": not found'),
        (["kill", "-s", "NOPE", "{name}"], "signal 'NOPE': unknown (KILL, TERM, HUP and so on, or a number)"),
        (["rm", "{name}"], "not found"),
    ],
)
def test_an_error_says_what_is_wrong_and_leaves_nothing(
    orlop: Orlop, name: str, arguments: list[str], message: str
) -> None:
    done = orlop(*(argument.format(name=name) for argument in arguments), status=1)
    assert message.format(name=name) in done.stderr
    assert "orlop: " in done.stderr
    assert orlop.is_gone(name)


def test_a_name_in_use_is_refused_and_what_has_it_goes_on(orlop: Orlop, container: str) -> None:
    refused = orlop("run", "--rm", "busybox", container, "true", status=1)
    assert f'container "{container}": already exists\nChoose another name, or remove it' in refused.stderr
    assert container in orlop("ps", "-q").stdout.split()


def test_a_program_that_is_missing_in_a_running_container_is_told(orlop: Orlop, container: str) -> None:
    refused = orlop("exec", container, "nosuch", status=1)
    assert 'exec: "nosuch": executable file not found in $PATH' in refused.stderr
    assert orlop.daemon.ctr("tasks", "ps", container).stdout.count("\n") == 2


def started(process: subprocess.Popen[bytes]) -> None:
    """Waits until the container says that it runs."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_kills_a_container_that_does_not_listen_and_leaves_nothing(
    orlop: Orlop, name: str, number: signal.Signals
) -> None:
    # Not a shell, which listens to an interrupt until it has become the program that it runs.
    process = orlop.start("run", "--rm", "busybox", name, "yes", "ready")
    started(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, b"")
    assert orlop.is_gone(name)


def test_an_interrupt_goes_to_a_process_that_listens(orlop: Orlop, name: str) -> None:
    script = "trap 'echo bye; exit 5' INT; echo ready; while true; do read -t 1 x < /dev/zero; done"
    process = orlop.start("run", "--rm", "busybox", name, "sh", "-c", script)
    started(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (5, b"bye\n")
    assert orlop.is_gone(name)


def test_a_second_interrupt_kills_what_heard_the_first_and_goes_on(orlop: Orlop, name: str) -> None:
    script = "trap 'echo ready' INT; echo ready; while true; do read -t 1 x < /dev/zero; done"
    process = orlop.start("run", "--rm", "busybox", name, "sh", "-c", script)
    started(process)
    process.send_signal(signal.SIGINT)
    started(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert orlop.is_gone(name)


def test_other_signals_are_passed_on(orlop: Orlop, name: str) -> None:
    script = "trap 'echo usr1; exit 3' USR1; echo ready; while true; do read -t 1 x < /dev/zero; done"
    process = orlop.start("run", "--rm", "busybox", name, "sh", "-c", script)
    started(process)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[0] == b"usr1\n"
    assert process.returncode == 3


def test_a_container_whose_output_nobody_reads_any_more_is_killed(orlop: Orlop, name: str) -> None:
    process = orlop.start("run", "--rm", "busybox", name, "yes")
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert orlop.is_gone(name)


def test_an_interrupted_exec_ends_and_leaves_the_container(orlop: Orlop, container: str) -> None:
    process = orlop.start("exec", container, "sh", "-c", "echo ready; exec sleep 600")
    started(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert orlop.daemon.ctr("tasks", "ps", container).stdout.count("\n") == 2
    assert container in orlop("ps", "-q").stdout.split()


class Terminal:
    """A terminal, from the side of the person."""

    def __init__(self) -> None:
        self.person, self.program = pty.openpty()
        self.seen = ""

    def until(self, text: str) -> None:
        while text not in self.seen:
            assert select.select([self.person], [], [], 60)[0], self.seen
            self.seen += os.read(self.person, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.person, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    it = Terminal()
    it.resize(33, 77)
    yield it
    for end in (it.person, it.program):
        with contextlib.suppress(OSError):
            os.close(end)


def on(terminal: Terminal) -> dict[str, Any]:
    ends = {"stdin": terminal.program, "stdout": terminal.program, "stderr": terminal.program}
    return ends | {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}


def test_a_terminal_has_keys_size_and_colours_and_is_put_back(orlop: Orlop, name: str, terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.program)
    process = orlop.start("run", "--rm", "-t", "busybox", name, "sh", **on(terminal))
    terminal.until("/ # ")
    assert termios.tcgetattr(terminal.program) != before
    terminal.type("tty; echo $TERM; echo a''b\n")
    terminal.until("ab\r\n")
    assert "/dev/pts/0\r\nxterm\r\n" in terminal.seen
    terminal.type("exit 6\n")
    assert process.wait(60) == 6
    assert termios.tcgetattr(terminal.program) == before
    assert orlop.is_gone(name)


def test_a_terminal_of_an_exec_follows_the_size_of_ours(orlop: Orlop, container: str, terminal: Terminal) -> None:
    script = "trap 'stty size' WINCH; stty size; echo re''ady; while true; do read -t 1 x < /dev/zero; done"
    process = orlop.start("exec", "-t", container, "sh", "-c", script, **on(terminal))
    terminal.until("ready")
    terminal.resize(44, 88)
    terminal.until("44 88")
    terminal.type("\x03")
    process.wait(60)


def test_a_terminal_that_hangs_up_ends_the_container(orlop: Orlop, name: str, terminal: Terminal) -> None:
    process = orlop.start(
        "run", "--rm", "-t", "busybox", name, "sh", "-c", "echo re''ady; exec sleep 600", **on(terminal)
    )
    terminal.until("ready")
    os.close(terminal.program)
    os.close(terminal.person)
    process.wait(60)
    assert orlop.is_gone(name)


def test_labels_of_an_image_that_mean_something_to_the_daemon_do_not_reach_its_containers(
    orlop: Orlop, name: str, tmp_path: Path
) -> None:
    """CVE-2026-53488: with them an image could have the restart monitor run programs of the host."""
    archive, proof = tmp_path / "oci.tar", tmp_path / "proof"
    hostile = {
        "containerd.io/restart.status": "running",
        "containerd.io/restart.policy": "always",
        "containerd.io/restart.loguri": f"binary:///bin/touch?{proof}",
        "io.cri-containerd.kind": "sandbox",
        "io.orlop.anything": "x",
    }
    archive.write_bytes(busybox_image.oci_layout("example.org/hostile:1", hostile | {"maintainer": "somebody"}))
    orlop("import", archive)
    try:
        own = "containerd.io/restart.explicitly-stopped=true"
        orlop("run", "-d", "-l", own, "example.org/hostile:1", name, "true")
        labels = asyncio.run(labels_of(orlop, name))
        assert labels["maintainer"] == "somebody"
        assert labels["containerd.io/restart.explicitly-stopped"] == "true"  # the caller's own
        assert not labels.keys() & hostile.keys()
        assert not proof.exists()
    finally:
        orlop("rm", "-f", name, status=None)
        orlop.daemon.ctr("images", "rm", "example.org/hostile:1", check=False)


async def labels_of(orlop: Orlop, name: str) -> dict[str, str]:
    async with connect(orlop.address) as client:
        return dict((await client.containers.get(client.scope, name)).labels)
