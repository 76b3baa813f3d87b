"""Standard streams: readers that are slow, absent, gone and back; much output; loggers that fail."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from patience import patient
from shim_world import Shim, running_shim

from orlop.errors import NotFound, OrlopError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc"),
]


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def reading(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


async def read_until(descriptor: int, wanted: bytes) -> bytes:
    """What comes until it holds `wanted`."""
    got = b""
    async with asyncio.timeout(patient(20)):
        while wanted not in got:
            try:
                got += os.read(descriptor, 65536)
            except BlockingIOError:
                pass
            await asyncio.sleep(0.005)
    return got


def copied_by(shim: Shim) -> int:
    """Bytes that the shim has read and written: its thread, as the process counts those of its children too."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{shim.pid}/task/{shim.pid}/io").read_text().splitlines())
    return int(fields["rchar"]) + int(fields["wchar"])


async def test_a_gigabyte_does_not_pass_through_the_shim(tmp_path: Path) -> None:
    out = fifo(tmp_path / "out")

    def count() -> int:
        total, buffer = 0, bytearray(1 << 20)
        with open(out, "rb", buffering=0) as pipe:
            while number := pipe.readinto(buffer):
                total += number
        return total

    counting = asyncio.ensure_future(asyncio.to_thread(count))
    async with running_shim(tmp_path) as shim:
        await shim.create("/bin/busybox", "dd", "if=/dev/zero", "bs=1M", "count=1024", stdout=out)
        before = copied_by(shim)
        await shim.call("Start")
        assert (await shim.call("Wait")).exit_status == 0
        assert await counting == 1 << 30
        assert copied_by(shim) - before < 1 << 20


async def test_a_container_waits_for_an_absent_reader_and_the_shim_does_not(tmp_path: Path) -> None:
    out = fifo(tmp_path / "out")
    async with running_shim(tmp_path) as shim:
        await shim.create("/bin/busybox", "dd", "if=/dev/zero", "bs=1024", "count=300", stdout=out)
        await shim.call("Start")
        assert (await shim.call("State")).status == 2  # RUNNING: a pipe holds 64 KiB of the 300
        reader = reading(tmp_path / "out")
        got = 0
        async with asyncio.timeout(patient(20)):
            while got < 300 << 10:
                try:
                    got += len(os.read(reader, 1 << 20))
                except BlockingIOError:
                    await shim.call("State")
        assert (await shim.call("Wait")).exit_status == 0
        assert got == 300 << 10
        os.close(reader)


async def test_what_was_written_before_any_reader_came_is_kept_until_the_delete(tmp_path: Path) -> None:
    out = fifo(tmp_path / "out")
    async with running_shim(tmp_path) as shim:
        await shim.create("echo", "early", stdout=out)
        await shim.call("Start")
        await shim.call("Wait")
        reader = reading(tmp_path / "out")
        assert os.read(reader, 100) == b"early\n"
        os.close(reader)


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_client_vanishes_and_another_takes_its_place(tmp_path: Path, terminal: bool) -> None:
    out, into = fifo(tmp_path / "out"), fifo(tmp_path / "in")
    async with running_shim(tmp_path) as shim:
        first = reading(tmp_path / "out")
        await shim.create("cat", stdin=into, stdout=out, terminal=terminal)
        await shim.call("Start")
        writer = os.open(into, os.O_WRONLY)
        os.write(writer, b"one\n")
        await read_until(first, b"one")
        os.close(first)
        os.write(writer, b"two\n")
        os.close(writer)
        second = reading(tmp_path / "out")
        writer = os.open(into, os.O_WRONLY)
        os.write(writer, b"three\n")
        got = await read_until(second, b"three")
        assert b"two" in got
        assert (await shim.call("State")).status == 2
        os.close(writer)
        os.close(second)


async def test_both_outputs_go_to_one_file_and_none_goes_nowhere(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sh", "-c", "echo out; echo err >&2", stdout=f"file://{tmp_path}/new/log")
        await shim.call("Start")
        assert (await shim.call("Wait")).exit_status == 0
        assert sorted((tmp_path / "new" / "log").read_text().split()) == ["err", "out"]
        assert (tmp_path / "new" / "log").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        ("ftp://there", "unknown STDIO scheme ftp"),
        ("binary-v2:///bin/true", "logging binary did not call ready"),
        ("binary:///nothere", "/nothere"),
    ],
)
async def test_streams_that_cannot_be_are_refused_and_leave_no_container(
    tmp_path: Path, stdout: str, words: str
) -> None:
    async with running_shim(tmp_path) as shim:
        with pytest.raises(OrlopError, match=words):
            await shim.create("true", stdout=stdout)
        with pytest.raises(NotFound):
            await shim.call("State")


async def test_a_logger_of_version_2_says_that_it_is_ready_and_gets_both_streams(tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(f"#!/bin/sh\nprintf r >&5\nexec 5>&-\ncat <&4 >{tmp_path}/err &\ncat <&3 >{tmp_path}/out\nwait\n")
    logger.chmod(0o755)
    async with running_shim(tmp_path) as shim:
        uri = f"binary-v2://{logger}"
        await shim.create("sh", "-c", "busybox seq 20000; echo wrong >&2", stdout=uri, stderr=uri)
        await shim.call("Start")
        await shim.call("Wait")
        await shim.call("Delete")
        assert (tmp_path / "out").read_text().split() == [str(number) for number in range(1, 20001)]
        assert (tmp_path / "err").read_text() == "wrong\n"
