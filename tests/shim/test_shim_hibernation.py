"""A shim whose containers only run: its worker goes, and whatever happens then is dealt with as if it had stayed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import oci_runtime
import pytest
from patience import patient
from shim_world import SERVICE, Shim, fork_server, running_shim
from test_shim_events import Daemon

from orlop.api.events import task_pb2
from orlop.api.runtime.task.v3 import shim_pb2 as api
from orlop.api.ttrpc.request_pb2 import Request
from orlop.errors import NotFound
from orlop.rpc.ttrpc import Client, TtrpcClosed
from orlop.rpc.ttrpc.frame import HEADER, REQUEST, FrameParser
from orlop.shim.cgroup import Cgroup
from orlop.shim.request import ForkAnswer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]


def worker_of(shim: Shim) -> int:
    """The worker of `shim`; 0 while it sleeps."""
    for child in Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{child}/comm").read_text() == "orlop-shim\n":
                return int(child)
    return 0


async def asleep(shim: Shim) -> None:
    async with asyncio.timeout(patient(20)):
        while worker_of(shim):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    process = os.pidfd_open(pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, ended.set)
    try:
        async with asyncio.timeout(patient(20)):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)


def clear_away(shim: Shim) -> None:
    """What a daemon does about a container whose shim is gone."""
    command = [oci_runtime.chosen().name, "--root", str(shim.path / "runc" / "test"), "delete", "--force", shim.id]
    subprocess.run(command, check=True, timeout=patient(60))


async def test_a_shim_that_slept_knows_its_container_and_execs(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        created = await shim.create("sleep", "1000")
        await asleep(shim)
        assert (await shim.call("State")).status == 1
        await shim.call("Start")
        await shim.add_exec("later", "sh", "-c", "exit 5")
        await shim.add_exec("runs", "sleep", "1000")
        exec_pid = (await shim.call("Start", exec_id="runs")).pid
        await asleep(shim)
        state = await shim.call("State")
        assert (state.status, state.pid, state.bundle) == (2, created.pid, str(shim.bundle))
        assert (await shim.call("State", exec_id="runs")).pid == exec_pid
        assert (await shim.call("Connect")).shim_pid == shim.pid
        await asleep(shim)
        await shim.call("Start", exec_id="later")
        assert (await shim.call("Wait", exec_id="later")).exit_status == 5
        assert (await shim.call("Delete", exec_id="later")).exit_status == 5
        await asleep(shim)
        await shim.call("Kill", exec_id="runs", signal=signal.SIGTERM)
        assert (await shim.call("Wait", exec_id="runs")).exit_status == 143
        await asleep(shim)
        assert (await shim.call("State", exec_id="runs")).exit_status == 143
        with pytest.raises(NotFound, match="process already finished"):
            await shim.call("Kill", exec_id="runs", signal=signal.SIGTERM)


async def test_who_waits_is_told_of_an_exit_that_came_while_the_shim_slept(tmp_path: Path) -> None:
    path, daemon = tmp_path / "d", Daemon()
    async with running_shim(tmp_path, ttrpc_address=str(path)) as shim, daemon.listening(path):
        pid = (await shim.create("sleep", "1000")).pid
        await shim.call("Start")
        other = await Client.connect(f"unix://{tmp_path}/s/sock", patient(10))
        waits = [asyncio.create_task(shim.call("Wait")) for _ in range(3)]
        request = api.WaitRequest(id="one")
        waits.append(asyncio.create_task(other.call(SERVICE, "Wait", request, api.WaitResponse)))
        await asleep(shim)
        assert (await shim.call("State")).pid == pid  # waits are taken up more than once
        await asleep(shim)
        os.kill(pid, signal.SIGKILL)
        told = await asyncio.gather(*waits)
        assert {answer.exit_status for answer in told} == {137}
        assert len({(answer.exited_at.seconds, answer.exited_at.nanos) for answer in told}) == 1
        await asleep(shim)
        assert (await shim.call("Delete")).exit_status == 137
        await asleep(shim)
        await other.close()
    assert [topic.rpartition("/")[2] for topic, _ in daemon.came] == ["create", "start", "exit", "delete"]
    assert task_pb2.TaskExit.FromString(daemon.came[2][1]).exit_status == 137


async def test_input_stays_open_while_the_shim_sleeps_until_it_is_closed(tmp_path: Path) -> None:
    fifos = {name: str(tmp_path / name) for name in ("stdin", "stdout")}
    for fifo in fifos.values():
        os.mkfifo(fifo)
    async with running_shim(tmp_path) as shim:
        output = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
        await shim.create("cat", **fifos)
        await shim.call("Start")
        for word in (b"one\n", b"two\n"):
            await asleep(shim)
            with open(fifos["stdin"], "wb") as given:  # noqa: ASYNC230 - the other end is open
                given.write(word)
            os.set_blocking(output, True)
            assert await asyncio.to_thread(os.read, output, 64) == word
        await asleep(shim)
        await shim.call("CloseIO", stdin=True)
        assert (await shim.call("Wait")).exit_status == 0
        assert await asyncio.to_thread(os.read, output, 64) == b""  # the shim holds no end that has slept on
        os.close(output)


async def test_a_kill_for_want_of_memory_wakes_the_shim_and_is_told(tmp_path: Path) -> None:
    path, daemon, fifo = tmp_path / "d", Daemon(), tmp_path / "in"
    os.mkfifo(fifo)
    hog = "x=0123456789abcdef; while true; do x=$x$x; done"
    async with running_shim(tmp_path, ttrpc_address=str(path)) as shim, daemon.listening(path):
        pid = (await shim.create("sh", "-c", f"read line; ({hog}); exec sleep 1000", stdin=str(fifo))).pid
        cgroup = Cgroup.of(pid)
        assert cgroup is not None
        v1 = cgroup.controllers.get("memory")
        limit = Path(v1, "memory.limit_in_bytes") if v1 else Path(cgroup.unified, "memory.max")
        limit.write_text(str(16 << 20))
        await shim.call("Start")
        await asleep(shim)
        fifo.write_text("go\n")
        async with asyncio.timeout(patient(20)):
            while "/tasks/oom" not in [topic for topic, _ in daemon.came]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await shim.call("State")).status == 2


@pytest.mark.parametrize("is_killed", [False, True], ids=["it-finishes", "it-is-killed"])
async def test_a_logging_program_is_known_after_a_sleep(tmp_path: Path, is_killed: bool) -> None:
    logger, fifo = tmp_path / "logger", tmp_path / "in"
    logger.write_text(f"#!/bin/sh\nexec 5>&-\necho $$ >{tmp_path}/pid\ncat <&3 >{tmp_path}/logged\n")
    logger.chmod(0o755)
    os.mkfifo(fifo)
    async with running_shim(tmp_path) as shim:
        await shim.create("cat", stdin=str(fifo), stdout=f"binary://{logger}")
        await shim.call("Start")
        await asleep(shim)
        pid = int((tmp_path / "pid").read_text())
        with open(fifo, "wb") as given:  # noqa: ASYNC230 - the other end is open
            given.write(b"hello\n")
        assert (await shim.call("State")).status == 2
        await asleep(shim)
        if is_killed:
            os.kill(pid, signal.SIGKILL)
            await asleep(shim)
        await shim.call("CloseIO", stdin=True)
        assert (await shim.call("Wait")).exit_status == 0
        await asleep(shim)
        await shim.call("Delete")
        assert not Path(f"/proc/{pid}").exists()
    if not is_killed:
        assert (tmp_path / "logged").read_text() == "hello\n"


async def test_a_sleeping_shim_is_one_process_with_few_pages_and_descriptors_of_its_own(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        await shim.call("Start")
        await asleep(shim)
        before = sorted(os.listdir(f"/proc/{shim.pid}/fd"))
        for _ in range(5):
            await shim.call("Pids")
            await asleep(shim)
        assert sorted(os.listdir(f"/proc/{shim.pid}/fd")) == before
        assert Path(f"/proc/{shim.pid}/comm").read_text() == "orlop-shim\n"
        rollup = Path(f"/proc/{shim.pid}/smaps_rollup").read_text().splitlines()
        private = next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty:"))
        assert private < 2000


async def test_half_a_request_keeps_the_worker_until_it_is_whole(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        await asleep(shim)
        payload = Request(service=SERVICE, method="State", payload=api.StateRequest(id="one").SerializeToString())
        frame = HEADER.pack(payload.ByteSize(), 1, REQUEST, 0) + payload.SerializeToString()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(patient(20))
            client.connect(str(tmp_path / "s" / "sock"))
            client.send(frame[:17])
            async with asyncio.timeout(patient(20)):
                while not worker_of(shim):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
            worker = worker_of(shim)
            await shim.call("State")
            await asyncio.sleep(0.1)  # time to do the wrong thing
            assert worker_of(shim) == worker
            client.send(frame[17:])
            answers = FrameParser().feed(await asyncio.to_thread(client.recv, 4096))
            assert [answer.stream for answer in answers] == [1]
        await asleep(shim)


async def test_a_terminal_keeps_its_worker(tmp_path: Path) -> None:
    stdout = str(tmp_path / "out")
    async with running_shim(tmp_path) as shim:
        await shim.create("sh", "-c", "echo ready; exec sleep 1000", terminal=True, stdout=stdout)
        worker = worker_of(shim)
        await shim.call("Start")
        async with asyncio.timeout(patient(20)):
            while not os.path.exists(stdout) or b"ready" not in Path(stdout).read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # time to do the wrong thing
        assert worker_of(shim) == worker != 0


async def test_a_signal_ends_a_sleeping_shim_and_its_socket_goes(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.call("Connect")
        await asleep(shim)
        os.kill(shim.pid, signal.SIGTERM)
        await gone(shim.pid)
        assert not (tmp_path / "s" / "sock").exists()


@pytest.mark.parametrize("victim", ["keeper", "worker"])
async def test_keeper_and_worker_die_together(tmp_path: Path, victim: str) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000", terminal=True, stdout=str(tmp_path / "out"))
        await shim.call("Start")
        worker = worker_of(shim)
        ends = [asyncio.create_task(gone(process)) for process in (shim.pid, worker)]
        await asyncio.sleep(0)
        os.kill(shim.pid if victim == "keeper" else worker, signal.SIGKILL)
        await asyncio.gather(*ends)
        with pytest.raises(TtrpcClosed):
            await shim.call("State")
        clear_away(shim)


async def test_without_clone3_a_shim_is_one_process_that_never_sleeps(tmp_path: Path) -> None:
    program = "from orlop.shim import forkserver as f; f.is_possible = lambda: False; f.main()"
    async with running_shim(tmp_path, program=("-c", program)) as shim:
        pid = (await shim.create("sleep", "1000")).pid
        await shim.call("Start")
        await shim.add_exec("e", "sh", "-c", "exit 5")
        await shim.call("Start", exec_id="e")
        assert (await shim.call("Wait", exec_id="e")).exit_status == 5
        assert Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split() == [str(pid)]
        assert (await shim.call("Connect")).shim_pid == shim.pid
        assert (await shim.finish()).exit_status == 137


async def test_who_connects_to_the_fork_server_and_says_nothing_leaves_no_process(tmp_path: Path) -> None:
    async with fork_server(tmp_path / "f") as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(tmp_path / "f"))
            client.send(b"no request")
            answer = ForkAnswer.decode(await asyncio.to_thread(client.recv, 1 << 16))
            assert answer.pid == 0
            assert answer.error != ""
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        async with asyncio.timeout(patient(20)):
            while children.read_text():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
