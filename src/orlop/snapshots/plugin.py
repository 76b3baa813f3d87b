"""The snapshotters this room offers: `overlayfs`, `erofs` and `native`."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from orlop.core import platform
from orlop.core.plugin import InitContext, PluginType, Registration, SkipPlugin
from orlop.errors import InvalidArgument

if TYPE_CHECKING:
    from orlop.snapshots.directories import DirectorySnapshotter
    from orlop.snapshots.erofs import ErofsSnapshotter
    from orlop.snapshots.native import NativeSnapshotter
    from orlop.snapshots.overlayfs import OverlaySnapshotter


_log = logging.getLogger(__name__)


class OverlayConfig(msgspec.Struct):
    root_path: str = ""
    """Where snapshots lie instead of the plugin's own directory."""
    upperdir_label: bool = False
    sync_remove: bool = False
    """Free the disk before Remove returns, not at the following collection."""
    slow_chown: bool = False
    """Let clients copy an image with other owners where it cannot be mounted with mapped ids."""
    mount_options: list[str] = msgspec.field(default_factory=list)
    layers: Literal["auto", "directories"] = "auto"
    """`auto`: a layer is kept as its tar and an index that the kernel mounts, where it can; `directories`: unpacked."""


class ErofsConfig(msgspec.Struct):
    root_path: str = ""
    ovl_mount_options: list[str] = msgspec.field(default_factory=list)
    default_size: str = ""
    """Of the image that takes what a container writes, as `64MiB`; empty: it goes to a directory."""
    dmverity_mode: str = ""
    """Layers are not guarded by dm-verity: `auto` and `off` are the same."""

    def size(self) -> int:
        """Bytes. Raises InvalidArgument."""
        if not self.default_size:
            return 0
        match = re.fullmatch(r"([0-9]{1,15}) *([kmgt]?)i?b?", self.default_size.lower(), re.ASCII)
        if match is None or not int(match[1]):
            raise InvalidArgument(f'invalid default_size "{self.default_size}": a size as "64MiB" is needed')
        return int(match[1]) << (10 * " kmgt".index(match[2] or " "))


class NativeConfig(msgspec.Struct):
    root_path: str = ""


async def _overlayfs(context: InitContext) -> OverlaySnapshotter:
    from orlop.snapshots import idmap, probe
    from orlop.snapshots.overlayfs import OverlaySnapshotter, in_user_namespace

    config: OverlayConfig = context.config
    root = _root(context, config.root_path)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    refusal = await asyncio.to_thread(_refusal, root) if config.layers == "auto" else "the configuration says so"
    unmapped = await asyncio.to_thread(idmap.why_not_mapped, root)
    if unmapped:
        _log.info("overlayfs: ids cannot be remapped: %s", unmapped)
    else:
        context.meta.capabilities.append("remap-ids")
    if not config.slow_chown:
        context.meta.capabilities.append("only-remap-ids")
    buffered = refusal or await asyncio.to_thread(probe.direct_refusal, root)
    driver = OverlaySnapshotter(
        root,
        remap_ids=not unmapped,
        mount_options=config.mount_options,
        upperdir_label=config.upperdir_label,
        sync_remove=config.sync_remove,
        keeps_layers=not refusal,
        reads_directly=not buffered,
    )
    context.meta.exports["layers"] = "directories" if refusal else "indexed"
    if refusal:
        context.meta.exports["layers_why"] = refusal
    else:
        context.meta.exports["layers_direct"] = str(not buffered).lower()
        if buffered:
            context.meta.exports["layers_direct_why"] = buffered
        context.meta.exports["layers_verity"] = str(await asyncio.to_thread(probe.has_verity, root)).lower()
    if not in_user_namespace():
        context.meta.capabilities.append("rebase")
    _announce(context, driver)
    return driver


def _refusal(root: Path) -> str:
    """Why layers cannot be kept as tar and index below `root`; empty if they can."""
    from orlop.snapshots import probe
    from orlop.snapshots.overlayfs import in_user_namespace

    probe.sweep(root)
    if in_user_namespace():
        return "a user namespace may not mount EROFS images"
    return probe.refusal(root)


async def _erofs(context: InitContext) -> ErofsSnapshotter:
    from orlop.snapshots.erofs import ErofsSnapshotter
    from orlop.snapshots.overlayfs import in_user_namespace

    config: ErofsConfig = context.config
    root = _root(context, config.root_path)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if refusal := await asyncio.to_thread(_refusal, root):
        raise SkipPlugin(refusal)
    if config.dmverity_mode not in ("", "auto", "off"):
        raise InvalidArgument(f'invalid dmverity_mode "{config.dmverity_mode}": must be "auto" or "off" here')
    driver = ErofsSnapshotter(root, mount_options=config.ovl_mount_options, default_size=config.size())
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
    Registration(PluginType.SNAPSHOTTER, "erofs", _erofs, config=ErofsConfig),
    Registration(PluginType.SNAPSHOTTER, "native", _native, config=NativeConfig),
    Registration(PluginType.SNAPSHOTTER, "overlayfs", _overlayfs, config=OverlayConfig),
)
