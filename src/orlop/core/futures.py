"""Futures of an event loop that other threads answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any


def answer(future: asyncio.Future[Any], tell: Callable[[Any], None], outcome: Any) -> None:
    """Has the loop of `future` call its method `tell` with `outcome`, unless it is cancelled by then."""
    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        future.get_loop().call_soon_threadsafe(_tell, future, tell, outcome)


def _tell(future: asyncio.Future[Any], tell: Callable[[Any], None], outcome: Any) -> None:
    if not future.cancelled():
        tell(outcome)
