"""Tasks as messages: of the daemon's service and of shims, which share their types."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.runtime.task.v3 import shim_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types import metrics_pb2
from orlop.api.types.task import task_pb2
from orlop.core.clock import ZERO
from orlop.core.task import IO, Exit, Metric, NewTask, Process, ProcessInfo, Status
from orlop.core.wire import common


def process(noun: Process) -> task_pb2.Process:
    return task_pb2.Process(
        container_id=noun.container_id,
        id=noun.id,
        pid=noun.pid,
        status=task_pb2.Status.Name(noun.status),
        stdin=noun.io.stdin,
        stdout=noun.io.stdout,
        stderr=noun.io.stderr,
        terminal=noun.io.terminal,
        exit_status=noun.exit_status,
        exited_at=common.timestamp(noun.exited_at),
    )


def process_info(noun: ProcessInfo) -> task_pb2.ProcessInfo:
    return task_pb2.ProcessInfo(pid=noun.pid, info=common.any_of(noun.info))


def process_info_of(message: task_pb2.ProcessInfo) -> ProcessInfo:
    return ProcessInfo(message.pid, common.optional_typed(message, "info"))


def metric(noun: Metric) -> metrics_pb2.Metric:
    return metrics_pb2.Metric(id=noun.id, timestamp=common.timestamp(noun.timestamp), data=common.any_of(noun.data))


def deleted(noun: Exit) -> tasks_pb2.DeleteResponse:
    return tasks_pb2.DeleteResponse(
        id=noun.id, pid=noun.pid, exit_status=noun.status, exited_at=common.timestamp(noun.exited_at)
    )


def new_task_of(message: tasks_pb2.CreateTaskRequest) -> NewTask:
    return NewTask(
        container_id=message.container_id,
        rootfs=common.mounts_of(message.rootfs),
        io=IO(message.stdin, message.stdout, message.stderr, message.terminal),
        checkpoint=common.descriptor_of(message.checkpoint) if message.HasField("checkpoint") else None,
        options=common.optional_typed(message, "options"),
        runtime_path=message.runtime_path,
        api_address=message.task_api_address,
        api_version=message.task_api_version,
    )


def state_of(message: shim_pb2.StateResponse, container_id: str) -> Process:
    """A shim's answer. A process that has not exited has Go's zero time, whatever the shim sent."""
    return Process(
        container_id=container_id,
        id=message.exec_id or container_id,
        pid=message.pid,
        status=_status(message.status),
        io=IO(message.stdin, message.stdout, message.stderr, message.terminal),
        exit_status=message.exit_status,
        exited_at=exited_at(message.exited_at) if message.HasField("exited_at") else ZERO,
    )


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        return Status.UNKNOWN


def exited_at(stamp: Timestamp) -> int:
    """Nanoseconds; a stamp that was never set (1970) reads as Go's zero time."""
    moment = common.nanoseconds(stamp)
    return moment or ZERO
