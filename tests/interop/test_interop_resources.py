"""Limits of running containers, what their cgroups count, and what happens at the limit: on the real kernel."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import oci_runtime
import pytest
from real_daemon import IMAGE, Daemon

from orlop.api.cgroups1 import metrics_pb2 as v1
from orlop.api.cgroups2 import metrics_pb2 as v2
from orlop.client import connect
from orlop.core.typed import Typed
from orlop.errors import OrlopError

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
V1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()


@pytest.fixture
def sleeper(daemon: Daemon, name: str) -> Iterator[str]:
    daemon.ctr("run", "-d", "--null-io", "--memory-limit", str(64 << 20), IMAGE, name, "sleep", "600")
    yield name
    daemon.ctr("tasks", "rm", "-f", name, check=False)
    daemon.ctr("containers", "rm", name, check=False)


async def update(daemon: Daemon, name: str, resources: object) -> None:
    async with connect(daemon.address) as client:
        await client.tasks.update(client.scope, name, Typed(RESOURCES_URL, json.dumps(resources).encode()), {})


def setting(daemon: Daemon, name: str, controller: str, file: str) -> str:
    """The content of a file of the container's cgroup; `controller` says in which hierarchy of version 1."""
    group = f"/sys/fs/cgroup/{controller if V1 else ''}/{group_of(daemon, name, controller)}"
    return Path(group, file).read_text().strip()


def group_of(daemon: Daemon, name: str, controller: str = "") -> str:
    """The path of the container's cgroup, from the root of the hierarchy of `controller` or of version 2."""
    pid = next(line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name))
    paths = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    return paths[controller if V1 else ""].lstrip("/")


@pytest.mark.skipif(not V1, reason="the host has no cgroup v1 controllers")
async def test_limits_of_a_running_container_are_changed(daemon: Daemon, sleeper: str) -> None:
    device = next(Path("/sys/block").glob("*/dev"))
    major, minor = map(int, device.read_text().split(":"))
    await update(
        daemon,
        sleeper,
        {
            "memory": {"limit": 32 << 20, "reservation": 16 << 20},
            "cpu": {"shares": 256, "quota": 20000, "period": 50000, "cpus": "0"},
            "pids": {"limit": 17},
            "blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 0}]},
        },
    )
    found = {
        file: setting(daemon, sleeper, controller, file)
        for controller, file in (
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.soft_limit_in_bytes"),
            ("cpu", "cpu.shares"),
            ("cpu", "cpu.cfs_quota_us"),
            ("cpu", "cpu.cfs_period_us"),
            ("cpuset", "cpuset.cpus"),
            ("pids", "pids.max"),
        )
    }
    assert found == {
        "memory.limit_in_bytes": str(32 << 20),
        "memory.soft_limit_in_bytes": str(16 << 20),
        "cpu.shares": "256",
        "cpu.cfs_quota_us": "20000",
        "cpu.cfs_period_us": "50000",
        "cpuset.cpus": "0",
        "pids.max": "17",
    }


async def test_crun_changes_the_rate_at_which_a_container_reads_from_a_disk(daemon: Daemon, name: str) -> None:
    """runc's `update` passes over it, under containerd too."""
    disks = [path.joinpath("dev").read_text().strip() for path in Path("/sys/block").glob("[hsv]d?")]
    if not disks or oci_runtime.chosen().name != "crun":
        pytest.skip("needs a disk and a host where crun works")
    daemon.ctr("run", "-d", "--null-io", "--runc-binary", "crun", IMAGE, name, "sleep", "600")
    try:
        major, minor = map(int, disks[0].split(":"))
        rate = {"major": major, "minor": minor, "rate": 1 << 20}
        await update(daemon, name, {"blockIO": {"throttleReadBpsDevice": [rate]}})
        file = "blkio.throttle.read_bps_device" if V1 else "io.max"
        expected = f"{disks[0]} 1048576" if V1 else f"{disks[0]} rbps=1048576 wbps=max riops=max wiops=max"
        assert setting(daemon, name, "blkio", file) == expected
    finally:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)


@pytest.mark.skipif(V1, reason="the host has cgroup v1 controllers")
async def test_limits_of_a_running_container_are_changed_on_a_host_with_version_2(daemon: Daemon, sleeper: str) -> None:
    """The runtimes translate what the specification says in terms of version 1; `unified` is written as it is."""
    disk = next(Path("/sys/block").glob("[hsv]d?")).joinpath("dev").read_text().strip()
    await update(
        daemon,
        sleeper,
        {
            "memory": {"limit": 32 << 20, "reservation": 16 << 20, "swap": 48 << 20},
            "cpu": {"shares": 256, "quota": 20000, "period": 50000, "cpus": "0"},
            "pids": {"limit": 17},
            "blockIO": {"weight": 300},
            "unified": {"memory.high": str(24 << 20), "io.max": f"{disk} rbps=1048576"},
        },
    )
    expected = {
        "memory.max": str(32 << 20),
        "memory.low": str(16 << 20),
        "memory.swap.max": str(16 << 20),
        "cpu.weight": "10",
        "cpu.max": "20000 50000",
        "cpuset.cpus": "0",
        "pids.max": "17",
        "memory.high": str(24 << 20),
        "io.max": f"{disk} rbps=1048576 wbps=max riops=max wiops=max",
    }
    assert {file: setting(daemon, sleeper, "", file) for file in expected} == expected
    weight = Path(f"/sys/fs/cgroup/{group_of(daemon, sleeper)}/io.weight")
    assert not weight.exists() or weight.read_text() == "default 2930\n"  # 10 to 1000 become 1 to 10000


@pytest.mark.parametrize("resources", [{"cpu": {"cpus": "4096"}}, {"cpu": {"quota": 1, "period": 1}}, "no object"])
async def test_limits_that_cannot_be_are_refused_and_change_nothing(
    daemon: Daemon, sleeper: str, resources: object
) -> None:
    with pytest.raises(OrlopError):
        await update(daemon, sleeper, resources)
    file = "memory.limit_in_bytes" if V1 else "memory.max"
    assert setting(daemon, sleeper, "memory", file) == str(64 << 20)
    assert sleeper in daemon.ctr("tasks", "ls", "-q").stdout.split()


def test_an_exec_is_in_the_cgroup_of_its_container(daemon: Daemon, sleeper: str) -> None:
    pid = next(line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(sleeper))
    daemon.ctr("tasks", "exec", "-d", "--exec-id", "e", "--log-uri", "file:///dev/null", sleeper, "sleep", "601")
    pids = Path("/sys/fs/cgroup", "pids" if V1 else "", group_of(daemon, sleeper, "pids"), "cgroup.procs")
    assert pid in pids.read_text().split()
    assert len(pids.read_text().split()) == 2


async def test_metrics_are_those_of_the_cgroup(daemon: Daemon, sleeper: str) -> None:
    await update(daemon, sleeper, {"pids": {"limit": 23}})
    async with connect(daemon.address) as client:
        (metric,) = await client.tasks.metrics(client.scope, [f"id=={sleeper}"])
    assert metric.data is not None
    if V1:
        assert metric.data.type_url == "io.containerd.cgroups.v1.Metrics"
        one = v1.Metrics.FromString(metric.data.value)
        assert (one.pids.current, one.pids.limit) == (1, 23)
        assert one.memory.usage.limit == 64 << 20
        assert one.memory.usage.usage > 0
        assert one.cpu.usage.total > 0
        assert len(one.cpu.usage.per_cpu) >= 1
    else:
        two = v2.Metrics.FromString(metric.data.value)
        assert (two.pids.current, two.pids.limit, two.memory.usage_limit) == (1, 23, 64 << 20)
    shown = daemon.ctr("tasks", "metrics", "--format", "json", sleeper).stdout
    assert json.loads(shown)["pids"]["limit"] == 23


def test_a_kill_for_want_of_memory_is_told(daemon: Daemon, name: str) -> None:
    command = ["ctr", "-a", daemon.address, "events"]
    events = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert events.stdout is not None
    try:
        while not select.select([events.stdout], [], [], 0.1)[0]:  # until it hears of something
            daemon.ctr("namespaces", "label", "default", f"heard={name}")
        hog = "x=0123456789abcdef; while true; do x=$x$x; done"
        done = daemon.ctr("run", "--rm", "--memory-limit", str(16 << 20), IMAGE, name, "sh", "-c", hog, check=False)
        assert done.returncode == 137
        line = next(line for line in events.stdout if "/tasks/oom" in line)
        assert f'"container_id":"{name}"' in line
    finally:
        events.kill()
        events.communicate()


@pytest.mark.parametrize(
    ("path", "seen"), [("/{0}/abs", "/{0}/abs"), ("{0}/rel", "/{0}/rel"), ("{0}.slice:a:b", "/{0}.slice:a:b")]
)
def test_a_cgroup_is_where_it_is_asked_for(daemon: Daemon, name: str, path: str, seen: str) -> None:
    parent = name.replace("-", "_")
    try:
        group = path.format(parent)
        out = daemon.ctr("run", "--rm", "--cgroup", group, IMAGE, name, "cat", "/proc/self/cgroup").stdout
        assert out
        assert all(line.split(":", 2)[2].endswith(seen.format(parent)) for line in out.splitlines())
    finally:
        for left in groups_of_name(parent):
            if left.name == parent:
                left.rmdir()
    assert not groups_of_name(parent)


def groups_of_name(start: str) -> list[Path]:
    """Cgroups whose name begins so. Those of other tests may go while this looks (`Path.glob` fails at that)."""
    return [
        Path(directory, name)
        for directory, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(start)
    ]


def test_the_systemd_driver_is_refused_where_there_is_no_systemd(daemon: Daemon, name: str) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs here")
    arguments = ("--runc-systemd-cgroup", "--cgroup", "system.slice:orlop:x")
    done = daemon.ctr("run", "--rm", *arguments, IMAGE, name, "true", check=False)
    assert done.returncode
    runcs, cruns = "systemd not running on this host, cannot use systemd cgroups manager", "cannot open sd-bus"
    assert runcs in done.stderr or cruns in done.stderr
    assert name not in daemon.ctr("containers", "ls", "-q").stdout.split()
