"""A daemon, from its configuration to its end: `orlopd` runs one, and a program may embed one.

async with Daemon(config, serve=False) as daemon:
    channel = InProcessChannel(daemon.services)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from orlop.core import clock
from orlop.core.plugin import DaemonInfo, InitContext, PluginStatus, PluginType, Registration
from orlop.daemon import build, directories, listeners, opt, process, stacks
from orlop.daemon.config import GRPC, TTRPC, Config
from orlop.daemon.notify import notify
from orlop.daemon.plugins import Found, Graph, discover
from orlop.errors import Unavailable, Unimplemented
from orlop.rpc.service import Service
from orlop.sandbox import plugin as sandbox

log = logging.getLogger(__name__)

_WATCH_SECONDS = 5.0
_PROXIED = {
    "snapshot": PluginType.SNAPSHOTTER,
    "content": PluginType.CONTENT,
    "diff": PluginType.DIFFER,
    "sandbox": PluginType.SANDBOX_CONTROLLER,
}
_PROXIED |= {type.value: type for type in _PROXIED.values()}


def registrations() -> list[Found]:
    """Every plugin there is: the daemon's own and those of installed packages."""
    own = [Found(one, build.PACKAGE) for one in (*opt.REGISTRATIONS, *listeners.REGISTRATIONS)]
    return [*discover(), *own]


def proxies(config: Config) -> list[Found]:
    """A plugin for each entry of `[proxy_plugins]`. Of those that cannot be served yet introspection says so."""
    found: list[Found] = []
    for name, proxy in config.proxy_plugins.items():
        type = _PROXIED.get(proxy.type)
        if type is None:
            log.warning("unknown proxy plugin type", extra={"fields": {"name": name, "type": proxy.type}})
            continue
        init = partial(sandbox.proxy, name) if type is PluginType.SANDBOX_CONTROLLER else _refuse_proxy
        found.append(Found(Registration(type, name, init), f"proxy_plugins.{name}"))
    return found


async def _refuse_proxy(_context: InitContext) -> None:
    raise Unimplemented("plugins served by another process")


class Daemon:
    """A running daemon. Entering starts it, leaving stops it; containers go on.

    `serve=False` opens no gRPC socket: the `services` are for calls in the same process. The ttrpc socket is there
    either way, because shims report to it. `extra` plugins are started along with those of installed packages.
    """

    def __init__(self, config: Config, *, serve: bool = True, extra: Sequence[Registration] = ()) -> None:
        config.validate()
        self._config = config
        self._serve = serve
        self._extra = [Found(registration, "the embedding program") for registration in extra]
        self._exit = contextlib.AsyncExitStack()
        self._graph: Graph | None = None
        self._listening: list[listeners.Listener] = []
        self._sockets: dict[str, tuple[int, int]] = {}
        self._stop = asyncio.Event()
        self.info = _information(config)

    @property
    def plugins(self) -> Sequence[PluginStatus]:
        return self._started.statuses

    @property
    def services(self) -> list[Service]:
        """The services of all gRPC plugins that started."""
        return listeners.services_of(self._started.instances(PluginType.GRPC).values())

    def instance(self, type: str, id: str) -> object:
        """The plugin's instance. Raises NotFound, with the reason, if it did not start."""
        instances = self._started.instances(type)
        if id not in instances:
            raise self._started.absence(type, id)
        return instances[id]

    @property
    def _started(self) -> Graph:
        if self._graph is None:
            raise Unavailable("the daemon is not started")
        return self._graph

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        notify("STOPPING=1")
        await self._exit.aclose()

    def stop(self) -> None:
        """Makes `wait` return."""
        self._stop.set()

    async def wait(self) -> None:
        """Returns when the daemon is told to stop.

        Raises Unavailable if a socket was removed or replaced: a daemon that nobody can reach ends, so that its
        supervisor starts it anew.
        """
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._stop.wait()
            for address, identity in self._sockets.items():
                if not self._stop.is_set() and _identity(address) != identity:
                    raise Unavailable.verbatim(f"socket {address} was removed: ending, to be started again")

    async def _start(self) -> None:
        began = clock.monotonic()
        root, state = self.info.root, self.info.state
        directories.prepare(root, state)
        self._exit.enter_context(directories.lock(root, state))
        await asyncio.to_thread(directories.clean_temporary_mounts, root)
        self._graph = graph = Graph(self._config, self.info)
        self._exit.push_async_callback(graph.close)
        await graph.start([*self._extra, *registrations(), *proxies(self._config)])
        self._exit.push_async_callback(self._stop_listening)
        for id, listener in graph.instances(PluginType.SERVER).items():
            if id == "grpc" and not self._serve:
                continue
            await listener.start()
            self._listening.append(listener)
            if (identity := _identity(listener.address)) is not None:
                self._sockets[listener.address] = identity
            log.info("serving...", extra={"fields": {"address": listener.address}})
        self._check_served()
        await graph.run_ready()
        notify("READY=1")
        log.info("orlop successfully booted in %.6fs", clock.monotonic() - began)

    def _check_served(self) -> None:
        """A daemon whose API did not start is of no use: say why, and end."""
        if self._serve and "grpc" not in self._started.instances(PluginType.SERVER):
            if f"{PluginType.SERVER}.grpc" in self._config.disabled_plugins:
                return
            raise self._started.absence(PluginType.SERVER, "grpc")

    async def _stop_listening(self) -> None:
        for listener in reversed(self._listening):
            try:
                await listener.stop()
            except Exception:
                log.exception("failed to stop server", extra={"fields": {"address": listener.address}})
        self._listening.clear()


async def run(config: Config) -> None:
    """Runs a daemon until SIGTERM or SIGINT. SIGUSR1 shows stacks."""
    daemon = Daemon(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGUSR1, stacks.dump)
    async with daemon:
        process.settle()
        await daemon.wait()
        log.info("stopping")


def _information(config: Config) -> DaemonInfo:
    grpc = config.section(GRPC, listeners.GrpcConfig, warn=False)
    return DaemonInfo(
        root=Path(os.path.abspath(config.root)),
        state=Path(os.path.abspath(config.state)),
        grpc_address=grpc.address,
        ttrpc_address=config.section(TTRPC, listeners.TtrpcConfig, warn=False).address or f"{grpc.address}.ttrpc",
        version=build.VERSION,
        revision=build.REVISION,
        log_level=config.debug.level or "info",
        timeouts=config.timeouts_in_seconds(),
        stream_processors={name: msgspec.to_builtins(one) for name, one in config.stream_processors.items()},
        proxy_plugins={name: msgspec.to_builtins(one) for name, one in config.proxy_plugins.items()},
    )


def _identity(address: str) -> tuple[int, int] | None:
    try:
        status = os.stat(address)
    except OSError:
        return None
    return status.st_dev, status.st_ino
