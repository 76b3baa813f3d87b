"""Compressed streams: told by their first bytes, read to their very end, and never let grow without bound.

gzip is RFC 1952, with several members; zstd is RFC 8878, with several frames, skippable ones included. A stream that
is cut short is an error in both, which neither library says by itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import zstandard
from isal import igzip_lib

from orlop.errors import ResourceExhausted, Unknown
from orlop.layers.stream import ByteStream, unexpected_end

PIECE = 1 << 18
"""No decompressed piece is longer than this."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_LIMIT = 1 << 27
_BOMB_FLOOR = 1 << 30


class Compression(Enum):
    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a stream may grow: `size` bytes at most, and past a gibibyte `ratio` times what came in.

    gzip cannot exceed a ratio of 1,032, so that a higher one is a bomb that another format was chosen for.
    """

    size: int = 1 << 40
    ratio: int = 10_000


def detect(start: bytes) -> Compression:
    """What a stream is compressed with, by its first ten bytes."""
    if start[:3] == b"\x1f\x8b\x08":
        return Compression.GZIP
    if start[:4] == _ZSTD_MAGIC or (len(start) >= 8 and _is_skippable(start[:4])):
        return Compression.ZSTD
    return Compression.NONE


def _is_skippable(magic: bytes) -> bool:
    return magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50


def decompress(chunks: Iterable[bytes], limits: Limits | None = None) -> Iterator[bytes]:
    """The content of `chunks`, whatever of the three it is, in pieces of at most `PIECE` bytes.

    Raises Unknown for a damaged or truncated stream, ResourceExhausted for one that passes `limits`.
    """
    arrived = _Counted(chunks)
    pieces = _pieces(arrived)
    bound = limits or Limits()
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > bound.size:
            raise ResourceExhausted(f"layer of more than {bound.size} bytes decompressed")
        if size > _BOMB_FLOOR and size > arrived.size * bound.ratio:
            raise ResourceExhausted(f"layer that grows more than {bound.ratio} times when decompressed")
        yield piece


class _Counted:
    """Chunks, and how many bytes of them have been taken."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            yield chunk


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    source = iter(chunks)
    start = b""
    for chunk in source:
        start += chunk
        if len(start) >= 10:
            break
    whole = _preceded(start, source)
    match detect(start):
        case Compression.GZIP:
            return _gunzip(whole)
        case Compression.ZSTD:
            return _unzstd(ByteStream(whole))
    return whole


def _preceded(start: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if start:
        yield start
    yield from rest


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    between = begun = False
    for chunk in chunks:
        data = chunk
        while True:
            if between:
                # Zero padding may follow a member, as gzip(1) allows; anything else must be another member.
                data = data.lstrip(b"\0")
                between = not data
            if not data and (not begun or member.needs_input):
                break
            try:
                piece = member.decompress(data, PIECE)
            except igzip_lib.IsalError as error:  # type: ignore[misc]
                raise Unknown(_gzip_reason(str(error))) from error
            begun = True
            data = b""
            if piece:
                yield piece
            if member.eof:
                data = member.unused_data
                member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
                between, begun = True, False
    if begun:
        raise unexpected_end()


def _gzip_reason(text: str) -> str:
    if "checksum" in text:
        return "gzip: invalid checksum"
    return "gzip: invalid header" if "wrapper" in text else f"flate: corrupt input ({text})"


def _unzstd(stream: ByteStream) -> Iterator[bytes]:
    """Frame by frame and block by block, as RFC 8878 section 3.1 lays them out.

    A block becomes at most 128 KiB, so that feeding one at a time bounds what the library returns; and where a
    frame ends is known here, so that one cut short cannot pass for whole.
    """
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_LIMIT)
    while magic := stream.take_up_to(4):
        if len(magic) == 4 and _is_skippable(magic):
            stream.skip(int.from_bytes(stream.take(4), "little"))
        elif magic == _ZSTD_MAGIC:
            yield from _gathered(_zstd_frame(stream, context.decompressobj()))
        else:
            raise unexpected_end() if len(magic) < 4 else Unknown("magic number mismatch")


def _zstd_frame(stream: ByteStream, frame: zstandard.ZstdDecompressionObj) -> Iterator[bytes]:
    descriptor = stream.take(1)[0]
    single_segment = descriptor & 0x20
    fields = (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    fields += (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    try:
        frame.decompress(_ZSTD_MAGIC + bytes((descriptor,)) + stream.take(fields))
        last = 0
        while not last:
            head = stream.take(3)
            last = head[0] & 1
            kind = head[0] >> 1 & 3
            size = 1 if kind == 1 else int.from_bytes(head, "little") >> 3
            yield frame.decompress(head + stream.take(size))
        if descriptor & 4:
            yield frame.decompress(stream.take(4))
    except zstandard.ZstdError as error:
        raise Unknown(f"zstd: {error}") from error
    if not frame.eof:
        raise unexpected_end()


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """`pieces` joined to some hundred kilobytes each: every piece that goes on costs a hand-over between threads."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > PIECE - (1 << 17):
            yield b"".join(parts)
            parts = []
            size = 0
    if parts:
        yield b"".join(parts)


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Uncompressed:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(compression: Compression) -> Compressor:
    """Makes the same bytes of the same input on every machine: zlib's gzip does not depend on the CPU, isal's does."""
    match compression:
        case Compression.GZIP:
            return zlib.compressobj(6, zlib.DEFLATED, 31)
        case Compression.ZSTD:
            return zstandard.ZstdCompressor(level=3).compressobj()
        case Compression.NONE:
            return _Uncompressed()
