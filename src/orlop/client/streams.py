"""The standard streams of a process, as FIFOs between this program and its shim.

The shim opens the other ends; what is written here is read there and back. The files lie in a folder of their own
that goes when the streams are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from orlop.client import descriptors
from orlop.core.task import IO
from orlop.errors import OrlopError

FIFO_ROOT = "/run/orlop/fifo"

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class Streams:
    """FIFOs for a process: `io` is what a task or exec is created with, once this is entered.

    `stdin` is a descriptor to read from (None: no input), `stdout` and `stderr` descriptors to write to. With a
    terminal there is no stderr. Leaving ends what goes on and removes the files.
    """

    def __init__(
        self, id: str, *, stdin: int | None, stdout: int | None, stderr: int | None, terminal: bool = False
    ) -> None:
        self._id = id
        self._stdin, self._stdout = stdin, stdout
        self._stderr = None if terminal else stderr
        self._ends = contextlib.ExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._input: asyncio.Task[None] | None = None
        self.io = IO(terminal=terminal)

    async def __aenter__(self) -> Self:
        """Makes the FIFOs and opens this side of them, which waits for nobody."""
        if self._stdin is None and self._stdout is None and self._stderr is None:
            return self
        with contextlib.ExitStack() as undo:
            os.makedirs(FIFO_ROOT, 0o711, exist_ok=True)
            folder = tempfile.mkdtemp(prefix="", dir=FIFO_ROOT)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            stdin, stdout, stderr = (
                "" if descriptor is None else _fifo(folder, f"{self._id}-{name}")
                for name, descriptor in (("stdin", self._stdin), ("stdout", self._stdout), ("stderr", self._stderr))
            )
            self.io = IO(stdin, stdout, stderr, self.io.terminal)
            for path, sink in ((stdout, self._stdout), (stderr, self._stderr)):
                if path and sink is not None:
                    source = _opened(undo, path, os.O_RDONLY)
                    self._tasks.append(asyncio.create_task(_drain(source, sink)))
            if stdin:
                # A reader of our own, never read from: input can be written before the shim opens its end.
                _opened(undo, stdin, os.O_RDONLY)
            self._ends = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (*self._tasks, self._input) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ends.close()

    def feed(self, ended: Callable[[], Awaitable[None]]) -> None:
        """Begins to pass input on; call it when the process has started. `ended` is called at the input's end."""
        if self.io.stdin and self._stdin is not None:
            self._input = asyncio.create_task(_pump(self._stdin, self.io.stdin, ended))

    async def finish(self) -> None:
        """Waits until the process's output has ended and all of it is written.

        Raises OSError where it cannot be: nobody reads any more what this program writes.
        """
        await asyncio.gather(*self._tasks)


def _fifo(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    os.mkfifo(path, 0o600)
    return path


def _opened(undo: contextlib.ExitStack, path: str, access: int) -> int:
    descriptor = os.open(path, access | _FLAGS)
    undo.callback(os.close, descriptor)
    return descriptor


async def _drain(source: int, sink: int) -> None:
    with descriptors.sink(sink) as out:
        # Before the shim has opened its end nothing is reported; afterwards an empty read is the end.
        while data := await descriptors.read(source):
            await descriptors.write(out, data)


async def _pump(source: int, path: str, ended: Callable[[], Awaitable[None]]) -> None:
    sink = os.open(path, os.O_WRONLY | _FLAGS)
    try:
        while data := await descriptors.read(source):
            await descriptors.write(sink, data)
    except OSError:
        pass  # a terminal that went away is an input that ended
    finally:
        os.close(sink)
    try:
        await ended()
    except OrlopError:
        return  # the process has ended meanwhile
