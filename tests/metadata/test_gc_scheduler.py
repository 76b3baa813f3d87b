"""When collections run."""

from __future__ import annotations

import asyncio

import pytest

from orlop.errors import Unknown
from orlop.metadata.gc.collector import Collection
from orlop.metadata.gc.scheduler import Scheduler, SchedulerConfig


class Runs:
    """Counts collections; `next()` waits for one."""

    def __init__(self, *, fails: int = 0) -> None:
        self.count = 0
        self.fails = fails
        self.gate = asyncio.Event()
        self.gate.set()
        self.happened = asyncio.Semaphore(0)

    async def __call__(self) -> Collection:
        await self.gate.wait()
        self.count += 1
        self.happened.release()
        if self.count <= self.fails:
            raise OSError("no")
        return Collection(0, 0.0)


def scheduler(runs: Runs, **settings: object) -> Scheduler:
    made = Scheduler(runs, SchedulerConfig(startup_delay="0s", **settings))  # type: ignore[arg-type]
    made.start()
    return made


async def test_the_first_run_comes_by_itself_and_the_next_with_a_deletion() -> None:
    runs = Runs()
    made = scheduler(runs, pause_threshold=0.5)
    await runs.happened.acquire()
    made.mutated(0)
    made.mutated(1)
    await runs.happened.acquire()
    await made.stop()
    assert runs.count == 2


async def test_a_caller_waits_for_a_run_that_began_after_its_call() -> None:
    runs = Runs()
    made = scheduler(runs)
    await runs.happened.acquire()
    runs.gate.clear()
    first = asyncio.ensure_future(made.collect_now())
    second = asyncio.ensure_future(made.collect_now())
    await asyncio.sleep(0)
    assert not first.done()
    runs.gate.set()
    await asyncio.gather(first, second)
    assert runs.count >= 2
    await made.stop()


async def test_a_failed_run_is_told_to_who_waits_and_tried_again() -> None:
    runs = Runs(fails=1)
    made = Scheduler(runs, SchedulerConfig(startup_delay="0s"))
    waiting = asyncio.ensure_future(made.collect_now())
    await asyncio.sleep(0)
    made.start()
    with pytest.raises(Unknown, match="gc failed"):
        await waiting
    await made.collect_now()
    await made.stop()


async def test_a_caller_that_gives_up_does_not_stop_the_run() -> None:
    runs = Runs()
    made = scheduler(runs)
    await runs.happened.acquire()
    runs.gate.clear()
    waiting = asyncio.ensure_future(made.collect_now())
    await asyncio.sleep(0)
    waiting.cancel()
    runs.gate.set()
    await runs.happened.acquire()
    await made.stop()


async def test_stopping_tells_who_still_waits() -> None:
    runs = Runs()
    runs.gate.clear()
    made = scheduler(runs)
    waiting = asyncio.ensure_future(made.collect_now())
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(made.stop())
    await asyncio.sleep(0)
    runs.gate.set()
    await stopping
    with pytest.raises(Unknown, match="gc failed"):
        await waiting


@pytest.mark.parametrize(
    ("settings", "bounded"),
    [({"pause_threshold": 3.0}, 0.5), ({"pause_threshold": -1.0}, 0.0), ({}, 0.02)],
)
def test_settings_are_kept_within_their_bounds(settings: dict[str, float], bounded: float) -> None:
    assert SchedulerConfig(**settings).bounded().pause_threshold == bounded  # type: ignore[arg-type]
