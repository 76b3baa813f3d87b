"""Standard streams through FIFOs, with this process in the place of the shim."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.client import descriptors, streams
from orlop.client.streams import Streams
from orlop.core.task import IO
from orlop.errors import NotFound


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where FIFOs are made; nothing is left there, and no descriptor."""
    monkeypatch.setattr(streams, "FIFO_ROOT", str(tmp_path / "fifo"))
    before = set(os.listdir("/proc/self/fd"))
    yield tmp_path / "fifo"
    assert not (tmp_path / "fifo").exists() or not os.listdir(tmp_path / "fifo")
    assert set(os.listdir("/proc/self/fd")) <= before


class Pipe:
    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self.read, self.write):
            with contextlib.suppress(OSError):
                os.close(end)

    def close_read(self) -> None:
        os.close(self.read)

    def close_write(self) -> None:
        os.close(self.write)

    def rest(self) -> bytes:
        """What is in it, once it is written no more."""
        self.close_write()
        parts = []
        while part := os.read(self.read, 1 << 20):
            parts.append(part)
        return b"".join(parts)


def put(path: str, data: bytes) -> threading.Thread:
    """A writer of `path`, as a process is."""

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(path, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    thread = threading.Thread(target=write)
    thread.start()
    return thread


async def nothing() -> None:
    return


async def test_output_of_both_kinds_arrives_where_it_should() -> None:
    with Pipe() as out, Pipe() as err:
        async with Streams("c", stdin=None, stdout=out.write, stderr=err.write) as s:
            assert s.io.stdin == ""
            assert [Path(path).name for path in (s.io.stdout, s.io.stderr)] == ["c-stdout", "c-stderr"]
            threads = [put(s.io.stdout, b"to out"), put(s.io.stderr, b"to err")]
            await s.finish()
        assert (out.rest(), err.rest()) == (b"to out", b"to err")
        for thread in threads:
            thread.join()


async def test_without_streams_nothing_is_made(folder: Path) -> None:
    async with Streams("c", stdin=None, stdout=None, stderr=None, terminal=True) as s:
        assert s.io == IO(terminal=True)
        s.feed(nothing)
        await s.finish()
    assert not folder.exists()


async def test_a_terminal_has_no_stream_of_errors() -> None:
    with Pipe() as out:
        async with Streams("c", stdin=None, stdout=out.write, stderr=2, terminal=True) as s:
            assert s.io.stderr == ""
            assert s.io.terminal


async def test_output_larger_than_any_pipe_arrives_whole(tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with Pipe() as err:
        async with Streams("c", stdin=None, stdout=file, stderr=err.write) as s:
            thread = put(s.io.stdout, data)
            put(s.io.stderr, b"").join()
            await s.finish()
            thread.join()
    os.close(file)
    assert (tmp_path / "file").read_bytes() == data


async def test_a_slow_reader_of_this_program_is_waited_for_without_a_blocked_loop_or_a_changed_pipe() -> None:
    data = os.urandom(1 << 20)
    with Pipe() as out:
        async with Streams("c", stdin=None, stdout=out.write, stderr=None) as s:
            thread = put(s.io.stdout, data)
            finish = asyncio.ensure_future(s.finish())
            got = b""
            while len(got) < len(data):
                got += await descriptors.read(out.read)  # on the same loop: were it blocked, this would hang
            await finish
            thread.join()
            assert os.get_blocking(out.write)
        assert got == data


@pytest.mark.parametrize("kind", ["socket", "terminal", "null"])
async def test_output_goes_to_whatever_this_program_has(kind: str) -> None:
    with contextlib.ExitStack() as exit:
        if kind == "socket":
            reader, writer = (exit.enter_context(one) for one in socket.socketpair())
            sink, source = writer.fileno(), reader.fileno()
        elif kind == "terminal":
            source, sink = pty.openpty()
            tty.setraw(sink)
            exit.callback(os.close, source)
            exit.callback(os.close, sink)
        else:
            sink = source = os.open("/dev/null", os.O_RDWR)
            exit.callback(os.close, sink)
        async with Streams("c", stdin=None, stdout=sink, stderr=None) as s:
            thread = put(s.io.stdout, b"hello")
            await s.finish()
            thread.join()
        assert os.read(source, 100) == (b"" if kind == "null" else b"hello")


async def test_a_reader_that_has_gone_is_told() -> None:
    with Pipe() as out:
        out.close_read()
        async with Streams("c", stdin=None, stdout=out.write, stderr=None) as s:
            thread = put(s.io.stdout, b"x")
            with pytest.raises(BrokenPipeError):
                await s.finish()
            thread.join()


async def test_a_reader_that_goes_is_told() -> None:
    with Pipe() as out:
        async with Streams("c", stdin=None, stdout=out.write, stderr=None) as s:
            thread = put(s.io.stdout, b"x" * (1 << 20))
            await descriptors.read(out.read)
            out.close_read()
            with pytest.raises(BrokenPipeError):
                await s.finish()
        thread.join()


async def fed(stdin: int, size: int) -> bytes:
    """What a process reads from its input to the end."""
    ended = asyncio.Event()

    async def close() -> None:
        ended.set()

    async with Streams("c", stdin=stdin, stdout=None, stderr=None) as s:
        process = os.open(s.io.stdin, os.O_RDONLY | os.O_NONBLOCK)
        try:
            s.feed(close)
            got = b""
            while len(got) < size:
                got += await descriptors.read(process)
            await ended.wait()
            assert os.read(process, 1) == b""
        finally:
            os.close(process)
    return got


async def test_input_is_passed_on_to_its_end(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "input").write_bytes(data)
    file = os.open(tmp_path / "input", os.O_RDONLY)
    assert await fed(file, len(data)) == data
    os.close(file)
    with Pipe() as source:
        thread = put(f"/proc/self/fd/{source.write}", data)
        passing = asyncio.ensure_future(fed(source.read, len(data)))
        await asyncio.to_thread(thread.join)
        source.close_write()
        assert await passing == data


@pytest.mark.parametrize("kind", ["pipe", "null", "file", "terminal"])
async def test_input_that_has_ended_already_is_told_at_once(tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as exit:
        if kind == "pipe":
            pipe = exit.enter_context(Pipe())
            pipe.close_write()
            source = pipe.read
        elif kind == "terminal":
            master, source = pty.openpty()
            os.close(master)  # it hung up: reading is an error
            exit.callback(os.close, source)
        else:
            (tmp_path / "empty").touch()
            source = os.open("/dev/null" if kind == "null" else tmp_path / "empty", os.O_RDONLY)
            exit.callback(os.close, source)
        assert await fed(source, 0) == b""


async def test_input_for_a_process_that_has_ended_is_dropped() -> None:
    asked = asyncio.Event()

    async def close() -> None:
        asked.set()
        raise NotFound("process c")

    with Pipe() as source:
        source.close_write()
        async with Streams("c", stdin=source.read, stdout=None, stderr=None) as s:
            s.feed(close)
            await asked.wait()


async def test_leaving_ends_everything_that_goes_on(folder: Path) -> None:
    before = asyncio.all_tasks()
    with Pipe() as source, Pipe() as out, Pipe() as err:
        os.write(source.write, b"x" * 50_000)
        async with Streams("c", stdin=source.read, stdout=out.write, stderr=err.write) as s:
            s.feed(nothing)
            assert len(os.listdir(folder)) == 1
            assert asyncio.all_tasks() != before
        assert asyncio.all_tasks() == before
        assert not os.listdir(folder)


async def test_being_cancelled_while_nobody_reads_ends_at_once() -> None:
    before = asyncio.all_tasks()
    with Pipe() as out:
        entered = asyncio.Event()
        thread: Any = None

        async def attend() -> None:
            nonlocal thread
            async with Streams("c", stdin=None, stdout=out.write, stderr=None) as s:
                thread = put(s.io.stdout, b"x" * (1 << 20))
                entered.set()
                await s.finish()

        task = asyncio.ensure_future(attend())
        await entered.wait()
        await descriptors.read(out.read)  # it is on its way, and then stuck
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        thread.join()
    assert asyncio.all_tasks() == before


async def test_a_folder_that_cannot_be_made_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(streams, "FIFO_ROOT", str(tmp_path / "file" / "x"))
    with pytest.raises(NotADirectoryError):
        async with Streams("c", stdin=None, stdout=1, stderr=2):
            raise AssertionError("entered")


async def test_ids_with_odd_characters_make_no_other_path(folder: Path) -> None:
    async with Streams("a.b-c_d", stdin=None, stdout=1, stderr=None) as s:
        assert Path(s.io.stdout).parent.parent == folder
