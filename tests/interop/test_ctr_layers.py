"""Layers that are kept as tar and index, as the real `ctr` comes to use them: unchanged, and with no flag."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon

from orlop.mounts import mountinfo
from orlop.snapshots import probe

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon], archives: Archives) -> Daemon:
    made = make_daemon()
    if refusal := probe.refusal(made.work):
        pytest.skip(refusal)
    made.ctr("images", "import", archives.oci)
    return made


def root(daemon: Daemon) -> Path:
    return daemon.work / "root/io.containerd.snapshotter.v1.overlayfs"


def indexes(daemon: Daemon) -> list[Path]:
    """The index behind each mounted layer."""
    below = bytes(root(daemon) / "l")
    found = (entry for entry in mountinfo.read() if entry.lies_below(below))
    return [Path(entry.source.decode()) for entry in found if entry.type == "erofs"]


def test_an_image_is_run_from_its_index_and_leaves_nothing(daemon: Daemon, name: str) -> None:
    kept = root(daemon) / "layers/1"
    assert (kept / "tar").stat().st_size > 0
    assert not list((root(daemon) / "snapshots").glob("*/fs/*"))
    assert "indexed" in daemon.ctr("plugins", "ls", "-d", "id==overlayfs").stdout
    script = "echo x >/etc/passwd && rm /bin/vi && ls /bin | grep -c ."
    done = daemon.ctr("run", "--rm", IMAGE, name, "sh", "-c", script)
    assert int(done.stdout) > 10
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    assert indexes(daemon) == [kept / "index"]
    daemon.ctr("tasks", "rm", "-f", name)
    daemon.ctr("containers", "rm", name)
    daemon.ctr("images", "rm", "--sync", IMAGE)
    assert not indexes(daemon)
    assert not list((root(daemon) / "layers").iterdir())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_containers_and_mounts(daemon: Daemon, name: str, how: signal.Signals) -> None:
    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    daemon.stop(how)
    assert len(indexes(daemon)) == 1
    daemon.start()
    assert daemon.ctr("tasks", "exec", "--exec-id", "e", name, "ls", "/bin/sh").stdout == "/bin/sh\n"
    assert daemon.ctr("run", "--rm", IMAGE, f"{name}-2", "echo", "ok").stdout == "ok\n"
    assert len(indexes(daemon)) == 1
    daemon.ctr("tasks", "rm", "-f", name)
    daemon.ctr("containers", "rm", name)


def test_a_setting_gives_plain_directories(make_daemon: Callable[..., Daemon], archives: Archives, name: str) -> None:
    daemon = make_daemon()
    daemon.stop()
    config = daemon.work / "config.toml"
    config.write_text('version = 2\n[plugins."io.containerd.snapshotter.v1.overlayfs"]\nlayers = "directories"\n')
    daemon.arguments += ["--config", str(config)]
    daemon.start()
    daemon.ctr("images", "import", archives.oci)
    assert "the configuration says so" in daemon.ctr("plugins", "ls", "-d", "id==overlayfs").stdout
    assert list((root(daemon) / "snapshots").glob("*/fs/bin/sh"))
    assert daemon.ctr("run", "--rm", IMAGE, name, "echo", "ok").stdout == "ok\n"
    assert not indexes(daemon)


def test_what_a_daemon_leaves_mounted_is_taken_off_on_order(daemon: Daemon, name: str) -> None:
    def unmount() -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).parent / "orlopd"
        places = ["--root", daemon.work / "root", "--state", daemon.work / "state"]
        return subprocess.run([program, *places, "unmount"], capture_output=True, text=True, timeout=60)

    daemon.ctr("run", "-d", IMAGE, name, "sleep", "600")
    refused = unmount()
    assert refused.returncode == 1
    assert "in use by another daemon, pid" in refused.stderr
    daemon.stop()
    assert "file systems of containers are still mounted" in unmount().stderr
    assert len(indexes(daemon)) == 1
    daemon.start()
    daemon.ctr("tasks", "rm", "-f", name)
    daemon.stop()
    assert len(indexes(daemon)) == 1  # the container is still there, and has its snapshot
    disk = daemon.work / "root/disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "disk", disk], check=True)
    try:
        assert unmount().stdout == f"{root(daemon) / 'l/1'}\n"
        assert os.path.ismount(disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    assert not indexes(daemon)
    daemon.start()
    daemon.ctr("tasks", "start", "-d", name)
    daemon.ctr("tasks", "rm", "-f", name)
    daemon.ctr("containers", "rm", name)
