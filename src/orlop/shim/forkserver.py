"""Forks shims: `python -I -m orlop.shim.forkserver --socket PATH`.

The daemon execs it once; it outlives the daemon and is found again by its socket, a SEQPACKET one for our user alone.
It has the shim's modules imported and frozen, so that a shim costs a fork. It stays single-threaded: only then does a
fork copy no held lock. It ends by TERM, or when its socket's path is another's or gone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import gc
import os
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass

from orlop.errors import OrlopError
from orlop.shim import container, loop, rehearsal, server
from orlop.shim.keeper import REST, Keeper, is_possible
from orlop.shim.reaper import become_subreaper
from orlop.shim.request import LIMIT, ForkAnswer, ForkRequest

_CHECK_EVERY = 5.0
_PR_SET_NAME = 15
_OWN_DESCRIPTORS = 3
_COLLECT_AT = 5000
"""Objects that come to be before the collector looks for cycles. It writes to what it looks at, and shims make few."""
# Not os.fork: that has every module put itself right, which writes to two hundred pages, for the sake of threads
# that this process never has. PyDLL keeps the interpreter's lock, as a fork must.
_libc = ctypes.PyDLL(None, use_errno=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="orlop-forkserver")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--rest", type=float, default=REST, help="seconds after which a shim with nothing to do sleeps")
    options = parser.parse_args()
    sys.exit(ForkServer(options.socket, options.rest).run())


@dataclass(slots=True)
class _Birth:
    """A shim that has not said yet that it is up: the daemon's connection that waits for it."""

    client: socket.socket
    pid: int = 0


class ForkServer:
    """Serves fork requests at `path`."""

    def __init__(self, path: str, rest: float) -> None:
        self._path = path
        self._rest = rest
        self._keeper: Keeper | None = None
        self._selector = selectors.DefaultSelector()
        self._births: dict[int, _Birth] = {}
        self._ended = False

    def run(self) -> int:
        """Serves until told to end; 1 if another fork server serves this path."""
        _libc.prctl(_PR_SET_NAME, b"orlop-forkserv", 0, 0, 0)
        lock = os.open(self._path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1
        server.prepare()
        rehearsal.rehearse(self._path + ".r")
        self._keeper = Keeper(self._rest) if is_possible() else None
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a shim that ends leaves no zombie; nobody waits for it
        self._selector.register(loop.block_signals(), selectors.EVENT_READ, self._end)
        listener, inode = self._listen()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AT)
        try:
            while not self._ended and _inode(self._path) == inode:
                for key, _ in self._selector.select(_CHECK_EVERY):
                    key.data(key.fileobj)
        finally:
            if _inode(self._path) == inode:
                os.unlink(self._path)
        return 0

    def _end(self, signals: int) -> None:
        self._ended = os.read(signals, 128)[0] in (signal.SIGTERM, signal.SIGINT)

    def _listen(self) -> tuple[socket.socket, int]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        old = os.umask(0o177)
        try:
            listener.bind(self._path)
        finally:
            os.umask(old)
        listener.listen(128)
        return listener, _inode(self._path)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", credentials)[1] != os.geteuid():
                client.close()
                return
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ, self._receive)

    def _receive(self, client: socket.socket) -> None:
        try:
            message = client.recv(LIMIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._selector.unregister(client)
            client.close()
            return
        try:
            self._fork(ForkRequest.decode(message), client)
        except (OSError, ValueError, OrlopError, KeyError) as error:
            _send(client, ForkAnswer(error=str(error)))

    def _fork(self, request: ForkRequest, client: socket.socket) -> None:
        if len(os.listdir("/proc/self/task")) != 1:
            raise OSError("the fork server has more than one thread")
        listener = server.listen(request.socket_path)
        if listener is None:
            _send(client, ForkAnswer())
            return
        outlet, inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with listener:
                pid = _libc.fork()
                if pid == 0:
                    self._become_shim(request, listener, inlet)
            if pid < 0:
                number = ctypes.get_errno()
                raise OSError(number, f"fork: {os.strerror(number)}")
        except OSError:
            os.close(outlet)
            raise
        finally:
            os.close(inlet)
        self._births[outlet] = _Birth(client)
        self._selector.register(outlet, selectors.EVENT_READ, self._born)

    def _born(self, outlet: int) -> None:
        birth = self._births.pop(outlet)
        said = os.read(outlet, 4096)
        self._selector.unregister(outlet)
        os.close(outlet)
        if said[:1] == b"+":
            answer = ForkAnswer(pid=int(said[1:]))
        else:
            answer = ForkAnswer(error=said[1:].decode("utf-8", "replace") or "the shim died at its start")
        _send(birth.client, answer)

    def _become_shim(self, request: ForkRequest, listener: socket.socket, inlet: int) -> None:
        """In the child: becomes a shim of its own and never returns."""
        status = 1
        try:
            os.setsid()
            _libc.signal(int(signal.SIGCHLD), 0)
            become_subreaper()
            try:
                os.chdir(request.bundle)
            except OSError as error:
                os.write(inlet, f"-{error}".encode())
                os._exit(1)
            is_first = self._keeper is None or self._keeper.keep()
            if request.environment:
                os.environ.update(dict(request.environment))
                container.environment.cache_clear()
            if is_first:
                self._settle(listener.fileno(), inlet)
            identity = server.Identity(
                request.namespace,
                request.id,
                request.bundle,
                request.socket_path,
                request.ttrpc_address,
                request.debug,
            )
            record = None if is_first or self._keeper is None else self._keeper.recorded()
            server.run(identity, listener, self._keeper, record)
            status = 0
        finally:
            os._exit(status)  # nothing of the fork server's is to be run by its children

    def _settle(self, listener: int, inlet: int) -> None:
        """Lets go of what is the fork server's, and says that the shim is up."""
        kept = {loop.block_signals()} if self._keeper is None else self._keeper.descriptors
        keep = sorted({listener, inlet, *kept})
        edges = [_OWN_DESCRIPTORS, *(number + 1 for number in keep)]
        for low, high in zip(edges, [*keep, 1 << 20], strict=True):
            os.closerange(low, high)
        try:
            log = os.open("log", os.O_RDWR | os.O_NONBLOCK)
            os.dup2(log, 2)
            os.close(log)
        except FileNotFoundError:
            pass
        score = server.oom_score() + 1
        shim = os.getpid() if self._keeper is None else self._keeper.pid
        for process in {shim, os.getpid()}:
            server.set_oom_score(score, process)
        os.write(inlet, b"+%d" % shim)
        os.close(inlet)


def _send(client: socket.socket, answer: ForkAnswer) -> None:
    with contextlib.suppress(OSError):  # a daemon that is gone finds the shim by its socket
        client.send(answer.encode())


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()
