"""The daemon or a shim killed at each step of a task's life: afterwards a container is there and right, or gone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from patience import patient
from real_daemon import IMAGE, Archives, Daemon
from traces import await_no_traces, descriptors, traces

from orlop.client import connect
from orlop.core.task import Status

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

CREATE = (
    "runtime.bundle.created", "runtime.shim.started", "runtime.bundle.binary", "runtime.shim.recorded",
    "runtime.task.created",
)  # fmt: skip
DELETE = ("runtime.task.deleted", "runtime.bundle.aside")
SHIM = ("shim.create.mounted", "shim.create.created", "shim.start.started", "shim.delete.deleted")


@pytest.fixture(scope="module")
def own(make_daemon: Callable[..., Daemon], archives: Archives) -> Daemon:
    """A daemon that may be killed."""
    daemon = make_daemon()
    daemon.ctr("images", "import", archives.oci)
    return daemon


@pytest.fixture
def daemon(own: Daemon) -> Iterator[Daemon]:
    yield own
    own.environment.clear()
    if own.process is None or own.process.poll() is not None:
        own.start()


def restart(daemon: Daemon, faults: str = "") -> None:
    """A new daemon with these faults, also in its fork server. What is left of the old one is killed."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.stop()
    daemon.environment["ORLOP_FAULTS"] = faults
    daemon.start()


def died(daemon: Daemon) -> bool:
    assert daemon.process is not None
    return daemon.process.wait(patient(30)) == -signal.SIGKILL


def status_of(daemon: Daemon, name: str) -> str:
    rows = [line.split() for line in daemon.ctr("tasks", "ls").stdout.splitlines()]
    return next((row[2] for row in rows if row[0] == name), "")


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


async def start(daemon: Daemon, name: str) -> None:
    """Starts a task that is created already, which `ctr` has no command for."""
    async with connect(daemon.address) as client:
        await client.tasks.start(client.scope, name)


def remove(daemon: Daemon, name: str) -> None:
    daemon.ctr("tasks", "rm", "-f", name, check=False)
    daemon.ctr("containers", "rm", name)
    await_no_traces(daemon, [name])


@pytest.mark.parametrize("point", CREATE)
def test_a_daemon_killed_while_it_creates_leaves_a_task_or_nothing(daemon: Daemon, name: str, point: str) -> None:
    restart(daemon, f"{point}=kill")
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600", check=False)
    assert died(daemon)
    restart(daemon)
    status = status_of(daemon, name)
    assert status == ("CREATED" if point == "runtime.task.created" else "")
    if status:
        asyncio.run(start(daemon, name))
        assert status_of(daemon, name) == "RUNNING"
    else:
        await_no_traces(daemon, [name])
        daemon.ctr("tasks", "start", "-d", name)  # the record is there: its task can be made now
        assert status_of(daemon, name) == "RUNNING"
    remove(daemon, name)


@pytest.mark.parametrize("point", DELETE)
def test_a_daemon_killed_while_it_deletes_has_deleted(daemon: Daemon, name: str, point: str) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "true")
    wait_for(lambda: status_of(daemon, name) == "STOPPED", "the container's end")
    restart(daemon, f"{point}=kill")
    daemon.ctr("tasks", "rm", name, check=False)
    assert died(daemon)
    restart(daemon)
    assert status_of(daemon, name) == ""
    remove(daemon, name)


def test_a_daemon_killed_after_start_exec_and_kill_finds_what_they_did(daemon: Daemon, name: str) -> None:
    restart(daemon, "runtime.task.started=kill")
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600", check=False)
    assert died(daemon)
    restart(daemon, "runtime.exec.added=kill")
    assert status_of(daemon, name) == "RUNNING"
    daemon.ctr("tasks", "exec", "--exec-id", "e", name, "true", check=False)
    assert died(daemon)
    restart(daemon, "runtime.task.killed=kill")
    taken = daemon.ctr("tasks", "exec", "--exec-id", "e", name, "true", check=False)
    assert "id e: already exists" in taken.stderr
    assert daemon.ctr("tasks", "exec", "--exec-id", "f", name, "echo", "in").stdout == "in\n"
    daemon.ctr("tasks", "kill", "-s", "KILL", name, check=False)
    assert died(daemon)
    restart(daemon)
    wait_for(lambda: status_of(daemon, name) == "STOPPED", "the container's end")
    assert "exit code 137" in daemon.ctr("tasks", "rm", name).stderr
    remove(daemon, name)


def test_a_daemon_killed_while_an_exec_starts_finds_it_running(daemon: Daemon, name: str) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    restart(daemon, "runtime.task.started=kill")
    command = ["tasks", "exec", "--exec-id", "e", name, "sh", "-c", "echo in > /proof; exec sleep 600"]
    with subprocess.Popen(["ctr", "-a", daemon.address, *command], stdout=subprocess.DEVNULL) as client:
        assert died(daemon)
        client.kill()  # it waits for the end of the output, which does not come
    restart(daemon)
    assert status_of(daemon, name) == "RUNNING"
    assert asyncio.run(status_of_exec(daemon, name, "e")) is Status.RUNNING
    assert daemon.ctr("tasks", "exec", "--exec-id", "f", name, "cat", "/proof").stdout == "in\n"
    asyncio.run(end_exec(daemon, name, "e"))
    remove(daemon, name)


async def status_of_exec(daemon: Daemon, name: str, exec_id: str) -> Status:
    async with connect(daemon.address) as client:
        return (await client.tasks.get(client.scope, name, exec_id)).status


async def end_exec(daemon: Daemon, name: str, exec_id: str) -> None:
    async with connect(daemon.address) as client:
        await client.tasks.kill(client.scope, name, exec_id, signal=signal.SIGKILL)
        assert (await client.tasks.wait(client.scope, name, exec_id)).status == 137
        assert (await client.tasks.delete_process(client.scope, name, exec_id)).status == 137


@pytest.mark.parametrize("point", SHIM)
def test_a_shim_killed_at_any_step_leaves_nothing(daemon: Daemon, name: str, point: str) -> None:
    restart(daemon, f"{point}=kill")
    try:
        daemon.ctr("run", "-d", IMAGE, name, "true", check=False)
        if point == "shim.delete.deleted":
            wait_for(lambda: status_of(daemon, name) == "STOPPED", "the container's end")
            daemon.ctr("tasks", "rm", name, check=False)
        wait_for(lambda: status_of(daemon, name) == "", "the task goes")
        await_no_traces(daemon, [name])
    finally:
        restart(daemon)
    daemon.ctr("tasks", "start", name)
    remove(daemon, name)


def test_a_daemon_whose_fork_server_does_not_start_executes_its_shims(
    make_daemon: Callable[..., Daemon], archives: Archives, name: str, tmp_path: Path
) -> None:
    daemon = make_daemon("--state", str(tmp_path / ("s" * 100)))  # too long for a socket's path
    daemon.ctr("images", "import", archives.oci)
    assert daemon.ctr("run", "--rm", IMAGE, name, "echo", "in").stdout == "in\n"
    assert f"did not start: unavailable; shim {name} is executed instead" in daemon.log()
    await_no_traces(daemon, [name])


def test_two_hundred_containers_of_sixteen_callers_leave_nothing(daemon: Daemon, name: str) -> None:
    def once(number: int) -> int:
        command = ("sh", "-c", f"exit {number % 100}")
        done = daemon.ctr("run", "--rm", IMAGE, f"{name}-{number}", *command, check=False)
        if done.returncode != number % 100:
            said.append(done.stderr)
        return done.returncode

    said: list[str] = []
    ids = [f"{name}-{number}" for number in range(200)]
    with ThreadPoolExecutor(16) as callers:
        statuses = list(callers.map(once, range(40)))
        wait_for(lambda: not traces(daemon, ids), "the first are gone")
        before = descriptors(daemon)  # after as many callers as there will be: each reader of the database keeps one
        statuses += callers.map(once, range(40, 200))
    assert statuses == [number % 100 for number in range(200)], said
    await_no_traces(daemon, ids)
    wait_for(lambda: len(descriptors(daemon)) <= len(before), f"as few descriptors as before: {before}")
    assert daemon.ctr("containers", "ls", "-q").stdout == ""
