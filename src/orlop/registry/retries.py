"""One policy for sending again, for every verb: what is worth another attempt, and how long to wait before it."""

from __future__ import annotations

import asyncio
import email.utils
import random

from orlop.core import clock
from orlop.core.numbers import parse_uint
from orlop.registry.settings import Settings

BUSY = frozenset({408, 429})
"""The server asks us to come again."""

BROKEN = frozenset({500, 502, 503, 504})
"""The server, or one behind it, has failed; it may be better soon."""


class Retries:
    """The attempts of one piece of work."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._used = 0

    def restart(self) -> None:
        """Something came of the last attempt: count anew."""
        self._used = 0

    def another(self) -> bool:
        """Whether another attempt is left; counts the one that has just failed."""
        self._used += 1
        return self._used < self._settings.attempts

    async def wait(self, retry_after: str = "") -> None:
        """Until it is time for the next attempt: what the server asked for, within the limit, else ever longer."""
        settings = self._settings
        delay = min(settings.retry_delay * 2 ** (self._used - 1), settings.retry_delay_limit)
        delay *= random.uniform(0.8, 1.2)  # so that many who failed together do not come back together  # noqa: S311
        asked = seconds_of(retry_after)
        if asked is not None:
            delay = max(min(asked, settings.retry_after_limit), delay)
        await asyncio.sleep(delay)


def seconds_of(retry_after: str) -> float | None:
    """What a `Retry-After` means: seconds, or a date (RFC 9110, 10.2.3); None for neither."""
    text = retry_after.strip()
    seconds = parse_uint(text)
    if seconds is not None:
        return float(seconds)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, moment.timestamp() - clock.now() / 1e9)
    except (ValueError, TypeError, OverflowError):
        return None
