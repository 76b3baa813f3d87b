"""Plugins: how a room offers what can have more than one implementation.

A room, or an installed package, lists its `Registration`s under the entry-point group `orlop.plugins`; `daemon/`
starts them in dependency order. An `init` gets an `InitContext` and returns the plugin's instance, or raises
`SkipPlugin` to say that it does not apply to this host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from orlop.core.event import Publisher
from orlop.core.platform import Platform


class PluginType(StrEnum):
    """The types of containerd that orlop knows. A package may register others."""

    CONTENT = "io.containerd.content.v1"
    IMAGE_VERIFIER = "io.containerd.image-verifier.v1"
    INTERNAL = "io.containerd.internal.v1"
    WARNING = "io.containerd.warning.v1"
    EVENT = "io.containerd.event.v1"
    MOUNT_HANDLER = "io.containerd.mount-handler.v1"
    SNAPSHOTTER = "io.containerd.snapshotter.v1"
    TASK_MONITOR = "io.containerd.monitor.task.v1"
    CONTAINER_MONITOR = "io.containerd.monitor.container.v1"
    METADATA = "io.containerd.metadata.v1"
    GC = "io.containerd.gc.v1"
    SERVER = "io.containerd.server.v1"
    SERVICE = "io.containerd.service.v1"
    DIFFER = "io.containerd.differ.v1"
    MOUNT_MANAGER = "io.containerd.mount-manager.v1"
    SHIM = "io.containerd.shim.v1"
    RUNTIME = "io.containerd.runtime.v2"
    LEASE = "io.containerd.lease.v1"
    SANDBOX_STORE = "io.containerd.sandbox.store.v1"
    SANDBOX_CONTROLLER = "io.containerd.sandbox.controller.v1"
    TRANSFER = "io.containerd.transfer.v1"
    STREAMING = "io.containerd.streaming.v1"
    GRPC = "io.containerd.grpc.v1"
    TTRPC = "io.containerd.ttrpc.v1"


class SkipPlugin(Exception):
    """This plugin does not apply here; the text says why. Shown by introspection as `skip`, never an error."""


@dataclass(slots=True)
class PluginMeta:
    """What introspection shows of a plugin; its `init` fills it."""

    platforms: list[Platform] = field(default_factory=list)
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)


class InitContext(Protocol):
    """What a plugin is given at start."""

    root: Path
    """Its own directory for what lasts (`<root>/<type>.<id>`): made on first use of `make_root`."""
    state: Path
    """Its own directory for what a reboot may lose."""
    config: Any
    """An instance of the registration's `config` type."""
    meta: PluginMeta
    daemon: DaemonInfo
    closing: list[Callable[[], Awaitable[None]]]
    """Called in reverse order of starting when the daemon stops."""
    ready: list[Callable[[], Awaitable[None]]]
    """Called when all plugins have started and the sockets listen."""

    def get(self, type: str) -> Any:
        """The one instance of `type`. Raises NotFound if there is none, with the reason where it failed."""

    def get_by_id(self, type: str, id: str) -> Any: ...

    def get_all(self, type: str) -> dict[str, Any]:
        """Instances by id of all plugins of `type` that started."""

    def plugins(self) -> Sequence[PluginStatus]:
        """Every plugin so far, in load order, also those that failed: for introspection."""

    def make_root(self, mode: int = 0o700) -> Path: ...

    def make_state(self, mode: int = 0o700) -> Path: ...


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """Facts of the daemon that plugins need."""

    root: Path
    state: Path
    grpc_address: str
    ttrpc_address: str
    version: str
    revision: str
    log_level: str
    timeouts: dict[str, float]
    """The `[timeouts]` section, in seconds, by full name."""
    stream_processors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The `[stream_processors]` section: programs that turn layers of one media type into another."""
    proxy_plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The `[proxy_plugins]` section: plugins that other processes serve."""


ConfigType = type[msgspec.Struct]


@dataclass(frozen=True, slots=True)
class Registration:
    type: str
    id: str
    init: Callable[[InitContext], Awaitable[Any]]
    requires: tuple[str, ...] = ()
    """Types (all plugins of each are started before this one); `*` stands for every type."""
    config: ConfigType | None = None

    @property
    def uri(self) -> str:
        return f"{self.type}.{self.id}"


@dataclass(slots=True)
class PluginStatus:
    """A plugin after its start was tried: either `instance` or `error` is set."""

    registration: Registration
    meta: PluginMeta
    instance: Any = None
    error: BaseException | None = None
    config: Any = None

    @property
    def skipped(self) -> bool:
        return isinstance(self.error, SkipPlugin)


class HasPublisher(Protocol):
    """The exchange, as plugins of type `io.containerd.event.v1` give it."""

    publisher: Publisher
