"""Extended attributes: kept behind an inode, or once for many inodes in an area of the image.

An attribute's name is an index that stands for its prefix, and what follows the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct

from orlop.erofs.layout import Damaged, Unrepresentable, aligned

_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_BY_INDEX = {index: prefix for prefix, index in _PREFIXES}

_ENTRY = Struct("<BBH")
_HEADER = Struct("<IB7x")
_ID = Struct("<I")

BODY_LIMIT = 12 + 4 * (0xFFFF - 1)
VALUE_LIMIT = 0xFFFF

SHARED_SIZE_LIMIT = 256
_SHARED_LIMIT = 1 << 16
_SHARED_BY_INODE = 255

Shared = Callable[[int], bytes]
"""An entry of the shared area, by its offset there: at least its own bytes."""


class SharedXattrs:
    """The area of attributes that inodes share: small ones, each kept once, and not without bound."""

    def __init__(self) -> None:
        self.area = bytearray()
        self._ids: dict[bytes, int] = {}

    def body(self, xattrs: Mapping[bytes, bytes]) -> bytes:
        """What stands behind an inode that has `xattrs`. Raises Unrepresentable."""
        if not xattrs:
            return b""
        ids: list[int] = []
        inline: list[bytes] = []
        for name, value in xattrs.items():
            entry = encode(name, value)
            found = self._id(entry) if len(ids) < _SHARED_BY_INODE else None
            if found is None:
                inline.append(entry)
            else:
                ids.append(found)
        body = b"".join((_HEADER.pack(0, len(ids)), *map(_ID.pack, ids), *inline))
        if len(body) > BODY_LIMIT:
            raise Unrepresentable(f"extended attributes of {len(body)} bytes")
        return body

    def _id(self, entry: bytes) -> int | None:
        found = self._ids.get(entry)
        if found is None and len(entry) <= SHARED_SIZE_LIMIT and len(self._ids) < _SHARED_LIMIT:
            found = self._ids[entry] = len(self.area) // 4
            self.area += entry
        return found


def encode(name: bytes, value: bytes) -> bytes:
    """One attribute, padded as all are. Raises Unrepresentable for names and values that do not fit."""
    found = next((one for one in _PREFIXES if name.startswith(one[0])), None)
    if found is None or (name != found[0]) != found[0].endswith(b"."):
        raise Unrepresentable(f"extended attribute {name[:300]!r}")
    prefix, index = found
    suffix = name[len(prefix) :]
    if len(suffix) > 255 or len(value) > VALUE_LIMIT:
        raise Unrepresentable(f"extended attribute {name[:300]!r} of {len(value)} bytes")
    entry = _ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return entry + bytes(-len(entry) % 4)


def decode(body: bytes, shared: Shared) -> dict[bytes, bytes]:
    """The attributes of an inode, from what stands behind it. Raises Damaged."""
    if not body:
        return {}
    if len(body) < _HEADER.size:
        raise Damaged("extended attributes cut short")
    count = _HEADER.unpack_from(body)[1]
    at = _HEADER.size + count * _ID.size
    if at > len(body):
        raise Damaged("extended attributes cut short")
    found: dict[bytes, bytes] = {}
    for (number,) in _ID.iter_unpack(body[_HEADER.size : at]):
        name, value, _ = _decode_one(shared(number * 4), 0)
        found[name] = value
    for name, value in _entries(body, at):
        found[name] = value
    return found


def _entries(body: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    while at + _ENTRY.size <= len(body):
        name, value, at = _decode_one(body, at)
        yield name, value


def _decode_one(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    if at + _ENTRY.size > len(data):
        raise Damaged("extended attribute cut short")
    length, index, size = _ENTRY.unpack_from(data, at)
    prefix = _BY_INDEX.get(index)
    start = at + _ENTRY.size
    end = start + length + size
    if prefix is None or end > len(data):
        raise Damaged("extended attribute cut short, or of an unknown kind")
    return prefix + data[start : start + length], data[start + length : end], aligned(end, 4)
