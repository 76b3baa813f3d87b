"""The threads of the daemon: steps, failures, limits, the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import uvloop

from orlop.daemon.threads import Threads


def run(work: Callable[[Threads], Any], limit: int = 4) -> Any:
    """What `work` returns on a loop whose threads are ours, and that ends afterwards."""
    threads = Threads(limit)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_default_executor(threads)
        result = runner.run(work(threads))
    assert not any(thread.is_alive() for thread in threads._threads)
    return result


def test_a_step_runs_in_a_thread_and_its_caller_has_the_result() -> None:
    async def work(_: Threads) -> list[object]:
        here = threading.get_ident()
        others = await asyncio.gather(*(asyncio.to_thread(lambda: threading.get_ident() != here) for _ in range(50)))
        return [*others, await asyncio.to_thread(int, "7", base=8)]

    assert run(work) == [*[True] * 50, 7]


def test_a_failure_is_the_callers_and_leaves_no_cycle() -> None:
    class Lost:
        pass

    async def work(_: Threads) -> weakref.ref[Lost]:
        lost = Lost()
        there = weakref.ref(lost)

        def step(_: Lost) -> None:
            raise ValueError("no")

        gc.disable()
        try:
            outcomes = await asyncio.gather(asyncio.to_thread(step, lost), return_exceptions=True)
            assert [str(error) for error in outcomes] == ["no"]
            del outcomes, lost
            await asyncio.sleep(0)
            assert there() is None
        finally:
            gc.enable()
        return there

    run(work)


def test_there_are_no_more_threads_than_steps_at_a_time_and_never_more_than_the_limit() -> None:
    async def work(threads: Threads) -> tuple[int, int]:
        for _ in range(20):
            await asyncio.to_thread(int)
        few = len(threads._threads)
        gate = threading.Event()
        waiting = [asyncio.ensure_future(asyncio.to_thread(gate.wait)) for _ in range(9)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*waiting)
        return few, len(threads._threads)

    few, most = run(work, limit=4)
    assert few == 1
    assert most == 4


def test_a_step_that_is_cancelled_before_its_turn_is_left_out() -> None:
    async def work(_: Threads) -> list[str]:
        gate, done = threading.Event(), list[str]()
        first = asyncio.ensure_future(asyncio.to_thread(gate.wait))
        second = asyncio.ensure_future(asyncio.to_thread(done.append, "second"))
        third = asyncio.ensure_future(asyncio.to_thread(done.append, "third"))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        gate.set()
        await asyncio.gather(first, third)
        return done

    assert run(work, limit=1) == ["third"]


def test_what_has_begun_is_finished_before_the_end() -> None:
    done = []

    async def work(_: Threads) -> None:
        begun = threading.Event()

        def step() -> None:
            begun.set()
            done.append("step")

        task = asyncio.ensure_future(asyncio.to_thread(step))
        await asyncio.sleep(0)
        begun.wait()
        task.cancel()

    run(work)
    assert done == ["step"]
