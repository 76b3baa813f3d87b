"""The transfers of this daemon: which end goes to which."""

from __future__ import annotations

from dataclasses import dataclass

from orlop.core.scope import Scope
from orlop.core.transfer import End, RegistryEnd, Report, StoreEnd
from orlop.transfer import naming
from orlop.transfer.pull import Puller
from orlop.transfer.stores import Stores


@dataclass(frozen=True, slots=True)
class LocalTransfers:
    """Implements `core.transfer.Transferrer`."""

    stores: Stores
    puller: Puller | None
    """None where no registries can be reached."""

    async def transfer(self, scope: Scope, source: End, destination: End, report: Report) -> bool:
        match source, destination:
            case RegistryEnd(), StoreEnd() if self.puller is not None:
                await self.puller.pull(scope, source, destination, report)
            case StoreEnd(), StoreEnd():
                await self._tag(scope, source, destination)
            case _:
                return False
        return True

    async def _tag(self, scope: Scope, source: StoreEnd, destination: StoreEnd) -> None:
        async with self.stores.leased(scope) as leased:
            image = await self.stores.images.get(leased, source.name)
            await naming.store(self.stores.images, leased, naming.names_of_root(destination, image.target))
