"""The transfers of this daemon: which end goes to which."""

from __future__ import annotations

from dataclasses import dataclass

from orlop.core.scope import Scope
from orlop.core.transfer import End, ExportEnd, ImportEnd, RegistryEnd, Report, StoreEnd
from orlop.transfer import naming
from orlop.transfer.archive import Archives
from orlop.transfer.pull import Puller
from orlop.transfer.push import Pusher
from orlop.transfer.stores import Stores


@dataclass(frozen=True, slots=True)
class LocalTransfers:
    """Implements `core.transfer.Transferrer`."""

    stores: Stores
    archives: Archives
    puller: Puller | None
    pusher: Pusher | None
    """None, both of them, where no registries can be reached."""

    async def transfer(self, scope: Scope, source: End, destination: End, report: Report) -> bool:
        match source, destination:
            case RegistryEnd(), StoreEnd() if self.puller is not None:
                await self.puller.pull(scope, source, destination, report)
            case StoreEnd(), RegistryEnd() if self.pusher is not None:
                await self.pusher.push(scope, source, destination, report)
            case ImportEnd(), StoreEnd():
                await self.archives.import_archive(scope, source, destination, report)
            case StoreEnd(), ExportEnd():
                await self.archives.export_archive(scope, source, destination, report)
            case ImportEnd(), ExportEnd():
                async for piece in source.pieces:
                    await destination.sink.write(piece)
                await destination.sink.finish()
            case StoreEnd(), StoreEnd():
                await self._tag(scope, source, destination)
            case _:
                return False
        return True

    async def _tag(self, scope: Scope, source: StoreEnd, destination: StoreEnd) -> None:
        async with self.stores.leased(scope) as leased:
            image = await self.stores.images.get(leased, source.name)
            await naming.store(self.stores.images, leased, naming.names_of_root(destination, image.target))
