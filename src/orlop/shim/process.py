"""One process of a container, its init or an exec: its state, its streams, its exit."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from orlop.errors import FailedPrecondition, NotFound, Unknown
from orlop.shim import files, loop
from orlop.shim.logger import LoggedStreams
from orlop.shim.reaper import Child, Exit, Watch
from orlop.shim.stdio import DirectStreams, Stdio, Streams
from orlop.shim.terminal import Terminal

CREATED, RUNNING, STOPPED, PAUSED, PAUSING = "created", "running", "stopped", "paused", "pausing"

_DRAIN_DEADLINE = 10.0


class Process:
    """`id` is empty for the init of a container."""

    def __init__(self, id: str, stdio: Stdio) -> None:
        self.id = id
        self.stdio = stdio
        self.state = CREATED
        self.child: Child | None = None
        self.exit: Exit | None = None
        """Set when the exit is published; `child.exit` is done earlier."""
        self.over = loop.Event()
        """Nothing more is to be waited for: it exited, or could not be started."""
        self.lock = loop.Lock()
        """Held while it is started or deleted, until that is published, so that its exit is published after."""
        self.streams: Streams | None = None

    @property
    def pid(self) -> int:
        return self.child.pid if self.child else 0

    @property
    def has_died(self) -> bool:
        return self.child is not None and self.child.exit.done()

    async def open_streams(
        self, container: str, namespace: str, spawner: LoggedStreams.Spawner, uid: int, gid: int
    ) -> None:
        """Opens what `stdio` names. Raises Unknown."""
        try:
            if self.stdio.scheme.startswith("binary"):
                self.streams = await LoggedStreams.open(self.stdio, container, namespace, spawner)
            elif self.stdio.terminal:
                self.streams = Terminal(self.stdio)
            else:
                self.streams = DirectStreams.open(self.stdio, uid, gid)
        except OSError as error:
            what = "init" if not self.id else "exec"
            why = f"open {error.filename}: {(error.strerror or str(error)).lower()}"
            raise Unknown(f"failed to create {what} process I/O: {why}") from error

    async def launch(self, pid_file: str, watch: Watch, command: Callable[[Streams, str], Awaitable[None]]) -> None:
        """Runs `command`, the runtime's, with the streams and console socket, and takes the process it made as ours."""
        streams = self.streams
        if streams is None:
            raise Unknown("the streams are closed")
        try:
            await command(streams, streams.console_socket)
            await streams.connect()
            pid = int(files.read(pid_file))
        except (OSError, ValueError) as error:
            self.close_streams()
            raise Unknown(f"failed to retrieve OCI runtime container pid: {error}") from error
        except BaseException:
            self.close_streams()
            raise
        streams.handed_over()
        self.child = watch.claim(pid)

    async def settle(self, ended: Exit) -> None:
        """Takes note of the exit, after what the process wrote has gone on its way."""
        if self.streams is not None:
            await self.streams.exited()
        self.exit = ended
        self.state = STOPPED

    def resize(self, width: int, height: int) -> None:
        if self.id and self.state == STOPPED:
            raise Unknown("cannot resize a stopped container")
        if self.streams is not None and self.state != STOPPED:
            self.streams.resize(width, height)

    def close_stdin(self) -> None:
        if self.streams is not None:
            self.streams.close_stdin()

    def close_streams(self) -> None:
        if self.streams is not None:
            self.streams.close()
            self.streams = None

    def signal(self, number: int) -> None:
        """Sends it a signal. Raises NotFound if it has ended. A paused container's init is the runtime's to kill."""
        if self.child is None:
            raise FailedPrecondition("process not created")
        try:
            if not self.child.kill(number):
                raise NotFound("process already finished")
        except OSError as error:
            raise Unknown(f"unknown error after kill: {os.strerror(error.errno or 0).lower()}") from error
