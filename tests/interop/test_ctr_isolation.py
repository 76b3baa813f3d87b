"""What the real `ctr` asks of a container's isolation."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from real_daemon import IMAGE, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

NEWER = os.environ.get("ORLOP_TEST_CTR", "")
"""The path of a `ctr` of containerd 2: older ones cannot mount what they ask for with --remap-labels."""

MAPS = ("--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536")


@pytest.fixture(autouse=True)
def passable(daemon: Daemon) -> None:
    """A container's users go through the daemon's directories to its root: the test's own must let them pass."""
    daemon.work.chmod(0o711)


def sh(daemon: Daemon, name: str, script: str, *options: str | Path) -> str:
    return daemon.ctr("run", "--rm", *options, IMAGE, name, "sh", "-c", script).stdout


def remaps(daemon: Daemon) -> bool:
    return "remap-ids" in daemon.ctr("plugins", "ls", "-d", "id==overlayfs").stdout


@pytest.mark.parametrize("labels", [(), ("--remap-labels",)], ids=["chown", "id-mapped mounts"])
def test_a_container_in_a_user_namespace(daemon: Daemon, name: str, labels: tuple[str, ...]) -> None:
    if labels and not remaps(daemon):
        pytest.skip("this kernel or file system has no id-mapped mounts for overlays")
    if labels and not NEWER:
        pytest.skip("needs a ctr of containerd 2 (its path in ORLOP_TEST_CTR)")
    script = "id -u; stat -c %u:%g / /bin/busybox /etc/passwd; echo x > /etc/passwd && cat /etc/passwd; sleep 600"
    program = NEWER if labels else "ctr"
    daemon.ctr("run", "-d", *MAPS, *labels, IMAGE, name, "sh", "-c", f"({script}) > /tmp/out", program=program)
    try:
        pid = next(line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name))
        root = Path(f"/proc/{pid}/root")
        out = root / "tmp/out"
        while not (out.exists() and "x" in out.read_text()):
            assert name in daemon.ctr("tasks", "ls", "-q").stdout.split()
        assert (root / "tmp/out").read_text().split() == ["0", "0:0", "0:0", "0:0", "x"]
        assert (root / "bin/busybox").lstat().st_uid == 200000
        assert re.search(r"^Uid:\s+200000\s", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    finally:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
    assert f"/{name}/" not in Path("/proc/self/mounts").read_text()


def test_a_seccomp_profile_of_a_file_is_in_force(daemon: Daemon, name: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}'
    )
    out = sh(daemon, name, "mkdir /tmp/x 2>&1; true", "--seccomp", "--seccomp-profile", profile)
    assert "Operation not permitted" in out


def test_a_filter_that_cannot_be_is_not_left_out(daemon: Daemon, name: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction":"SCMP_ACT_PERMIT"}')
    done = daemon.ctr("run", "--rm", "--seccomp", "--seccomp-profile", profile, IMAGE, name, "true", check=False)
    assert done.returncode
    assert "SCMP_ACT_PERMIT" in done.stderr


def test_namespaces_are_joined(daemon: Daemon, name: str, container: str) -> None:
    pid = next(line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(container))
    for kind, file in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")):
        out = sh(
            daemon, f"{name}-{file}", f"readlink /proc/self/ns/{file}", "--with-ns", f"{kind}:/proc/{pid}/ns/{file}"
        )
        assert out.strip() == os.readlink(f"/proc/{pid}/ns/{file}")


def test_mounts_spread_as_asked(daemon: Daemon, name: str, tmp_path: Path) -> None:
    """What is mounted on the host below a slave mount shows in the running container."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-shared", tmp_path], check=True)
        (tmp_path / "below").mkdir()
        mount = f"type=bind,src={tmp_path},dst=/shared,options=rbind:rslave"
        daemon.ctr(
            "run", "-d", "--rootfs-propagation=rslave", "--mount", mount, IMAGE, name, "sleep", "600", check=False
        )
        if name not in daemon.ctr("tasks", "ls", "-q").stdout.split():
            daemon.ctr("containers", "rm", name, check=False)
            daemon.ctr("run", "-d", "--mount", mount, IMAGE, name, "sleep", "600")
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "below"], check=True)
        (tmp_path / "below/file").write_text("x")
        done = daemon.ctr("tasks", "exec", "--exec-id", "look", name, "ls", "/shared/below")
        assert done.stdout == "file\n"
    finally:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
        subprocess.run(["umount", "-R", tmp_path], check=True)
