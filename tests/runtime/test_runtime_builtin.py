"""Tasks over our own shim, forked by the fork server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from patience import patient
from runtime_world import SCOPE, World, cgroup_of, world
from traces import spares_of

from orlop.api.events.task_pb2 import TaskExit
from orlop.core.container import Runtime
from orlop.core.event import Envelope
from orlop.core.task import NewTask, Status
from orlop.core.wire import common
from orlop.errors import Unavailable, Unknown
from orlop.runtime import forkserver
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
            assert len(os.listdir("/proc/self/fd")) <= before
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


async def spare_of(server: ForkServer) -> int:
    """The shim that nothing has been asked of."""
    assert server._process is not None
    async with asyncio.timeout(20):
        while True:
            if len(spares := spares_of(server._process.pid)) == 1:
                return spares[0]
            await asyncio.sleep(0.005)


async def test_the_next_shim_is_there_before_it_is_needed() -> None:
    with place() as directory, fork_server(directory) as forks:
        await forks.start()
        async with world(directory, forks=forks) as here:
            here.add("sleeps", "sleep", "1000", runtime=RUNC)
            spare = await spare_of(forks)
            await here.tasks.create(SCOPE, NewTask("sleeps"))
            shim = here.shims.find("test", "sleeps")
            assert shim is not None
            assert shim.pid == spare
            assert await spare_of(forks) != spare
            await here.tasks.start(SCOPE, "sleeps")
            await here.tasks.kill(SCOPE, "sleeps", signal=9)
            await here.tasks.wait(SCOPE, "sleeps")
            await here.tasks.delete(SCOPE, "sleeps")


async def test_a_spare_shim_that_is_gone_is_no_loss() -> None:
    with place() as directory, fork_server(directory) as forks:
        await forks.start()
        async with world(directory, forks=forks) as here:
            here.add("after", "true", runtime=RUNC)
            os.kill(await spare_of(forks), signal.SIGKILL)
            await run_once(here, "after", 0)


async def test_a_stopped_fork_server_leaves_no_spare_shim() -> None:
    with place() as directory:
        forks = ForkServer(directory / "f")
        await forks.start()
        spare = os.pidfd_open(await spare_of(forks))
        try:
            await forks.stop()
            assert select.select([spare], [], [], 20)[0]
        finally:
            os.close(spare)


async def test_a_fork_server_that_does_not_listen_is_ended_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "START_TIMEOUT", 0.0)
    with place() as directory:
        forks = ForkServer(directory / "f")
        with pytest.raises(Unavailable, match="did not start"):
            await forks.start()
        process = forks._process
        assert process is not None
        async with asyncio.timeout(patient(20)):
            await forks.stop()
        assert process.returncode is not None


async def test_a_shim_that_is_killed_is_cleared_away() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("dies", "sleep", "1000", runtime=RUNC)
            await here.tasks.create(SCOPE, NewTask("dies"))
            await here.tasks.start(SCOPE, "dies")
            shim = here.shims.find("test", "dies")
            assert shim is not None
            os.kill(shim.pid, signal.SIGKILL)
            await asyncio.wait_for(shim.buried.wait(), patient(20))
            assert [topic for topic, _ in here.events.events] == ["/tasks/exit", "/tasks/delete"]
            assert here.leftovers == []


async def end_told(here: World, id: str) -> list[tuple[str, int]]:
    """Kills the shim of a task that has ended; what is told of it."""
    shim = here.shims.find("test", id)
    assert shim is not None
    os.kill(shim.pid, signal.SIGKILL)
    await asyncio.wait_for(shim.buried.wait(), patient(20))
    return [(topic, event.exit_status) for topic, event in here.events.events]  # type: ignore[attr-defined]


async def test_an_exit_that_a_shim_told_of_is_not_told_again_when_the_shim_dies() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("told", "sh", "-c", "exit 5", runtime=RUNC)
            await here.tasks.create(SCOPE, NewTask("told"))
            await here.tasks.start(SCOPE, "told")
            await here.tasks.wait(SCOPE, "told")

            async def forwarded() -> AsyncIterator[Envelope]:
                for exit in (
                    TaskExit(container_id="told", id="an-exec", exit_status=1),
                    TaskExit(container_id="told", id="told", exit_status=5),
                    TaskExit(container_id="unknown", id="unknown", exit_status=2),
                ):
                    yield Envelope(0, "test", "/tasks/exit", common.pack(exit))

            await here.shims.follow(forwarded())
            assert await end_told(here, "told") == [("/tasks/delete", 5)]


async def test_an_exit_from_before_a_restart_keeps_its_status_when_the_shim_dies() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as before:
            before.add("ended", "sh", "-c", "exit 6", runtime=RUNC)
            await before.tasks.create(SCOPE, NewTask("ended"))
            await before.tasks.start(SCOPE, "ended")
            await before.tasks.wait(SCOPE, "ended")
        async with world(directory, before.containers, forks) as after:
            assert await end_told(after, "ended") == [("/tasks/delete", 6)]
            assert after.leftovers == []


async def test_a_container_that_was_made_by_a_create_that_failed_is_deleted(tmp_path: Path) -> None:
    """The runtime has done its part, and the shim cannot learn the process."""
    runtime = tmp_path / "forgetful"
    runtime.write_text(
        '#!/bin/sh\ncase "$*" in *" create "*) ;; *) exec runc "$@" ;; esac\nrunc "$@" && rm $PWD/init.pid\n'
    )
    runtime.chmod(0o755)
    async with world(tmp_path) as here:
        here.add("made", "sleep", "1000", runtime=RUNC)
        options = here.options()
        options.binary_name = str(runtime)
        record = here.containers.records["test", "made"]
        here.containers.records["test", "made"] = replace(record, runtime=Runtime(RUNC, common.pack(options)))
        with pytest.raises(Unknown, match=r"failed to retrieve OCI runtime container pid"):
            await here.tasks.create(SCOPE, NewTask("made"))
        assert here.leftovers == []
        assert list((tmp_path / "runc/test").iterdir()) == []
        assert not list(Path("/sys/fs/cgroup").glob(f"*{cgroup_of('made')}"))
