"""One shim process: its socket, its loop, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from orlop.errors import FailedPrecondition, PermissionDenied
from orlop.shim import files, loop
from orlop.shim.container import environment
from orlop.shim.hibernation import Hibernation
from orlop.shim.keeper import Keeper
from orlop.shim.publisher import Publisher
from orlop.shim.reaper import Reaper
from orlop.shim.task import TaskService
from orlop.shim.ttrpc import Server

SOCKET_DIRECTORY = "/run/containerd/s"
LAST_EVENTS_DEADLINE = 5.0
"""Seconds that a shim that ends waits for its last events to be taken."""

_GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_PR_SET_NAME = 15
_LONGEST_SOCKET_PATH = 107
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a shim has to know of its world."""

    namespace: str
    id: str
    bundle: str
    socket_path: str
    ttrpc_address: str
    debug: bool = False
    environment: tuple[tuple[str, str], ...] = ()


def group_of(bundle: str, id: str) -> str:
    """The name that containers of one shim share, by the annotations of the bundle's `config.json`; else `id`."""
    try:
        spec = files.read(os.path.join(bundle, "config.json"))
    except FileNotFoundError:  # a sandbox needs none
        return id
    annotations = json.loads(spec).get("annotations") or {}
    return next((annotations[name] for name in _GROUP_ANNOTATIONS if name in annotations), id)


def socket_path(directory: str, grpc_address: str, namespace: str, group: str) -> str:
    """The contract's rule for the socket of the shim of `group`."""
    return os.path.join(directory, hashlib.sha256(f"{grpc_address}/{namespace}/{group}".encode()).hexdigest())


def listen(path: str) -> socket.socket | None:
    """A listening socket at `path`, for our user alone; None if a shim listens there already.

    Raises OSError, and PermissionDenied if the directory is not ours alone.
    """
    if len(path) > _LONGEST_SOCKET_PATH:
        raise FailedPrecondition(f"socket path {path} has over {_LONGEST_SOCKET_PATH} characters")
    directory = os.path.dirname(path)
    with _locked(directory):
        if _accepts(path):
            return None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(old)
        listener.listen(128)
        return listener


class _Log(logging.Handler):
    """The log of a shim, its standard error; `prefix` says whose it is."""

    prefix = ""

    def emit(self, record: logging.LogRecord) -> None:
        line = f'level={record.levelname} {self.prefix} msg="{self.format(record)}"\n'
        with contextlib.suppress(OSError):  # the log's reader may be gone
            os.write(2, line.encode("utf-8", "replace"))


_log = _Log()


def prepare() -> None:
    """Does once what is the same for all shims of this process and of those that are forked from it."""
    root = logging.getLogger()
    root.handlers[:] = [_log]
    root.setLevel(logging.INFO)
    loop.block_signals()
    environment()


def run(
    identity: Identity,
    listener: socket.socket,
    keeper: Keeper | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Serves until the last container is gone and the daemon says so, or a TERM or INT comes.

    With a `keeper` this process is its worker, which takes up the `record` of the last one, and ends when it has
    nothing to do.
    """
    if identity.environment:
        os.environ.update(dict(identity.environment))
        environment.cache_clear()
    os.umask(0o022)
    _libc.prctl(_PR_SET_NAME, b"orlop-shim", 0, 0, 0)
    _log.prefix = f"ns={identity.namespace} id={identity.id}"
    if identity.debug:
        logging.getLogger().setLevel(logging.DEBUG)
    name = _Name(identity.socket_path, record["socket"] if record else os.stat(identity.socket_path).st_ino)
    try:
        loop.run(_serve(identity, listener, name, keeper, record))
    finally:
        name.remove()


def go_on(keeper: Keeper) -> None:
    """Serves as `run` does, where the last worker of `keeper` stopped."""
    record = keeper.recorded()
    identity = Identity(*record["identity"])
    with contextlib.suppress(FileNotFoundError):  # that of a group's first container may be gone
        os.chdir(identity.bundle)
    run(identity, socket.socket(fileno=record["listener"]), keeper, record)


class _Name:
    """The socket's name: the inode `own` at `path`, and never one that a later shim of that id has put there since."""

    def __init__(self, path: str, own: int) -> None:
        self.path = path
        self.own = own

    def remove(self) -> None:
        """Removes it, once: an inode's number may be given to a later socket."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self.own:
                with _locked(os.path.dirname(self.path)):
                    os.unlink(self.path)
        self.own = -1


async def _serve(
    identity: Identity,
    listener: socket.socket,
    name: _Name,
    keeper: Keeper | None,
    record: Mapping[str, Any] | None,
) -> None:
    ended = loop.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    reaper = Reaper(keeper)
    publisher = Publisher(identity.namespace, identity.ttrpc_address)
    sending = loop.create_task(publisher.run())
    service = TaskService(identity.namespace, reaper, publisher, ended.set)
    server = Server(service.services(), listener, os.geteuid())
    if keeper is not None:
        hibernation = Hibernation(keeper, reaper, publisher, service, server)
        if record is not None:
            hibernation.take_up(record)
        loop.on_rest(
            keeper.rest,
            lambda: hibernation.begin(identity=astuple(identity), listener=listener.fileno(), socket=name.own),
        )
    reaper.install()
    await ended.wait()
    # the name goes first, so that a new shim of the group is not taken for this one
    name.remove()
    await server.close(grace=1.0)
    await service.settled(LAST_EVENTS_DEADLINE)
    await publisher.flush(LAST_EVENTS_DEADLINE)
    service.close()
    sending.cancel()


def set_oom_score(score: int, pid: int) -> None:
    """Sets the score of `pid`; lowering it needs a privilege that is not always there."""
    with contextlib.suppress(OSError):
        files.write(f"/proc/{pid}/oom_score_adj", b"%d" % min(score, 1000))


def oom_score(pid: int | str = "self") -> int:
    return int(files.read(f"/proc/{pid}/oom_score_adj"))


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Holds the lock of a socket directory, which is made where it is missing and must be ours alone."""
    os.makedirs(os.path.dirname(directory), 0o711, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionDenied(f"socket directory {directory} does not belong to this user alone")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # its queue is full: it lives
            return True
        except OSError:
            return False
        return True
