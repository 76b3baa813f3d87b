"""Programs of the administrator's that are asked something: with bounds on time and output, and none left behind.

The program has a process group of its own. When it has ended, when its time is up or when the caller is cancelled, the
group is killed before its leader is waited for, so that the number cannot have become somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from orlop.errors import DeadlineExceeded, Unknown

_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """How a program ended: `status` as `subprocess` gives it, negative for a signal. Streams are cut at the limit."""

    status: int
    stdout: bytes
    stderr: bytes
    is_cut: bool
    """Whether standard output was longer than the limit."""


async def ask(arguments: Sequence[str], question: bytes, *, seconds: float, limit: int) -> Answer:
    """Runs `arguments` (the first is the program's path) with `question` on standard input.

    Output past `limit` bytes is read and dropped, so that the program does not die of it. Raises Unknown where it
    cannot be started, DeadlineExceeded where it has not ended in time.
    """
    wake = os.eventfd(0, os.EFD_CLOEXEC)
    running = asyncio.ensure_future(asyncio.to_thread(_ask, arguments, question, seconds, limit, wake))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        os.eventfd_write(wake, 1)
        await asyncio.wait([running])
        running.exception() if not running.cancelled() else None
        raise
    finally:
        os.close(wake)


def _ask(arguments: Sequence[str], question: bytes, seconds: float, limit: int, wake: int) -> Answer:
    deadline = time.monotonic() + seconds
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,
            restore_signals=True,
        )
    except OSError as error:
        raise Unknown(f"starting process: exec {arguments[0]}: {(error.strerror or str(error)).lower()}") from error
    with process:
        try:
            conversation = _Conversation(process, question, limit, wake)
            if not conversation.run(deadline):
                raise DeadlineExceeded(f"{arguments[0]}: not ended after {seconds:g} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    stdout, stderr = (bytes(conversation.said[stream]) for stream in ("stdout", "stderr"))
    return Answer(process.returncode, stdout[:limit], stderr[:limit], len(stdout) > limit)


@dataclass(slots=True)
class _Conversation:
    """A process, what is still to be told to it, and what it has said so far (one byte more than the limit, if so)."""

    process: subprocess.Popen[bytes]
    question: bytes
    limit: int
    wake: int
    said: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})

    def run(self, deadline: float) -> bool:
        """Talks until the process has ended; False where it is to be ended instead, for time or the caller's sake."""
        ended = os.pidfd_open(self.process.pid)
        with contextlib.closing(selectors.DefaultSelector()) as waiting:
            try:
                self._register(waiting, ended)
                while (left := deadline - time.monotonic()) > 0:
                    for key, _ in waiting.select(left):
                        if key.fileobj == self.wake:
                            return False
                        if key.fileobj == ended:
                            self._drain(waiting)
                            return True
                        self._serve(waiting, key)
                return False
            finally:
                os.close(ended)

    def _register(self, waiting: selectors.BaseSelector, ended: int) -> None:
        waiting.register(self.wake, selectors.EVENT_READ)
        waiting.register(ended, selectors.EVENT_READ)
        for name, events in (
            ("stdin", selectors.EVENT_WRITE),
            ("stdout", selectors.EVENT_READ),
            ("stderr", selectors.EVENT_READ),
        ):
            stream = getattr(self.process, name)
            os.set_blocking(stream.fileno(), False)
            waiting.register(stream, events, name)

    def _serve(self, waiting: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """Moves some bytes of one stream; at its end the stream is closed."""
        done = self._tell(key.fd) if key.data == "stdin" else self._listen(key.fd, key.data)
        if done:
            waiting.unregister(key.fileobj)
            getattr(self.process, key.data).close()

    def _tell(self, fd: int) -> bool:
        try:
            self.question = self.question[os.write(fd, self.question) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True  # it does not care to read it all
        return not self.question

    def _listen(self, fd: int, name: str) -> bool:
        try:
            data = os.read(fd, _PIECE)
        except BlockingIOError:
            return False
        said = self.said[name]
        said += data[: self.limit + 1 - len(said)]
        return not data

    def _drain(self, waiting: selectors.BaseSelector) -> None:
        """Takes what the process wrote before it ended. Children that hold the pipes open are not waited for."""
        for key in list(waiting.get_map().values()):
            if key.data in self.said:
                before = -1
                while len(self.said[key.data]) != before:
                    before = len(self.said[key.data])
                    if self._listen(key.fd, key.data):
                        break
