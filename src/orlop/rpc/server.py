"""The gRPC server: services on a unix socket, by either engine."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.rpc.dispatch import Limits
from orlop.rpc.service import Service

EngineName = Literal["native", "grpcio"]

MAX_SOCKET_PATH = 104
DEFAULT_MESSAGE_SIZE = 16 << 20


class Engine(Protocol):
    """What carries the calls: HTTP/2 and its frames, on a unix socket."""

    async def start(self, address: str) -> None: ...

    async def stop(self, grace: float | None) -> None: ...


class GrpcServer:
    """Serves what was `add`ed, from `start` to `stop`. Sizes are in bytes."""

    def __init__(
        self,
        engine: EngineName = "native",
        *,
        max_receive: int = DEFAULT_MESSAGE_SIZE,
        max_send: int = DEFAULT_MESSAGE_SIZE,
        on_connection: Callable[[], None] | None = None,
    ) -> None:
        """`on_connection` is called for each client that connects (by the native engine alone)."""
        if engine not in ("native", "grpcio"):
            raise InvalidArgument(f'gRPC engine "{engine}" is neither native nor grpcio')
        self._engine_name = engine
        self._limits = Limits(max_receive, max_send)
        self._on_connection = on_connection
        self._services: dict[str, Service] = {}
        self._engine: Engine | None = None
        self._place: _Place | None = None

    def add(self, service: Service) -> None:
        """Offers `service`. Raises ValueError if there is one of its name, or if the server runs already."""
        if service.name in self._services:
            raise ValueError(f"gRPC service {service.name} is there already")
        if self._engine is not None:
            raise ValueError(f"gRPC service {service.name} comes too late: the server runs already")
        self._services[service.name] = service

    async def start(self, address: str, *, uid: int = -1, gid: int = -1) -> None:
        """Listens on the unix socket `address`, mode 0660 and owned by `uid` and `gid` (-1: as it is created).

        An old file of that name is replaced and a missing parent folder is made, 0770. Raises InvalidArgument if the
        path is too long for a socket.

        The socket is made in a private folder whose name is `address` and a tilde, and moved to its place with owner
        and mode as they have to be. The name is always the same, so that what a killed server left is used again.
        """
        prepare_socket(address, uid, gid)
        engine = self._make_engine()
        private = f"{address}~"
        _make_private(private)
        try:
            unseen = f"{private}/g"
            await engine.start(unseen)
            os.chown(unseen, uid, gid)
            os.chmod(unseen, 0o660)
            status = os.stat(unseen)
            os.rename(unseen, address)
        except BaseException:
            await engine.stop(None)
            shutil.rmtree(private, ignore_errors=True)
            raise
        self._place = _Place(address, private, status.st_dev, status.st_ino)
        self._engine = engine

    async def stop(self, grace: float | None = None) -> None:
        """Takes no more calls, gives those in flight `grace` seconds, then cuts them off and removes the socket."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.stop(grace)
        if self._place is not None:
            place, self._place = self._place, None
            place.remove()

    def _make_engine(self) -> Engine:
        services = self._services.values()
        if self._engine_name == "grpcio":
            from orlop.rpc.grpcio import GrpcioEngine

            return GrpcioEngine(services, self._limits)
        from orlop.rpc.native import NativeEngine

        return NativeEngine(services, self._limits, self._on_connection)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a server's socket is, and which file it is: another server's may have taken its name."""

    address: str
    private: str
    device: int
    inode: int

    def remove(self) -> None:
        shutil.rmtree(self.private, ignore_errors=True)
        try:
            status = os.lstat(self.address)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.address)
        except FileNotFoundError:
            pass


def prepare_socket(address: str, uid: int, gid: int) -> None:
    """Makes room for a socket at `address`: the parent folder is there, an old file is not."""
    if len(os.fsencode(address)) > MAX_SOCKET_PATH:
        raise InvalidArgument.verbatim(f'"{address}": unix socket path too long (> {MAX_SOCKET_PATH})')
    parent = os.path.dirname(address) or "."
    if not os.path.exists(parent):
        os.makedirs(parent, 0o770)
        os.chmod(parent, 0o770)  # noqa: S103 - the group may come in, as containerd's may
        os.chown(parent, uid, gid)
    try:
        os.unlink(address)
    except FileNotFoundError:
        pass


def _make_private(path: str) -> None:
    """Makes `path` an empty folder that only we can enter. Raises FailedPrecondition if it is somebody else's."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise FailedPrecondition(f"{path} is not a folder of ours") from None
        shutil.rmtree(path)
        os.mkdir(path, 0o700)
