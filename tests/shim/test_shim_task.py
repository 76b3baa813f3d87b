"""A shim driven over ttrpc without a daemon, with the real runc."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from shim_world import ask, fork_server, running_shim

from orlop.errors import AlreadyExists, NotFound, OrlopError
from orlop.shim.request import ForkAnswer, ForkRequest

pytestmark = [pytest.mark.root, pytest.mark.runtime]


async def test_a_container_runs_from_create_to_delete(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        pid = (await shim.create("sh", "-c", "exit 7")).pid
        assert (await shim.call("State")).pid == pid
        assert (await shim.call("Start")).pid == pid
        assert (await shim.call("Wait")).exit_status == 7
        with pytest.raises(NotFound, match=r"^process already finished: not found$"):
            await shim.call("Kill", signal=9)
        assert (await shim.call("Delete")).exit_status == 7
        with pytest.raises(NotFound, match=r"^container not created: not found$"):
            await shim.call("State")


async def test_exit_codes_of_execs_are_told_to_the_right_exec(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        await shim.call("Start")

        async def one(code: int) -> int:
            await shim.add_exec(f"e{code}", "sh", "-c", f"exit {code}")
            await shim.call("Start", exec_id=f"e{code}")
            status = (await shim.call("Wait", exec_id=f"e{code}")).exit_status
            await shim.call("Delete", exec_id=f"e{code}")
            return status

        codes = [0, 1, 2, 7, 126, 127, 128, 137, 255]
        assert await asyncio.gather(*map(one, codes)) == codes
        with pytest.raises(OrlopError, match=r"^cannot delete a running process$"):
            await shim.call("Delete")
        await shim.call("Kill", signal=signal.SIGKILL)
        assert (await shim.call("Wait")).exit_status == 137


async def test_an_exec_can_be_killed_and_its_id_is_taken_until_it_is_deleted(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        await shim.call("Start")
        await shim.add_exec("e", "sleep", "1000")
        with pytest.raises(AlreadyExists, match=r"^id e: already exists$"):
            await shim.add_exec("e", "true")
        with pytest.raises(OrlopError, match=r"^process not created: failed precondition$"):
            await shim.call("Kill", exec_id="e", signal=9)
        await shim.call("Start", exec_id="e")
        await shim.call("Kill", exec_id="e", signal=signal.SIGTERM)
        assert (await shim.call("Wait", exec_id="e")).exit_status == 143
        await shim.call("Delete", exec_id="e")
        with pytest.raises(NotFound, match=r"^process does not exist e: not found$"):
            await shim.call("State", exec_id="e")


async def test_output_goes_to_a_fifo_and_ends_with_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    async with running_shim(tmp_path) as shim:
        await shim.create("echo", "hello", stdout=str(tmp_path / "out"))
        await shim.call("Start")
        await shim.call("Wait")
        assert os.read(reader, 100) == b"hello\n"
        assert os.read(reader, 100) == b""
    os.close(reader)


async def test_input_that_ended_before_start_ends_for_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    async with running_shim(tmp_path) as shim:
        await shim.create("cat", stdin=str(tmp_path / "in"), stdout=f"file://{tmp_path}/log")
        writer = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"x\n")
        os.close(writer)
        await shim.call("Start")
        assert (await shim.call("Wait")).exit_status == 0
        assert (tmp_path / "log").read_bytes() == b"x\n"


async def test_a_client_that_vanishes_does_not_end_the_input_but_close_io_does(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    async with running_shim(tmp_path) as shim:
        await shim.create("cat", stdin=str(tmp_path / "in"), stdout=f"file://{tmp_path}/log")
        await shim.call("Start")
        for text in (b"one\n", b"two\n"):
            writer = os.open(tmp_path / "in", os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, text)
            os.close(writer)
        await shim.call("CloseIO", stdin=True)
        assert (await shim.call("Wait")).exit_status == 0
        assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


async def test_a_terminal_is_copied_and_resized(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    async with running_shim(tmp_path) as shim:
        await shim.create("stty", "size", terminal=True, stdout=str(tmp_path / "out"))
        await shim.call("ResizePty", width=(1 << 16) + 91, height=37)  # the kernel has 16 bits for it
        await shim.call("Start")
        assert (await shim.call("Wait")).exit_status == 0
        assert os.read(reader, 100) == b"37 91\r\n"
    os.close(reader)


async def test_a_logging_program_gets_the_output_and_time_to_finish(tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(f"#!/bin/sh\nexec 5>&-\n(echo $CONTAINER_ID $1 $2; cat <&3) >{tmp_path}/logged\n")
    logger.chmod(0o755)
    async with running_shim(tmp_path) as shim:
        await shim.create("echo", "hello", stdout=f"binary://{logger}?a=b")
        await shim.call("Start")
        await shim.call("Wait")
        await shim.call("Delete")
        assert (tmp_path / "logged").read_text() == "one a b\nhello\n"


async def test_a_command_that_is_not_there_is_told_as_the_runtime_words_it(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        with pytest.raises(OrlopError, match=r"^OCI runtime create failed: .*nothere"):
            await shim.create("/nothere")
        with pytest.raises(NotFound):
            await shim.call("State")


async def test_pause_and_resume_refuse_as_the_state_demands(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        with pytest.raises(OrlopError, match=r"^cannot pause task in created state$"):
            await shim.call("Pause")
        await shim.call("Start")
        with pytest.raises(OrlopError, match=r"^cannot start a running process$"):
            await shim.call("Start")
        await shim.call("Pause")
        assert (await shim.call("State")).status == 4
        with pytest.raises(OrlopError, match=r"^cannot exec in a paused state$"):
            await shim.add_exec("e", "true")
        await shim.call("Resume")
        assert len((await shim.call("Pids")).processes) == 1
        assert (await shim.call("Stats")).stats.type_url.endswith(".Metrics")


async def test_a_created_container_can_be_deleted(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        deleted = await shim.call("Delete")
        assert deleted.exit_status == 0
        assert deleted.exited_at.seconds == -62135596800


async def test_a_shim_holds_only_its_own_descriptors_and_little_memory(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.call("Connect")  # so that the connection is accepted
        while len(Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # until its worker has gone
        targets = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{shim.pid}/fd")]
        kinds = sorted(target.split(":")[0] for target in targets)
        print(kinds, Path(f"/proc/{shim.pid}/smaps_rollup").read_text().splitlines()[2])
        # 0, 1, 2; the listener and the connection; what wakes it and its signals
        assert kinds.count("socket") == 2
        assert kinds.count("anon_inode") == 2
        assert len(os.listdir(f"/proc/{shim.pid}/task")) == 1


async def test_a_shim_outlives_its_fork_server(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        async with fork_server(tmp_path / "other.sock") as other:
            other.kill()
            other.wait()
        async with fork_server(tmp_path / "other.sock"):
            request = ForkRequest("test", "one", "one", str(shim.bundle), str(tmp_path / "s" / "sock"))
            assert await asyncio.to_thread(ask, tmp_path / "other.sock", request) == ForkAnswer(pid=0)
        assert (await shim.call("State")).status == 1
