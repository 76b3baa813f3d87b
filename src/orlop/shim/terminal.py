"""A process's terminal: its pty's master, received from the runtime, copied to and from the client's FIFOs."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import shutil
import socket
import struct
import tempfile
import termios
from collections.abc import Mapping

from orlop.errors import Unknown
from orlop.shim import loop
from orlop.shim.stdio import Stdio

_CHUNK = 16384
_TIOCGPTPEER = 0x5441  # opens the other end by the master itself: a path could be the container's (CVE-2025-52565)
_CONSOLE_DEADLINE = 30.0
_MASTER_DEADLINE = 1.0
_DRAIN_DEADLINE = 10.0


class Terminal:
    """Streams over a pty. `console_socket` is where the runtime sends its master."""

    def __init__(self, stdio: Stdio) -> None:
        self._directory = tempfile.mkdtemp(prefix="pty")
        self.console_socket = os.path.join(self._directory, "s")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(self.console_socket)
        self._listener.listen(1)
        self._stdio = stdio
        self._master = -1
        self._copies: list[_Copy] = []
        self._descriptors: list[int] = []

    @property
    def files(self) -> Mapping[int, int]:
        return {}

    async def connect(self, output: int = -1) -> None:
        """Receives the master and starts copying, to `output` where that is given. Raises Unknown."""
        try:
            async with loop.timeout(_CONSOLE_DEADLINE):
                peer = await _accepted(self._listener)
            with peer:
                peer.settimeout(_MASTER_DEADLINE)  # the runtime is done: it has been sent, or will not be
                self._master = _receive_descriptor(peer)
        except (TimeoutError, OSError) as error:
            raise Unknown(f"failed to retrieve console master: {error}") from error
        finally:
            self._close_listener()
        os.set_blocking(self._master, False)
        # Held open too: reading a terminal that nobody has open fails, and during its start the process lets go of it.
        self._descriptors.append(fcntl.ioctl(self._master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        if self._stdio.stdin:
            # held for writing too, so that the input of a client that left is open to the next
            self._start(self._open(self._stdio.stdin), self._master)
        if output < 0:
            path = self._stdio.stdout
            output = self._open(path) if path else self._open(os.devnull)
        self._start(self._master, output)

    def resize(self, width: int, height: int) -> None:
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0))

    def before_start(self) -> None:
        return

    def handed_over(self) -> None:
        return

    def started(self) -> None:
        return

    def close_stdin(self) -> None:
        return

    async def exited(self) -> None:
        """What the process wrote is in the pty by now: moves it on, then closes."""
        try:
            async with loop.timeout(_DRAIN_DEADLINE):
                for copy in self._copies:
                    if copy.source == self._master:
                        await copy.drain()
        except TimeoutError:
            pass
        self.close()

    async def finished(self) -> None:
        return

    def close(self) -> None:
        self._close_listener()
        for copy in self._copies:
            copy.stop()
        self._copies = []
        for descriptor in [*self._descriptors, self._master]:
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptors, self._master = [], -1

    def _open(self, path: str) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        self._descriptors.append(descriptor)
        return descriptor

    def _start(self, source: int, sink: int) -> None:
        copy = _Copy(source, sink)
        self._copies.append(copy)
        copy.resume()

    def _close_listener(self) -> None:
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class _Copy:
    """Copies in the loop; while `sink` takes nothing, nothing is read from `source`."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self._sink = sink
        self._rest = b""
        self._flushed: loop.Event | None = None

    def resume(self) -> None:
        loop.add_reader(self.source, self._move)

    def stop(self) -> None:
        loop.remove_reader(self.source)
        if self._rest:
            loop.remove_writer(self._sink)

    async def drain(self) -> None:
        """Returns when the source has nothing left and the sink took all."""
        while self._rest or self._move():
            if self._rest:
                self._flushed = loop.Event()
                await self._flushed.wait()
            else:
                await loop.sleep(0)

    def _move(self) -> bool:
        """Moves one chunk. False if there was none."""
        if self._rest:
            return True
        try:
            chunk = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: no process has the terminal open
                raise
            chunk = b""
        if not chunk:
            loop.remove_reader(self.source)
            return False
        self._write(chunk)
        return True

    def _write(self, chunk: bytes) -> None:
        had_rest = bool(self._rest)
        while chunk:
            try:
                chunk = chunk[os.write(self._sink, chunk) :]
            except BlockingIOError:
                break
            except OSError:  # the reader of a pipe is gone, or the disk is full: the process goes on without
                chunk = b""
        self._rest = chunk
        if chunk and not had_rest:
            loop.remove_reader(self.source)
            with contextlib.suppress(PermissionError):  # a plain file is always writable
                loop.add_writer(self._sink, self._flush)
        elif not chunk and had_rest:
            loop.remove_writer(self._sink)
            self.resume()
            if self._flushed is not None:
                self._flushed.set()

    def _flush(self) -> None:
        self._write(self._rest)


async def _accepted(listener: socket.socket) -> socket.socket:
    arrived = loop.Event()
    loop.add_reader(listener.fileno(), arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(listener.fileno())
    return listener.accept()[0]


def _receive_descriptor(peer: socket.socket) -> int:
    descriptors = array.array("i")
    _, ancillary, _, _ = peer.recvmsg(4096, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: descriptors.itemsize])
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    raise OSError(errno.EPROTO, "the runtime sent no descriptor")
