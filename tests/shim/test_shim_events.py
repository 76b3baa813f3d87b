"""Events on their way to a daemon that is away, comes back, or answers badly."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from patience import patient
from shim_world import running_shim

from orlop.api.events import task_pb2
from orlop.api.services.ttrpc.events.v1 import events_pb2
from orlop.errors import Unavailable
from orlop.rpc.service import Call, Service
from orlop.rpc.ttrpc import Server

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]


class Daemon:
    """The end of a daemon that events are forwarded to. It refuses the first `refuses` of them."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.came: list[tuple[str, bytes]] = []
        self.exited = asyncio.Event()

    async def Forward(self, request: events_pb2.ForwardRequest, call: Call) -> Empty:
        if self.refuses:
            self.refuses -= 1
            raise Unavailable("not yet")
        self.came.append((request.envelope.topic, request.envelope.event.value))
        if request.envelope.topic == "/tasks/exit":
            self.exited.set()
        return Empty()

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)
        server = Server([Service(events_pb2.DESCRIPTOR.services_by_name["Events"], self)])
        await server.serve(listener)
        try:
            yield
        finally:
            await server.close()


async def test_what_happens_while_the_daemon_is_away_is_told_once_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "d"
    first, second = Daemon(), Daemon(refuses=2)
    async with contextlib.AsyncExitStack() as later, running_shim(tmp_path, ttrpc_address=str(path)) as shim:
        async with first.listening(path):
            await shim.create("sh", "-c", "sleep 1; exit 6")
            await shim.call("Start")
            async with asyncio.timeout(patient(20)):
                while len(first.came) < 2:  # noqa: ASYNC110 - nothing tells of both
                    await asyncio.sleep(0.01)
        await shim.call("Wait")
        await later.enter_async_context(second.listening(path))  # until the shim has ended
        async with asyncio.timeout(patient(30)):
            await second.exited.wait()
    assert [topic for topic, _ in first.came] == ["/tasks/create", "/tasks/start"]
    assert [topic for topic, _ in second.came] == ["/tasks/exit", "/tasks/delete"]
    ended = task_pb2.TaskExit.FromString(second.came[0][1])
    assert (ended.container_id, ended.id, ended.exit_status) == ("one", "one", 6)


async def test_execs_that_die_with_init_are_told_of_before_it(tmp_path: Path) -> None:
    path = tmp_path / "d"
    daemon = Daemon()
    async with daemon.listening(path), running_shim(tmp_path, ttrpc_address=str(path)) as shim:
        await shim.create("sleep", "1000")
        await shim.call("Start")
        for id in ("a", "b", "c"):
            await shim.add_exec(id, "sleep", "1001")
            await shim.call("Start", exec_id=id)
        await shim.call("Kill", signal=9)
        await shim.call("Wait")
        await shim.call("Delete")
        async with asyncio.timeout(patient(20)):
            while daemon.came[-1][0] != "/tasks/delete":  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
    exits = [task_pb2.TaskExit.FromString(event).id for topic, event in daemon.came if topic == "/tasks/exit"]
    assert sorted(exits[:3]) == ["a", "b", "c"]
    assert exits[3:] == ["one"]
    assert [topic for topic, _ in daemon.came].count("/tasks/exec-started") == 3
