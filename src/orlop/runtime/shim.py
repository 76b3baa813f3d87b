"""One shim as the daemon sees it: a connection, a process, and the container it was started for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.events.task_pb2 import TaskExit
from orlop.api.runtime.task.v3 import shim_pb2
from orlop.errors import OrlopError, Unimplemented
from orlop.rpc.ttrpc import Client
from orlop.runtime.bundle import Bootstrap, Bundle

R = TypeVar("R", bound=Message)


class Shim:
    """Serves the task of `bundle`. Shims of one pod share an address, each with a connection of its own."""

    def __init__(self, bundle: Bundle, bootstrap: Bootstrap, binary: str, client: Client) -> None:
        self.bundle = bundle
        self.bootstrap = bootstrap
        self.binary = binary
        self.pid = 0
        """Of the shim process; 0 while it is not known."""
        self.ending = False
        """We end it ourselves, so that its connection's end is no news."""
        self.joined = False
        """It is a sandbox's shim: not ours to end."""
        self.exit: TaskExit | None = None
        """Of the task's init, as the shim has told it."""
        self.dead = False
        self.buried = asyncio.Event()
        """Set when nothing of a dead shim is left."""
        self.lock = asyncio.Lock()
        """Held while the task is deleted."""
        self._client = client
        self._version = bootstrap.version
        self._pidfd = -1

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.id

    async def call(self, method: str, request: Message, response: type[R], timeout: float | None = None) -> R:
        """Calls the task service. A shim that does not know version 3 is asked in version 2 from then on."""
        try:
            return await self.ask(f"containerd.task.v{self._version}.Task", method, request, response, timeout)
        except Unimplemented:
            if self._version <= 2 or method not in ("Create", "Connect"):
                raise
            self._version = 2
            return await self.call(method, request, response, timeout)

    async def ask(
        self, service: str, method: str, request: Message, response: type[R], timeout: float | None = None
    ) -> R:
        """Calls any service of the shim."""
        headers = {"containerd-namespace-ttrpc": self.namespace}
        return await self._client.call(service, method, request, response, timeout=timeout, metadata=headers)

    async def identify(self, timeout: float) -> None:
        """Learns the pid of the shim process. Raises what the call does."""
        answer = await self.call("Connect", shim_pb2.ConnectRequest(id=self.id), shim_pb2.ConnectResponse, timeout)
        self.adopt(answer.shim_pid)

    def adopt(self, pid: int) -> None:
        """From now on this shim is the process that has `pid` now, and no later one of that number."""
        if pid <= 0 or self._pidfd >= 0:
            return
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(pid)
            self.pid = pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; False also where it is not known."""
        if self._pidfd < 0:
            return False
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return not poller.poll(0)

    def kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait_closed(self) -> None:
        await self._client.wait_closed()

    async def reconnect(self, timeout: float) -> bool:
        """A new connection after the old one broke. False if the shim does not answer on it."""
        try:
            client = await Client.connect(self.bootstrap.address, timeout)
        except OrlopError:
            return False
        self._client = client
        try:
            await self.identify(timeout)
        except OrlopError:
            await client.close()
            return False
        return True

    async def shut_down(self, timeout: float, *, wait: bool = True) -> bool:
        """Asks the shim to end, which one that has other containers does not. True if the connection ended."""
        self.ending = True
        try:
            async with asyncio.timeout(timeout):
                with contextlib.suppress(OrlopError):
                    await self.call("Shutdown", shim_pb2.ShutdownRequest(id=self.id), Empty)
                if wait:
                    await self.wait_closed()
        except TimeoutError:
            return False
        return wait

    async def close(self) -> None:
        self.ending = True
        await self._client.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
