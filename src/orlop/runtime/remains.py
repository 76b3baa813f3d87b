"""What `delete` has left of a container when it was cut off: it is deleted in the background, until that has worked.

Clients are told meanwhile that the container is gone. Its bundle stays, since it says how to delete the container (its
runtime's state and its control groups), and keeps the id: a container of the same id could be deleted in its place. A
mark in the bundle tells a later daemon all that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from orlop.errors import OrlopError, Unavailable
from orlop.runtime import bootstrap as contract
from orlop.runtime.bootstrap import ShimSettings
from orlop.runtime.bundle import Bundle
from orlop.runtime.owner import Owner

log = logging.getLogger(__name__)

LONGEST = 120.0
"""Seconds that one try may take."""
PATIENCE = 10.0
"""Seconds that a new container of the same id waits."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_AT_ONCE = 2
"""Tries at a time, so that they leave others time for theirs."""


class _Deletion:
    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        """Set to end a pause between two tries."""
        self.task: asyncio.Task[None]


class Remains:
    def __init__(self, settings: ShimSettings) -> None:
        self._settings = settings
        self._cut_off: dict[Path, str] = {}
        self._deletions: dict[Path, _Deletion] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._owner = Owner()

    def expect(self, bundle: Bundle, binary: str) -> None:
        """Notes that `delete` of our shim `binary` was cut off. The bundle is to be taken over, not removed."""
        self._cut_off[bundle.path] = binary

    async def take_over(self, bundle: Bundle, limit: float) -> bool:
        """Frees the root file system of a container whose `delete` was cut off, and has the rest deleted from now on.

        False for any other, which is nothing of ours. `limit` is what was too short a time for `delete`, in seconds.
        """
        binary = self._cut_off.pop(bundle.path, None)
        if binary is None:
            return False
        for step in (bundle.mark_as_remains, bundle.remove_rootfs):
            try:
                await asyncio.to_thread(step)
            except (OSError, OrlopError) as error:
                log.warning("bundle %s: %s", bundle.path, error)
        self.delete(bundle, binary, limit)
        return True

    def delete(self, bundle: Bundle, binary: str, limit: float) -> None:
        """Has a marked bundle's container deleted in the background, and the bundle removed after."""
        deletion = self._deletions[bundle.path] = _Deletion()
        work = self._delete(bundle, binary, limit, deletion.wanted)
        deletion.task = self._owner.start(work, f"deletion of what is left of {bundle.id}")

    async def settle(self, bundle: Bundle) -> None:
        """Returns when nothing of an earlier container is left of the bundle. Raises Unavailable if that lasts."""
        deletion = self._deletions.get(bundle.path)
        if deletion is None:
            return
        deletion.wanted.set()
        await asyncio.wait([deletion.task], timeout=PATIENCE)
        if not deletion.task.done():
            raise Unavailable(f"task {bundle.id}: the container that had this id before is still being deleted")

    async def close(self) -> None:
        """Lets go of what is not deleted yet; a later daemon finds its bundle."""
        await self._owner.close()

    async def _delete(self, bundle: Bundle, binary: str, limit: float, wanted: asyncio.Event) -> None:
        pause = _FIRST_PAUSE
        while True:
            limit = min(limit * 4, LONGEST)
            wanted.clear()
            try:
                async with self._gate:
                    await contract.delete(binary, bundle, self._settings, limit, whole=True)
                    await asyncio.to_thread(bundle.remove)
                break
            except (OSError, OrlopError) as error:
                log.warning("container of %s is not deleted yet, which is tried again: %s", bundle.path, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wanted.wait()
            pause = min(pause * 2, _LONGEST_PAUSE)
        log.info("container of %s is deleted", bundle.path)
        del self._deletions[bundle.path]
