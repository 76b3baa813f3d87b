"""What transfers work on, and the leases that hold what they bring."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from orlop.core import clock, rfc3339
from orlop.core.content import ContentStore
from orlop.core.image import ImageStore
from orlop.core.lease import LeaseStore, Resource
from orlop.core.scope import Scope
from orlop.core.snapshot import SnapshotStore
from orlop.errors import AlreadyExists, NotFound, OrlopError

_log = logging.getLogger(__name__)

LEASE_SECONDS = 24 * 3600
_EXPIRE = "containerd.io/gc.expire"


@dataclass(frozen=True, slots=True)
class Stores:
    content: ContentStore
    images: ImageStore
    snapshots: SnapshotStore
    leases: LeaseStore

    @asynccontextmanager
    async def leased(self, scope: Scope) -> AsyncIterator[Scope]:
        """`scope` with a lease: its own, or one that ends here, and with which all that was done lasts."""
        if scope.lease:
            yield scope
            return
        passing = Scope(scope.namespace, lasts=False)
        lease = await self.leases.create(passing, uuid.uuid4().hex, _expiring())
        try:
            yield replace(passing, lease=lease.id)
        except BaseException:
            try:
                await asyncio.shield(self._end(scope, lease.id))
            except OrlopError as error:  # it ends by itself, in a day
                _log.warning("the lease %s of a failed transfer cannot be ended: %s", lease.id, error)
            raise
        await self._end(scope, lease.id)

    async def keep(self, scope: Scope, name: str, resources: Iterable[Resource]) -> None:
        """Holds what an unfinished transfer of `name` has brought for a day, so that the next one finds it."""
        id = _kept(name)
        with contextlib.suppress(AlreadyExists):
            await self.leases.create(scope, id, _expiring())
        for resource in resources:
            with contextlib.suppress(NotFound):
                await self.leases.add_resource(scope, id, resource)

    async def let_go(self, scope: Scope, name: str) -> None:
        """Ends what `keep` began: the image holds it now."""
        await self._end(scope, _kept(name))

    async def _end(self, scope: Scope, lease: str) -> None:
        with contextlib.suppress(NotFound):
            await self.leases.delete(scope, lease)


def _expiring() -> dict[str, str]:
    return {_EXPIRE: rfc3339.render(clock.now() + LEASE_SECONDS * 1_000_000_000)}


def _kept(name: str) -> str:
    return f"unfinished-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
