"""AppArmor profiles asked for by `ctr`: applied where the kernel has them, clearly refused where not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from real_daemon import IMAGE, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
HERE = ENABLED.exists() and ENABLED.read_text().strip() == "Y"
WHY_NOT = (
    "the kernel has no AppArmor, or it is off"
    if not HERE
    else "needs apparmor_parser (Debian package apparmor)"
    if not shutil.which("apparmor_parser")
    else ""
)


def test_a_profile_that_cannot_be_applied_is_refused_by_name(daemon: Daemon, name: str) -> None:
    done = daemon.ctr("run", "--rm", "--apparmor-profile", "orlop-nothing", IMAGE, name, "true", check=False)
    assert done.returncode
    expected = "is not loaded" if HERE else "this kernel has no AppArmor, or it is off"
    assert f'AppArmor profile "orlop-nothing"{" " if HERE else ": "}{expected}' in done.stderr
    assert name not in daemon.ctr("containers", "ls", "-q").stdout.split()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_container_and_its_execs_are_under_the_default_profile(daemon: Daemon, name: str, runtime: str) -> None:
    options = ("--runc-binary", runtime, "--apparmor-default-profile", "orlop-default")
    daemon.ctr("run", "-d", "--null-io", *options, IMAGE, name, "sleep", "600")
    try:
        (pid,) = [line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name)]
        assert Path(f"/proc/{pid}/attr/current").read_text() == "orlop-default (enforce)\n"
        # Read-write for anybody but for the profile.
        refused = "cat /proc/self/attr/current; cat /proc/sysrq-trigger"
        done = daemon.ctr("tasks", "exec", "--exec-id", "e", name, "sh", "-c", refused, check=False)
        assert done.stdout == "orlop-default (enforce)\n"
        assert "Permission denied" in done.stderr
    finally:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
