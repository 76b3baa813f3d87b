"""The wait that the kernel puts before a process may move to another cgroup, begun before the move is asked for.

Whoever writes to a `cgroup.procs` takes one lock of the kernel's (`cgroup_threadgroup_rwsem`). Its first taker waits
for an RCU grace period, on an idle host 8 to 20 ms, a quarter of a container's start; who follows within another such
period does not wait (kernel/rcu/sync.c). An OCI runtime writes there once or more for each container and each exec. So
as soon as one is likely to, this daemon does: it moves itself to the cgroup where it is, which changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from google.protobuf.message import DecodeError

from orlop.api.events import snapshot_pb2
from orlop.core.event import Envelope
from orlop.core.snapshot import EXTRACTION
from orlop.runtime.owner import Owner
from orlop.shim.cgroup import own_procs

log = logging.getLogger(__name__)

SIGNS = ('topic=="/snapshot/prepare"', 'topic=="/containers/create"')
"""Events after which a container is likely to be started."""


class CgroupMoves:
    def __init__(self, procs: Callable[[], str] = own_procs) -> None:
        """`procs` gives the path of a `cgroup.procs` that this process is in, and raises OSError if there is none."""
        self._procs = procs
        self._thread = ThreadPoolExecutor(1, "cgroup-moves")
        self._owner = Owner()
        self._is_at_it = False
        self._is_possible = True

    def expect(self) -> None:
        """Has the wait begin, unless it has. Returns at once."""
        if self._is_possible and not self._is_at_it:
            self._is_at_it = True
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self._thread, self._move).add_done_callback(self._moved)

    def follow(self, signs: AsyncIterator[Envelope]) -> None:
        """From now on expects a move at each of the events `SIGNS`."""
        self._owner.start(self._follow(signs), "signs of containers to come")

    async def close(self) -> None:
        await self._owner.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _follow(self, signs: AsyncIterator[Envelope]) -> None:
        async for envelope in signs:
            if not _is_unpacking(envelope):
                self.expect()

    def _move(self) -> None:
        with open(self._procs(), "wb", buffering=0) as procs:
            procs.write(b"0")

    def _moved(self, done: asyncio.Future[None]) -> None:
        self._is_at_it = False
        if not done.cancelled() and (error := done.exception()) is not None:
            self._is_possible = False
            log.info("containers start a little later: the wait for cgroups cannot be begun ahead: %s", error)


def _is_unpacking(envelope: Envelope) -> bool:
    if envelope.topic != "/snapshot/prepare":
        return False
    with suppress(DecodeError):
        return snapshot_pb2.SnapshotPrepare.FromString(envelope.event.value).key.startswith(EXTRACTION)
    return True
