"""The life of processes: many execs at once, waits at every moment, orphans, signals, an init that dies first."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import oci_runtime
import pytest
from patience import patient
from shim_world import Shim, running_shim

from orlop.api.types.task import task_pb2
from orlop.errors import NotFound, OrlopError, Unknown
from orlop.rpc.ttrpc import Client
from orlop.runtime.host import OciRuntime

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]

HOST_PIDS = ("mount", "ipc", "uts")


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


async def until_children(shim: Shim, number: int) -> None:
    """Waits until the shim has `number` children, living or not yet reaped; nothing tells of that."""
    async with asyncio.timeout(patient(20)):
        while len(children(shim.pid)) != number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_thirty_execs_at_once_each_get_their_own_status(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000", terminal=True)
        await shim.call("Start")

        async def once(number: int) -> int:
            id = f"e{number}"
            await shim.add_exec(id, "sh", "-c", f"exit {number}", terminal=number % 3 == 0)
            early = asyncio.ensure_future(shim.call("Wait", exec_id=id))
            await shim.call("Start", exec_id=id)
            status = (await early).exit_status
            assert (await shim.call("Wait", exec_id=id)).exit_status == status
            assert (await shim.call("Delete", exec_id=id)).exit_status == status
            return int(status)

        assert await asyncio.gather(*(once(number) for number in range(30))) == list(range(30))


async def test_an_exec_called_init_leaves_the_pid_of_the_init_alone(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        await shim.call("Start")
        noted = (shim.bundle / "init.pid").read_text()
        await shim.add_exec("init", "true")
        await shim.call("Start", exec_id="init")
        assert (await shim.call("Wait", exec_id="init")).exit_status == 0
        assert (shim.bundle / "init.pid").read_text() == noted
        await shim.call("Delete", exec_id="init")
        assert (shim.bundle / "init.pid").read_text() == noted
        await shim.finish()


async def test_waits_from_before_the_start_and_after_the_exit_tell_the_same(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sh", "-c", "exit 9")
        before = [asyncio.ensure_future(shim.call("Wait")) for _ in range(3)]
        await shim.call("Start")
        during = asyncio.ensure_future(shim.call("Wait"))
        answers = [*await asyncio.gather(*before), await during, await shim.call("Wait"), await shim.call("Delete")]
        assert {answer.exit_status for answer in answers} == {9}
        assert len({(answer.exited_at.seconds, answer.exited_at.nanos) for answer in answers}) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
async def test_a_process_that_a_signal_ends_has_the_status_of_a_shell(tmp_path: Path, number: signal.Signals) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000", namespaces=HOST_PIDS)
        await shim.call("Start")
        await shim.call("Kill", signal=number)
        assert (await shim.call("Wait")).exit_status == 128 + number
        with pytest.raises(NotFound, match=r"^process already finished: not found$"):
            await shim.call("Kill", signal=number)


async def test_orphans_are_reaped_and_go_with_an_init_that_shares_the_hosts_pids(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000", namespaces=HOST_PIDS)
        init = (await shim.call("Start")).pid
        await shim.add_exec("leaves", "sh", "-c", "true & sleep 1001 & exit 4")
        await shim.call("Start", exec_id="leaves")
        assert (await shim.call("Wait", exec_id="leaves")).exit_status == 4
        await until_children(shim, 2)  # one orphan has ended and is reaped, one sleeps
        assert init in children(shim.pid)
        await shim.call("Kill", signal=signal.SIGKILL)
        assert (await shim.call("Wait")).exit_status == 137
        await until_children(shim, 0)


@pytest.mark.parametrize("namespaces", [HOST_PIDS, ("pid", *HOST_PIDS)])
async def test_an_exec_does_not_outlive_init_and_none_starts_after_it(
    tmp_path: Path, namespaces: tuple[str, ...]
) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000", namespaces=namespaces)
        await shim.call("Start")
        await shim.add_exec("runs", "sleep", "1002")
        await shim.add_exec("waits", "true")
        await shim.call("Start", exec_id="runs")
        ends = asyncio.ensure_future(shim.call("Wait", exec_id="runs"))
        await shim.call("Kill", signal=signal.SIGKILL)
        assert (await shim.call("Wait")).exit_status == 137
        assert ends.done()  # the exits of execs come before that of init
        assert (await ends).exit_status == 137
        with pytest.raises(OrlopError, match=r"^container one init process is not running"):
            await shim.call("Start", exec_id="waits")
        assert (await shim.call("Delete")).exit_status == 137  # though its execs are not deleted


async def test_kill_all_reaches_every_process(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sh", "-c", "sleep 1003 & sleep 1004", namespaces=HOST_PIDS)
        await shim.call("Start")
        await shim.call("Kill", signal=signal.SIGKILL, all=True)
        assert (await shim.call("Wait")).exit_status == 137
        await until_children(shim, 0)
        await shim.call("Kill", signal=signal.SIGKILL, all=True)  # on a stopped container that is no error


@pytest.mark.parametrize("all", [False, True])
async def test_a_container_with_pids_of_its_own_is_killed_without_its_runtime(tmp_path: Path, all: bool) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sh", "-c", "sleep 1005 & sleep 1006")
        await shim.call("Start")
        (tmp_path / "runc").rename(tmp_path / "away")  # the runtime does not know the container now
        await shim.call("Kill", signal=signal.SIGKILL, all=all)
        assert (await shim.call("Wait")).exit_status == 137
        with pytest.raises(NotFound, match="process already finished"):
            await shim.call("Kill", signal=signal.SIGKILL)
        (tmp_path / "away").rename(tmp_path / "runc")


async def test_what_is_started_twice_is_refused_and_goes_on(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        await shim.call("Start")
        with pytest.raises(Unknown, match=r"^cannot start a running process$"):
            await shim.call("Start")
        await shim.add_exec("e", "sleep", "1000")
        await shim.call("Start", exec_id="e")
        with pytest.raises(Unknown, match=r"^cannot start a running process$"):
            await shim.call("Start", exec_id="e")
        with pytest.raises(Unknown, match=r"^cannot delete a running process$"):
            await shim.call("Delete", exec_id="e")
        with pytest.raises(Unknown, match=r"^cannot delete a running process$"):
            await shim.call("Delete")
        assert (await shim.call("State")).status == 2


async def test_a_start_whose_client_goes_is_a_start_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is killed after the runtime has started the process, and before it has said so."""
    runtime, go = tmp_path / "slow", tmp_path / "go"
    runtime.write_text(
        '#!/bin/sh\ncase "$*" in *" start "*) ;; *) exec runc "$@" ;; esac\n'
        f'runc "$@" && : > {tmp_path}/started\nwhile [ ! -e {go} ]; do sleep 0.05; done\n'
    )
    runtime.chmod(0o755)
    monkeypatch.setattr(oci_runtime, "chosen", lambda: OciRuntime(str(runtime)))
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        starting = asyncio.ensure_future(shim.call("Start"))
        while not (tmp_path / "started").exists():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        await shim.client.close()
        with pytest.raises(OrlopError):
            await starting
        shim.client = await Client.connect(f"unix://{tmp_path}/s/sock", 30)
        go.touch()
        async with asyncio.timeout(patient(30)):
            while (await shim.call("State")).status != task_pb2.RUNNING:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        with pytest.raises(OrlopError, match="cannot start a running process"):
            await shim.call("Start")
