"""The plugins of this room."""

from __future__ import annotations

from typing import Any

from orlop.core import platform
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


async def proxy(name: str, context: InitContext) -> Any:
    """The controller of `[proxy_plugins.<name>]`. Its process need not be there yet."""
    from orlop.errors import InvalidArgument
    from orlop.rpc.channel import GrpcChannel
    from orlop.sandbox.proxy import ProxyController

    described = context.daemon.proxy_plugins[name]
    if not described["address"]:
        raise InvalidArgument(f"proxy_plugins.{name} has no address")
    context.meta.exports |= {**described["exports"], "address": described["address"]}
    context.meta.platforms = [platform.parse(described["platform"]) if described["platform"] else platform.host()]
    context.meta.capabilities = list(described["capabilities"])
    channel = GrpcChannel(described["address"])
    context.closing.append(channel.close)
    return ProxyController(name, channel)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.SANDBOX_CONTROLLER, "shim", _shim, (PluginType.SHIM, PluginType.RUNTIME, PluginType.EVENT)),
)
