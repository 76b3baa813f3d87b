"""Extended headers of POSIX.1-2001 (pax): `length key=value` records that replace or add to a tar header's fields."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orlop.layers.header import LARGEST, InvalidHeader

XATTR_PREFIX = b"SCHILY.xattr."

_TEXTS = frozenset((b"path", b"linkpath", b"uname", b"gname"))
_UNSIGNED = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


def records(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of an extended header, in order. Raises InvalidHeader where one is malformed."""
    at = 0
    while at < len(block):
        blank = block.find(b" ", at, at + 21)
        digits = block[at:blank] if blank > at else b""
        if not _UNSIGNED.fullmatch(digits):
            raise InvalidHeader("pax record without a length")
        end = at + int(digits)
        if end > len(block) or end < blank + 2 or block[end - 1] != 0x0A:
            raise InvalidHeader("pax record of a wrong length")
        key, equals, value = block[blank + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key or (key in _TEXTS and b"\0" in value):
            raise InvalidHeader("malformed pax record")
        yield key, value
        at = end


def unsigned(value: bytes, key: str) -> int:
    """A decimal number of at most 63 bits. Raises InvalidHeader."""
    if not _UNSIGNED.fullmatch(value) or (result := int(value)) > LARGEST:
        raise InvalidHeader(f"pax {key} {value[:40]!r}")
    return result


def time(value: bytes, key: str) -> int:
    """Nanoseconds since 1970 of a decimal number of seconds; finer digits are dropped. Raises InvalidHeader."""
    match = _TIME.fullmatch(value)
    if match is None:
        raise InvalidHeader(f"pax {key} {value[:40]!r}")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 1_000_000_000 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds
