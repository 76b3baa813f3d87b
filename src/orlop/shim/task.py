"""The Task service: what a shim serves, under the names of version 2 and of version 3 of the contract.

The order that is kept: a process's start is published before its exit and before Start returns; the exits of a
container's execs are published before that of its init; each exit is published once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.events import task_pb2 as events
from orlop.api.runtime.task.v3 import shim_pb2 as v3
from orlop.api.types.runc.options.oci_pb2 import CheckpointOptions, ProcessDetails
from orlop.api.types.task import task_pb2
from orlop.errors import AlreadyExists, NotFound, OrlopError
from orlop.rpc.service import Call
from orlop.shim import loop
from orlop.shim.cgroup import Cgroup
from orlop.shim.container import Container, ExecProcess
from orlop.shim.metrics import stats_of
from orlop.shim.oom import OomRecord, OomWatcher
from orlop.shim.process import Process
from orlop.shim.publisher import Publisher
from orlop.shim.reaper import Exit, Reaper
from orlop.shim.sandbox import SandboxService
from orlop.shim.stdio import DirectStreams, Stdio
from orlop.shim.ttrpc import Interface, Service

log = logging.getLogger(__name__)

_NEVER_SECONDS = -62135596800
"""Go's zero time, which clients take for "has not happened"."""
_INTERFACE = Interface.of(v3.DESCRIPTOR.services_by_name["Task"])
_SIGKILL = 9
_VERSION_2 = "containerd.task.v2.Task"
_STATUS = {
    "created": task_pb2.CREATED,
    "running": task_pb2.RUNNING,
    "stopped": task_pb2.STOPPED,
    "paused": task_pb2.PAUSED,
    "pausing": task_pb2.PAUSING,
}


class TaskService:
    """The containers of one shim. `end` is called to end the shim."""

    def __init__(
        self,
        namespace: str,
        reaper: Reaper,
        publisher: Publisher,
        end: Callable[[], None],
    ) -> None:
        self._namespace = namespace
        self._reaper = reaper
        self._publisher = publisher
        self._end = end
        self._containers: dict[str, Container] = {}
        self.sandbox = SandboxService(reaper, self._stop_all, self._all_stats, self._end_if_empty)
        self._cgroups: dict[str, Cgroup] = {}
        self._reserved: set[str] = set()
        self._watchers: set[loop.Task[None]] = set()
        self.oom = OomWatcher(self._tell_oom)

    def services(self) -> dict[str, Service]:
        """This service under both of its names: all that version 2 knows is the same bytes in version 3."""
        service = Service(_INTERFACE, self)
        return {_INTERFACE.name: service, _VERSION_2: service} | self.sandbox.service()

    def record(self) -> tuple[list[Container], list[tuple[str, str, dict[str, str]]], Sequence[OomRecord]] | None:
        """The containers with their control groups, and what is known of kills; None while one is made."""
        if self._reserved:
            return None
        cgroups = [(id, cgroup.unified, cgroup.controllers) for id, cgroup in self._cgroups.items()]
        return list(self._containers.values()), cgroups, self.oom.record()

    def take_up(
        self,
        containers: Sequence[Container],
        cgroups: Sequence[tuple[str, str, dict[str, str]]],
        kills: Sequence[OomRecord],
    ) -> None:
        """Goes on with what an earlier service recorded."""
        self._cgroups = {id: Cgroup(unified, controllers) for id, unified, controllers in cgroups}
        self.oom.take_up(kills)
        for container in containers:
            self._containers[container.id] = container
            if container.init.child is not None and container.init.exit is None:
                self._watch(self._await_init(container))
            for process in container.execs.values():
                if process.child is not None and process.exit is None:
                    self._watch(self._await_exec(container, process))

    @property
    def descriptors(self) -> set[int]:
        """What is open for the containers."""
        processes = [p for container in self._containers.values() for p in (container.init, *container.execs.values())]
        streams = [process.streams for process in processes if isinstance(process.streams, DirectStreams)]
        return {*self.oom.own, *self.oom.watched()}.union(*(each.descriptors for each in streams))

    async def settled(self, timeout: float) -> None:
        """Waits up to `timeout` seconds for exits that are being published."""
        await loop.all_done(list(self._watchers), timeout)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        self.oom.close()

    async def State(self, request: v3.StateRequest, call: Call) -> v3.StateResponse:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        return v3.StateResponse(
            id=process.id or container.id,
            bundle=container.bundle,
            pid=process.pid,
            status=_STATUS[container.state_of(process)],
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            terminal=process.stdio.terminal,
            exit_status=process.exit.status if process.exit else 0,
            exited_at=_timestamp(process.exit),
            exec_id=request.exec_id,
        )

    async def Create(self, request: v3.CreateTaskRequest, call: Call) -> v3.CreateTaskResponse:
        if request.id in self._containers or request.id in self._reserved:
            raise AlreadyExists(f"container {request.id}")
        self._reserved.add(request.id)
        try:
            container = await Container.create(self._reaper, self._namespace, request)
        finally:
            self._reserved.discard(request.id)
        self._containers[request.id] = container
        io = events.TaskIO(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)
        self._publisher.publish(
            "/tasks/create",
            events.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=io,
                checkpoint=request.checkpoint,
                pid=container.init.pid,
            ),
        )
        self._follow(container)
        return v3.CreateTaskResponse(pid=container.init.pid)

    async def Start(self, request: v3.StartRequest, call: Call) -> v3.StartResponse:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        async with process.lock:
            if isinstance(process, ExecProcess):
                await container.start_exec(process)
                started = events.TaskExecStarted(container_id=container.id, exec_id=process.id, pid=process.pid)
                self._publisher.publish("/tasks/exec-started", started)
                self._watch(self._await_exec(container, process))
            else:
                is_restored = process.child is None
                await container.start()
                self._publisher.publish("/tasks/start", events.TaskStart(container_id=container.id, pid=process.pid))
                if is_restored:
                    self._follow(container)
        return v3.StartResponse(pid=process.pid)

    async def Delete(self, request: v3.DeleteRequest, call: Call) -> v3.DeleteResponse:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        async with process.lock:
            if process.id:
                await container.delete_exec(process)
            else:
                await container.delete()
                self._containers.pop(container.id, None)
                self._cgroups.pop(container.id, None)
                self.oom.remove(container.id)
                process.over.set()
                deleted = events.TaskDelete(
                    container_id=container.id,
                    pid=process.pid,
                    exit_status=process.exit.status if process.exit else 0,
                    exited_at=_timestamp(process.exit),
                )
                self._publisher.publish("/tasks/delete", deleted)
            return v3.DeleteResponse(
                pid=process.pid,
                exit_status=process.exit.status if process.exit else 0,
                exited_at=_timestamp(process.exit),
            )

    async def Pids(self, request: v3.PidsRequest, call: Call) -> v3.PidsResponse:
        container = self._container(request.id)
        execs = {process.pid: process.id for process in container.execs.values() if process.pid}
        answer = v3.PidsResponse()
        for pid in await container.pids():
            info = answer.processes.add(pid=pid)
            if pid in execs:
                info.info.type_url = ProcessDetails.DESCRIPTOR.full_name
                info.info.value = ProcessDetails(exec_id=execs[pid]).SerializeToString()
        return answer

    async def Pause(self, request: v3.PauseRequest, call: Call) -> Empty:
        await self._container(request.id).pause()
        self._publisher.publish("/tasks/paused", events.TaskPaused(container_id=request.id))
        return Empty()

    async def Resume(self, request: v3.ResumeRequest, call: Call) -> Empty:
        await self._container(request.id).resume()
        self._publisher.publish("/tasks/resumed", events.TaskResumed(container_id=request.id))
        return Empty()

    async def Checkpoint(self, request: v3.CheckpointTaskRequest, call: Call) -> Empty:
        options = CheckpointOptions()
        if request.options.value:
            options.ParseFromString(request.options.value)
        await self._container(request.id).checkpoint(request.path, options)
        return Empty()

    async def Kill(self, request: v3.KillRequest, call: Call) -> Empty:
        container = self._container(request.id)
        process = container.process(request.exec_id)
        if process.id:
            process.signal(request.signal)
        else:
            await container.kill(request.signal, all=request.all)
        return Empty()

    async def Exec(self, request: v3.ExecProcessRequest, call: Call) -> Empty:
        container = self._container(request.id)
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        container.add_exec(request.exec_id, stdio, request.spec.value)
        added = events.TaskExecAdded(container_id=container.id, exec_id=request.exec_id)
        self._publisher.publish("/tasks/exec-added", added)
        return Empty()

    async def ResizePty(self, request: v3.ResizePtyRequest, call: Call) -> Empty:
        self._container(request.id).process(request.exec_id).resize(request.width, request.height)
        return Empty()

    async def CloseIO(self, request: v3.CloseIORequest, call: Call) -> Empty:
        process = self._container(request.id).process(request.exec_id)
        if request.stdin:
            process.close_stdin()
        return Empty()

    async def Update(self, request: v3.UpdateTaskRequest, call: Call) -> Empty:
        await self._container(request.id).update(request.resources.value)
        return Empty()

    async def Wait(self, request: v3.WaitRequest, call: Call) -> v3.WaitResponse:
        process = self._container(request.id).process(request.exec_id)
        await process.over.wait()
        return v3.WaitResponse(
            exit_status=process.exit.status if process.exit else 0, exited_at=_timestamp(process.exit)
        )

    async def Stats(self, request: v3.StatsRequest, call: Call) -> v3.StatsResponse:
        container = self._container(request.id)
        cgroup = self._cgroups.get(container.id)
        if cgroup is None or not cgroup.exists:
            raise NotFound("cgroup does not exist")
        stats = stats_of(cgroup)
        answer = v3.StatsResponse()
        answer.stats.type_url = stats.DESCRIPTOR.full_name
        answer.stats.value = stats.SerializeToString()
        return answer

    async def Connect(self, request: v3.ConnectRequest, call: Call) -> v3.ConnectResponse:
        container = self._containers.get(request.id)
        return v3.ConnectResponse(shim_pid=self._reaper.shim_pid, task_pid=container.init.pid if container else 0)

    async def Shutdown(self, request: v3.ShutdownRequest, call: Call) -> Empty:
        """Ends the shim unless it still has containers or a sandbox."""
        self._end_if_empty()
        return Empty()

    def _end_if_empty(self) -> None:
        if not self._containers and not self._reserved and not self.sandbox.is_there:
            self._end()

    async def _stop_all(self) -> None:
        """Ends what runs in the containers; they stay, to be deleted."""
        for container in list(self._containers.values()):
            try:
                await container.kill(_SIGKILL, all=True)
            except OrlopError as error:
                log.info("container %s: %s", container.id, error)

    def _all_stats(self) -> list[Message]:
        return [stats_of(cgroup) for cgroup in self._cgroups.values() if cgroup.exists]

    def _container(self, id: str) -> Container:
        try:
            return self._containers[id]
        except KeyError:
            raise NotFound("container not created") from None

    def _tell_oom(self, id: str) -> None:
        self._publisher.publish("/tasks/oom", events.TaskOOM(container_id=id))

    def _follow(self, container: Container) -> None:
        """Watches the init of `container` and its memory from now on."""
        if container.init.child is None:
            return
        cgroup = Cgroup.of(container.init.pid)
        if cgroup is not None:
            self._cgroups[container.id] = cgroup
            self.oom.add(container.id, cgroup)
        self._watch(self._await_init(container))

    def _watch(self, wait) -> None:  # type: ignore[no-untyped-def]
        watcher = loop.create_task(wait)
        self._watchers.add(watcher)
        watcher.add_done_callback(lambda: self._watchers.discard(watcher))

    async def _await_init(self, container: Container) -> None:
        init = container.init
        assert init.child is not None
        ended = await init.child.exit
        self.oom.check(container.id)
        await container.kill_all()
        for process in list(container.execs.values()):
            async with process.lock:  # one that is being started counts
                is_running = process.child is not None
            if is_running:
                await process.over.wait()
        async with init.lock:
            await self._settle(container, init, ended)

    async def _await_exec(self, container: Container, process: Process) -> None:
        assert process.child is not None
        ended = await process.child.exit
        async with process.lock:
            await self._settle(container, process, ended)

    async def _settle(self, container: Container, process: Process, ended: Exit) -> None:
        try:
            await process.settle(ended)
        except (OSError, OrlopError) as error:
            log.error("container %s: streams of process %r: %s", container.id, process.id, error)
            process.exit = ended
            process.state = "stopped"
        self._publisher.publish(
            "/tasks/exit",
            events.TaskExit(
                container_id=container.id,
                id=process.id or container.id,
                pid=ended.pid,
                exit_status=ended.status,
                exited_at=_timestamp(ended),
            ),
        )
        process.over.set()


def _timestamp(ended: Exit | None) -> Timestamp:
    if ended is None:
        return Timestamp(seconds=_NEVER_SECONDS)
    seconds, nanos = divmod(ended.at, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
