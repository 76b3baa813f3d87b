"""Debian's `containerd-shim-runc-v2` under our daemon: by path, and by the name that is then executed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import patient
from real_daemon import IMAGE, Archives, Daemon

from orlop.client import connect
from orlop.core.typed import Typed

SHIM = shutil.which("containerd-shim-runc-v2")

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.runtime,
    pytest.mark.skipif(SHIM is None, reason="needs containerd-shim-runc-v2 (Debian package containerd)"),
]


@pytest.fixture(scope="module")
def daemon(make_daemon: Callable[..., Daemon], archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that executes `io.containerd.runc.v2` rather than serve it itself."""
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text("version = 4\n[plugins.'io.containerd.runtime.v2.task']\nbuiltin = ['io.containerd.orlop.v2']\n")
    daemon = make_daemon("--config", str(config))
    daemon.ctr("images", "import", archives.oci)
    return daemon


def test_it_serves_a_container_over_its_whole_life(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", "--runtime", str(SHIM), IMAGE, name, "sh", "-c", "while :; do echo tick; sleep 1; done")
    try:
        assert program_of(shim_of(daemon, name)) == SHIM
        assert daemon.ctr("tasks", "exec", "--exec-id", "e", name, "echo", "in").stdout == "in\n"
        failed = daemon.ctr("tasks", "exec", "--exec-id", "e", name, "sh", "-c", "exit 7", check=False)
        assert failed.returncode == 7
        daemon.ctr("tasks", "pause", name)
        assert status_of(daemon, name) == "PAUSED"
        daemon.ctr("tasks", "resume", name)
        assert status_of(daemon, name) == "RUNNING"
        assert name in daemon.ctr("tasks", "metrics", name).stdout
        assert str(pid_of(daemon, name)) in daemon.ctr("tasks", "ps", name).stdout
        attached = subprocess.Popen(
            ["ctr", "-a", daemon.address, "tasks", "attach", name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert attached.stdout is not None
            assert attached.stdout.readline() == "tick\n"
        finally:
            attached.kill()  # any other signal is passed on to the container
            attached.wait()
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert status_of(daemon, name) == "RUNNING"
        assert daemon.ctr("tasks", "exec", "--exec-id", "e", name, "echo", "again").stdout == "again\n"
        daemon.ctr("tasks", "kill", "-s", "KILL", name)
        wait_for(lambda: status_of(daemon, name) == "STOPPED", "the container's end")
        assert "exit code 137" in daemon.ctr("tasks", "rm", name).stderr
    finally:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
    assert no_bundle(daemon, name)


def test_limits_of_its_container_are_changed(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", "--memory-limit", str(64 << 20), IMAGE, name, "sleep", "600")
    try:
        asyncio.run(limit_memory(daemon, name, 32 << 20))
        paths = dict(
            line.split(":", 2)[1:] for line in Path(f"/proc/{pid_of(daemon, name)}/cgroup").read_text().splitlines()
        )
        first = Path(f"/sys/fs/cgroup/memory{paths['memory']}/memory.limit_in_bytes") if "memory" in paths else None
        limit = first or Path(f"/sys/fs/cgroup{paths['']}/memory.max")
        assert limit.read_text().strip() == str(32 << 20)
    finally:
        daemon.ctr("tasks", "rm", "-f", name)
        daemon.ctr("containers", "rm", name)


async def limit_memory(daemon: Daemon, name: str, limit: int) -> None:
    resources = json.dumps({"memory": {"limit": limit}}).encode()
    url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    async with connect(daemon.address) as client:
        await client.tasks.update(client.scope, name, Typed(url, resources), {})


def test_a_name_that_is_not_builtin_is_executed(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")  # the client names io.containerd.runc.v2
    try:
        assert program_of(shim_of(daemon, name)) == SHIM
    finally:
        daemon.ctr("tasks", "rm", "-f", name)
        daemon.ctr("containers", "rm", name)


@pytest.mark.skipif(shutil.which("criu") is not None, reason="criu is installed here: a checkpoint may succeed")
def test_a_checkpoint_that_cannot_be_made_says_why(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    try:
        refused = daemon.ctr("tasks", "checkpoint", "--image-path", str(daemon.work / "images"), name, check=False)
        assert refused.returncode == 1
        assert '"criu": executable file not found' in refused.stderr
        assert status_of(daemon, name) == "RUNNING"
    finally:
        daemon.ctr("tasks", "rm", "-f", name)
        daemon.ctr("containers", "rm", name)


def test_one_that_is_killed_takes_its_container_along(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    pid = pid_of(daemon, name)
    os.kill(shim_of(daemon, name), signal.SIGKILL)
    wait_for(lambda: status_of(daemon, name) == "", "the task goes")
    wait_for(lambda: not Path(f"/proc/{pid}/exe").exists(), "the process ends")
    wait_for(lambda: no_bundle(daemon, name), "the bundle goes")
    daemon.ctr("containers", "rm", name)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def row_of(daemon: Daemon, name: str) -> list[str]:
    rows = [line.split() for line in daemon.ctr("tasks", "ls").stdout.splitlines()]
    return next((row for row in rows if row[0] == name), ["", "0", ""])


def status_of(daemon: Daemon, name: str) -> str:
    return row_of(daemon, name)[2]


def pid_of(daemon: Daemon, name: str) -> int:
    return int(row_of(daemon, name)[1])


def shim_of(daemon: Daemon, name: str) -> int:
    """The parent of the container's process, which is its shim as that is a subreaper."""
    return int(Path(f"/proc/{pid_of(daemon, name)}/stat").read_text().rpartition(")")[2].split()[1])


def program_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/exe")


def no_bundle(daemon: Daemon, name: str) -> bool:
    return not list((daemon.work / "state").glob(f"io.containerd.runtime.v2.task/*/*{name}"))
