"""Numbers in outside text: digits and nothing else, where Python's `int` takes spaces, signs and other scripts."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"[0-9]{1,20}", re.ASCII)


def parse_uint(text: str, bits: int = 63) -> int | None:
    """The number that `text` writes in decimal digits; None if it is none below 2**`bits`."""
    if not _DIGITS.fullmatch(text):
        return None
    number = int(text)
    return number if number < 1 << bits else None
