"""The snapshotters this room offers: `overlayfs` and `native`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orlop.core import platform
from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.snapshots.directories import DirectorySnapshotter
    from orlop.snapshots.native import NativeSnapshotter
    from orlop.snapshots.overlayfs import OverlaySnapshotter


class OverlayConfig(msgspec.Struct):
    root_path: str = ""
    """Where snapshots lie instead of the plugin's own directory."""
    upperdir_label: bool = False
    sync_remove: bool = False
    """Free the disk before Remove returns, not at the following collection."""
    slow_chown: bool = False
    """Accepted for containerd's sake; matters only where identifiers are remapped."""
    mount_options: list[str] = msgspec.field(default_factory=list)


class NativeConfig(msgspec.Struct):
    root_path: str = ""


async def _overlayfs(context: InitContext) -> OverlaySnapshotter:
    from orlop.snapshots.overlayfs import OverlaySnapshotter, in_user_namespace

    config: OverlayConfig = context.config
    driver = OverlaySnapshotter(
        _root(context, config.root_path),
        mount_options=config.mount_options,
        upperdir_label=config.upperdir_label,
        sync_remove=config.sync_remove,
    )
    if not in_user_namespace():
        context.meta.capabilities.append("rebase")
    _announce(context, driver)
    return driver


async def _native(context: InitContext) -> NativeSnapshotter:
    from orlop.snapshots.native import NativeSnapshotter

    config: NativeConfig = context.config
    driver = NativeSnapshotter(_root(context, config.root_path))
    _announce(context, driver)
    return driver


def _root(context: InitContext, configured: str) -> Path:
    return Path(configured) if configured else context.make_root(0o700)


def _announce(context: InitContext, driver: DirectorySnapshotter) -> None:
    context.meta.platforms.append(platform.host())
    context.meta.exports["root"] = str(driver.root)
    context.closing.append(driver.close)
    # What a crash has left is freed once the daemon serves.
    context.ready.append(driver.cleanup)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.SNAPSHOTTER, "native", _native, config=NativeConfig),
    Registration(PluginType.SNAPSHOTTER, "overlayfs", _overlayfs, config=OverlayConfig),
)
