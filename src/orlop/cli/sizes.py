"""Sizes as people write them."""

from __future__ import annotations

import re

from orlop.errors import InvalidArgument

_SIZE = re.compile(r"([0-9]{1,18})([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse(text: str) -> int:
    """Bytes: `64m`, `1g`, `100`. Empty is 0. Raises InvalidArgument."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument.verbatim(f"size {text!r}: not of the form 64m or 1g")
    return int(match.group(1)) * _FACTORS[match.group(2).lower()]
