"""Root file systems whose mounts must be prepared before a shim can make them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from orlop.core.activation import MountManager
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, NotFound, Unimplemented

_KEPT_BY_CONTAINER = "containerd.io/gc.bref.container"


class RootMounts:
    """What the mount manager does for tasks. An activation has the task's name and lives while the container does."""

    def __init__(self, manager: MountManager | None) -> None:
        self._manager = manager

    async def prepare(self, scope: Scope, id: str, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """What a shim is to mount once the manager has done its part. A task that is made again finds that done."""
        if self._manager is None:
            return mounts
        try:
            return (await self._manager.activate(scope, id, mounts, labels={_KEPT_BY_CONTAINER: id})).system
        except Unimplemented:
            return mounts  # nothing in it needs the manager
        except AlreadyExists:
            return (await self._manager.info(scope, id)).system

    async def release(self, scope: Scope, id: str) -> None:
        """Undoes `prepare`, if it did anything."""
        if self._manager is not None:
            with contextlib.suppress(NotFound):
                await self._manager.deactivate(scope, id)
