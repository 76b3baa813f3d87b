"""Tasks over our own shim, forked by the fork server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_world import SCOPE, World, world

from orlop.core.task import NewTask, Status
from orlop.runtime.forkserver import ForkServer

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]
RUNC = "io.containerd.runc.v2"


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A short directory: socket paths are limited."""
    with tempfile.TemporaryDirectory(prefix="o") as name:
        yield Path(name)


@contextlib.contextmanager
def fork_server(directory: Path) -> Iterator[ForkServer]:
    server = ForkServer(directory / "f")
    try:
        yield server
    finally:
        if server._process is not None:
            server._process.terminate()
            server._process.wait()


async def run_once(here: World, id: str, status: int) -> None:
    pid = await here.tasks.create(SCOPE, NewTask(id))
    assert await here.tasks.start(SCOPE, id) == pid
    assert (await here.tasks.wait(SCOPE, id)).status == status
    assert (await here.tasks.delete(SCOPE, id)).status == status


async def test_our_own_shim_serves_the_default_runtime() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("own", "sh", "-c", "exit 5", runtime=RUNC)
            await run_once(here, "own", 5)
            assert here.leftovers == []


async def test_fifty_tasks_leave_no_descriptor_and_no_file() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("many", "true", runtime=RUNC)
            await run_once(here, "many", 0)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(50):
                await run_once(here, "many", 0)
            assert len(os.listdir("/proc/self/fd")) == before
            assert here.leftovers == []


async def test_a_killed_fork_server_is_started_again_and_its_shims_live_on() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("first", "sleep", "1000", runtime=RUNC)
            here.add("second", "true", runtime=RUNC)
            await here.tasks.create(SCOPE, NewTask("first"))
            await here.tasks.start(SCOPE, "first")
            assert forks._process is not None
            forks._process.kill()
            forks._process.wait()
            await run_once(here, "second", 0)
            assert (await here.tasks.get(SCOPE, "first")).status is Status.RUNNING
            await here.tasks.kill(SCOPE, "first", signal=9)
            await here.tasks.wait(SCOPE, "first")
            await here.tasks.delete(SCOPE, "first")


async def test_a_shim_that_is_killed_is_cleared_away() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("dies", "sleep", "1000", runtime=RUNC)
            await here.tasks.create(SCOPE, NewTask("dies"))
            await here.tasks.start(SCOPE, "dies")
            shim = here.shims.find("test", "dies")
            assert shim is not None
            os.kill(shim.pid, signal.SIGKILL)
            await asyncio.wait_for(shim.buried.wait(), 20)
            assert [topic for topic, _ in here.events.events] == ["/tasks/exit", "/tasks/delete"]
            assert here.leftovers == []
