"""Who a signal to this program is for: the command as a whole, which it ends, or for a while what the command runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Handler = Callable[[int], None]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_handlers: dict[int, list[Handler]] = {}
"""A stack for each signal; the handler last added has it."""


@contextmanager
def handled(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Signals of these numbers go to `handler`, in the running event loop; before and after, to who had them."""
    loop = asyncio.get_running_loop()
    numbers = tuple(numbers)
    for number in numbers:
        _handlers.setdefault(number, []).append(handler)
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number in numbers:
            stack = _handlers[number]
            stack.remove(handler)
            if stack:
                loop.add_signal_handler(number, stack[-1], number)
            else:
                loop.remove_signal_handler(number)


@contextmanager
def ending(task: asyncio.Task[object], told: list[int]) -> Iterator[None]:
    """A signal cancels `task`, which puts things back; the signal's number is added to `told`."""

    def cancel(number: int) -> None:
        if not told:  # once: what is put back must not be cancelled in its turn
            task.cancel()
        told.append(number)

    with handled(ENDING, cancel):
        yield
