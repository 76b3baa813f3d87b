"""The plugins of this room."""

from __future__ import annotations

from typing import Any

from orlop.core.plugin import InitContext, PluginType, Registration


async def _shim(context: InitContext) -> Any:
    from orlop.runtime.bundle import Bundles
    from orlop.sandbox.controller import ShimController

    bundles = Bundles(context.make_state(), context.make_root())
    controller = ShimController(bundles, context.get(PluginType.SHIM))
    context.get(PluginType.RUNTIME).sandboxes = controller
    await controller.load_existing()
    context.closing.append(controller.close)
    return controller


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.SANDBOX_CONTROLLER, "shim", _shim, (PluginType.SHIM, PluginType.RUNTIME, PluginType.EVENT)),
)
