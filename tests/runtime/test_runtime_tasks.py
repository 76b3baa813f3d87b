"""Tasks over a real shim and a real OCI runtime."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from patience import patient
from runtime_world import SCOPE, shim_binary, world

from orlop.core.clock import ZERO
from orlop.core.task import NewTask, Status
from orlop.core.typed import Typed
from orlop.errors import AlreadyExists, InvalidArgument, NotFound, Unknown
from orlop.runtime.bundle import Bundles
from orlop.runtime.orphan import end_orphan
from orlop.runtime.shims import Limits

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.skipif(shim_binary() is None or shutil.which("runc") is None, reason="needs containerd-shim-runc-v2"),
]


async def test_a_task_is_created_started_awaited_and_deleted(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("life", "sh", "-c", "exit 7")
        pid = await here.tasks.create(SCOPE, NewTask("life"))
        created = await here.tasks.get(SCOPE, "life")
        assert (created.status, created.pid, created.exited_at) == (Status.CREATED, pid, ZERO)
        assert await here.tasks.start(SCOPE, "life") == pid
        exit = await here.tasks.wait(SCOPE, "life")
        assert exit.status == 7
        assert [task.status for task in await here.tasks.list(SCOPE)] == [Status.STOPPED]
        deleted = await here.tasks.delete(SCOPE, "life")
        assert (deleted.status, deleted.pid, deleted.id) == (7, pid, "life")
        with pytest.raises(NotFound, match=r"^task life not found$"):
            await here.tasks.get(SCOPE, "life")
        assert here.leftovers == []
        assert here.events.events == []


async def test_an_id_is_free_as_soon_as_its_task_is_deleted(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("again", "true")
        for _ in range(5):
            await here.tasks.create(SCOPE, NewTask("again"))
            await here.tasks.start(SCOPE, "again")
            assert (await here.tasks.wait(SCOPE, "again")).status == 0
            await here.tasks.delete(SCOPE, "again")
        assert here.leftovers == []


async def test_signals_that_come_while_a_task_is_deleted_find_none(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("signalled", "true")
        await here.tasks.create(SCOPE, NewTask("signalled"))
        await here.tasks.start(SCOPE, "signalled")
        await here.tasks.wait(SCOPE, "signalled")
        deleting = asyncio.ensure_future(here.tasks.delete(SCOPE, "signalled"))
        while not deleting.done():
            with pytest.raises(NotFound):
                await here.tasks.kill(SCOPE, "signalled", signal=signal.SIGURG)
            await asyncio.sleep(0)  # a refusal without a question to the shim gives nobody a turn
        await deleting


async def test_refusals_have_the_words_of_containerd(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(NotFound, match=r'^container "no" in namespace "test": not found$'):
            await here.tasks.get(SCOPE, "no")
        here.add("refuse", "sleep", "1000")
        await here.tasks.create(SCOPE, NewTask("refuse"))
        with pytest.raises(AlreadyExists, match=r"^task refuse: already exists$"):
            await here.tasks.create(SCOPE, NewTask("refuse"))
        await here.tasks.start(SCOPE, "refuse")
        with pytest.raises(Unknown, match=r"^failed to delete task: cannot delete a running process$"):
            await here.tasks.delete(SCOPE, "refuse")
        with pytest.raises(InvalidArgument, match=r"^exec id cannot be empty$"):
            await here.tasks.exec(SCOPE, "refuse", "", None, NewTask("refuse").io)
        with pytest.raises(InvalidArgument, match=r"^invalid exec id a/b: identifier"):
            await here.tasks.exec(SCOPE, "refuse", "a/b", None, NewTask("refuse").io)
        with pytest.raises(NotFound, match=r"process does not exist e: not found"):
            await here.tasks.kill(SCOPE, "refuse", "e", 9)
        waiting = asyncio.ensure_future(here.tasks.wait(SCOPE, "refuse"))
        await here.tasks.kill(SCOPE, "refuse", signal=9)
        assert (await waiting).status == 137
        await here.tasks.delete(SCOPE, "refuse")


async def test_options_of_another_type_are_refused_before_any_shim_starts(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("options", "true", runtime="io.containerd.runc.v2")
        with pytest.raises(Unknown, match=r"^invalid task create option for io\.containerd\.runc\.v2$"):
            await here.tasks.create(SCOPE, NewTask("options", options=Typed("a.b", b"x")))
        assert here.leftovers == []


async def test_a_create_that_the_runtime_refuses_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("bad", "true")
        here.containers.records[SCOPE.namespace, "bad"] = type(record := here.containers.records["test", "bad"])(
            id="bad",
            runtime=record.runtime,
            spec=Typed(record.spec.type_url, record.spec.value.replace(b"/bin/busybox", b"/bin/nothing")),  # type: ignore[union-attr]
        )
        with pytest.raises(Unknown, match=r"^failed to create shim task: OCI runtime create failed: "):
            await here.tasks.create(SCOPE, NewTask("bad"))
        assert here.leftovers == []
        assert await here.tasks.list(SCOPE) == []


async def test_a_killed_shim_takes_its_container_along_and_is_told_as_an_exit(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("orphan", "sleep", "1000")
        pid = await here.tasks.create(SCOPE, NewTask("orphan"))
        await here.tasks.start(SCOPE, "orphan")
        shim = here.shims.find("test", "orphan")
        assert shim is not None
        waiting = asyncio.ensure_future(here.tasks.wait(SCOPE, "orphan"))
        init = os.pidfd_open(pid)
        os.kill(shim.pid, signal.SIGKILL)
        with pytest.raises(Unknown, match=r"^ttrpc: closed$"):
            await waiting
        await shim.buried.wait()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(init, ended.set)
        await asyncio.wait_for(ended.wait(), patient(10))
        asyncio.get_running_loop().remove_reader(init)
        os.close(init)
        assert [topic for topic, _ in here.events.events] == ["/tasks/exit", "/tasks/delete"]
        assert here.events.events[0][1].exit_status == 137  # type: ignore[attr-defined]
        with pytest.raises(NotFound, match=r"^task orphan not found$"):
            await here.tasks.get(SCOPE, "orphan")
        assert here.leftovers == []


@pytest.mark.parametrize("deletes", ["exit 1", "exec sleep 1000"])
async def test_nothing_outlives_a_shim_whose_delete_fails_or_hangs(tmp_path: Path, deletes: str) -> None:
    binary = tmp_path / "shim"
    binary.write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ "$last" != delete ] || {deletes}\nexec {shim_binary()} "$@"\n'
    )
    binary.chmod(0o755)
    async with world(tmp_path) as here:
        here.shims.limits = Limits(cleanup=patient(5))
        here.add("orphan", "sleep", "1000", runtime=str(binary))
        pid = await here.tasks.create(SCOPE, NewTask("orphan"))
        await here.tasks.start(SCOPE, "orphan")
        groups = groups_of(pid)
        assert groups
        shim = here.shims.find("test", "orphan")
        assert shim is not None
        os.kill(shim.pid, signal.SIGKILL)
        await shim.buried.wait()
        assert not Path(f"/proc/{pid}/root/bin").exists()  # at most a zombie of whoever is its parent now
        assert [topic for topic, _ in here.events.events] == ["/tasks/exit", "/tasks/delete"]
        assert here.leftovers == []
        assert list((tmp_path / "runc/test").iterdir()) == []
        assert not any(Path(group).exists() for group in groups)


def groups_of(pid: int) -> list[Path]:
    """The directories of the process's cgroups that are its container's alone."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    found = [Path(f"/sys/fs/cgroup/{names.removeprefix('name=')}{path}") for _, names, path in lines if path != "/"]
    return [path for path in found if path.name.endswith("-orphan") and path.exists()]


async def test_a_process_is_ended_whose_shim_left_no_word_of_its_runtime(tmp_path: Path) -> None:
    binary = tmp_path / "shim"
    binary.write_text(f'#!/bin/sh\nfor last; do :; done\n[ "$last" != delete ] || exit 1\nexec {shim_binary()} "$@"\n')
    binary.chmod(0o755)
    async with world(tmp_path) as here:
        here.add("orphan", "sleep", "1000", runtime=str(binary))
        pid = await here.tasks.create(SCOPE, NewTask("orphan"))
        await here.tasks.start(SCOPE, "orphan")
        shim = here.shims.find("test", "orphan")
        assert shim is not None
        (shim.bundle.path / "options.json").unlink()
        os.kill(shim.pid, signal.SIGKILL)
        await shim.buried.wait()
        assert not Path(f"/proc/{pid}/root/bin").exists()
        assert here.leftovers == []
        command = ["runc", "--root", tmp_path / "runc/test", "delete", "--force", "orphan"]
        await asyncio.to_thread(subprocess.run, command, check=True)


def test_a_pid_that_is_another_process_by_now_is_left_alone(tmp_path: Path) -> None:
    bundle = Bundles(tmp_path / "state", tmp_path / "root").create("test", "reused", b"{}")
    with subprocess.Popen(["sleep", "1000"]) as other:
        (bundle.path / "init.pid").write_text(str(other.pid))
        assert end_orphan(bundle) == 0
        assert other.poll() is None
        other.kill()


async def test_a_restarted_daemon_finds_running_and_exited_tasks(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        before.add("runs", "sleep", "1000")
        before.add("ends", "sleep", "1000")
        for id in ("runs", "ends"):
            await before.tasks.create(SCOPE, NewTask(id))
            await before.tasks.start(SCOPE, id)
        pid = (await before.tasks.get(SCOPE, "ends")).pid
    ending = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(ending, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(ending)
    os.close(ending)
    async with world(tmp_path, before.containers) as after:
        assert (await after.tasks.get(SCOPE, "runs")).status is Status.RUNNING
        assert (await after.tasks.wait(SCOPE, "ends")).status == 137
        assert (await after.tasks.delete(SCOPE, "ends")).status == 137
        await after.tasks.kill(SCOPE, "runs", signal=9)
        await after.tasks.wait(SCOPE, "runs")
        await after.tasks.delete(SCOPE, "runs")
        assert after.leftovers == []


async def test_a_cancelled_create_leaves_nothing_and_frees_the_name(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.add("given-up", "sleep", "1000")
        creating = asyncio.ensure_future(here.tasks.create(SCOPE, NewTask("given-up")))
        await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert here.leftovers == []
        await here.tasks.create(SCOPE, NewTask("given-up"))
        assert (await here.tasks.delete(SCOPE, "given-up")).status == 0
