"""The controller `shim`: nothing outlives a sandbox that could not be made, and no living sandbox is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runtime_world import SCOPE, World, world

from orlop.core.container import Runtime
from orlop.core.sandbox import Sandbox
from orlop.errors import FailedPrecondition, Unknown
from orlop.runtime.bundle import Bundles
from orlop.runtime.shim import Shim
from orlop.sandbox.controller import ShimController

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]
SANDBOX = Sandbox("pod", Runtime("io.containerd.runc.v2"))


@contextlib.asynccontextmanager
async def controller(here: World) -> AsyncIterator[ShimController]:
    """Opened a second time over one world, it is the one of a later daemon."""
    made = ShimController(Bundles(here.directory / "pods", here.directory / "pod-work"), here.shims)
    await made.load_existing()
    try:
        yield made
    finally:
        await made.close()


def nothing_is_left(here: World) -> bool:
    return not list(here.directory.glob("pods/*/*")) and not list(here.directory.glob("pod-work/*/*"))


async def until_ended(pid: int) -> None:
    """Waits for the end of a process that is nobody's child here."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(process, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), 60)
        finally:
            asyncio.get_running_loop().remove_reader(process)
            os.close(process)


async def test_a_sandbox_whose_start_fails_is_gone_with_its_shim(tmp_path: Path) -> None:
    async with world(tmp_path) as here, controller(here) as pods:
        await pods.create(SCOPE, SANDBOX, netns_path=str(tmp_path / "no-namespace"))
        shim = pods.find("test", "pod")
        assert shim is not None
        pid = shim.pid
        with pytest.raises(Unknown, match=r"failed to start sandbox pod: .*no-namespace"):
            await pods.start(SCOPE, "pod")
        await until_ended(pid)
        assert pods.find("test", "pod") is None
        assert nothing_is_left(here)


async def test_a_second_start_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    async with world(tmp_path) as here, controller(here) as pods:
        await pods.create(SCOPE, SANDBOX)
        await pods.start(SCOPE, "pod")
        with pytest.raises(FailedPrecondition, match=r"failed to start sandbox pod: sandbox pod has been started"):
            await pods.start(SCOPE, "pod")
        assert (await pods.status(SCOPE, "pod")).state == "SANDBOX_READY"
        await pods.shutdown(SCOPE, "pod")
        assert nothing_is_left(here)


async def test_a_lost_connection_is_not_the_end_of_a_sandbox(tmp_path: Path) -> None:
    async with world(tmp_path) as here, controller(here) as pods:
        await pods.create(SCOPE, SANDBOX)
        await pods.start(SCOPE, "pod")
        shim = pods.find("test", "pod")
        assert shim is not None
        lost = shim._client
        await lost.close()
        while shim._client is lost:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        assert (await pods.status(SCOPE, "pod")).state == "SANDBOX_READY"
        await pods.shutdown(SCOPE, "pod")
        assert nothing_is_left(here)


async def test_the_log_of_a_sandbox_outlasts_a_task_of_its_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the containers that hold a pod's namespaces have it."""
    async with world(tmp_path) as here, controller(here) as pods:
        await pods.create(SCOPE, SANDBOX)
        await here.shims.forget(here.shims.bundles.create("test", "pod", b"{}"))
        shim = pods.find("test", "pod")
        assert shim is not None
        with caplog.at_level("INFO", logger="orlop.shim"):
            log = os.open(shim.bundle.log, os.O_RDWR | os.O_NONBLOCK)
            os.write(log, b"something to tell\n")
            async with asyncio.timeout(30):
                while "something to tell" not in caplog.text:  # noqa: ASYNC110 - nothing else tells of it
                    await asyncio.sleep(0.01)
        os.close(log)
        await pods.shutdown(SCOPE, "pod")


async def test_a_create_that_is_given_up_leaves_nothing_and_frees_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Queue[Shim] = asyncio.Queue()
    ask = Shim.ask

    async def slow(self: Shim, service: str, method: str, *arguments: Any) -> Any:
        if method == "CreateSandbox":
            asked.put_nowait(self)
            await asyncio.Event().wait()
        return await ask(self, service, method, *arguments)

    async with world(tmp_path) as here, controller(here) as pods:
        monkeypatch.setattr(Shim, "ask", slow)
        creating = asyncio.ensure_future(pods.create(SCOPE, SANDBOX))
        pid = (await asyncio.wait_for(asked.get(), 60)).pid
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await until_ended(pid)
        assert nothing_is_left(here)
        monkeypatch.setattr(Shim, "ask", ask)
        await pods.create(SCOPE, SANDBOX)
        await pods.shutdown(SCOPE, "pod")


async def test_a_shim_that_was_started_for_a_sandbox_and_got_none_is_ended_at_the_next_start(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        bundle = Bundles(tmp_path / "pods", tmp_path / "pod-work").create("test", "pod", None)
        binary = here.shims.binaries.resolve("io.containerd.runc.v2")
        shim = await here.shims.start(bundle, binary, None, None)
        pid = shim.pid
        await shim.close()
        async with controller(here) as pods:
            assert pods.find("test", "pod") is None
            await until_ended(pid)
            assert nothing_is_left(here)


async def test_a_sandbox_that_does_not_answer_at_the_next_start_is_not_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        async with controller(here) as before:
            await before.create(SCOPE, SANDBOX)
            await before.start(SCOPE, "pod")
            shim = before.find("test", "pod")
            assert shim is not None
            worker = (await before.status(SCOPE, "pod")).pid
            stopped = stop(shim.pid)
        assert worker
        here.shims.limits = replace(here.shims.limits, load=0.5)
        async with controller(here) as after:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            assert (await after.status(SCOPE, "pod")).state == "SANDBOX_READY"
            await after.shutdown(SCOPE, "pod")
            assert nothing_is_left(here)


def stop(shim: int) -> list[int]:
    """Stops a shim's process, and what answers for it."""
    pids = [shim, *(int(pid) for pid in Path(f"/proc/{shim}/task/{shim}/children").read_text().split())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids
