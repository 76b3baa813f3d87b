"""The plugin `io.containerd.event.v1.exchange`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.events.exchange import Exchange


async def _exchange(context: InitContext) -> Exchange:
    from orlop.events.exchange import Exchange

    exchange = Exchange()

    async def close() -> None:
        exchange.close()

    context.closing.append(close)
    return exchange


REGISTRATIONS: tuple[Registration, ...] = (Registration(PluginType.EVENT, "exchange", _exchange),)
