"""The server plugins: what listens, on which socket, with which services.

An instance has `start` and `stop`; the daemon starts all of them once every plugin is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from orlop.core.plugin import InitContext, PluginType, Registration, SkipPlugin
from orlop.daemon import build
from orlop.daemon.sockets import bind
from orlop.errors import Unimplemented

if TYPE_CHECKING:
    from orlop.rpc.service import Service

MESSAGE_SIZE = 16 << 20


class Listener(Protocol):
    address: str

    async def start(self) -> None:
        """Listens from now on."""

    async def stop(self) -> None:
        """Takes no more calls and cuts those in flight."""


class GrpcConfig(msgspec.Struct):
    address: str = build.ADDRESS
    uid: int = msgspec.field(default_factory=os.getuid)
    gid: int = msgspec.field(default_factory=os.getgid)
    max_recv_message_size: int = MESSAGE_SIZE
    max_send_message_size: int = MESSAGE_SIZE
    engine: Literal["native", "grpcio"] = "native"


class GrpcTcpConfig(msgspec.Struct):
    address: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_common_name: str = ""
    max_recv_message_size: int = MESSAGE_SIZE
    max_send_message_size: int = MESSAGE_SIZE


class TtrpcConfig(msgspec.Struct):
    address: str = ""
    """Empty: the gRPC address with `.ttrpc` behind it."""
    uid: int = msgspec.field(default_factory=os.getuid)
    gid: int = msgspec.field(default_factory=os.getgid)


class AddressConfig(msgspec.Struct):
    address: str = ""


class DebugConfig(msgspec.Struct):
    address: str = ""
    uid: int = 0
    gid: int = 0


def services_of(instances: Iterable[Any]) -> list[Service]:
    """The services that plugins of gRPC or ttrpc type are: each instance is one, or several."""
    found: list[Service] = []
    for instance in instances:
        found += instance if isinstance(instance, list | tuple) else [instance]
    return found


class GrpcListener:
    def __init__(
        self, config: GrpcConfig, services: Iterable[Service], on_connection: Callable[[], None] | None = None
    ) -> None:
        from orlop.rpc.server import GrpcServer

        self.address = config.address
        self._owner = (config.uid, config.gid)
        self._server = GrpcServer(
            config.engine,
            max_receive=config.max_recv_message_size,
            max_send=config.max_send_message_size,
            on_connection=on_connection,
        )
        for service in services:
            self._server.add(service)

    async def start(self) -> None:
        uid, gid = self._owner
        await self._server.start(self.address, uid=uid, gid=gid)

    async def stop(self) -> None:
        await self._server.stop(0)


class TtrpcListener:
    def __init__(self, address: str, uid: int, gid: int, services: Iterable[Service]) -> None:
        from orlop.rpc.ttrpc import Server

        self.address = address
        self._owner = (uid, gid)
        self._server = Server(list(services))

    async def start(self) -> None:
        await self._server.serve(bind(self.address, *self._owner))

    async def stop(self) -> None:
        await self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address)


async def _grpc(context: InitContext) -> Listener:
    tasks = context.get_all(PluginType.RUNTIME).get("task")
    services = services_of(context.get_all(PluginType.GRPC).values())
    return GrpcListener(context.config, services, tasks.expect_start if tasks is not None else None)


async def _grpc_tcp(context: InitContext) -> Listener:
    if not context.config.address:
        raise SkipPlugin("gRPC over TCP has no address configured")
    raise Unimplemented("gRPC over TCP: no service of this daemon offers it")


async def _ttrpc(context: InitContext) -> Listener:
    config: TtrpcConfig = context.config
    services = services_of(context.get_all(PluginType.TTRPC).values())
    return TtrpcListener(context.daemon.ttrpc_address, config.uid, config.gid, services)


async def _metrics(context: InitContext) -> Listener:
    if not context.config.address:
        raise SkipPlugin("metrics has no address configured")
    from orlop.daemon.http import MetricsListener

    return MetricsListener(context.config.address, context.daemon)


async def _debug(context: InitContext) -> Listener:
    if not context.config.address:
        raise SkipPlugin("debug has no address configured")
    from orlop.daemon.http import DebugListener

    return DebugListener(context.config.address, context.config.uid, context.config.gid)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.SERVER, "metrics", _metrics, (), AddressConfig),
    Registration(PluginType.SERVER, "debug", _debug, (), DebugConfig),
    Registration(PluginType.SERVER, "grpc-tcp", _grpc_tcp, (), GrpcTcpConfig),
    Registration(PluginType.SERVER, "ttrpc", _ttrpc, (PluginType.TTRPC,), TtrpcConfig),
    Registration(PluginType.SERVER, "grpc", _grpc, ("*",), GrpcConfig),
)
