"""A `delete` that is cut off, over our own shim and an OCI runtime that is slow to delete."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from runtime_world import SCOPE, World, world

from orlop.core.container import Runtime
from orlop.core.task import NewTask
from orlop.core.wire import common
from orlop.errors import Unavailable
from orlop.runtime import remains

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]
RUNC = "io.containerd.runc.v2"
_SLOW = """#!/bin/sh
case " $* " in *" delete "*)
    echo $$ >> {directory}/deletes
    if [ {condition} ]; then sleep 1000; fi
esac
exec {runtime} "$@"
"""


def slow_runtime(directory: Path, condition: str) -> Path:
    """An OCI runtime whose `delete` hangs while `condition` of the shell's `test` holds."""
    program = directory / "slow"
    program.write_text(_SLOW.format(directory=directory, condition=condition, runtime=shutil.which("runc")))
    program.chmod(0o755)
    return program


async def kill_the_shim(here: World, program: Path) -> tuple[int, list[Path]]:
    """Runs `orphan` in `program` and kills its shim; the pid of its init, and its control groups."""
    here.shims.limits = replace(here.shims.limits, cleanup=1)
    here.add("orphan", "sleep", "1000", runtime=RUNC)
    options = here.options()
    options.binary_name = str(program)
    record = here.containers.records["test", "orphan"]
    here.containers.records["test", "orphan"] = replace(record, runtime=Runtime(RUNC, common.pack(options)))
    pid = await here.tasks.create(SCOPE, NewTask("orphan"))
    await here.tasks.start(SCOPE, "orphan")
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    places = [Path(f"/sys/fs/cgroup/{names.removeprefix('name=')}{path}") for _, names, path in lines]
    groups = [place for place in places if place.name.endswith("-orphan") and place.exists()]
    assert groups
    shim = here.shims.find("test", "orphan")
    assert shim is not None
    os.kill(shim.pid, signal.SIGKILL)
    await asyncio.wait_for(shim.buried.wait(), 30)
    assert [topic for topic, _ in here.events.events] == ["/tasks/exit", "/tasks/delete"]
    assert here.events.events[0][1].exit_status == 137  # type: ignore[attr-defined]
    return pid, groups


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nothing tells of other processes
            await asyncio.sleep(0.02)


def nothing_is_left(here: World, groups: list[Path]) -> bool:
    state = here.directory / "runc/test/orphan"
    return here.leftovers == [] and not state.exists() and not any(group.exists() for group in groups)


def no_delete_runs(directory: Path) -> bool:
    told = directory / "deletes"
    pids = told.read_text().split() if told.exists() else []
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


async def test_a_delete_that_was_cut_off_is_made_good(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        seen = tmp_path / "seen"
        program = slow_runtime(tmp_path, f"! -e {seen} ] && : > {seen} && [ -e {seen}")
        _, groups = await kill_the_shim(here, program)
        await until(lambda: nothing_is_left(here, groups))
        assert no_delete_runs(tmp_path)
        assert len(here.events.events) == 2
        await here.tasks.create(SCOPE, NewTask("orphan"))
        assert (await here.tasks.delete(SCOPE, "orphan")).status == 0


async def test_the_id_is_taken_until_the_runtime_has_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "PATIENCE", 0.1)
    async with world(tmp_path) as here:
        go = tmp_path / "go"
        _, groups = await kill_the_shim(here, slow_runtime(tmp_path, f"! -e {go}"))
        assert not os.path.ismount(tmp_path / "state/test/orphan/rootfs")
        with pytest.raises(Unavailable, match=r"^task orphan: the container that had this id before is still"):
            await here.tasks.create(SCOPE, NewTask("orphan"))
        assert (tmp_path / "runc/test/orphan").exists()
        go.touch()
        await until(lambda: nothing_is_left(here, groups))


async def test_a_restarted_daemon_goes_on_with_it_and_tells_nothing_again(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with world(tmp_path) as before:
        pid, groups = await kill_the_shim(before, slow_runtime(tmp_path, f"! -e {go}"))
        assert not Path(f"/proc/{pid}/root/bin").exists()
    assert no_delete_runs(tmp_path)
    assert before.leftovers != []
    go.touch()
    async with world(tmp_path, before.containers) as after:
        await until(lambda: nothing_is_left(after, groups))
        assert after.events.events == []
