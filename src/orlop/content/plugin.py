"""The content plugin: `io.containerd.content.v1.content`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.content.local import LocalStore


async def _local(context: InitContext) -> LocalStore:
    from orlop.content.local import LocalStore

    root = context.make_root(0o755)
    context.meta.exports["root"] = str(root)
    store = LocalStore(root)

    async def close() -> None:
        store.close()

    context.closing.append(close)
    return store


REGISTRATIONS: tuple[Registration, ...] = (Registration(PluginType.CONTENT, "content", _local),)
