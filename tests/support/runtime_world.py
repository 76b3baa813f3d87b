"""A task manager over a real shim, with everything below the test's own directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import oci_runtime
from google.protobuf.message import Message
from patience import patient

from orlop.api.types.runc.options import oci_pb2
from orlop.core.container import Container, Runtime
from orlop.core.scope import Scope
from orlop.core.typed import SPEC_URL, Typed
from orlop.core.wire import common
from orlop.errors import NotFound, Unavailable
from orlop.runtime.bootstrap import ShimSettings
from orlop.runtime.bundle import Bundle, Bundles
from orlop.runtime.names import ShimBinaries
from orlop.runtime.shims import Forks, Limits, ShimManager
from orlop.runtime.tasks import TaskManager

SCOPE = Scope("test")
_LIMITS = Limits(*map(patient, dataclasses.astuple(Limits())))


class Containers:
    """Container records in memory."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], Container] = {}

    async def get(self, scope: Scope, id: str) -> Container:
        try:
            return self.records[scope.namespace, id]
        except KeyError:
            raise NotFound(f'container "{id}" in namespace "{scope.namespace}"') from None


@dataclass
class Recorder:
    """A publisher that keeps what it is told."""

    events: list[tuple[str, Message]] = field(default_factory=list)

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        self.events.append((topic, payload))


class NoForks:
    """A host without a fork server."""

    async def fork(self, bundle: Bundle, group: str, socket: str, settings: ShimSettings) -> int:
        raise Unavailable("fork server")


@dataclass
class World:
    tasks: TaskManager
    shims: ShimManager
    containers: Containers
    events: Recorder
    directory: Path

    def add(self, id: str, *args: str, runtime: str = "", spec: bytes | None = None) -> None:
        """A container record that runs `args` of busybox."""
        self.containers.records[SCOPE.namespace, id] = Container(
            id=id,
            runtime=Runtime(runtime or str(shim_binary()), common.pack(self.options())),
            spec=Typed(SPEC_URL, spec if spec is not None else spec_of(self.directory / "image", id, args)),
        )

    def options(self) -> oci_pb2.Options:
        return oci_pb2.Options(root=str(self.directory / "runc"))

    @property
    def leftovers(self) -> list[str]:
        """Bundles and work directories that are still there."""
        found = [*(self.directory / "state").glob("*/*"), *(self.directory / "root").glob("*/*")]
        return sorted(str(path.relative_to(self.directory)) for path in found)


def shim_binary() -> Path | None:
    found = shutil.which("containerd-shim-runc-v2")
    return Path(found) if found else None


def cgroup_of(id: str) -> str:
    """The control group of a container, of this test process alone."""
    return f"/orlop-test/{os.getpid()}-{id}"


def spec_of(rootfs: Path, id: str, args: tuple[str, ...]) -> bytes:
    kinds = ("pid", "ipc", "uts", "mount", "network")
    return json.dumps(
        {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/busybox", *args],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": str(rootfs)},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"cgroupsPath": cgroup_of(id), "namespaces": [{"type": kind} for kind in kinds]},
        }
    ).encode()


@contextlib.asynccontextmanager
async def world(
    directory: Path, containers: Containers | None = None, forks: Forks | None = None
) -> AsyncIterator[World]:
    """A daemon's runtime room. Opened a second time over one directory, it is the daemon after a restart."""
    image = directory / "image"
    if not image.exists():
        (image / "bin").mkdir(parents=True)
        (image / "proc").mkdir()
        (image / "dev").mkdir()
        shutil.copy("/bin/busybox", image / "bin/busybox")
    settings = ShimSettings(
        grpc_address=str(directory / "grpc"),
        ttrpc_address=str(directory / "grpc.ttrpc"),
        daemon_binary="/bin/true",
        socket_dir=str(directory / "s") if len(str(directory / "s")) <= 42 else "",
    )
    events, records = Recorder(), containers or Containers()
    bundles = Bundles(directory / "state", directory / "root")
    shims = ShimManager(bundles, ShimBinaries(), settings, events, forks or NoForks(), _LIMITS)
    tasks = TaskManager(records, None, shims, oci_runtime.chosen())  # type: ignore[arg-type]
    await tasks.load_existing()
    try:
        yield World(tasks, shims, records, events, directory)
    finally:
        await tasks.close()
        await shims.close()
