"""The Tasks service."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.core.task import IO, Tasks
from orlop.core.wire import common
from orlop.core.wire import task as wire
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class TasksService:
    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def Create(self, request: tasks_pb2.CreateTaskRequest, call: Call) -> tasks_pb2.CreateTaskResponse:
        pid = await self._tasks.create(scope_of(call), wire.new_task_of(request))
        return tasks_pb2.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def Start(self, request: tasks_pb2.StartRequest, call: Call) -> tasks_pb2.StartResponse:
        return tasks_pb2.StartResponse(
            pid=await self._tasks.start(scope_of(call), request.container_id, request.exec_id)
        )

    async def Delete(self, request: tasks_pb2.DeleteTaskRequest, call: Call) -> tasks_pb2.DeleteResponse:
        return wire.deleted(await self._tasks.delete(scope_of(call), request.container_id))

    async def DeleteProcess(self, request: tasks_pb2.DeleteProcessRequest, call: Call) -> tasks_pb2.DeleteResponse:
        exit = await self._tasks.delete_process(scope_of(call), request.container_id, request.exec_id)
        return wire.deleted(exit)

    async def Get(self, request: tasks_pb2.GetRequest, call: Call) -> tasks_pb2.GetResponse:
        process = await self._tasks.get(scope_of(call), request.container_id, request.exec_id)
        return tasks_pb2.GetResponse(process=wire.process(process))

    async def List(self, request: tasks_pb2.ListTasksRequest, call: Call) -> tasks_pb2.ListTasksResponse:
        processes = await self._tasks.list(scope_of(call))
        return tasks_pb2.ListTasksResponse(tasks=[wire.process(process) for process in processes])

    async def Kill(self, request: tasks_pb2.KillRequest, call: Call) -> Empty:
        await self._tasks.kill(
            scope_of(call), request.container_id, request.exec_id, request.signal, everyone=request.all
        )
        return Empty()

    async def Exec(self, request: tasks_pb2.ExecProcessRequest, call: Call) -> Empty:
        io = IO(request.stdin, request.stdout, request.stderr, request.terminal)
        spec = common.optional_typed(request, "spec")
        await self._tasks.exec(scope_of(call), request.container_id, request.exec_id, spec, io)
        return Empty()

    async def ResizePty(self, request: tasks_pb2.ResizePtyRequest, call: Call) -> Empty:
        await self._tasks.resize_pty(
            scope_of(call), request.container_id, request.exec_id, request.width, request.height
        )
        return Empty()

    async def CloseIO(self, request: tasks_pb2.CloseIORequest, call: Call) -> Empty:
        await self._tasks.close_io(scope_of(call), request.container_id, request.exec_id, stdin=request.stdin)
        return Empty()

    async def Pause(self, request: tasks_pb2.PauseTaskRequest, call: Call) -> Empty:
        await self._tasks.pause(scope_of(call), request.container_id)
        return Empty()

    async def Resume(self, request: tasks_pb2.ResumeTaskRequest, call: Call) -> Empty:
        await self._tasks.resume(scope_of(call), request.container_id)
        return Empty()

    async def ListPids(self, request: tasks_pb2.ListPidsRequest, call: Call) -> tasks_pb2.ListPidsResponse:
        processes = await self._tasks.pids(scope_of(call), request.container_id)
        return tasks_pb2.ListPidsResponse(processes=[wire.process_info(process) for process in processes])

    async def Checkpoint(
        self, request: tasks_pb2.CheckpointTaskRequest, call: Call
    ) -> tasks_pb2.CheckpointTaskResponse:
        options = common.optional_typed(request, "options")
        descriptors = await self._tasks.checkpoint(scope_of(call), request.container_id, options)
        return tasks_pb2.CheckpointTaskResponse(descriptors=[common.descriptor(noun) for noun in descriptors])

    async def Update(self, request: tasks_pb2.UpdateTaskRequest, call: Call) -> Empty:
        resources = common.optional_typed(request, "resources")
        await self._tasks.update(scope_of(call), request.container_id, resources, dict(request.annotations))
        return Empty()

    async def Metrics(self, request: tasks_pb2.MetricsRequest, call: Call) -> tasks_pb2.MetricsResponse:
        metrics = await self._tasks.metrics(scope_of(call), list(request.filters))
        return tasks_pb2.MetricsResponse(metrics=[wire.metric(metric) for metric in metrics])

    async def Wait(self, request: tasks_pb2.WaitRequest, call: Call) -> tasks_pb2.WaitResponse:
        exit = await self._tasks.wait(scope_of(call), request.container_id, request.exec_id)
        return tasks_pb2.WaitResponse(exit_status=exit.status, exited_at=common.timestamp(exit.exited_at))
