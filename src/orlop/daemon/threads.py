"""The threads in which the daemon does what blocks: those that `asyncio.to_thread` finds.

A step in a thread is mostly a few system calls, so that what it costs to get there and back counts. The pool of
`concurrent.futures` makes a future of its own for each step, with a lock and a condition that nobody waits for, and
chains it to the loop's; here a thread answers the loop's future, a fourth of the work.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from queue import SimpleQueue
from typing import Any

from orlop.core import futures

_Step = tuple["asyncio.Future[Any]", Callable[[], Any]]


class Threads(Executor):
    """At most `limit` threads, each made when a step finds none that is idle. It serves event loops alone."""

    def __init__(self, limit: int = min(32, (os.cpu_count() or 1) + 4)) -> None:
        self._limit = limit
        self._steps: SimpleQueue[_Step | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._free = 0
        """Threads that wait, less the steps that wait for one."""
        self._closed = False

    def submit(self, step: Callable[..., Any], /, *args: Any, **named: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Runs `step` in a thread unless its future, one of the loop that runs here, is cancelled before that."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads have ended")
            self._free -= 1
            if self._free < 0 and len(self._threads) < self._limit:
                thread = threading.Thread(target=self._run, name=f"step-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                self._free += 1
                thread.start()
            self._steps.put((future, partial(step, *args, **named) if args or named else step))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more steps, and with `wait` finishes those that it has. Futures are for their owners to cancel."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._steps.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while (taken := self._steps.get()) is not None:
            self._take(*taken)
            del taken  # not kept until the next comes

    def _take(self, future: asyncio.Future[Any], step: Callable[[], Any]) -> None:
        tell: Callable[[Any], None] = future.set_result
        outcome = None
        if not future.cancelled():
            try:
                outcome = step()
            except BaseException as error:
                tell, outcome = future.set_exception, error
        with self._lock:
            self._free += 1
        futures.answer(future, tell, outcome)
        del future, tell, outcome  # an error has this frame
