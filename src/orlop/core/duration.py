"""Durations as Go writes them (`time.ParseDuration`): `300ms`, `1.5h`, `1h30m`; inside they are nanoseconds."""

from __future__ import annotations

import re
from fractions import Fraction

from orlop.errors import InvalidArgument

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def parse(text: str) -> int:
    """Nanoseconds. Raises InvalidArgument if `text` is no duration or beyond 64 bits."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total = Fraction(0)
    position = 0
    while position < len(rest):
        match = _PART.match(rest, position)
        if match is None or len(match.group(1)) > 32:
            break
        total += Fraction(match.group(1) if match.group(1)[-1] != "." else match.group(1)[:-1]) * _UNITS[match.group(2)]
        position = match.end()
    if position < len(rest) or not rest or total >= 2**63:
        raise InvalidArgument(f'invalid duration "{text}" (expected for example "10s", "1m30s", "250ms")')
    return sign * int(total)


def render(nanoseconds: int) -> str:
    """The shortest text that Go prints for a duration: `100ms`, `5s`, `1m0s`, `4h0m0s`."""
    if nanoseconds == 0:
        return "0s"
    sign = "-" if nanoseconds < 0 else ""
    value = abs(nanoseconds)
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if value < size * 1000:
            return f"{sign}{_decimal(Fraction(value, size))}{unit}"
    seconds = Fraction(value % 60_000_000_000, 1_000_000_000)
    minutes, hours = value // 60_000_000_000 % 60, value // 3_600_000_000_000
    text = f"{_decimal(seconds)}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return sign + (f"{hours}h{text}" if hours else text)


def _decimal(value: Fraction) -> str:
    return f"{float(value):.9f}".rstrip("0").rstrip(".")
