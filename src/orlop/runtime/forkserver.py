"""The daemon's end of the fork server: asks it for shims, and starts it anew when it is gone or hangs.

The fork server outlives the daemon; it is found again by its socket. It forks when somebody connects, so a connection
that nothing is asked on yet is a spare shim: one is kept, and the next container need not wait for a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from orlop.core import clock
from orlop.errors import Unavailable, Unknown
from orlop.runtime.bootstrap import ShimSettings
from orlop.runtime.bundle import Bundle
from orlop.shim.request import ForkAnswer, ForkRequest

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 10.0
"""Seconds a fork may take until the shim listens. It takes 0.003."""
START_TIMEOUT = 60.0
_LOOK_AGAIN = 0.01
_PEER = struct.Struct("=iii")
_ANSWER_LIMIT = 64 << 10


class ForkServer:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._spare: socket.socket | None = None
        self._is_stopped = False

    async def fork(self, bundle: Bundle, group: str, socket: str, settings: ShimSettings) -> int:
        """The pid of a new shim that listens on `socket`.

        Raises Unknown with the server's reason if it cannot be made, Unavailable if there is no server to be had.
        """
        request = ForkRequest(
            namespace=bundle.namespace,
            id=bundle.id,
            group=group,
            bundle=str(bundle.path),
            socket_path=socket,
            grpc_address=settings.grpc_address,
            ttrpc_address=settings.ttrpc_address,
            debug=settings.debug,
            environment=tuple(pair.partition("=")[::2] for pair in settings.environment),
        )
        try:
            answer = await self._ask(self._take(), request)
        except (OSError, ValueError) as error:
            log.debug("the fork server: %s", error)
            answer = await self._ask_again(request)
        self._keep_spare()
        if answer.error:
            raise Unknown(answer.error)
        return int(answer.pid)

    async def start(self) -> None:
        """Starts it if it does not run, so that the first container need not wait."""
        async with self._lock:
            self._keep_spare()
            if self._spare is None:
                self._spare = await asyncio.to_thread(self._restart)

    async def stop(self) -> None:
        """Ends it and the spare shim; the other shims that it made go on."""
        self._is_stopped = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await asyncio.to_thread(_let_go, spare)
        async with self._lock:
            await asyncio.to_thread(self._signal, signal.SIGTERM)
            if self._process is not None:
                self._process.terminate()  # one that does not listen yet, or never will, is not known by its socket
                await asyncio.to_thread(self._process.wait)
                self._process = None

    def _take(self) -> socket.socket:
        """A connection that nothing is asked on yet. Raises OSError."""
        spare, self._spare = self._spare, None
        return spare or self._connect(0)

    def _keep_spare(self) -> None:
        if self._spare is None and not self._is_stopped:
            self._spare = self._connected()  # without one the next shim is waited for

    async def _ask(self, connection: socket.socket, request: ForkRequest) -> ForkAnswer:
        """What a shim answers on `connection`, which is closed. Raises OSError and ValueError."""
        loop = asyncio.get_running_loop()
        with connection:
            connection.setblocking(False)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await loop.sock_sendall(connection, request.encode())
                data = await loop.sock_recv(connection, _ANSWER_LIMIT)
        if not data:
            raise ConnectionResetError("no answer")
        return ForkAnswer.decode(data)

    async def _ask_again(self, request: ForkRequest) -> ForkAnswer:
        """Asks in turn, and starts the server where it does not answer. Raises Unavailable."""
        async with self._lock:
            try:
                return await self._ask(await asyncio.to_thread(self._connect, ANSWER_TIMEOUT), request)
            except (OSError, ValueError) as error:
                log.info("the fork server does not answer (%s): it is started", error)
            connection = await asyncio.to_thread(self._restart)
            try:
                return await self._ask(connection, request)
            except (OSError, ValueError) as error:
                raise Unavailable(f"fork server {self._path}: {error}") from None

    def _connect(self, timeout: float) -> socket.socket:
        """A connection, for which this waits `timeout` seconds if the server has many to take."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(timeout)
            sock.connect(str(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def _connected(self) -> socket.socket | None:
        try:
            return self._connect(0)
        except OSError:
            return None

    def _restart(self) -> socket.socket:
        """A connection to a new server. Raises Unavailable."""
        self._end_hung()
        self._path.parent.mkdir(0o700, parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "orlop.shim.forkserver", "--socket", str(self._path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        # It tells nobody when it listens; its socket is all there is to look at.
        deadline = clock.monotonic() + START_TIMEOUT
        while (connection := self._connected()) is None:
            if self._process.poll() is not None or clock.monotonic() > deadline:
                raise Unavailable(f"fork server {self._path} did not start")
            time.sleep(_LOOK_AGAIN)
        return connection

    def _end_hung(self) -> None:
        """Kills a server that holds the socket and does not answer."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        """Signals whoever holds the socket, known by the socket's own credentials; nobody is fine."""
        pid = 0
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(1)
            sock.connect(str(self._path))
            pid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        if pid > 0:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(handle, number)
                finally:
                    os.close(handle)


def _let_go(spare: socket.socket) -> None:
    """Ends a spare shim, and waits until it has."""
    with spare, contextlib.suppress(OSError):
        spare.settimeout(ANSWER_TIMEOUT)
        spare.shutdown(socket.SHUT_WR)
        spare.recv(1)
