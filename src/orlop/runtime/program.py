"""Shim binaries, run to their end without a thread: many may run at once, and each may take as long as it is given.

What a program prints ends when nobody holds its pipe any more, as with containerd: a shim that is to live on closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_PIECE = 1 << 16
_TIME_TO_STOP = 1.0
"""Seconds between the signals TERM and KILL: our own shim's `delete` ends the OCI runtime that it runs."""
_TIME_TO_DIE = 5.0
"""Seconds after KILL in which a process is gone, unless the kernel cannot end it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: `status` as `subprocess` gives it, negative for a signal."""

    status: int
    stdout: bytes
    stderr: bytes


async def run(
    arguments: Sequence[str],
    directory: Path,
    variables: Mapping[str, str],
    told: bytes,
    *,
    seconds: float,
    limit: int,
    merge: bool,
) -> Ended:
    """Runs `arguments` in `directory` with `told` on standard input and `variables` in the environment.

    Of what it prints `limit` bytes are kept; with `merge` standard error is a part of standard output. It has a process
    group of its own, which is killed when time is up or nobody waits. Raises OSError where it cannot be executed,
    TimeoutError.
    """
    with ExitStack() as stack:
        given = os.memfd_create("stdin", os.MFD_CLOEXEC)
        stack.callback(os.close, given)
        os.write(given, told)
        os.lseek(given, 0, os.SEEK_SET)
        outputs = [_Output(stack, limit) for _ in range(1 if merge else 2)]
        # Not asyncio's process: uvloop's leaks our ends of the pipes into the child, so that a shim which lives on
        # would keep its own answer from ending.
        starting = asyncio.ensure_future(asyncio.to_thread(
            subprocess.Popen, arguments, cwd=directory, env={**os.environ, **variables}, process_group=0,
            stdin=given, stdout=outputs[0].inlet, stderr=subprocess.STDOUT if merge else outputs[1].inlet,
        ))  # fmt: skip
        is_given_up = False
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # it has descriptors of ours
            is_given_up = True
        process = starting.result()
        exited = _exit_of(stack, process.pid)
        ends = [output.start() for output in outputs]
        try:
            if is_given_up:
                raise asyncio.CancelledError
            async with asyncio.timeout(seconds):
                await exited.wait()
                for end in ends:
                    await end.wait()
        except BaseException:
            await _stop(process, exited)
            raise
        finally:
            process.poll()
        return Ended(process.returncode, bytes(outputs[0].text), b"" if merge else bytes(outputs[1].text))


async def _stop(process: subprocess.Popen[bytes], exited: asyncio.Event) -> None:
    """Kills the group before its leader is waited for: the number cannot have become somebody else's."""
    os.kill(process.pid, signal.SIGTERM)
    await _within(_TIME_TO_STOP, exited)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await _within(_TIME_TO_DIE, exited)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _exit_of(stack: ExitStack, pid: int) -> asyncio.Event:
    """Set when the process has ended. It is still to be waited for."""
    loop = asyncio.get_running_loop()
    handle = os.pidfd_open(pid)
    stack.callback(os.close, handle)
    exited = asyncio.Event()

    def ended() -> None:
        loop.remove_reader(handle)
        exited.set()

    loop.add_reader(handle, ended)
    stack.callback(loop.remove_reader, handle)
    return exited


class _Output:
    """What a program prints into the pipe whose writing end is `inlet`."""

    def __init__(self, stack: ExitStack, limit: int) -> None:
        self.text = bytearray()
        self._limit = limit
        self._outlet, self.inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.inlet, True)
        self._ended = asyncio.Event()
        stack.callback(self._close)

    def start(self) -> asyncio.Event:
        """The program has the inlet now. What is answered is set when nobody has it any more."""
        os.close(self.inlet)
        self.inlet = -1
        asyncio.get_running_loop().add_reader(self._outlet, self._read)
        return self._ended

    def _read(self) -> None:
        try:
            piece = os.read(self._outlet, _PIECE)
        except BlockingIOError:
            return
        self.text += piece[: self._limit - len(self.text)]
        if not piece:
            asyncio.get_running_loop().remove_reader(self._outlet)
            self._ended.set()

    def _close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._outlet)
        for descriptor in (self._outlet, self.inlet):
            if descriptor >= 0:
                os.close(descriptor)
