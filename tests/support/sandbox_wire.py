"""The sandbox API as a client calls it, and containers that are put into sandboxes."""

from __future__ import annotations

import json
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from real_daemon import IMAGE, Daemon

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types import sandbox_pb2 as types

JOINED = {"network": "net", "ipc": "ipc", "uts": "uts"}
RUNTIME = "io.containerd.runc.v2"

_CONTAINERS = "containerd.services.containers.v1.Containers"
_TASKS = "containerd.services.tasks.v1.Tasks"


class Wire:
    """Calls of the daemon's API, in the namespace `default`."""

    def __init__(self, daemon: Daemon) -> None:
        self.channel = grpc.insecure_channel(f"unix://{daemon.address}")

    def call(self, service: str, method: str, request: Any, answer: Any) -> Any:
        stub = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return stub(request, metadata=[("containerd-namespace", "default")], timeout=60)

    def controller(self, method: str, id: str, **fields: Any) -> Any:
        request = getattr(pb, f"Controller{method}Request")(sandbox_id=id, **({"sandboxer": "shim"} | fields))
        answer = getattr(pb, f"Controller{method}Response")
        return self.call("containerd.services.sandbox.v1.Controller", method, request, answer)

    def create(self, id: str, joined: dict[str, str] = JOINED, sandboxer: str = "shim") -> None:
        """A sandbox, in the store and at its controller."""
        described = {"hostname": "pod", "linux": {"namespaces": [{"type": kind} for kind in joined]}}
        spec = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec")
        spec.value = json.dumps(described).encode()
        sandbox = types.Sandbox(sandbox_id=id, runtime={"name": RUNTIME}, spec=spec, sandboxer=sandboxer)
        store = pb.StoreCreateRequest(sandbox=sandbox)
        self.call("containerd.services.sandbox.v1.Store", "Create", store, pb.StoreCreateResponse)
        self.controller("Create", id, sandbox=sandbox, sandboxer=sandboxer)

    def run_in(
        self, daemon: Daemon, sandbox: str, name: str, pid: int, *command: str, joined: dict[str, str] = JOINED
    ) -> int:
        """A container of `sandbox` in its namespaces; the pid of its process."""
        self.put_in(daemon, sandbox, name, pid, *command, joined=joined)
        daemon.ctr("tasks", "start", "-d", name)
        answer = self.call(_TASKS, "Get", tasks_pb2.GetRequest(container_id=name), tasks_pb2.GetResponse)
        return int(answer.process.pid)

    def put_in(
        self, daemon: Daemon, sandbox: str, name: str, pid: int, *command: str, joined: dict[str, str] = JOINED
    ) -> None:
        """The record of such a container. `ctr` makes it under another name, as it cannot say what sandbox it is in.

        That record goes only when the second is there: a snapshot that no record names may be collected.
        """
        draft = f"{name}-draft"
        joins = [f"--with-ns={kind}:/proc/{pid}/ns/{file}" for kind, file in joined.items()]
        daemon.ctr("containers", "create", *joins, IMAGE, draft, "sleep", "600")
        request = containers_pb2.GetContainerRequest(id=draft)
        found = self.call(_CONTAINERS, "Get", request, containers_pb2.GetContainerResponse).container
        found.id, found.sandbox = name, sandbox
        spec = json.loads(found.spec.value.replace(draft.encode(), name.encode()))
        if command:
            spec["process"]["args"] = list(command)
        found.spec.value = json.dumps(spec).encode()
        made = containers_pb2.CreateContainerRequest(container=found)
        self.call(_CONTAINERS, "Create", made, containers_pb2.CreateContainerResponse)
        self.call(_CONTAINERS, "Delete", containers_pb2.DeleteContainerRequest(id=draft), AnyMessage)

    def start_at(self, name: str, address: str, version: int) -> int:
        """Starts a container's task at the endpoint that a sandbox's controller told; the pid of its process."""
        request = containers_pb2.GetContainerRequest(id=name)
        container = self.call(_CONTAINERS, "Get", request, containers_pb2.GetContainerResponse).container
        key = {"snapshotter": container.snapshotter, "key": container.snapshot_key}
        service = "containerd.services.snapshots.v1.Snapshots"
        mounts = self.call(service, "Mounts", snapshots_pb2.MountsRequest(**key), snapshots_pb2.MountsResponse).mounts
        new = tasks_pb2.CreateTaskRequest(
            container_id=name, rootfs=mounts, task_api_address=address, task_api_version=version
        )
        self.call(_TASKS, "Create", new, tasks_pb2.CreateTaskResponse)
        started = self.call(_TASKS, "Start", tasks_pb2.StartRequest(container_id=name), tasks_pb2.StartResponse)
        return int(started.pid)
