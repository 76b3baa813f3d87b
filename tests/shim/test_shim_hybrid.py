"""The mount namespace in which crun takes hybrid cgroups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import patient

from orlop.shim import hybrid

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not hybrid.has_controllers(), reason="the cgroups of this host are not hybrid with controllers"),
]
HOST = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount --make-rshared / && exec "$@"', "sh"]
"""Runs a command on a host of its own, all of whose mounts are shared, as systemd makes them."""
SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from orlop.shim import hybrid

place = Path(sys.argv[1])
own = os.readlink("/proc/self/ns/mnt")
with hybrid.without_controllers():
    assert os.readlink("/proc/self/ns/mnt") != own
    assert not hybrid.has_controllers()
    assert os.path.ismount(hybrid.UNIFIED)
    inside = subprocess.Popen(
        ["sh", "-c", 'mount -t tmpfs tmpfs "$0/in" && echo mounted && read line && mountpoint -q "$0/out"', place],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
assert (os.readlink("/proc/self/ns/mnt"), os.getcwd()) == (own, "/var/tmp")
assert inside.stdout.readline() == b"mounted\\n"
assert hybrid.has_controllers(), "the file that hides the controllers shows on the host"
assert os.path.ismount(place / "in"), "what is mounted inside does not show on the host"
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "out"], check=True)
inside.communicate(b"go\\n")
assert inside.returncode == 0, "what is mounted on the host does not show inside"
"""


def test_only_the_controllers_are_hidden_and_all_other_mounts_stay_shared(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    command = [*HOST, sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), cwd="/var/tmp")
    assert done.returncode == 0, done.stderr


def test_a_process_without_the_privilege_is_told() -> None:
    script = "from orlop.shim import hybrid\nwith hybrid.without_controllers(): pass"
    dropped = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script]
    done = subprocess.run(dropped, capture_output=True, text=True, timeout=patient(60))
    assert "PermissionError: [Errno 1] Operation not permitted: 'unshare'" in done.stderr
