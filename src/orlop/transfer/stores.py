"""What transfers work on, and the leases that hold what they bring."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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
    settle: Callable[[], Awaitable[None]]
    """Makes durable what was recorded by steps that need not last."""

    @asynccontextmanager
    async def leased(self, scope: Scope) -> AsyncIterator[Scope]:
        """`scope` with a lease: its own, or one that ends here. What was done under it lasts when this is left."""
        leased = replace(scope, lasts=False)
        if not scope.lease:
            lease = await self.leases.create(leased, uuid.uuid4().hex, _expiring())
            leased = replace(leased, lease=lease.id)
        try:
            yield leased
        except BaseException:
            try:
                await asyncio.shield(self._leave(scope, leased))
            except OrlopError as error:  # a lease ends by itself, in a day
                _log.warning("the lease %s of a failed transfer cannot be ended: %s", leased.lease, error)
            raise
        await self._leave(scope, leased)

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

    async def _leave(self, scope: Scope, leased: Scope) -> None:
        if not scope.lease:
            await self._end(scope, leased.lease)
        await self.settle()

    async def _end(self, scope: Scope, lease: str) -> None:
        with contextlib.suppress(NotFound):
            await self.leases.delete(scope, lease)


def _expiring() -> dict[str, str]:
    return {_EXPIRE: rfc3339.render(clock.now() + LEASE_SECONDS * 1_000_000_000)}


def _kept(name: str) -> str:
    return f"unfinished-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
