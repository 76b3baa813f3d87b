"""Containers and tasks, as the real `ctr` runs them."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import oci_runtime
import pytest
from patience import patient
from real_daemon import IMAGE, Daemon

from orlop.runtime.seccomp_filters import ANNOTATION

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]


def run(daemon: Daemon, name: str, *arguments: str | Path, command: str, **options: object) -> str:
    """The output of a shell `command` in a container that goes when it ends."""
    done = daemon.ctr("run", "--rm", *arguments, IMAGE, name, "sh", "-c", command, **options)  # type: ignore[arg-type]
    return done.stdout


def is_gone(daemon: Daemon, name: str) -> bool:
    return (
        name not in daemon.ctr("containers", "ls", "-q").stdout.split()
        and name not in daemon.ctr("tasks", "ls", "-q").stdout.split()
        and name not in daemon.ctr("snapshots", "ls").stdout
        and not list(Path(daemon.work / "state").glob(f"*/*/{name}"))
    )


def test_a_container_prints_and_leaves_nothing(daemon: Daemon, name: str) -> None:
    assert run(daemon, name, command="echo hello; echo there >&2") == "hello\n"
    assert is_gone(daemon, name)


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_exit_code_of_the_process_is_that_of_the_client(daemon: Daemon, name: str, status: int) -> None:
    assert daemon.ctr("run", "--rm", IMAGE, name, "sh", "-c", f"exit {status}", check=False).returncode == status


def test_the_exit_code_of_a_killed_process_tells_the_signal(daemon: Daemon, name: str) -> None:
    assert daemon.ctr("run", "--rm", IMAGE, name, "sh", "-c", "kill -9 $$", check=False).returncode in (0, 137)


def test_standard_input_is_piped_to_its_end(daemon: Daemon, name: str) -> None:
    done = daemon.ctr("run", "--rm", IMAGE, name, "wc", "-c", stdin=b"x" * 300_000)
    assert done.stdout.strip() == "300000"


def test_standard_input_that_has_already_ended_ends_the_reader(daemon: Daemon, name: str) -> None:
    assert daemon.ctr("run", "--rm", IMAGE, name, "cat", stdin=b"x\n").stdout == "x\n"


def test_large_output_arrives_whole(daemon: Daemon, name: str) -> None:
    done = daemon.ctr("run", "--rm", IMAGE, name, "sh", "-c", "dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' x")
    assert len(done.stdout) == 8 << 20


def test_options_of_the_process_take_effect(daemon: Daemon, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    out = run(
        daemon,
        name,
        *("--env", "KEY=value", "--cwd", "/tmp", "--label", "a=b"),
        *("--mount", f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"),
        command="echo $KEY; pwd; cat /mnt/file; touch /mnt/x 2>&1 || true",
    )
    assert out.startswith("value\n/tmp\nfrom the host")
    assert "Read-only file system" in out


def test_a_read_only_root_refuses_writes(daemon: Daemon, name: str) -> None:
    assert "Read-only file system" in run(daemon, name, "--read-only", command="touch /x 2>&1 || true")


def test_limits_of_memory_and_processor_reach_the_cgroup(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", "--memory-limit", str(64 << 20), "--cpus", "0.5", IMAGE, name, "sleep", "60")
    try:
        pid = pid_of(daemon, name)
        cgroups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        memory = Path(
            "/sys/fs/cgroup/memory" + cgroups["memory"] if "memory" in cgroups else "/sys/fs/cgroup" + cgroups[""]
        )
        limit = next(file for file in ("memory.limit_in_bytes", "memory.max") if (memory / file).exists())
        assert int((memory / limit).read_text()) == 64 << 20
    finally:
        daemon.ctr("tasks", "rm", "-f", name)
        daemon.ctr("containers", "rm", name)


def test_capabilities_are_added_and_dropped(daemon: Daemon, name: str) -> None:
    def effective(*arguments: str) -> int:
        out = run(daemon, name, *arguments, command="grep CapEff /proc/self/status")
        return int(out.split()[1], 16)

    sys_admin, chown = 1 << 21, 1 << 0
    assert not effective() & sys_admin
    assert effective("--cap-add", "CAP_SYS_ADMIN") & sys_admin
    assert not effective("--cap-drop", "CAP_CHOWN") & chown


def test_a_seccomp_profile_is_in_force(daemon: Daemon, name: str) -> None:
    assert run(daemon, name, "--seccomp", command="grep Seccomp: /proc/self/status").split()[1] == "2"


def test_a_profile_that_was_compiled_before_is_in_force_in_the_next_container_too(daemon: Daemon, name: str) -> None:
    if oci_runtime.chosen().crun is None:
        pytest.skip("containers are not run by crun here")
    names = [name, f"{name}-2"]
    try:
        for each in names:
            daemon.ctr("run", "-d", "--seccomp", IMAGE, each, "sleep", "600")
        first, second = (
            (daemon.work / "state" / "runc" / daemon.namespace / each / "seccomp.bpf").read_bytes() for each in names
        )
        assert first == second
        bundle = daemon.work / "state" / "io.containerd.runtime.v2.task" / daemon.namespace / names[1]
        spec = json.loads((bundle / "config.json").read_text())
        assert base64.b64decode(spec["annotations"][ANNOTATION]) == second
        script = "grep Seccomp: /proc/1/status; unshare -n true 2>&1; true"
        told = [daemon.ctr("tasks", "exec", "--exec-id", "e", each, "sh", "-c", script).stdout for each in names]
        assert told[0] == told[1]
        assert told[0].split()[1] == "2"
        assert "not permitted" in told[0]
    finally:
        for each in names:
            daemon.ctr("tasks", "rm", "-f", each, check=False)
            daemon.ctr("containers", "rm", each, check=False)


def test_the_network_of_the_host_can_be_shared(daemon: Daemon, name: str) -> None:
    mine = os.readlink("/proc/self/ns/net")
    assert run(daemon, name, "--net-host", command="readlink /proc/self/ns/net").strip() == mine


def test_privileged_containers_have_all_capabilities(daemon: Daemon, name: str) -> None:
    out = run(daemon, name, "--privileged", command="grep CapEff /proc/self/status")
    host = int(re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text()).group(1), 16)  # type: ignore[union-attr]
    assert int(out.split()[1], 16) == host


def test_a_root_file_system_of_the_host_is_run_without_an_image(daemon: Daemon, name: str, tmp_path: Path) -> None:
    for folder in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tmp_path / "bin/busybox").chmod(0o755)
    done = daemon.ctr("run", "--rm", "--rootfs", "--no-pivot", tmp_path, name, "/bin/busybox", "echo", "hello")
    assert done.stdout == "hello\n"


def test_a_runtime_is_named_by_type_path_or_binary(daemon: Daemon, name: str) -> None:
    assert run(daemon, name, "--runtime", "io.containerd.runc.v2", command="echo one") == "one\n"
    assert run(daemon, name, "--runc-binary", "runc", command="echo two") == "two\n"
    shim = "/usr/bin/containerd-shim-runc-v2"
    assert run(daemon, name, "--runtime", shim, command="echo three") == "three\n"


def test_the_pid_file_names_the_process(daemon: Daemon, name: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    daemon.ctr("run", "-d", "--pid-file", file, IMAGE, name, "sleep", "60")
    assert int(file.read_text()) == pid_of(daemon, name)
    daemon.ctr("tasks", "rm", "-f", name)
    daemon.ctr("containers", "rm", name)


def pid_of(daemon: Daemon, name: str) -> int:
    row = next(line for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.split()[0] == name)
    return int(row.split()[1])


def state_of(daemon: Daemon, name: str) -> str:
    return next(
        (line.split()[2] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.split()[0] == name), ""
    )


def test_a_detached_container_is_listed_executed_in_paused_and_killed(daemon: Daemon, container: str) -> None:
    assert state_of(daemon, container) == "RUNNING"
    done = daemon.ctr("tasks", "exec", "--exec-id", "e1", container, "sh", "-c", "echo in; exit 7", check=False)
    assert (done.stdout, done.returncode) == ("in\n", 7)
    assert str(pid_of(daemon, container)) in daemon.ctr("tasks", "ps", container).stdout
    daemon.ctr("tasks", "pause", container)
    assert state_of(daemon, container) == "PAUSED"
    refused = daemon.ctr("tasks", "exec", "--exec-id", "e2", container, "true", check=False)
    assert "cannot exec in a paused state" in refused.stderr
    daemon.ctr("tasks", "resume", container)
    assert state_of(daemon, container) == "RUNNING"
    metrics = daemon.ctr("tasks", "metrics", container).stdout
    assert container in metrics
    assert "pids.current" in metrics or "memory.usage_in_bytes" in metrics
    refused = daemon.ctr("tasks", "rm", container, check=False)
    assert refused.returncode == 1
    daemon.ctr("tasks", "kill", "--signal", "SIGKILL", container)
    wait_for(lambda: state_of(daemon, container) == "STOPPED")
    assert "exit with non-zero exit code 137" in daemon.ctr("tasks", "rm", container).stderr


def wait_for(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + patient(seconds)
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_a_created_container_is_started_attached_to_and_removed(daemon: Daemon, name: str) -> None:
    daemon.ctr("containers", "create", "--label", "a=b", IMAGE, name, "cat")
    assert name in daemon.ctr("containers", "ls", "-q").stdout.split()
    assert json.loads(daemon.ctr("containers", "info", name).stdout)["Labels"]["a"] == "b"
    daemon.ctr("containers", "label", name, "c=d")
    assert json.loads(daemon.ctr("containers", "info", name).stdout)["Labels"]["c"] == "d"
    assert daemon.ctr("tasks", "start", name, stdin=b"it\n").stdout == "it\n"
    daemon.ctr("containers", "rm", name)
    assert is_gone(daemon, name)


def test_a_client_attaches_to_a_running_container(daemon: Daemon, name: str, tmp_path: Path) -> None:
    daemon.ctr("run", "-d", "--fifo-dir", tmp_path, IMAGE, name, "sh", "-c", "read line; echo got $line; exit 3")
    done = daemon.ctr("tasks", "attach", name, stdin=b"it\n", check=False)
    assert (done.stdout, done.returncode) == ("got it\n", 3)
    daemon.ctr("tasks", "rm", name, check=False)
    daemon.ctr("containers", "rm", name)


def test_a_terminal_has_the_size_of_the_client_and_follows_it(daemon: Daemon, name: str) -> None:
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 91, 0, 0))
    # The client tells the size after the start, so that there is none at first.
    command = 'while [ -z "$(stty size 2>/dev/null)" ]; do sleep 1; done; stty size; read line; stty size'
    process = subprocess.Popen(
        ["ctr", "-a", daemon.address, "run", "--rm", "-t", IMAGE, name, "sh", "-c", command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + patient(30)
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 1)[0]:
                try:
                    seen += os.read(master, 4096)
                except OSError:
                    break
        assert text in seen

    until(b"31 91")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
    process.send_signal(signal.SIGWINCH)

    def resized() -> bool:
        # The client tells the daemon when it has seen the signal; the shell prints the size when a line comes.
        return (
            b"20 70"
            in subprocess.run(
                [
                    "ctr",
                    "-a",
                    daemon.address,
                    "tasks",
                    "exec",
                    "--exec-id",
                    f"e{time.monotonic_ns()}",
                    name,
                    "sh",
                    "-c",
                    "stty size < /dev/pts/0",
                ],
                capture_output=True,
            ).stdout
        )

    wait_for(resized)
    os.write(master, b"go\r")
    until(b"20 70")
    assert process.wait(patient(30)) == 0
    os.close(master)


def test_what_cannot_start_says_why_and_leaves_nothing(daemon: Daemon, name: str) -> None:
    missing = daemon.ctr("run", "--rm", IMAGE, name, "/no/such/program", check=False)
    assert missing.returncode != 0
    assert "no such file or directory" in missing.stderr
    assert is_gone(daemon, name)
    image = daemon.ctr("run", "--rm", "docker.io/library/none:1", name, "true", check=False)
    assert 'image "docker.io/library/none:1": not found' in image.stderr
    assert is_gone(daemon, name)


def test_a_name_in_use_is_refused(daemon: Daemon, container: str) -> None:
    again = daemon.ctr("run", "-d", IMAGE, container, "true", check=False)
    assert "already exists" in again.stderr
    assert state_of(daemon, container) == "RUNNING"


def test_a_missing_runtime_is_named(daemon: Daemon, name: str) -> None:
    for arguments, words in (
        (("--runtime", "io.containerd.none.v1"), "containerd-shim-none-v1"),
        (("--runtime", "nonsense"), "invalid runtime name nonsense"),
        (("--runc-binary", "/no/such/runc"), "/no/such/runc"),
    ):
        refused = daemon.ctr("run", "--rm", *arguments, IMAGE, name, "true", check=False)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert is_gone(daemon, name)


def test_events_are_told_while_things_happen(daemon: Daemon, name: str) -> None:
    watcher = subprocess.Popen(
        ["ctr", "-a", daemon.address, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        # The subscription is in force when an event that was caused after it arrives.
        assert watcher.stdout is not None
        deadline = time.monotonic() + patient(20)
        while not select.select([watcher.stdout], [], [], 0.2)[0]:
            assert time.monotonic() < deadline
            daemon.ctr("namespaces", "label", "default", f"tick={time.monotonic_ns()}")
        run(daemon, name, command="exit 5", check=False)
        seen = ""
        while "/containers/delete" not in seen or name not in seen:
            assert select.select([watcher.stdout], [], [], 20)[0], seen
            seen += os.read(watcher.stdout.fileno(), 65536).decode()
    finally:
        watcher.terminate()
        watcher.wait()
    lines = [line for line in seen.splitlines() if name in line]
    topics = [re.search(r" (/[a-z/-]+) ", line).group(1) for line in lines]  # type: ignore[union-attr]
    for topic in (
        "/snapshot/prepare",
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ):
        assert topic in topics
    assert topics.index("/tasks/start") < topics.index("/tasks/exit") < topics.index("/tasks/delete")
    assert any("/tasks/exit" in line and '"exit_status":5' in line for line in lines)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_containers_go_on_while_the_daemon_is_away(daemon: Daemon, name: str, how: signal.Signals) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    pid = pid_of(daemon, name)
    ended = f"{name}-ended"
    daemon.ctr("run", "-d", IMAGE, ended, "sh", "-c", "sleep 1; exit 9")
    status = daemon.stop(how)
    assert status == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    assert Path(f"/proc/{pid}").exists()
    other = Path(f"/proc/{pid}")
    daemon.start()
    assert pid_of(daemon, name) == pid
    assert other.exists()
    done = daemon.ctr("tasks", "exec", "--exec-id", "again", name, "echo", "still here")
    assert done.stdout == "still here\n"
    wait_for(lambda: state_of(daemon, ended) == "STOPPED")
    assert "exit with non-zero exit code 9" in daemon.ctr("tasks", "rm", ended).stderr
    daemon.ctr("tasks", "rm", "-f", name, check=False)
    daemon.ctr("containers", "rm", name, ended)
    assert is_gone(daemon, name)


def test_a_process_is_executed_as_another_user_in_another_directory(daemon: Daemon, container: str) -> None:
    done = daemon.ctr("tasks", "exec", "--exec-id", "who", "--user", "user", "--cwd", "/tmp", container, "id", "-u")
    assert done.stdout == "1000\n"
