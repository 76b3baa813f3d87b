"""When to collect: soon after deletions, after many writes, and at once where a caller waits for it.

The interval between runs grows with what a run costs: with a threshold of 0.02, collecting takes at most a fiftieth of
the time. Rules and defaults are those of containerd's `io.containerd.gc.v1.scheduler`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from orlop.core import clock
from orlop.core.duration import parse
from orlop.errors import Unknown
from orlop.metadata.gc.collector import Collection

_LOGGER = logging.getLogger(__name__)

_LEAST_PAUSE = 0.005
_FIRST_INTERVAL = 1.0


class SchedulerConfig(msgspec.Struct, kw_only=True):
    """Keys of `[plugins."io.containerd.gc.v1.scheduler"]`; delays are Go durations."""

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay: str = "0s"
    startup_delay: str = "100ms"

    def bounded(self) -> Bounds:
        """The settings in seconds, within the bounds that make sense."""
        return Bounds(
            min(max(self.pause_threshold, 0.0), 0.5),
            self.deletion_threshold,
            max(self.mutation_threshold, 0),
            max(parse(self.schedule_delay), 0) / 1e9,
            max(parse(self.startup_delay), 0) / 1e9,
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    pause_threshold: float
    deletion_threshold: int
    mutation_threshold: int
    schedule_delay: float
    startup_delay: float


class Scheduler:
    """Runs `collect` when it is due. `mutated` may be called from any thread."""

    def __init__(self, collect: Callable[[], Awaitable[Collection]], config: SchedulerConfig) -> None:
        self._collect = collect
        self._config = config.bounded()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._triggered = False
        self._deletions = 0
        self._mutations = 0
        self._task: asyncio.Task[None] | None = None
        self._collection: asyncio.Future[Collection] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._run(), name="gc-scheduler")

    async def stop(self) -> None:
        """Ends the schedule; a run under way is finished first, and whoever still waits is told that it failed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._collection is not None:
            await asyncio.gather(self._collection, return_exceptions=True)
        self._answer(self._waiters, failed=True)

    def mutated(self, deletions: int) -> None:
        """Notes a committed write that deleted `deletions` objects."""
        try:
            self._loop.call_soon_threadsafe(self._note, deletions)
        except RuntimeError:
            return  # the loop has ended: nobody will collect any more

    async def collect_now(self) -> None:
        """Runs a collection that starts after this call and waits for all of it. Raises Unknown if it fails.

        Cancelling the caller does not stop the run.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._triggered = True
        self._wake.set()
        await waiter

    def _note(self, deletions: int) -> None:
        self._mutations += 1
        self._deletions += deletions
        if 0 < self._config.deletion_threshold <= self._deletions:
            self._wake.set()

    def _is_due(self) -> bool:
        config = self._config
        return self._triggered or self._deletions > 0 or 0 < config.mutation_threshold <= self._mutations

    async def _run(self) -> None:
        interval = _FIRST_INTERVAL
        paused, runs = 0.0, 0
        await self._sleep(self._config.startup_delay)
        first = True
        while True:
            if not (first or self._is_due()):
                await self._sleep(interval)
                continue
            waiters, self._waiters = self._waiters, []
            self._triggered, self._deletions, self._mutations = False, 0, 0
            first = False
            try:
                self._collection = asyncio.ensure_future(self._collect())
                done = await asyncio.shield(self._collection)
            except asyncio.CancelledError:
                self._answer(waiters, failed=True)
                raise
            except Exception:
                _LOGGER.exception("garbage collection failed")
                self._answer(waiters, failed=True)
                self._deletions += 1  # what was to be collected still is
                await self._sleep(interval + 1.0)
                continue
            runs += 1
            paused += done.paused
            if self._config.pause_threshold > 0:
                average = max(paused / runs, _LEAST_PAUSE)
                interval = average / self._config.pause_threshold - average
            self._answer(waiters)
            await self._sleep(interval)

    async def _sleep(self, seconds: float) -> None:
        """Waits until the next run is due by time, or, `schedule_delay` after it, until somebody asks for one."""
        deadline = clock.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        await asyncio.sleep(min(self._config.schedule_delay, max(deadline - clock.monotonic(), 0)))

    @staticmethod
    def _answer(waiters: list[asyncio.Future[None]], *, failed: bool = False) -> None:
        for waiter in waiters:
            if waiter.done():
                continue
            if failed:
                waiter.set_exception(Unknown("gc failed"))
            else:
                waiter.set_result(None)
