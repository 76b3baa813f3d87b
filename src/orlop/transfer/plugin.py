"""The plugins of this room: the streams that clients open, and the transfers that use them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from orlop.core import platform
from orlop.core.plugin import InitContext, PluginType, Registration, SkipPlugin
from orlop.errors import NotFound

if TYPE_CHECKING:
    from orlop.core.diff import Differ
    from orlop.core.registry import Registries
    from orlop.transfer.local import LocalTransfers
    from orlop.transfer.streams import OpenStreams
    from orlop.transfer.unpacking import UnpackTarget

_log = logging.getLogger(__name__)
T = PluginType


class UnpackConfig(msgspec.Struct, kw_only=True):
    """A snapshotter that images are unpacked into, and the differ that does it (empty: those of the diff service)."""

    platform: str = ""
    snapshotter: str = "overlayfs"
    differ: str = ""
    config_type: str = ""
    layer_types: list[str] = msgspec.field(default_factory=list)
    optional: bool = False
    """Left out where its snapshotter or differ is not there, instead of failing the plugin."""


class TransferConfig(msgspec.Struct, kw_only=True):
    max_concurrent_downloads: int = 3
    """Layers that are fetched at a time, over all pulls."""
    concurrent_layer_fetch_buffer: int = 0
    """Accepted for containerd's sake; the plugin `registries` has the size of ranges."""
    max_concurrent_uploaded_layers: int = 3
    max_concurrent_unpacks: int = 3
    """Layers of an image that are unpacked at a time, where the snapshotter can put them in their places later."""
    check_platform_supported: bool = False
    config_path: str = ""
    """Accepted for containerd's sake, which does not use it either: the plugin `registries` has the setting."""
    unpack_config: list[UnpackConfig] | None = None


async def _streams(context: InitContext) -> OpenStreams:
    from orlop.transfer.streams import OpenStreams

    streams = OpenStreams()
    context.get(T.METADATA).leases.on_end.append(streams.end_lease)
    context.closing.append(streams.close)
    return streams


async def _local(context: InitContext) -> LocalTransfers:
    from orlop.core.diff import WatchingDiffer
    from orlop.transfer.archive import Archives
    from orlop.transfer.fetch import Fetches
    from orlop.transfer.local import LocalTransfers
    from orlop.transfer.locks import Locks
    from orlop.transfer.pull import Puller
    from orlop.transfer.push import Pusher
    from orlop.transfer.stores import Stores

    config: TransferConfig = context.config
    metadata = context.get(T.METADATA)
    stores = Stores(metadata.content, metadata.images, metadata.snapshots, metadata.leases, metadata.db.settle)
    fetches = Fetches(metadata.content, metadata.leases, max(config.max_concurrent_downloads, 1))
    targets, locks = _targets(context, config), Locks()
    puller, pusher = None, None
    if (registries := _registries(context)) is not None:
        puller = Puller(stores, registries, fetches, targets, context.get_all(T.IMAGE_VERIFIER), locks)
        pusher = Pusher(stores, registries, asyncio.Semaphore(max(config.max_concurrent_uploaded_layers, 1)))
    differs = context.get_all(T.DIFFER).values()
    watcher = next((one.watcher for one in differs if isinstance(one, WatchingDiffer)), None)
    context.meta.platforms.append(platform.host())
    return LocalTransfers(stores, Archives(stores, targets, locks, watcher), puller, pusher)


def _registries(context: InitContext) -> Registries | None:
    """None where they are disabled: then there is no pull and no push."""
    try:
        registries: Registries = context.get_by_id(T.INTERNAL, "registries")
    except NotFound:
        return None
    return registries


def _targets(context: InitContext, config: TransferConfig) -> list[UnpackTarget]:
    configured = config.unpack_config
    if configured is None:
        host = str(platform.host())
        configured = [
            UnpackConfig(platform=host, snapshotter="overlayfs"),
            UnpackConfig(platform=host, snapshotter="native", optional=True),
            UnpackConfig(platform=host, snapshotter="erofs", optional=True),
        ]
    found = []
    for one in configured:
        try:
            found.append(
                _unpack_target(
                    context, one, check_platform=config.check_platform_supported, at_once=config.max_concurrent_unpacks
                )
            )
        except (NotFound, SkipPlugin) as error:
            if not one.optional:
                raise
            _log.debug("unpacking into %s is left out: %s", one.snapshotter, error)
    return found


def _unpack_target(context: InitContext, config: UnpackConfig, *, check_platform: bool, at_once: int) -> UnpackTarget:
    from orlop.transfer.unpacking import UnpackTarget

    plugin = next(
        (
            status
            for status in context.plugins()
            if (status.registration.type, status.registration.id) == (T.SNAPSHOTTER, config.snapshotter)
        ),
        None,
    )
    if plugin is None or plugin.instance is None:
        raise NotFound(f'snapshotter "{config.snapshotter}"')
    differ: Differ = (
        context.get_by_id(T.DIFFER, config.differ) if config.differ else context.get_by_id(T.SERVICE, "diff-service")
    )
    return UnpackTarget(
        platform.parse(config.platform) if config.platform else platform.host(),
        config.snapshotter,
        differ,
        check_platform=check_platform,
        config_type=config.config_type,
        layer_types=config.layer_types,
        at_once=at_once if "rebase" in plugin.meta.capabilities else 1,
        remote=plugin.meta.exports.get("enable_remote_snapshot_annotations") == "true",
    )


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(T.STREAMING, "manager", _streams, (T.METADATA,)),
    Registration(
        T.TRANSFER,
        "local",
        _local,
        (T.INTERNAL, T.LEASE, T.METADATA, T.DIFFER, T.IMAGE_VERIFIER, T.SNAPSHOTTER, T.SERVICE),
        TransferConfig,
    ),
)
