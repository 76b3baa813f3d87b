"""Tasks: what runs of a container. A task has one init process and any number of execs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from orlop.core.clock import ZERO
from orlop.core.descriptor import Descriptor
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.typed import Typed


class Status(IntEnum):
    """The numbers are those of the wire. UNKNOWN is what a shim that does not answer leaves us with."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class IO:
    """Standard streams by path or log URI; an empty one is no stream."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Process:
    """The init process of a task (`id` is the container's) or one of its execs."""

    container_id: str
    id: str
    pid: int = 0
    status: Status = Status.UNKNOWN
    io: IO = IO()
    exit_status: int = 0
    exited_at: int = ZERO


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. A process killed by a signal has status 128 + signal."""

    status: int
    exited_at: int = ZERO
    pid: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process in the container, by its pid on the host; `info` tells execs from the rest."""

    pid: int
    info: Typed | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    id: str
    timestamp: int
    data: Typed


@dataclass(frozen=True, slots=True)
class NewTask:
    """What a task is made of. `runtime_path` is a shim binary that goes before the container's runtime name.

    `api_address` and `api_version` say who serves the task of a container in a sandbox, as the sandbox's controller
    told it (`ttrpc+unix:///path`).
    """

    container_id: str
    rootfs: Sequence[Mount] = ()
    io: IO = IO()
    checkpoint: Descriptor | None = None
    options: Typed | None = None
    runtime_path: str = ""
    api_address: str = ""
    api_version: int = 0


class Tasks(Protocol):
    """The tasks of containers. An empty `exec_id` names the init process."""

    async def create(self, scope: Scope, new: NewTask) -> int:
        """Makes the task, not yet running; returns the pid of its init process."""

    async def start(self, scope: Scope, container_id: str, exec_id: str = "") -> int:
        """Returns the pid."""

    async def delete(self, scope: Scope, container_id: str) -> Exit:
        """Removes a task that is created or stopped, with all that it left on this host."""

    async def delete_process(self, scope: Scope, container_id: str, exec_id: str) -> Exit: ...

    async def get(self, scope: Scope, container_id: str, exec_id: str = "") -> Process: ...

    async def kill(
        self, scope: Scope, container_id: str, exec_id: str = "", signal: int = 15, *, everyone: bool = False
    ) -> None: ...

    async def exec(self, scope: Scope, container_id: str, exec_id: str, spec: Typed | None, io: IO) -> None: ...

    async def resize_pty(self, scope: Scope, container_id: str, exec_id: str, width: int, height: int) -> None: ...

    async def close_io(self, scope: Scope, container_id: str, exec_id: str = "", *, stdin: bool = True) -> None: ...

    async def pause(self, scope: Scope, container_id: str) -> None: ...

    async def resume(self, scope: Scope, container_id: str) -> None: ...

    async def pids(self, scope: Scope, container_id: str) -> list[ProcessInfo]: ...

    async def checkpoint(self, scope: Scope, container_id: str, options: Typed | None) -> list[Descriptor]:
        """The content that the checkpoint is stored as; nothing where the options name an image path."""

    async def update(
        self, scope: Scope, container_id: str, resources: Typed | None, annotations: Mapping[str, str]
    ) -> None: ...

    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> list[Metric]: ...

    async def wait(self, scope: Scope, container_id: str, exec_id: str = "") -> Exit: ...

    async def list(self, scope: Scope) -> list[Process]: ...
