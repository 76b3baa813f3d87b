"""The one place that reads the clock. Times inside are integers: nanoseconds since 1970, UTC."""

from __future__ import annotations

import time

ZERO = -62135596800 * 1_000_000_000
"""0001-01-01T00:00:00Z, Go's zero time: what the wire carries where a time is not set but the field always is."""


def now() -> int:
    """Nanoseconds since 1970, UTC: for what is stored or shown."""
    return time.time_ns()


def monotonic() -> float:
    """Seconds of a clock that never goes back: for deadlines, delays and ages."""
    return time.monotonic()
