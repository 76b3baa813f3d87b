"""Tasks and events over a channel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.tasks.v1 import tasks_pb2 as pb
from orlop.api.types.task import task_pb2
from orlop.client.remote import Remote
from orlop.core.descriptor import Descriptor
from orlop.core.event import Envelope
from orlop.core.scope import Scope
from orlop.core.task import IO, Exit, Metric, NewTask, Process, ProcessInfo, Status
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.core.wire import task as wire


class RemoteTasks(Remote):
    service = pb.DESCRIPTOR.services_by_name["Tasks"]

    async def create(self, scope: Scope, new: NewTask) -> int:
        request = pb.CreateTaskRequest(
            container_id=new.container_id,
            rootfs=common.mounts(new.rootfs),
            stdin=new.io.stdin,
            stdout=new.io.stdout,
            stderr=new.io.stderr,
            terminal=new.io.terminal,
            options=common.any_of(new.options),
            runtime_path=new.runtime_path,
        )
        if new.checkpoint is not None:
            request.checkpoint.CopyFrom(common.descriptor(new.checkpoint))
        return int((await self._call("Create", request, scope)).pid)

    async def start(self, scope: Scope, container_id: str, exec_id: str = "") -> int:
        request = pb.StartRequest(container_id=container_id, exec_id=exec_id)
        return int((await self._call("Start", request, scope)).pid)

    async def delete(self, scope: Scope, container_id: str) -> Exit:
        return _exit(await self._call("Delete", pb.DeleteTaskRequest(container_id=container_id), scope))

    async def delete_process(self, scope: Scope, container_id: str, exec_id: str) -> Exit:
        request = pb.DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
        return _exit(await self._call("DeleteProcess", request, scope))

    async def get(self, scope: Scope, container_id: str, exec_id: str = "") -> Process:
        answer = await self._call("Get", pb.GetRequest(container_id=container_id, exec_id=exec_id), scope)
        return _process(answer.process, container_id)

    async def kill(
        self, scope: Scope, container_id: str, exec_id: str = "", signal: int = 15, *, everyone: bool = False
    ) -> None:
        request = pb.KillRequest(container_id=container_id, exec_id=exec_id, signal=signal, all=everyone)
        await self._call("Kill", request, scope)

    async def exec(self, scope: Scope, container_id: str, exec_id: str, spec: Typed | None, io: IO) -> None:
        request = pb.ExecProcessRequest(
            container_id=container_id,
            exec_id=exec_id,
            spec=common.any_of(spec),
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
        )
        await self._call("Exec", request, scope)

    async def resize_pty(self, scope: Scope, container_id: str, exec_id: str, width: int, height: int) -> None:
        request = pb.ResizePtyRequest(container_id=container_id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, scope)

    async def close_io(self, scope: Scope, container_id: str, exec_id: str = "", *, stdin: bool = True) -> None:
        request = pb.CloseIORequest(container_id=container_id, exec_id=exec_id, stdin=stdin)
        await self._call("CloseIO", request, scope)

    async def pause(self, scope: Scope, container_id: str) -> None:
        await self._call("Pause", pb.PauseTaskRequest(container_id=container_id), scope)

    async def resume(self, scope: Scope, container_id: str) -> None:
        await self._call("Resume", pb.ResumeTaskRequest(container_id=container_id), scope)

    async def pids(self, scope: Scope, container_id: str) -> list[ProcessInfo]:
        answer = await self._call("ListPids", pb.ListPidsRequest(container_id=container_id), scope)
        return [wire.process_info_of(process) for process in answer.processes]

    async def checkpoint(self, scope: Scope, container_id: str, options: Typed | None) -> list[Descriptor]:
        request = pb.CheckpointTaskRequest(container_id=container_id, options=common.any_of(options))
        answer = await self._call("Checkpoint", request, scope)
        return [common.descriptor_of(descriptor) for descriptor in answer.descriptors]

    async def update(
        self, scope: Scope, container_id: str, resources: Typed | None, annotations: Mapping[str, str]
    ) -> None:
        request = pb.UpdateTaskRequest(
            container_id=container_id, resources=common.any_of(resources), annotations=annotations
        )
        await self._call("Update", request, scope)

    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> list[Metric]:
        answer = await self._call("Metrics", pb.MetricsRequest(filters=filters), scope)
        return [
            Metric(metric.id, common.nanoseconds(metric.timestamp), common.typed_of(metric.data))
            for metric in answer.metrics
        ]

    async def wait(self, scope: Scope, container_id: str, exec_id: str = "") -> Exit:
        answer = await self._call("Wait", pb.WaitRequest(container_id=container_id, exec_id=exec_id), scope)
        return Exit(answer.exit_status, common.nanoseconds(answer.exited_at))

    async def list(self, scope: Scope) -> list[Process]:
        answer = await self._call("List", pb.ListTasksRequest(), scope)
        return [_process(task, task.id) for task in answer.tasks]


class Events(Remote):
    service = events_pb2.DESCRIPTOR.services_by_name["Events"]

    async def subscribe(self, filters: Sequence[str] = ()) -> AsyncGenerator[Envelope, None]:
        """Events of all namespaces from now on, for as long as it is iterated."""
        request = events_pb2.SubscribeRequest(filters=filters)
        # Who stops to iterate ends the subscription there and then.
        async with aclosing(self._stream("Subscribe", request)) as messages:
            async for message in messages:
                yield Envelope(
                    common.nanoseconds(message.timestamp),
                    message.namespace,
                    message.topic,
                    common.typed_of(message.event),
                )


def _exit(message: pb.DeleteResponse) -> Exit:
    return Exit(message.exit_status, common.nanoseconds(message.exited_at), message.pid, message.id)


def _process(message: task_pb2.Process, container_id: str) -> Process:
    """A process as the daemon shows it; where it leaves the container out, it is `container_id`."""
    return Process(
        container_id=message.container_id or container_id,
        id=message.id,
        pid=message.pid,
        status=Status(message.status),
        io=IO(message.stdin, message.stdout, message.stderr, message.terminal),
        exit_status=message.exit_status,
        exited_at=wire.exited_at(message.exited_at),
    )
