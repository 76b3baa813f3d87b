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
import select
import signal
import socket
import struct
import sys
from typing import NoReturn

from orlop.errors import OrlopError
from orlop.shim import loop, rehearsal, sealed, server
from orlop.shim.keeper import REST, Keeper, is_possible
from orlop.shim.reaper import become_subreaper
from orlop.shim.request import LIMIT, ForkAnswer, ForkRequest

_CHECK_EVERY = 5000  # milliseconds
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


class ForkServer:
    """Serves fork requests at `path`, one a connection.

    Shims pay for what this process does between two forks: pages that it writes to are theirs alone then. So it forks
    as soon as somebody connects, and the child reads the request.
    """

    def __init__(self, path: str, rest: float) -> None:
        self._path = path
        self._keeper = Keeper(rest) if is_possible() else None

    def run(self) -> int:
        """Serves until told to end; 1 if another fork server serves this path."""
        _libc.prctl(_PR_SET_NAME, b"orlop-forkserv", 0, 0, 0)
        lock = os.open(self._path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1
        server.prepare()
        sealed.keep()
        rehearsal.rehearse(self._path + ".r")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a shim that ends leaves no zombie; nobody waits for it
        listener, inode = self._listen()
        if len(os.listdir("/proc/self/task")) != 1:
            raise OSError("the fork server has more than one thread")
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AT)
        try:
            self._serve(listener, inode)
        finally:
            if _inode(self._path) == inode:
                os.unlink(self._path)
        return 0

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

    def _serve(self, listener: socket.socket, inode: int) -> None:
        """Returns when told to end, or when the socket's path is another's."""
        signals = loop.block_signals()
        poll = select.poll()
        for descriptor in (signals, listener.fileno()):
            poll.register(descriptor, select.POLLIN)
        while _inode(self._path) == inode:
            for descriptor, _ in poll.poll(_CHECK_EVERY):
                if descriptor != signals:
                    self._fork(listener)
                elif os.read(signals, 128)[0] in (signal.SIGTERM, signal.SIGINT):
                    return

    def _fork(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        pid = _libc.fork()
        if pid == 0:
            self._become_shim(client)
        if pid < 0:
            number = ctypes.get_errno()
            _send(client, ForkAnswer(error=f"fork: {os.strerror(number)}"))
        client.close()

    def _become_shim(self, client: socket.socket) -> NoReturn:
        """In the child: becomes a shim of its own."""
        status = 1
        try:
            _libc.prctl(_PR_SET_NAME, b"orlop-shim", 0, 0, 0)
            os.setsid()
            _libc.signal(int(signal.SIGCHLD), 0)
            become_subreaper()
            if self._keeper is None or self._keeper.keep():
                self._begin(client)
            else:
                server.go_on(self._keeper)
            status = 0
        finally:
            os._exit(status)  # nothing of the fork server's is to be run by its children

    def _begin(self, client: socket.socket) -> None:
        """Does what `client` asks for, which is told when the shim is up or cannot be."""
        self._let_go(client.fileno())
        try:
            request = _request_of(client)
            if request is None:
                return
            listener = server.listen(request.socket_path)
            if listener is None:
                _send(client, ForkAnswer())
                return
            identity = server.Identity(
                request.namespace,
                request.id,
                request.bundle,
                request.socket_path,
                request.ttrpc_address,
                request.debug,
                request.environment,
            )
            os.chdir(request.bundle)
            _open_log()
            shim = os.getpid() if self._keeper is None else self._keeper.pid
            score = server.oom_score() + 1
            for process in {shim, os.getpid()}:
                server.set_oom_score(score, process)
        except (OSError, ValueError, OrlopError, KeyError) as error:
            _send(client, ForkAnswer(error=str(error)))
            return
        _send(client, ForkAnswer(pid=shim))
        client.close()
        server.run(identity, listener, self._keeper)

    def _let_go(self, client: int) -> None:
        """Closes what is the fork server's."""
        kept = {loop.block_signals()} if self._keeper is None else self._keeper.descriptors
        keep = sorted({client, *kept, *sealed.descriptors()})
        edges = [_OWN_DESCRIPTORS, *(number + 1 for number in keep)]
        for low, high in zip(edges, [*keep, 1 << 20], strict=True):
            os.closerange(low, high)


def _request_of(client: socket.socket) -> ForkRequest | None:
    """What `client` asks for, which may be much later: this is a spare shim until then.

    None if it left, or is of another user. Raises OSError and ValueError.
    """
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.geteuid():
        return None
    message = client.recv(LIMIT)
    return ForkRequest.decode(message) if message else None


def _open_log() -> None:
    with contextlib.suppress(FileNotFoundError):
        log = os.open("log", os.O_RDWR | os.O_NONBLOCK)
        os.dup2(log, 2)
        os.close(log)


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
