"""Ranges of bytes in HTTP (RFC 9110, 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orlop.core.numbers import parse_uint

_CONTENT_RANGE = re.compile(r"bytes[ \t]+([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20}|\*)", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,20})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Bytes `start` up to and without `end`, of `total` (None where it is not known)."""

    start: int
    end: int
    total: int | None

    @classmethod
    def parse(cls, text: str) -> ContentRange | None:
        """None for what is no range, or one that cannot be."""
        match = _CONTENT_RANGE.fullmatch(text.strip())
        if match is None:
            return None
        start, last = parse_uint(match[1]), parse_uint(match[2])
        total = None if match[3] == "*" else parse_uint(match[3])
        if start is None or last is None or last < start or (match[3] != "*" and (total is None or last >= total)):
            return None
        return cls(start, last + 1, total)


def requested(start: int, end: int | None = None) -> str:
    """A `Range` from `start` up to and without `end`; the empty `end` is the content's."""
    return f"bytes={start}-{'' if end is None else end - 1}"


def uploaded(text: str) -> int | None:
    """How many bytes an upload has, by the `Range: 0-N` of its status; None if that says nothing of the kind.

    An upload without bytes has the same `0-0` as one of a single byte: that counts as none.
    """
    match = _RANGE.fullmatch(text.strip())
    last = parse_uint(match[1]) if match else None
    return None if last is None else last + 1 if last else 0
