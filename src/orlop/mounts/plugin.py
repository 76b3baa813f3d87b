"""The handlers of mounts that need more than mount(2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orlop.core import platform
from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.mounts.handlers import ErofsHandler, LoopHandler


async def _erofs(context: InitContext) -> ErofsHandler:
    from orlop.mounts.handlers import ErofsHandler

    context.meta.platforms.append(platform.host())
    return ErofsHandler()


async def _loop(context: InitContext) -> LoopHandler:
    from orlop.mounts.handlers import LoopHandler

    context.meta.platforms.append(platform.host())
    return LoopHandler()


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.MOUNT_HANDLER, "erofs", _erofs),
    Registration(PluginType.MOUNT_HANDLER, "loop", _loop),
)
