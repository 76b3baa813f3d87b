"""Checkpoints of running containers, into images and back, with the real `ctr` and the real CRIU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

COUNTER = "i=0; while true; do i=$((i+1)); echo $i > /count; echo $i; sleep 0.2; done"
REF = "example.org/checkpoint:1"


def why_no_criu() -> str:
    if shutil.which("criu") is None:
        return "criu is not installed"
    done = subprocess.run(["criu", "check"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else f"criu check: {(done.stderr or done.stdout).strip()[-200:]}"


@pytest.fixture
def criu() -> None:
    if why := why_no_criu():
        pytest.skip(why)


def running(daemon: Daemon) -> list[str]:
    return [
        line.split()[0] for line in daemon.ctr("tasks", "ls").stdout.splitlines()[1:] if line.split()[2] == "RUNNING"
    ]


def count(daemon: Daemon, name: str) -> int:
    pid = next(line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name))
    counted = Path(f"/proc/{pid}/root/count")
    while True:
        text = counted.read_text() if counted.exists() else ""
        if text.strip().isdigit():
            return int(text)
        assert name in running(daemon), daemon.log()


def wait_until(condition: Callable[[], bool], daemon: Daemon, name: str) -> None:
    while not condition():
        assert name in daemon.ctr("tasks", "ls", "-q").stdout.split(), daemon.log()


def end(daemon: Daemon, *names: str) -> None:
    for name in names:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
    daemon.ctr("images", "rm", REF, check=False)


def test_a_container_goes_on_where_its_checkpoint_was_made(criu: None, daemon: Daemon, name: str) -> None:
    restored = f"{name}-restored"
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", COUNTER)
    try:
        wait_until(lambda: count(daemon, name) >= 5, daemon, name)
        daemon.ctr("containers", "checkpoint", "--rw", "--image", "--task", name, REF)
        assert name in running(daemon)  # it runs on
        daemon.ctr("tasks", "rm", "-f", name)
        daemon.ctr("containers", "rm", name)
        daemon.ctr("containers", "restore", "--rw", "--live", restored, REF)
        first = count(daemon, restored)
        assert first >= 5
        wait_until(lambda: count(daemon, restored) > first + 2, daemon, restored)
        # the exit of a restored process is learnt as any other
        daemon.ctr("tasks", "kill", "-s", "KILL", restored)
        wait_until(lambda: restored not in running(daemon), daemon, restored)
        assert "exit code 137" in daemon.ctr("tasks", "rm", restored).stderr
        work = daemon.work / "root/io.containerd.runtime.v2.task/default"
        assert not (work / restored).exists()
    finally:
        end(daemon, name, restored)


def test_a_task_can_end_with_its_checkpoint(criu: None, daemon: Daemon, name: str, tmp_path: Path) -> None:
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", COUNTER)
    try:
        wait_until(lambda: count(daemon, name) >= 3, daemon, name)
        images = tmp_path / "images"
        images.mkdir()
        daemon.ctr("tasks", "checkpoint", "--exit", "--image-path", images, name)
        wait_until(lambda: name not in running(daemon), daemon, name)
        assert (images / "inventory.img").exists()
    finally:
        end(daemon, name)


def test_a_container_whose_output_is_a_file_outside_says_why_it_cannot_be_kept(
    criu: None, daemon: Daemon, name: str, tmp_path: Path
) -> None:
    daemon.ctr("run", "-d", "--log-uri", f"file://{tmp_path}/out", IMAGE, name, "sleep", "600")
    try:
        done = daemon.ctr("tasks", "checkpoint", "--image-path", tmp_path, name, check=False)
        assert done.returncode
        assert re.search(rf": criu: .*{tmp_path}/out", done.stderr)
        assert name in running(daemon)
    finally:
        end(daemon, name)


def test_where_there_is_no_criu_the_reason_is_named(
    make_daemon: Callable[..., Daemon], archives: Archives, name: str
) -> None:
    why = why_no_criu()
    if not why:
        pytest.skip("criu works here")
    daemon = make_daemon()
    daemon.ctr("images", "import", archives.oci)
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sleep", "600")
    done = daemon.ctr("tasks", "checkpoint", name, check=False)
    assert done.returncode
    assert "criu" in done.stderr.lower()
    assert name in running(daemon)
    end(daemon, name)
