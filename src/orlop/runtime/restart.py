"""Restart policies of containers, and the monitor that keeps them: `containerd.io/restart.*`.

Clients set the labels; the monitor writes `count` alone. It looks at all labelled containers when the daemon starts and
at every interval, as containerd's does, and besides at a container soon after its process has exited.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from google.protobuf.message import DecodeError

from orlop.api.events import task_pb2 as events
from orlop.core import clock
from orlop.core.container import Container, ContainerStore
from orlop.core.event import Envelope
from orlop.core.namespace import NamespaceStore
from orlop.core.scope import Scope
from orlop.core.snapshot import SnapshotStore
from orlop.core.task import IO, NewTask, Process, Status
from orlop.errors import InvalidArgument, NotFound, OrlopError
from orlop.runtime.owner import Owner
from orlop.runtime.tasks import TaskManager

log = logging.getLogger(__name__)

POLICIES = ("no", "always", "on-failure", "unless-stopped")

_LABEL = "containerd.io/restart."
_STATUS, _POLICY, _COUNT = f"{_LABEL}status", f"{_LABEL}policy", f"{_LABEL}count"
_LOG_URI, _STOPPED = f"{_LABEL}loguri", f"{_LABEL}explicitly-stopped"
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_SIGKILL = 9
_FIRST_PAUSE = 0.5
"""Seconds from an exit to the restart: whoever stopped the container can delete it or change its labels meanwhile."""
_TIME_TO_DELETE = 2.0
"""The same for an exit that is probably a client's work."""
_KILLED = (137, 143)
"""How a process ends on which a client has used KILL or TERM."""
_AT_ONCE = 8
"""Containers that are looked after at a time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a container whose process is not there is started again; `retries` 0 is without limit."""

    name: str = "always"
    retries: int = 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Raises InvalidArgument."""
        name, colon, count = text.partition(":")
        if (name or "always") not in POLICIES:
            raise InvalidArgument(f"restart policy {text!r} not supported (one of {', '.join(POLICIES)})")
        if colon and name != "on-failure":
            raise InvalidArgument(f"restart policy {name!r} takes no count")
        if colon and not count.isdecimal():
            raise InvalidArgument(f"restart policy {text!r}: a count is a number")
        return cls(name or "always", int(count) if colon else 0)

    def wants(self, process: Process | None, labels: Mapping[str, str]) -> bool:
        """Whether a container with `labels` is to be started; `process` is what there is of it, None for nothing."""
        if self.name == "on-failure":
            failed = process is not None and process.exit_status != 0
            return failed and (self.retries == 0 or _count(labels) < self.retries)
        if self.name == "unless-stopped":
            return labels.get(_STOPPED, "") not in _TRUE
        return self.name == "always"


class Events(Protocol):
    """The exchange, as this room uses it."""

    def subscribe(self, expressions: Sequence[str] = ()) -> AbstractContextManager[AsyncIterator[Envelope]]: ...


class RestartMonitor:
    def __init__(
        self,
        namespaces: NamespaceStore,
        containers: ContainerStore,
        snapshots: SnapshotStore,
        tasks: TaskManager,
        events: Events,
        interval: float,
    ) -> None:
        self._namespaces = namespaces
        self._containers = containers
        self._snapshots = snapshots
        self._tasks = tasks
        self._events = events
        self._interval = interval
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._busy: set[tuple[str, str]] = set()
        self._pauses: dict[tuple[str, str], tuple[float, float]] = {}
        """When a container was last started here, and the seconds it waited for that."""
        self._owner = Owner()

    async def start(self) -> None:
        self._owner.start(self._look_at_intervals(), "restart monitor")
        self._owner.start(self._follow_exits(), "restart monitor: exits")

    async def close(self) -> None:
        await self._owner.close()

    async def _look_at_intervals(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("restart monitor")
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Looks at every container once, and does what its labels ask for."""
        async with asyncio.TaskGroup() as group:
            for namespace in await self._namespaces.list():
                scope = Scope(namespace.name)
                for container in await self._containers.list(scope, [f'labels."{_STATUS}"']):
                    group.create_task(self._care(scope, container.id))
        now = clock.monotonic()
        for key, (at, pause) in list(self._pauses.items()):
            if key not in self._busy and now - at > 2 * max(pause, self._interval):
                del self._pauses[key]

    async def _follow_exits(self) -> None:
        while True:
            try:
                with self._events.subscribe(['topic=="/tasks/exit"']) as stream:
                    async for envelope in stream:
                        self._noticed(envelope)
                return
            except OrlopError as error:  # too many events: what was missed is seen at the next interval
                log.warning("restart monitor: %s", error)

    def _noticed(self, envelope: Envelope) -> None:
        try:
            exit = events.TaskExit.FromString(envelope.event.value)
        except DecodeError:
            return
        if exit.id == exit.container_id:
            after = self._after_exit(Scope(envelope.namespace), exit.container_id, exit.exit_status)
            self._owner.start(after, f"restart of {exit.container_id}")

    async def _after_exit(self, scope: Scope, id: str, status: int) -> None:
        """Pauses twice as long as last time where the container ended soon after it was started.

        One that a client has killed is mostly about to be deleted (`nerdctl rm -f`): it gets the time for that.
        """
        try:
            container = await self._containers.get(scope, id)
        except NotFound:
            return
        if container.labels.get(_STATUS) != "running":
            return
        at, pause = self._pauses.get((scope.namespace, id), (0.0, 0.0))
        ran = clock.monotonic() - at
        pause = min(pause * 2, self._interval) if pause and ran < self._interval else _FIRST_PAUSE
        await asyncio.sleep(max(pause, min(_TIME_TO_DELETE, self._interval)) if status in _KILLED else pause)
        await self._care(scope, id, pause)

    async def _care(self, scope: Scope, id: str, pause: float = 0.0) -> None:
        """Brings one container to the state that its labels name."""
        key = (scope.namespace, id)
        if key in self._busy:
            return
        self._busy.add(key)
        try:
            async with self._gate:
                if await self._reconcile(scope, id):
                    self._pauses[key] = (clock.monotonic(), pause or self._pauses.get(key, (0.0, _FIRST_PAUSE))[1])
        except OrlopError as error:
            log.warning("container %s in namespace %s is not restarted: %s", id, scope.namespace, error)
        finally:
            self._busy.discard(key)

    async def _reconcile(self, scope: Scope, id: str) -> bool:
        """True if the container was started."""
        try:
            container = await self._containers.get(scope, id)
        except NotFound:
            return False
        process = await self._process(scope, id)
        match container.labels.get(_STATUS):
            case "stopped" if process is not None and process.status is not Status.STOPPED:
                await self._end(scope, process)
            case "running" if self._is_due(container, process):
                if Policy.parse(container.labels.get(_POLICY, "")).wants(process, container.labels):
                    await self._restart(scope, container, process)
                    return True
        return False

    def _is_due(self, container: Container, process: Process | None) -> bool:
        """Whether the process is missing for good: not while a client may be about to create or to start it."""
        if process is not None and process.status not in (Status.STOPPED, Status.CREATED):
            return False
        if process is not None and process.status is Status.STOPPED:
            return True
        return clock.now() - container.created_at > self._interval * 1e9

    async def _process(self, scope: Scope, id: str) -> Process | None:
        try:
            return await self._tasks.get(scope, id)
        except NotFound:
            return None

    async def _restart(self, scope: Scope, container: Container, process: Process | None) -> None:
        count = str(_count(container.labels) + 1)
        counted = replace(container, labels={**container.labels, _COUNT: count})
        await self._containers.update(scope, counted, [f"labels.{_COUNT}"])
        if process is not None:
            await self._end(scope, process)
        rootfs = (
            await self._snapshots.mounts(scope, container.snapshotter, container.snapshot_key)
            if container.snapshot_key
            else ()
        )
        log.info("container %s in namespace %s: restart %s", container.id, scope.namespace, count)
        await self._tasks.create(scope, NewTask(container.id, rootfs, _streams(container)))
        try:
            await self._tasks.start(scope, container.id)
            await self._containers.get(scope, container.id)
        except OrlopError:
            # It cannot run, or was deleted meanwhile: no task without its container is left behind.
            await self._tasks.discard(scope, container.id)
            raise

    async def _end(self, scope: Scope, process: Process) -> None:
        if process.status not in (Status.STOPPED, Status.CREATED):
            try:
                await self._tasks.kill(scope, process.container_id, signal=_SIGKILL, everyone=True)
                await self._tasks.wait(scope, process.container_id)
            except NotFound:
                pass
        try:
            await self._tasks.delete(scope, process.container_id)
        except NotFound:
            pass


def _streams(container: Container) -> IO:
    uri = container.labels.get(_LOG_URI, "")
    terminal = False
    if container.spec is not None:
        try:
            terminal = json.loads(container.spec.value)["process"].get("terminal") is True
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # the runtime says what is wrong with it
    return IO(stdout=uri, stderr="" if terminal else uri, terminal=terminal)


def _count(labels: Mapping[str, str]) -> int:
    text = labels.get(_COUNT, "0")
    return int(text) if text.isdecimal() else 0
