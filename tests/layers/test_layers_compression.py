"""Compressed streams: whole, in several parts, cut short, spoiled, and too large."""

from __future__ import annotations

import gzip
import os

import pytest
import zstandard

from orlop.errors import ResourceExhausted, Unknown
from orlop.layers.compression import PIECE, Compression, Limits, compressor, decompress, detect

DATA = os.urandom(300_000) + bytes(3_000_000) + b"end"
SKIPPABLE = b"\x52\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def whole(data: bytes, size: int = 65_536) -> bytes:
    return b"".join(decompress(pieces(data, size)))


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1000, 65_536, 10_000_000])
@pytest.mark.parametrize(
    "stream",
    [
        gzip.compress(DATA),
        gzip.compress(DATA[:100_000]) + gzip.compress(b"") + gzip.compress(DATA[100_000:]),
        gzip.compress(DATA) + bytes(700),
        zstd(DATA),
        zstd(DATA, write_checksum=True, write_content_size=False),
        SKIPPABLE + zstd(DATA[:100_000]) + SKIPPABLE + zstd(DATA[100_000:]) + SKIPPABLE,
        DATA,
    ],
    ids=["gzip", "gzip-members", "gzip-padded", "zstd", "zstd-checksum", "zstd-frames", "plain"],
)
def test_streams_are_read_to_their_end_however_they_are_cut(stream: bytes, size: int) -> None:
    assert whole(stream, size) == DATA


def test_one_byte_at_a_time_is_enough() -> None:
    for stream in (gzip.compress(b"a") + gzip.compress(b"b"), zstd(b"a") + SKIPPABLE + zstd(b"b"), b"ab"):
        assert whole(stream, 1) == b"ab"


def test_an_empty_stream_is_empty() -> None:
    assert whole(b"") == b""


@pytest.mark.parametrize("make", [gzip.compress, zstd])
def test_a_stream_cut_anywhere_is_an_error(make: object) -> None:
    stream = make(os.urandom(2000))  # type: ignore[operator]
    for end in range(10, len(stream)):
        with pytest.raises(Unknown, match="unexpected EOF"):
            whole(stream[:end])


def test_damage_and_junk_are_told() -> None:
    good = gzip.compress(b"data" * 100)
    with pytest.raises(Unknown, match="gzip: invalid checksum"):
        whole(good[:-6] + b"abcdef")
    with pytest.raises(Unknown, match="gzip: invalid header"):
        whole(good + b"junk that is no member")
    with pytest.raises(Unknown, match="magic number mismatch"):
        whole(zstd(b"data") + b"junk")
    with pytest.raises(Unknown, match="zstd: "):
        whole(zstd(b"data" * 100, write_checksum=True)[:-4] + b"abcd")


@pytest.mark.parametrize("make", [gzip.compress, zstd])
def test_a_stream_that_grows_past_its_limit_is_refused(make: object) -> None:
    bomb = make(bytes(50_000_000))  # type: ignore[operator]
    sizes: list[int] = []
    with pytest.raises(ResourceExhausted, match="more than 10000000 bytes"):
        sizes.extend(len(piece) for piece in decompress([bomb], Limits(size=10_000_000)))
    assert max(sizes) <= PIECE
    assert sum(sizes) <= 10_000_000


def test_a_ratio_no_honest_layer_has_is_refused() -> None:
    bomb = zstd(bytes(1 << 30) + bytes(1 << 21))
    with pytest.raises(ResourceExhausted, match="grows more than 1000 times"):
        for _ in decompress([bomb], Limits(ratio=1000)):
            pass


def test_kinds_are_told_by_their_first_bytes() -> None:
    assert detect(gzip.compress(b"")) is Compression.GZIP
    assert detect(zstd(b"")) is Compression.ZSTD
    assert detect(SKIPPABLE) is Compression.ZSTD
    assert detect(SKIPPABLE[:7]) is Compression.NONE
    assert detect(b"\x1f\x8b") is Compression.NONE


@pytest.mark.parametrize("kind", list(Compression))
def test_what_is_compressed_comes_back_and_is_always_the_same(kind: Compression) -> None:
    made = []
    for _ in range(2):
        one = compressor(kind)
        made.append(one.compress(DATA) + one.flush())
    assert made[0] == made[1]
    assert detect(made[0][:10]) is kind
    assert whole(made[0]) == DATA
