"""The systemd cgroup driver, by `ctr` and the real runtimes: needs a host that systemd runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import patient
from real_daemon import IMAGE, Daemon

from orlop.client import connect
from orlop.core.typed import Typed

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.runtime,
    pytest.mark.skipif(not Path("/run/systemd/system").exists(), reason="systemd does not run here"),
]

RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


@pytest.fixture(params=["runc", "crun"])
def scoped(daemon: Daemon, name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A container in `orlop-<name>.scope`."""
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    where = ("--runc-systemd-cgroup", "--cgroup", f"system.slice:orlop:{name}")
    limit = ("--memory-limit", str(64 << 20))
    daemon.ctr("run", "-d", "--null-io", "--runc-binary", request.param, *where, *limit, IMAGE, name, "sleep", "600")
    yield name
    daemon.ctr("tasks", "rm", "-f", name, check=False)
    daemon.ctr("containers", "rm", name, check=False)


def properties(unit: str, *names: str) -> dict[str, str]:
    command = ["systemctl", "show", unit, *(f"--property={name}" for name in names)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=True).stdout
    return dict(line.partition("=")[::2] for line in shown.splitlines())


def groups_of(pid: int) -> set[str]:
    return {line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}


async def test_a_container_has_a_scope_with_its_limits_for_as_long_as_it_lives(daemon: Daemon, scoped: str) -> None:
    unit = f"orlop-{scoped}.scope"
    (pid,) = [int(line.split()[1]) for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(scoped)]
    assert any(f"/system.slice/{unit}" in group for group in groups_of(pid))
    inside = daemon.ctr("tasks", "exec", "--exec-id", "e", scoped, "cat", "/proc/self/cgroup").stdout
    assert {line.split(":", 2)[2] for line in inside.splitlines()} == groups_of(pid)
    assert properties(unit, "ActiveState") == {"ActiveState": "active"}
    resources = {"memory": {"limit": 32 << 20}, "pids": {"limit": 33}, "cpu": {"shares": 512}}
    async with connect(daemon.address) as client:
        await client.tasks.update(client.scope, scoped, Typed(RESOURCES_URL, json.dumps(resources).encode()), {})
    metrics = json.loads(daemon.ctr("tasks", "metrics", "--format", "json", scoped).stdout)
    assert metrics["pids"] == {"current": 1, "limit": 33}
    daemon.ctr("tasks", "pause", scoped)
    assert "PAUSED" in daemon.ctr("tasks", "ls").stdout
    daemon.ctr("tasks", "resume", scoped)
    daemon.ctr("tasks", "rm", "-f", scoped, check=False)
    deadline = time.monotonic() + patient(30)
    while properties(unit, "ActiveState") != {"ActiveState": "inactive"} or any(
        unit in names for _, names, _ in os.walk("/sys/fs/cgroup")
    ):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
