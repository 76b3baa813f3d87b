"""The restart monitor, with containers of the real `ctr`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import patient
from real_daemon import IMAGE, Archives, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

LABEL = "containerd.io/restart."


@pytest.fixture(scope="module")
def restarting(make_daemon: Callable[..., Daemon], archives: Archives) -> Daemon:
    """A daemon of these tests alone, as they stop it."""
    daemon = make_daemon()
    daemon.ctr("images", "import", archives.oci)
    return daemon


@pytest.fixture
def run(restarting: Daemon, name: str, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Runs a shell script in the container `name` with restart labels; returns the log of all its lives."""

    def start(script: str, **labels: str) -> Path:
        log = tmp_path / "log"
        labels = {"status": "running", "loguri": f"file://{log}"} | labels
        given = [f"--label={LABEL}{key.replace('_', '-')}={value}" for key, value in labels.items()]
        restarting.ctr("run", "-d", "--log-uri", f"file://{log}", *given, IMAGE, name, "sh", "-c", script)
        return log

    yield start
    restarting.ctr("containers", "label", name, f"{LABEL}status=stopped", check=False)
    restarting.ctr("tasks", "rm", "-f", name, check=False)
    restarting.ctr("containers", "rm", name, check=False)


def wait_for(what: Callable[[], bool], daemon: Daemon) -> None:
    deadline = time.monotonic() + patient(60)
    while not what():
        assert time.monotonic() < deadline, daemon.log()
        time.sleep(0.05)


def labels_of(daemon: Daemon, name: str) -> dict[str, str]:
    return json.loads(daemon.ctr("containers", "info", name).stdout)["Labels"]  # type: ignore[no-any-return]


def lives(log: Path) -> int:
    return log.read_text().count("born") if log.exists() else 0


def pid_of(daemon: Daemon, name: str) -> int:
    rows = [line.split() for line in daemon.ctr("tasks", "ls").stdout.splitlines()]
    return next((int(row[1]) for row in rows if row[0] == name and row[2] == "RUNNING"), 0)


def test_always_starts_again_and_counts(restarting: Daemon, name: str, run: Callable[..., Path]) -> None:
    log = run("echo born; sleep 600", policy="always")
    wait_for(lambda: lives(log) == 1, restarting)
    restarting.ctr("tasks", "kill", "-s", "SIGKILL", name)
    wait_for(lambda: lives(log) == 2, restarting)
    assert labels_of(restarting, name)[f"{LABEL}count"] == "1"


def test_on_failure_gives_up_after_its_count(restarting: Daemon, name: str, run: Callable[..., Path]) -> None:
    log = run("echo born; exit 3", policy="on-failure:2")
    wait_for(lambda: lives(log) == 3, restarting)
    wait_for(lambda: "STOPPED" in restarting.ctr("tasks", "ls").stdout, restarting)
    assert labels_of(restarting, name)[f"{LABEL}count"] == "2"


def test_an_exit_while_the_daemon_was_away_is_made_good(
    restarting: Daemon, name: str, run: Callable[..., Path]
) -> None:
    log = run("echo born; sleep 600", policy="unless-stopped")
    wait_for(lambda: lives(log) == 1, restarting)
    pid = pid_of(restarting, name)
    restarting.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    restarting.start()
    wait_for(lambda: lives(log) == 2, restarting)


def test_one_that_was_stopped_on_purpose_stays_so(restarting: Daemon, name: str, run: Callable[..., Path]) -> None:
    log = run("echo born; sleep 600", policy="unless-stopped", explicitly_stopped="true")
    other = f"{name}-other"
    given = [f"--label={LABEL}status=running", f"--label={LABEL}loguri=file://{log}"]
    restarting.ctr("run", "-d", *given, IMAGE, other, "sh", "-c", "echo born again; sleep 600")
    for container in (name, other):
        restarting.ctr("tasks", "kill", "-s", "SIGKILL", container)
    wait_for(lambda: "born again" in log.read_text(), restarting)
    assert pid_of(restarting, name) == 0
    restarting.ctr("containers", "label", other, f"{LABEL}status=stopped")
    restarting.ctr("tasks", "rm", "-f", other)
    restarting.ctr("containers", "rm", other)


def test_clients_find_the_policies_among_the_capabilities(restarting: Daemon) -> None:
    listed = restarting.ctr("plugins", "ls", "-d", "id==restart").stdout
    assert "io.containerd.monitor.container.v1" in listed
    for policy in ("no", "always", "on-failure", "unless-stopped"):
        assert policy in listed
