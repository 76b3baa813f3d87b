"""Header compression (RFC 7541): blocks of requests are decoded; what we send are literals that nobody indexes."""

from __future__ import annotations

from collections import deque

from orlop.rpc.http2 import huffman

TABLE_SIZE = 4096
"""Bytes of the dynamic table, as both sides have it unless told otherwise; we don't tell."""
_ENTRY_OVERHEAD = 32
_MAX_INTEGER_SHIFT = 28
_NAMES = """
accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control
content-disposition content-encoding content-language content-length content-location content-range content-type cookie
date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified
link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie
strict-transport-security transfer-encoding user-agent vary via www-authenticate
"""
_STATIC: tuple[tuple[str, str], ...] = (
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    *((":status", status) for status in ("200", "204", "206", "304", "400", "404", "500")),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    *((name, "") for name in _NAMES.split()),
)
_STATIC_COUNT = len(_STATIC)
_FIRST_DYNAMIC = 0x81 + _STATIC_COUNT
"""The byte that stands for the newest field of the dynamic table; those for static fields come before it."""

Fields = list[tuple[str, str]]


class Decoder:
    """Decodes the header blocks of one connection, in their order.

    `version` changes whenever the dynamic table does: as long as it is the same, equal blocks say the same.
    """

    def __init__(self, max_size: int) -> None:
        self.version = 0
        self._max_size = max_size
        self._table: deque[tuple[str, str]] = deque()
        self._size = 0
        self._capacity = TABLE_SIZE

    def decode(self, block: bytes) -> tuple[Fields, bool]:
        """The fields of `block`, and whether these are all: what is beyond the largest size is left out.

        Raises ValueError if the block is broken; the connection is of no use then.
        """
        fields: Fields = []
        room, table = self._max_size, self._table
        position, end = 0, len(block)
        while position < end:
            byte = block[position]
            if 0x80 < byte < _FIRST_DYNAMIC:
                field = _STATIC[byte - 0x81]
                position += 1
            elif _FIRST_DYNAMIC <= byte < 0xFF and byte - _FIRST_DYNAMIC < len(table):
                field = table[byte - _FIRST_DYNAMIC]
                position += 1
            elif byte & 0x80:
                index, position = _integer(block, position, 0x7F)
                field = self._field(index)
            elif byte & 0xE0 == 0x20:
                size, position = _integer(block, position, 0x1F)
                self._resize(size, fields)
                continue
            else:
                index, position = _integer(block, position, 0x3F if byte & 0x40 else 0x0F)
                if index:
                    name = self._field(index)[0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = (name, value)
                if byte & 0x40:
                    self._insert(field)
            room -= len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD
            if room >= 0:
                fields.append(field)
        return fields, room >= 0

    def _field(self, index: int) -> tuple[str, str]:
        if 0 < index <= _STATIC_COUNT:
            return _STATIC[index - 1]
        if not 0 < index <= _STATIC_COUNT + len(self._table):
            raise ValueError(f"header field {index} is in no table")
        return self._table[index - _STATIC_COUNT - 1]

    def _insert(self, field: tuple[str, str]) -> None:
        self.version += 1
        self._table.appendleft(field)
        self._size += _size_of(field)
        self._evict()

    def _resize(self, capacity: int, fields: Fields) -> None:
        if fields or capacity > TABLE_SIZE:
            raise ValueError("the header table's size is changed where or to what it cannot be")
        self.version += 1
        self._capacity = capacity
        self._evict()

    def _evict(self) -> None:
        while self._size > self._capacity:
            self._size -= _size_of(self._table.pop())


def literal(name: str, value: str) -> bytes:
    """A field whose name and value stand for themselves, and that nobody indexes (section 6.2.2)."""
    return b"\0" + _text(name.encode("ascii")) + _text(value.encode("ascii"))


def _text(data: bytes) -> bytes:
    size = len(data)
    if size < 0x7F:
        return bytes((size,)) + data
    size -= 0x7F
    prefix = bytearray((0x7F,))
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data


def _size_of(field: tuple[str, str]) -> int:
    return len(field[0]) + len(field[1]) + _ENTRY_OVERHEAD


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """The integer whose prefix is under `mask` of the byte at `position`, and the position after it (section 5.1)."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    shift = 0
    while True:
        if position >= len(block) or shift > _MAX_INTEGER_SHIFT:
            raise ValueError("an integer of a header block does not end")
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7


def _string(block: bytes, position: int) -> tuple[str, int]:
    if position >= len(block):
        raise ValueError("a header block ends before its string")
    coded = block[position] & 0x80
    size = coded ^ block[position]
    if size < 0x7F:
        position += 1
    else:
        size, position = _integer(block, position, 0x7F)
    data = block[position : position + size]
    if len(data) < size:
        raise ValueError("a header block ends within a string")
    return (huffman.decode(data) if coded else data).decode("latin-1"), position + size
