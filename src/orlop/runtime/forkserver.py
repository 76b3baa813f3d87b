"""The daemon's end of the fork server: asks it for shims, and starts it anew when it is gone or hangs.

The fork server outlives the daemon; it is found again by its socket.
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
START_TIMEOUT = 20.0
_LOOK_AGAIN = 0.01
_PEER = struct.Struct("=iii")
_ANSWER_LIMIT = 64 << 10


class ForkServer:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None

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
        async with self._lock:
            try:
                answer = await asyncio.to_thread(self._ask, request)
            except (OSError, ValueError) as error:
                log.info("the fork server does not answer (%s): it is started", error)
                await asyncio.to_thread(self._restart)
                try:
                    answer = await asyncio.to_thread(self._ask, request)
                except (OSError, ValueError) as second:
                    raise Unavailable(f"fork server {self._path}: {second}") from None
        if answer.error:
            raise Unknown(answer.error)
        return int(answer.pid)

    async def start(self) -> None:
        """Starts it if it does not run, so that the first container need not wait."""
        async with self._lock:
            if not await asyncio.to_thread(self._accepts):
                await asyncio.to_thread(self._restart)

    async def stop(self) -> None:
        """Ends it; the shims that it made go on."""
        async with self._lock:
            await asyncio.to_thread(self._signal, signal.SIGTERM)
            if self._process is not None:
                await asyncio.to_thread(self._process.wait)
                self._process = None

    def _ask(self, request: ForkRequest) -> ForkAnswer:
        with self._connect() as sock:
            sock.sendall(request.encode())
            data = sock.recv(_ANSWER_LIMIT)
        if not data:
            raise ConnectionResetError("no answer")
        return ForkAnswer.decode(data)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(ANSWER_TIMEOUT)
            sock.connect(str(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def _accepts(self) -> bool:
        try:
            self._connect().close()
        except OSError:
            return False
        return True

    def _restart(self) -> None:
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
        while not self._accepts():
            if self._process.poll() is not None or clock.monotonic() > deadline:
                raise Unavailable(f"fork server {self._path} did not start")
            time.sleep(_LOOK_AGAIN)

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
