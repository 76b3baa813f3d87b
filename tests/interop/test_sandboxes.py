"""The sandbox API over the wire, with containers that go into a sandbox's shim."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from patience import patient
from real_daemon import Archives, Daemon
from sandbox_wire import JOINED, RUNTIME, Wire

from orlop.api.cgroups1 import metrics_pb2 as v1
from orlop.api.cgroups2 import metrics_pb2 as v2
from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types import sandbox_pb2 as types

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

WITH_PIDS = JOINED | {"pid": "pid"}
METRICS = {"io.containerd.cgroups.v1.Metrics": v1.Metrics, "io.containerd.cgroups.v2.Metrics": v2.Metrics}


@pytest.fixture(scope="module")
def pods(make_daemon: Callable[..., Daemon], archives: Archives) -> Daemon:
    """A daemon of these tests alone, as they kill it."""
    daemon = make_daemon()
    daemon.ctr("images", "import", archives.oci)
    return daemon


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_two_containers_run_in_the_shim_and_the_namespaces_of_a_sandbox(pods: Daemon, name: str) -> None:
    wire, names = Wire(pods), [f"{name}-a", f"{name}-b"]
    wire.create(name)
    assert refused(lambda: wire.controller("Create", name, sandbox={"sandbox_id": name}))[0] is (
        grpc.StatusCode.ALREADY_EXISTS
    )
    holder = wire.controller("Start", name).pid
    try:
        pids = [wire.run_in(pods, name, container, holder) for container in names]
        assert {parent_of(pid) for pid in [*pids, holder]} == {parent_of(holder)}
        for pid in pids:
            for file in JOINED.values():
                assert os.readlink(f"/proc/{pid}/ns/{file}") == os.readlink(f"/proc/{holder}/ns/{file}")
        assert pods.ctr("tasks", "exec", "--exec-id", "e", names[0], "hostname").stdout == "pod\n"
        status = wire.controller("Status", name)
        assert (status.state, status.pid) == ("SANDBOX_READY", holder)
        # Neither a killed daemon nor the end of one container disturbs the others.
        pods.stop(signal.SIGKILL)
        pods.start()
        wire = Wire(pods)
        assert wire.controller("Status", name).state == "SANDBOX_READY"
        pods.ctr("tasks", "rm", "-f", names[0])
        assert pods.ctr("tasks", "exec", "--exec-id", "e", names[1], "echo", "here").stdout == "here\n"
        waiting = wire.channel.unary_unary(
            "/containerd.services.sandbox.v1.Controller/Wait",
            request_serializer=pb.ControllerWaitRequest.SerializeToString,
            response_deserializer=pb.ControllerWaitResponse.FromString,
        ).future(
            pb.ControllerWaitRequest(sandbox_id=name, sandboxer="shim"), metadata=[("containerd-namespace", "default")]
        )
        wire.controller("Stop", name)
        assert waiting.result(60).exit_status == 137
        assert wire.controller("Status", name).state == "SANDBOX_NOTREADY"
    finally:
        for container in names:
            pods.ctr("tasks", "rm", "-f", container, check=False)
            pods.ctr("containers", "rm", container, check=False)
    shim = parent_of_shim(pods, name)
    wire.controller("Shutdown", name)
    assert not shim.exists()
    assert wire.controller("Status", name).state == ""


def test_containers_see_each_others_processes_in_a_sandbox_with_a_pid_namespace(pods: Daemon, name: str) -> None:
    wire, names = Wire(pods), [f"{name}-a", f"{name}-b"]
    wire.create(name, WITH_PIDS)
    holder = wire.controller("Start", name).pid
    assert pids_inside(holder)[-1] == 1
    assert birthplace_beside(holder) == os.readlink(f"/proc/{parent_of(holder)}/ns/pid")  # the shim is as it was
    try:
        # The first leaves an orphan behind, which the sandbox's process has to reap.
        orphan = "(sh -c 'sleep 0.1 & exec true') & wait; exec sleep 601"
        first = wire.run_in(pods, name, names[0], holder, "sh", "-c", orphan, joined=WITH_PIDS)
        wire.run_in(pods, name, names[1], holder, joined=WITH_PIDS)
        seen = pods.ctr("tasks", "exec", "--exec-id", "e", names[1], "ps").stdout
        assert f"{pids_inside(first)[-1]} " in seen
        assert "sleep 601" in seen
        assert "orlop-sandbox" in pods.ctr("tasks", "exec", "--exec-id", "e", names[1], "cat", "/proc/1/comm").stdout
        wait_for(lambda: not [pid for pid in children_of(holder) if state_of(pid) == "Z"])
        metrics = wire.controller("Metrics", name).metrics
        assert metrics.id == name
        pids = METRICS[metrics.data.type_url].FromString(metrics.data.value).pids.current
        assert pids == sum(counted(wire, container) for container in names) == 2
        # The end of the first container leaves the second alone; that of the sandbox ends all.
        pods.ctr("tasks", "kill", "-s", "KILL", names[0])
        wait_for(lambda: not Path(f"/proc/{first}/exe").exists())
        assert pods.ctr("tasks", "exec", "--exec-id", "e", names[1], "echo", "here").stdout == "here\n"
        wire.controller("Stop", name)
        wait_for(lambda: "RUNNING" not in pods.ctr("tasks", "ls").stdout)
    finally:
        for container in names:
            pods.ctr("tasks", "rm", "-f", container, check=False)
            pods.ctr("containers", "rm", container, check=False)
    metrics = wire.controller("Metrics", name).metrics
    assert not metrics.HasField("data")
    wire.controller("Shutdown", name)
    assert refused(lambda: wire.controller("Metrics", name))[0] is grpc.StatusCode.NOT_FOUND


def pids_inside(pid: int) -> list[int]:
    """The numbers of a process from the host's namespace to its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(word) for line in lines if line.startswith("NSpid:") for word in line.split()[1:]]


def birthplace_beside(holder: int) -> str:
    """The PID namespace that children of the holder's shim are born into."""
    return os.readlink(f"/proc/{parent_of(holder)}/ns/pid_for_children")


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def counted(wire: Wire, container: str) -> int:
    """The processes in a container, as its metrics have it."""
    request = tasks_pb2.MetricsRequest(filters=[f"id=={container}"])
    (metric,) = wire.call("containerd.services.tasks.v1.Tasks", "Metrics", request, tasks_pb2.MetricsResponse).metrics
    return int(METRICS[metric.data.type_url].FromString(metric.data.value).pids.current)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_sandbox_whose_shim_is_killed_has_stopped_and_its_containers_with_it(pods: Daemon, name: str) -> None:
    wire, container = Wire(pods), f"{name}-a"
    wire.create(name)
    holder = wire.controller("Start", name).pid
    inside = wire.run_in(pods, name, container, holder)
    try:
        os.kill(parent_of(holder), signal.SIGKILL)
        deadline = time.monotonic() + patient(30)
        while (
            wire.controller("Status", name).state == "SANDBOX_READY"
            or container in pods.ctr("tasks", "ls").stdout
            or any(Path(f"/proc/{pid}/exe").exists() for pid in (holder, inside))
            or list((pods.work / "state").glob(f"*/default/{name}*"))
        ):
            assert time.monotonic() < deadline, pods.log()
            time.sleep(0.05)
    finally:
        pods.ctr("tasks", "rm", "-f", container, check=False)
        pods.ctr("containers", "rm", container, check=False)
    wire.controller("Create", name, sandbox={"sandbox_id": name, "runtime": {"name": RUNTIME}})  # the id is free
    wire.controller("Shutdown", name)


def parent_of_shim(daemon: Daemon, sandbox: str) -> Path:
    bundle = daemon.work / "state" / "io.containerd.sandbox.controller.v1.shim" / "default" / sandbox
    assert bundle.is_dir()
    return bundle


def test_what_is_not_there_is_told_as_clients_know_it(pods: Daemon, name: str) -> None:
    wire = Wire(pods)
    assert refused(lambda: wire.controller("Start", name, sandboxer="")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid argument: sandbox controller name can not be empty",
    )
    assert refused(lambda: wire.controller("Start", name, sandboxer="no")) == (
        grpc.StatusCode.NOT_FOUND,
        "not found: failed to get sandbox controller by no",
    )
    assert refused(lambda: wire.controller("Start", name)) == (
        grpc.StatusCode.UNKNOWN,
        f'failed to start sandbox "{name}": unable to find sandbox "{name}"',
    )
    assert refused(lambda: wire.controller("Create", name, sandboxer="podsandbox")) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "sandbox controller podsandbox, which is a part of containerd's CRI plugin: not implemented",
    )
    for method in ("Shutdown", "Wait", "Platform"):
        assert refused(lambda method=method: wire.controller(method, name))[0] is grpc.StatusCode.NOT_FOUND  # type: ignore[misc]
    wire.controller("Stop", name)
    assert wire.controller("Status", name).exited_at.seconds > 0


def test_a_sandbox_of_a_runtime_that_is_not_there_leaves_nothing(pods: Daemon, name: str) -> None:
    wire = Wire(pods)
    sandbox = types.Sandbox(sandbox_id=name, runtime={"name": "io.example.nothing.v1"})
    assert refused(lambda: wire.controller("Create", name, sandbox=sandbox))[0] is grpc.StatusCode.UNKNOWN
    assert wire.controller("Status", name).state == ""
