"""The snapshotter erofs, whose mounts need the mount manager, by clients that take mounts as they come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

NAMESPACE = "orlop-test-erofs"


def mounts_of_images(daemon: Daemon) -> list[str]:
    return [
        line for line in Path("/proc/mounts").read_text().splitlines() if f"{daemon.work}" in line and " erofs " in line
    ]


def test_a_container_runs_over_images_and_leaves_none_mounted(daemon: Daemon, archives: Archives) -> None:
    plugin = daemon.ctr("plugins", "ls", "id==erofs").stdout
    if "skip" in plugin:
        pytest.skip(f"the kernel does not mount EROFS images from files: {plugin}")
    other = Daemon(daemon.work, namespace=NAMESPACE)
    other.ctr("namespaces", "create", NAMESPACE, "containerd.io/defaults/snapshotter=erofs")
    other.ctr("images", "import", "--snapshotter", "erofs", archives.oci)
    before = mounts_of_images(daemon)

    def orlop(*arguments: str) -> str:
        command = [Path(sys.executable).parent / "orlop", *arguments]
        environment = os.environ | {"ORLOP_ADDRESS": daemon.address, "ORLOP_NAMESPACE": NAMESPACE}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert not done.returncode, done.stderr
        return done.stdout

    assert orlop("run", "--rm", IMAGE, "one", "sh", "-c", "echo written > /file; cat /file") == "written\n"
    orlop("run", "-d", IMAGE, "two", "sleep", "100")
    assert len(mounts_of_images(daemon)) == len(before) + 1
    orlop("rm", "-f", "two")
    assert mounts_of_images(daemon) == before
    other.ctr("images", "rm", "--sync", IMAGE)
    assert other.ctr("snapshots", "--snapshotter", "erofs", "ls").stdout.splitlines()[1:] == []
    other.ctr("namespaces", "rm", NAMESPACE)
