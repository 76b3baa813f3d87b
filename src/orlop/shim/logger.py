"""A logging program that takes a process's output: the `binary` and `binary-v2` schemes.

The program gets the output on descriptors 3 and 4, says on 5 that it is ready, and is given time to finish when the
process has exited.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from orlop.errors import Unknown
from orlop.shim import loop
from orlop.shim.reaper import Child, Exit, Reaper
from orlop.shim.stdio import DirectStreams, Stdio
from orlop.shim.terminal import Terminal

_READY_DEADLINE = 30.0
_FINISH_DEADLINE = 10.0
_TERM_DEADLINE = 12.0


class LoggedStreams(DirectStreams):
    """Streams into a logging program; with a terminal, all of its output goes to the program's descriptor 3."""

    Spawner = Callable[[Sequence[str], Mapping[bytes, bytes], Mapping[int, int]], Child]

    def __init__(self) -> None:
        super().__init__()
        self._logger: Child | None = None
        self._terminal: Terminal | None = None

    @classmethod
    async def open(  # type: ignore[override]
        cls, stdio: Stdio, container: str, namespace: str, spawn: Spawner
    ) -> LoggedStreams:
        """Starts the program and waits until it is ready. Raises OSError, and Unknown if it never says so."""
        streams = cls()
        uri = urlsplit(stdio.stdout)
        argv = [unquote(uri.path)]
        for key, value in parse_qsl(uri.query, keep_blank_values=True):
            argv += [key, value] if value else [key]
        try:
            outlets = []
            for number in (1, 2):
                outlet, streams._files[number] = os.pipe2(os.O_CLOEXEC)
                outlets.append(outlet)
            ready, signal_end = os.pipe2(os.O_CLOEXEC)
            try:
                environment = {b"CONTAINER_ID": container.encode(), b"CONTAINER_NAMESPACE": namespace.encode()}
                streams._logger = spawn(argv, environment, {3: outlets[0], 4: outlets[1], 5: signal_end})
            finally:
                for descriptor in (*outlets, signal_end):
                    os.close(descriptor)
            said = await _read_once(ready)
            if uri.scheme == "binary-v2" and not said:
                raise Unknown("logging binary did not call ready (it may have crashed or exited prematurely)")
            if stdio.terminal:
                streams._terminal = Terminal(stdio)
            else:
                streams._open_input(stdio.stdin, 0, 0)
        except BaseException:
            streams.close()
            raise
        return streams

    def record(self) -> dict[str, Any] | None:
        if self._terminal is not None:
            return None
        plain = {name: value for name, value in vars(self).items() if name not in ("_logger", "_terminal")}
        if self._logger is None:
            return plain | {"logger": None}
        return plain | {"logger": astuple(self._logger.exit.result()) if not self.running else self._logger.pid}

    def take_up(self, record: Mapping[str, Any], reaper: Reaper) -> None:
        super().take_up({name: value for name, value in record.items() if name != "logger"}, reaper)
        logger = record["logger"]
        if logger is not None:
            self._logger = reaper.ended(Exit(*logger)) if isinstance(logger, tuple) else reaper.adopt(logger)

    @property
    def running(self) -> set[int]:
        return {self._logger.pid} if self._logger is not None and not self._logger.exit.done() else set()

    @property
    def files(self) -> Mapping[int, int]:
        return {} if self._terminal else self._files

    @property
    def console_socket(self) -> str:
        return self._terminal.console_socket if self._terminal else ""

    async def connect(self) -> None:
        if self._terminal:
            os.set_blocking(self._files[1], False)
            await self._terminal.connect(self._files[1])

    def resize(self, width: int, height: int) -> None:
        if self._terminal:
            self._terminal.resize(width, height)

    def handed_over(self) -> None:
        if self._terminal is None:
            super().handed_over()

    async def exited(self) -> None:
        if self._terminal:
            await self._terminal.exited()
            self._terminal = None
        super().close()

    async def finished(self) -> None:
        """Lets the program finish by itself, then ends it."""
        logger, self._logger = self._logger, None
        if logger is None:
            return
        for patience, number in ((_FINISH_DEADLINE, signal.SIGTERM), (_TERM_DEADLINE, signal.SIGKILL)):
            with contextlib.suppress(TimeoutError):
                async with loop.timeout(patience):
                    await logger.exit
                    return
            logger.kill(number)

    def close(self) -> None:
        if self._terminal:
            self._terminal.close()
            self._terminal = None
        super().close()
        if self._logger is not None:
            self._logger.kill(signal.SIGTERM)
            self._logger = None


async def _read_once(descriptor: int) -> bytes:
    readable = loop.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        async with loop.timeout(_READY_DEADLINE):
            await readable.wait()
        return os.read(descriptor, 1)
    except TimeoutError:
        raise Unknown("logging binary did not call ready in time") from None
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
