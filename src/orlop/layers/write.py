"""Writes tar archives in pax format (POSIX.1-2001), the same bytes for the same entries.

An entry whose fields fit has a plain ustar header; what does not fit goes into extended records before it.
"""

from __future__ import annotations

from collections.abc import Iterator

from orlop.layers import tar
from orlop.layers.header import BLOCK
from orlop.layers.pax import XATTR_PREFIX
from orlop.layers.tar import Entry

END = bytes(2 * BLOCK)


def head(entry: Entry) -> bytes:
    """All that precedes the data of `entry`: its header, after a pax header where one is needed. Seconds are kept."""
    records: dict[bytes, bytes] = {}
    seconds = entry.mtime // 1_000_000_000
    if len(entry.name) > 100 or not entry.name.isascii():
        records[b"path"] = entry.name
    if len(entry.link) > 100 or not entry.link.isascii():
        records[b"linkpath"] = entry.link
    for key, value, width in (
        (b"uid", entry.uid, 7),
        (b"gid", entry.gid, 7),
        (b"size", entry.size, 11),
        (b"mtime", seconds, 11),
    ):
        if not 0 <= value < 8**width:
            records[key] = b"%d" % value
    for name, value_of in entry.xattrs.items():
        records[XATTR_PREFIX + name] = value_of
    block = _block(
        entry.name,
        entry.type,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        seconds=seconds,
        link=entry.link,
        major=entry.major,
        minor=entry.minor,
    )
    return _extended(entry.name, records) + block if records else block


def padding(size: int) -> bytes:
    """What follows `size` bytes of data."""
    return bytes(-size % BLOCK)


def _extended(name: bytes, records: dict[bytes, bytes]) -> bytes:
    data = b"".join(_records(records))
    directory, _, base = name.rpartition(b"/")
    place = b"/".join(part for part in (directory, b"PaxHeaders.0", base) if part)
    return _block(place, b"x", size=len(data)) + data + padding(len(data))


def _records(records: dict[bytes, bytes]) -> Iterator[bytes]:
    for key in sorted(records):
        body = b" %s=%s\n" % (key, records[key])
        # The length counts its own digits.
        size = len(body) + len(str(len(body)))
        if len(str(size)) != len(str(len(body))):
            size = len(body) + len(str(size))
        yield b"%d%s" % (size, body)


def _block(
    name: bytes,
    type: bytes,
    *,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    seconds: int = 0,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
) -> bytes:
    fields = (
        _text(name, 100),
        _octal(mode, 7),
        _octal(uid, 7),
        _octal(gid, 7),
        _octal(size, 11),
        _octal(seconds, 11),
        b" " * 8,
        type,
        _text(link, 100),
        b"ustar\x0000",
        bytes(64),
        _octal(major, 7),
        _octal(minor, 7),
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _text(value: bytes, width: int) -> bytes:
    """Cut to `width` and to ASCII: only readers that do not know pax look at it then."""
    plain = bytes(byte for byte in value if byte < 0x80)
    cut = plain[:width]
    if len(plain) > width and cut.endswith(b"/"):
        # Old readers take a name that ends so for a directory, whatever its type.
        cut = cut.rstrip(b"/")
    return cut.ljust(width, b"\0")


def _octal(value: int, digits: int) -> bytes:
    return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)


def whiteout(path: bytes, base: bytes) -> Entry:
    """The marker that `base` in the directory `path` (empty, or with its slash) is gone."""
    return Entry(path + b".wh." + base, tar.REGULAR, 0, 0, 0, 0, 0, 0, 0)
