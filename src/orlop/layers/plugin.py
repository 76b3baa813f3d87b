"""The plugins of this room: the differs `walking` and `erofs`, and the service that asks differs in order."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from orlop.core import platform
from orlop.core.layer import LayerKeeper
from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.layers.chain import DifferChain
    from orlop.layers.differ import WalkingDiffer
    from orlop.layers.erofs import ErofsDiffer
    from orlop.layers.keep import Keepers


class WalkingConfig(msgspec.Struct, kw_only=True):
    """Bounds for what a layer may become. containerd has none; zero entries or bytes would refuse every layer."""

    max_layer_bytes: int = 1 << 40
    max_layer_ratio: int = 10_000
    max_layer_entries: int = 10_000_000
    ahead: bool = True
    """Make layers while clients write their blobs, for when they are applied."""


class ErofsConfig(msgspec.Struct, kw_only=True):
    """Bounds for what a compressed image may become."""

    max_layer_bytes: int = 1 << 40
    max_layer_ratio: int = 10_000


class DiffServiceConfig(msgspec.Struct, kw_only=True):
    """`default` names the differs in the order in which they are asked; `sync_fs` makes every apply durable."""

    default: list[str] = msgspec.field(default_factory=lambda: ["erofs", "walking"])
    sync_fs: bool = False


async def _walking(context: InitContext) -> WalkingDiffer:
    from orlop.layers.ahead import LayersAhead
    from orlop.layers.compression import Limits
    from orlop.layers.differ import WalkingDiffer
    from orlop.layers.processors import StreamProcessor
    from orlop.mounts.temporary import TemporaryMounts

    config: WalkingConfig = context.config
    metadata = context.get(PluginType.METADATA)
    mounts = TemporaryMounts(context.daemon.root / "tmpmounts")
    context.closing.append(partial(asyncio.to_thread, mounts.close))
    configured = [StreamProcessor.of(id, section) for id, section in context.daemon.stream_processors.items()]
    context.meta.platforms.append(platform.host())
    keepers, limits = _keepers(context), Limits(config.max_layer_bytes, config.max_layer_ratio)
    watcher = LayersAhead(keepers, limits, config.max_layer_entries) if config.ahead else None
    if watcher is not None:
        context.closing.append(watcher.close)
    return WalkingDiffer(
        metadata.content,
        mounts,
        configured,
        keepers=keepers,
        watcher=watcher,
        limits=limits,
        entries_limit=config.max_layer_entries,
    )


async def _erofs(context: InitContext) -> ErofsDiffer:
    from orlop.layers.compression import Limits
    from orlop.layers.erofs import ErofsDiffer

    config: ErofsConfig = context.config
    context.meta.platforms.append(platform.host())
    limits = Limits(config.max_layer_bytes, config.max_layer_ratio)
    return ErofsDiffer(context.get(PluginType.METADATA).content, _keepers(context), limits=limits)


def _keepers(context: InitContext) -> Keepers:
    from orlop.layers.keep import Keepers

    return Keepers([one for one in context.get_all(PluginType.SNAPSHOTTER).values() if isinstance(one, LayerKeeper)])


async def _service(context: InitContext) -> DifferChain:
    from orlop.layers.chain import DifferChain

    config: DiffServiceConfig = context.config
    return DifferChain.of(config.default, context.get_all(PluginType.DIFFER), sync_fs=config.sync_fs)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.DIFFER, "erofs", _erofs, (PluginType.METADATA, PluginType.SNAPSHOTTER), ErofsConfig),
    Registration(PluginType.DIFFER, "walking", _walking, (PluginType.METADATA, PluginType.SNAPSHOTTER), WalkingConfig),
    Registration(PluginType.SERVICE, "diff-service", _service, (PluginType.DIFFER,), DiffServiceConfig),
)
