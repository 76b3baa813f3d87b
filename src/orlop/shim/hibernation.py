"""What a worker that has nothing to do leaves to the next: the knowledge of a shim whose containers only run.

A record is made of plain values, with descriptors as their numbers, which worker and keeper share. None is made, and
the worker stays, while anything goes on that a later process could not go on with: a request that is no Wait, a
process that ends, a terminal to be copied, an event that has not been taken.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.shim import loop, sealed
from orlop.shim.container import Container, ExecProcess, Restore, runtime_of
from orlop.shim.keeper import Keeper
from orlop.shim.logger import LoggedStreams
from orlop.shim.process import Process
from orlop.shim.publisher import Publisher
from orlop.shim.reaper import Exit, Reaper
from orlop.shim.stdio import DirectStreams, Stdio
from orlop.shim.task import TaskService
from orlop.shim.ttrpc import Server

log = logging.getLogger(__name__)

Record = dict[str, Any]


class Hibernation:
    """Of the worker whose parts these are."""

    def __init__(
        self, keeper: Keeper, reaper: Reaper, publisher: Publisher, service: TaskService, server: Server
    ) -> None:
        self._keeper = keeper
        self._reaper = reaper
        self._publisher = publisher
        self._service = service
        self._server = server

    def take_up(self, record: Mapping[str, Any]) -> None:
        """Goes on where the worker that made `record` stopped."""
        self._service.sandbox.take_up(record["sandbox"])
        containers = [self._container_of(known) for known in record["containers"]]
        self._service.take_up(containers, record["cgroups"], record["kills"])
        self._server.take_up(record["connections"])

    def begin(self, **more: Any) -> None:
        """Leaves everything to the next worker, and tells it `more`, if all of it can be left."""
        self._reaper.reap()
        record = self._record()
        if record is None or loop.is_busy():
            return
        self._publisher.hang_up()
        if unknown := _open_descriptors() - self._descriptors():
            log.warning("this worker stays: it does not know what descriptors %s are for", sorted(unknown))
            return
        oom = self._service.oom
        self._keeper.sleep(record | more, loop.watched() | oom.watched(), loop.own() | oom.own)

    def _record(self) -> Record | None:
        """None while something goes on that cannot be left to another."""
        connections = self._server.record()
        known = self._service.record()
        if connections is None or known is None or not self._publisher.is_idle:
            return None
        containers, cgroups, kills = known
        records = []
        for container in containers:
            record = _record_of_container(container)
            if record is None:
                return None
            records.append(record)
        processes = [process for container in containers for process in (container.init, *container.execs.values())]
        running = {process.pid for process in processes if process.child and not process.exit}
        running.update(*(each.streams.running for each in processes if isinstance(each.streams, DirectStreams)))
        if self._reaper.awaited() != running | self._service.sandbox.running:
            return None  # a command of the runtime's, say
        return {
            "sandbox": self._service.sandbox.record(),
            "containers": records,
            "cgroups": cgroups,
            "kills": kills,
            "connections": connections,
        }

    def _descriptors(self) -> set[int]:
        """All that should be open in this process."""
        known = {0, 1, 2} | self._keeper.descriptors | sealed.descriptors() | loop.own() | self._server.descriptors
        return known | self._service.descriptors

    def _container_of(self, record: Mapping[str, Any]) -> Container:
        options = Options.FromString(record["options"])
        runtime = runtime_of(self._reaper, record["bundle"], record["namespace"], options)
        container = Container(record["id"], record["bundle"], record["namespace"], runtime, options)
        if record["restore"]:
            container.restore = Restore(*record["restore"])
        container.init = self._process_of(record["init"])
        container.execs = {known["id"]: self._process_of(known) for known in record["execs"]}
        return container

    def _process_of(self, record: Mapping[str, Any]) -> Process:
        stdio = Stdio(*record["stdio"])
        process = Process("", stdio) if record["spec"] is None else ExecProcess(record["id"], stdio, record["spec"])
        if isinstance(process, ExecProcess):
            process.input_ended = record["input_ended"]
        process.state = record["state"]
        if record["exit"]:
            process.exit = Exit(*record["exit"])
            process.child = self._reaper.ended(process.exit)
        elif record["pid"]:
            process.child = self._reaper.adopt(record["pid"])
        if record["streams"] is not None:
            process.streams = LoggedStreams() if "logger" in record["streams"] else DirectStreams()
            process.streams.take_up(record["streams"], self._reaper)
        if record["over"]:
            process.over.set()
        return process


def _open_descriptors() -> set[int]:
    listed = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in listed if os.path.lexists(f"/proc/self/fd/{number}")}  # not that of the list


def _record_of_container(container: Container) -> Record | None:
    init = _record_of_process(container.init)
    execs = [_record_of_process(process) for process in container.execs.values()]
    if init is None or None in execs:
        return None
    return {
        "id": container.id,
        "bundle": container.bundle,
        "namespace": container.namespace,
        "options": container.options.SerializeToString(),
        "restore": astuple(container.restore) if container.restore else None,
        "init": init,
        "execs": execs,
    }


def _record_of_process(process: Process) -> Record | None:
    streams = process.streams
    if process.lock.held or (process.has_died and process.exit is None):
        return None  # it is being started or is ending
    known = streams.record() if isinstance(streams, DirectStreams) else None
    if streams is not None and known is None:
        return None  # a terminal is copied here
    return {
        "id": process.id,
        "stdio": astuple(process.stdio),
        "state": process.state,
        "pid": process.pid,
        "exit": astuple(process.exit) if process.exit else None,
        "over": process.over.is_set(),
        "streams": known,
        "spec": process.spec if isinstance(process, ExecProcess) else None,
        "input_ended": isinstance(process, ExecProcess) and process.input_ended,
    }
