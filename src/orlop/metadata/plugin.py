"""The metadata plugin, whose id `bolt` is a name that clients know, the mount manager and the sandbox store."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.metadata.activations import Activations
    from orlop.metadata.containers import ContainerStore
    from orlop.metadata.content import NamespacedContent
    from orlop.metadata.database import Database
    from orlop.metadata.images import ImageStore
    from orlop.metadata.leases import Leases
    from orlop.metadata.namespaces import NamespaceStore
    from orlop.metadata.sandboxes import SandboxStore
    from orlop.metadata.snapshots import NamespacedSnapshots

_log = logging.getLogger(__name__)


class MetadataConfig(msgspec.Struct, frozen=True, kw_only=True):
    content_sharing_policy: str = "shared"
    no_sync: bool = False


@dataclass(frozen=True, slots=True)
class Metadata:
    """The database and every store of namespaced records over it."""

    db: Database
    namespaces: NamespaceStore
    containers: ContainerStore
    images: ImageStore
    sandboxes: SandboxStore
    leases: Leases
    content: NamespacedContent
    snapshots: NamespacedSnapshots
    on_collected: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Called after each collection, to free what has no record any more; plugins that start later add to it."""


async def _metadata(context: InitContext) -> Metadata:
    from orlop.metadata.containers import ContainerStore
    from orlop.metadata.content import NamespacedContent
    from orlop.metadata.database import Database
    from orlop.metadata.extractions import remove_unfinished
    from orlop.metadata.images import ImageStore
    from orlop.metadata.leases import Leases
    from orlop.metadata.namespaces import NamespaceStore
    from orlop.metadata.sandboxes import SandboxStore
    from orlop.metadata.schema import MIGRATIONS
    from orlop.metadata.snapshots import NamespacedSnapshots

    config: MetadataConfig = context.config
    path = context.make_root() / "meta.db"
    context.meta.exports |= {"policy": config.content_sharing_policy, "path": str(path)}
    db = await asyncio.to_thread(Database, path, MIGRATIONS, sync=not config.no_sync, on_fatal=_end_process)
    try:
        publisher = context.get(PluginType.EVENT)
        backend = context.get(PluginType.CONTENT)
        drivers = context.get_all(PluginType.SNAPSHOTTER)
        metadata = Metadata(
            db=db,
            namespaces=NamespaceStore(db, publisher),
            containers=ContainerStore(db, publisher),
            images=ImageStore(db, publisher),
            sandboxes=SandboxStore(db, publisher),
            leases=Leases(db),
            content=NamespacedContent(db, backend, publisher, config.content_sharing_policy),
            snapshots=NamespacedSnapshots(db, drivers, publisher),
        )
        await remove_unfinished(db)
    except BaseException:
        await asyncio.to_thread(db.close)
        raise

    async def close() -> None:
        await asyncio.to_thread(db.close)

    context.closing.append(close)
    return metadata


def _end_process(error: BaseException) -> None:
    """Storage that has failed once is not written again: the daemon ends, and starts again with recovery."""
    _log.critical("metadata cannot be stored any more, stopping: %s", error)
    os.kill(os.getpid(), signal.SIGTERM)


async def _sandboxes(context: InitContext) -> SandboxStore:
    metadata: Metadata = context.get(PluginType.METADATA)
    return metadata.sandboxes


async def _mounts(context: InitContext) -> Activations:
    from orlop.metadata.activations import Activations

    metadata: Metadata = context.get(PluginType.METADATA)
    handlers = context.get_all(PluginType.MOUNT_HANDLER)
    manager = Activations(metadata.db, context.make_state(), handlers, [str(context.daemon.root)])
    metadata.on_collected.append(manager.cleanup)
    await manager.recover()
    return manager


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(
        PluginType.METADATA,
        "bolt",
        _metadata,
        (PluginType.CONTENT, PluginType.EVENT, PluginType.SNAPSHOTTER),
        MetadataConfig,
    ),
    Registration(PluginType.MOUNT_MANAGER, "bolt", _mounts, (PluginType.METADATA, PluginType.MOUNT_HANDLER)),
    Registration(PluginType.SANDBOX_STORE, "local", _sandboxes, (PluginType.METADATA,)),
)
