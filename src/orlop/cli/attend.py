"""Attending a process in the foreground: its streams, its terminal, and the signals that are meant for it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import tty
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from orlop.cli import signals
from orlop.client import Client
from orlop.client.streams import Streams
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound

_FORWARDED = (*signals.ENDING, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def check_terminal(terminal: bool) -> None:
    """Raises InvalidArgument if `terminal` is asked for and this program has none."""
    if terminal and not os.isatty(0):
        raise InvalidArgument.verbatim("--tty needs a terminal as standard input")


async def attend(client: Client, streams: Streams, id: str, exec_id: str = "") -> int:
    """Starts a process that has been created and looks after it until it ends; returns its exit status."""
    process = _Attended(client, streams, id, exec_id)
    try:
        return await process.run()
    finally:
        process.close()
        # A task group would wrap what is raised here into a group; there is one thing that can go wrong.
        await asyncio.gather(*process.tasks, return_exceptions=True)


class _Attended:
    """A process, and what is done for it at the same time. `tasks` are awaited by who made this."""

    def __init__(self, client: Client, streams: Streams, id: str, exec_id: str) -> None:
        self._client, self._streams = client, streams
        self._id, self._exec_id = id, exec_id
        self._pid = 0
        self._started = asyncio.Event()
        self._signals = 0
        self._instead_of = 0
        """The signal that the process was killed for, where it would not have ended of it."""
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        tasks, scope = self._client.tasks, self._client.scope
        with signals.handled(_FORWARDED, self._forward), self._terminal():
            self._pid = await tasks.start(scope, self._id, self._exec_id)
            self._started.set()
            self._streams.feed(lambda: tasks.close_io(scope, self._id, self._exec_id))
            output = self._also(self._drain())
            status = (await tasks.wait(scope, self._id, self._exec_id)).status
            await output
        return 128 + self._instead_of if self._instead_of and status == 128 + signal.SIGKILL else status

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()

    def _also(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        return task

    async def _drain(self) -> None:
        """A process whose output nobody reads any more is killed, as the first write would in a shell's pipeline."""
        try:
            await self._streams.finish()
        except OSError:
            self._instead_of = signal.SIGPIPE
            await self._kill(signal.SIGKILL)

    def _forward(self, number: int) -> None:
        self._signals += 1
        self._also(self._pass_on(number, again=self._signals > 1 and number in signals.ENDING))

    async def _pass_on(self, number: int, *, again: bool) -> None:
        await self._started.wait()  # only then there is a process to look at
        if again or self._is_deaf(number):
            self._instead_of = number
            number = signal.SIGKILL
        await self._kill(number)

    def _is_deaf(self, number: int) -> bool:
        """Whether the signal would end the process anywhere but here: the kernel drops what a container's first
        process has no handler for."""
        if self._exec_id or number not in signals.ENDING:
            return False
        try:
            with open(f"/proc/{self._pid}/status", encoding="ascii", errors="replace") as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
            taken = int(status["SigCgt"], 16) | int(status["SigIgn"], 16)
        except (OSError, KeyError, ValueError):
            return False
        return not taken >> (number - 1) & 1

    async def _kill(self, number: int) -> None:
        try:
            await self._client.tasks.kill(self._client.scope, self._id, self._exec_id, number)
        except (NotFound, FailedPrecondition):
            return  # it has ended

    @contextmanager
    def _terminal(self) -> Iterator[None]:
        """Where the process has a terminal, this one passes every key on and tells its size meanwhile."""
        if not self._streams.io.terminal:
            yield
            return
        check_terminal(True)
        before = termios.tcgetattr(0)
        tty.setraw(0)
        try:
            with signals.handled([signal.SIGWINCH], lambda _: self._resize_soon()):
                self._resize_soon()
                yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def _resize_soon(self) -> None:
        self._also(self._resize())

    async def _resize(self) -> None:
        height, width = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]
        try:
            await self._client.tasks.resize_pty(self._client.scope, self._id, self._exec_id, width, height)
        except (NotFound, FailedPrecondition):
            return  # it ended before it could be told
