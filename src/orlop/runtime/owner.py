"""Background tasks with an owner: whoever starts one here ends it when it closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


class Owner:
    """Holds tasks that outlive the call that started them, such as watches and cleanups."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Runs `work` to its end even if the caller is cancelled meanwhile; the caller's cancellation still holds."""
        return await asyncio.shield(self.start(work, name))

    async def drain(self, timeout: float) -> None:
        """Waits for everything that was started; what is not done in `timeout` seconds is cancelled."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        for task in self._tasks:
            log.warning("%s is not done: it is given up", task.get_name())
        await self.close()

    async def close(self) -> None:
        """Cancels what is left, and waits for it."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("%s failed", task.get_name(), exc_info=task.exception())
