"""The 512-byte header block of a tar archive: v7, ustar (POSIX.1-1988), star and old GNU.

Fields are bytes; numbers are octal digits or GNU's base-256, and nothing else: Python's `int()` would take signs,
underscores and other scripts' digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from zlib import adler32

from orlop.errors import Unknown

BLOCK = 512
ZEROS = bytes(BLOCK)
LARGEST = (1 << 63) - 1

_MAGIC = 257
"""Where a header says of which kind it is."""
_CACHED = 4096
"""Neighbours in an archive mostly have the same owners, modes and times: so many of each are remembered."""


class Dialect(Enum):
    V7 = auto()
    USTAR = auto()
    STAR = auto()
    GNU = auto()


class InvalidHeader(Unknown):
    """What is in the archive is not a tar header. The text is the one clients know; `why` is a note for developers."""

    def __init__(self, why: str = "") -> None:
        super().__init__("archive/tar: invalid tar header")
        if why:
            self.add_note(why)


class FieldTooLong(Unknown):
    """A part of a header is longer than this reader holds in memory."""

    def __init__(self, why: str) -> None:
        super().__init__(f"archive/tar: header field too long: {why}")


@dataclass(slots=True)
class Header:
    """The fields of one block, before extensions are laid over it. `mtime` is in seconds."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes
    link: bytes
    dialect: Dialect
    major: int
    minor: int
    block: bytes


def number(field: bytes, what: str, signed: bool = False) -> int:
    """A numeric field: octal digits between blanks and NULs, or base-256. Empty is 0. Raises InvalidHeader."""
    if field[0] & 0x80:
        return _base_256(field, what, signed)
    digits = field.strip(b" \0")
    if not digits:
        return 0
    # What bytes.isdigit takes is ASCII; int() would take more, and still refuses 8 and 9.
    if not digits.isdigit():
        raise InvalidHeader(f"{what} {digits!r}")
    try:
        return int(digits, 8)
    except ValueError:
        raise InvalidHeader(f"{what} {digits!r}") from None


def _base_256(field: bytes, what: str, signed: bool) -> int:
    if field[0] & 0x40:
        value = int.from_bytes(field, "big") - (1 << 8 * len(field))
    else:
        value = int.from_bytes(field, "big") & ((1 << 8 * len(field) - 1) - 1)
    if not (-LARGEST if signed else 0) <= value <= LARGEST:
        raise InvalidHeader(f"{what} {value} is out of range")
    return value


def text(field: bytes) -> bytes:
    """A text field: up to its first NUL."""
    end = field.find(0)
    return field if end < 0 else field[:end]


def parse(block: bytes) -> Header:
    """Reads a header block. Raises InvalidHeader if its sum or one of its fields is wrong."""
    _check_sum(block)
    dialect = _dialect(block)
    name = text(block[0:100])
    major = minor = 0
    if dialect is not Dialect.V7:
        kind = block[156]
        if kind in b"34":
            major = number(block[329:337], "device major")
            minor = number(block[337:345], "device minor")
        if dialect is not Dialect.GNU:
            prefix = text(block[345:500] if dialect is Dialect.USTAR else block[345:476]) if block[345] else b""
            if prefix:
                name = prefix + b"/" + name
    mode, uid, gid = _owner(block[100:124])
    # By position, which is faster: there are many headers.
    return Header(
        name,
        mode,
        uid,
        gid,
        number(block[124:136], "size"),
        _time(block[136:148]),
        block[156:157],
        text(block[157:257]) if block[157] else b"",
        dialect,
        major,
        minor,
        block,
    )


@lru_cache(_CACHED)
def _owner(fields: bytes) -> tuple[int, int, int]:
    return number(fields[:8], "mode"), number(fields[8:16], "uid"), number(fields[16:], "gid")


@lru_cache(_CACHED)
def _time(field: bytes) -> int:
    return number(field, "mtime", signed=True)


def has_magic(block: bytes) -> bool:
    """Whether `block` begins as a header of POSIX's or GNU's does. One of version 7 looks like any data."""
    return block[_MAGIC : _MAGIC + 5] == b"ustar"


def _dialect(block: bytes) -> Dialect:
    magic = block[_MAGIC : _MAGIC + 8]
    if magic[:6] == b"ustar\0":
        return Dialect.STAR if block[508:512] == b"tar\0" else Dialect.USTAR
    return Dialect.GNU if magic == b"ustar  \0" else Dialect.V7


def _check_sum(block: bytes) -> None:
    """The sum of all bytes with the sum's own field as blanks; some old writers summed signed bytes."""
    # Of ASCII alone, the low half of Adler-32 is the sum, and one.
    if block.isascii() and adler32(block) & 0xFFFF == _expected(block[148:156]):
        return
    wanted = number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    if unsigned == wanted:
        return
    negative = sum(1 for byte in block[:148] + block[156:] if byte & 0x80)
    if unsigned - 256 * negative != wanted:
        raise InvalidHeader()


@lru_cache(_CACHED)
def _expected(field: bytes) -> int:
    """The low half of Adler-32 of a block of ASCII whose sum's field is `field`, and right."""
    return number(field, "checksum") + sum(field) - 8 * 0x20 + 1
