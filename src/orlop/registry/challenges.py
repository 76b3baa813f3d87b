"""`WWW-Authenticate`: what a server wants to see (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))", re.ASCII)
_SPACE = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LIMIT = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scheme and its parameters, names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges in all fields of that name. What is malformed ends its field; what came before it counts."""
    found: list[Challenge] = []
    for value in values:
        found += _parse(value[:_LIMIT])
    return found


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = _end(_SEPARATORS, text, 0)
    while match := _TOKEN.match(text, position):
        parameters: dict[str, str] = {}
        position = _end(_SPACE, text, match.end())
        ended = position == match.end()
        token68 = None if ended or _parameter(text, position) else _TOKEN68.match(text, position)
        position = token68.end() if token68 is not None else _parameters(text, position, parameters)
        if position < len(text) and text[position] != ",":
            break
        found.append(Challenge(match.group().lower(), parameters))
        position = _end(_SEPARATORS, text, position)
    return found


def _parameters(text: str, position: int, into: dict[str, str]) -> int:
    """Reads `name=value, ...` and returns where the next challenge, or the end, is."""
    while pair := _parameter(text, position):
        name, value, end = pair
        into.setdefault(name, value)
        position = _end(_SPACE, text, end)
        following = _end(_SEPARATORS, text, position)
        if following == position or _parameter(text, following) is None:
            return position
        position = following
    return position


def _parameter(text: str, position: int) -> tuple[str, str, int] | None:
    """The pair at `position`: name in lower case, value, and where it ends."""
    name = _TOKEN.match(text, position)
    if name is None:
        return None
    equals = _end(_SPACE, text, name.end())
    if equals >= len(text) or text[equals] != "=":
        return None
    start = _end(_SPACE, text, equals + 1)
    if quoted := _QUOTED.match(text, start):
        return name.group().lower(), re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), quoted.end()
    if plain := _TOKEN.match(text, start):
        return name.group().lower(), plain.group(), plain.end()
    return None


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
