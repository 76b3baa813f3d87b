"""Sparse files in tar archives: GNU's old format and its pax formats 0.0, 0.1 and 1.0 (GNU tar manual, appendix D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orlop.layers import pax
from orlop.layers.header import BLOCK, FieldTooLong, InvalidHeader, number
from orlop.layers.stream import ByteStream

PARTS_LIMIT = 65_536

Parts = tuple[tuple[int, int], ...]
"""(offset in the file, length) of what is not a hole, in the order in which the archive stores it."""


@dataclass(frozen=True, slots=True)
class SparseMap:
    """A file of `size` bytes of which the archive holds `parts`."""

    size: int
    parts: Parts


def checked(size: int, parts: Sequence[tuple[int, int]], stored: int) -> SparseMap:
    """A map whose parts ascend, do not overlap, lie within `size`, and add up to `stored`. Raises InvalidHeader."""
    end = total = 0
    for offset, length in parts:
        if offset < end or offset + length > size:
            raise InvalidHeader("sparse map out of order or beyond its file")
        end = offset + length
        total += length
    if total != stored:
        raise InvalidHeader(f"sparse map of {total} bytes over {stored}")
    return SparseMap(size, tuple((offset, length) for offset, length in parts if length))


def old_gnu(block: bytes, stored: int, stream: ByteStream) -> SparseMap:
    """The map in a GNU header and in the blocks that extend it, which are taken from `stream`."""
    parts: list[tuple[int, int]] = []
    _old_gnu_parts(block[386:482], parts)
    size = number(block[483:495], "sparse size")
    extended = block[482]
    while extended:
        extension = stream.take(BLOCK)
        _old_gnu_parts(extension[:504], parts)
        extended = extension[504]
        _limit(len(parts))
    return checked(size, parts, stored)


def _old_gnu_parts(field: bytes, parts: list[tuple[int, int]]) -> None:
    for at in range(0, len(field), 24):
        if field[at] == 0:
            return
        parts.append((number(field[at : at + 12], "sparse offset"), number(field[at + 12 : at + 24], "sparse length")))


def pax_0(size: int, numbers: Sequence[bytes], stored: int) -> SparseMap:
    """The map of formats 0.0 and 0.1: offsets and lengths in turn."""
    if len(numbers) % 2:
        raise InvalidHeader("sparse map with an odd number of fields")
    _limit(len(numbers) // 2)
    values = [pax.unsigned(value, "sparse map") for value in numbers]
    return checked(size, list(zip(values[::2], values[1::2], strict=True)), stored)


def pax_1(size: int, stored: int, stream: ByteStream) -> tuple[SparseMap, int]:
    """The map of format 1.0, which precedes the data; also returns how many bytes of the data it takes."""
    text = b""
    taken = 0

    def numbers(count: int) -> list[int]:
        nonlocal text, taken
        while text.count(b"\n") < count:
            if taken + BLOCK > stored:
                raise InvalidHeader("sparse map longer than its entry")
            text += stream.take(BLOCK)
            taken += BLOCK
        *lines, text = text.split(b"\n", count)
        return [pax.unsigned(line, "sparse map") for line in lines]

    (count,) = numbers(1)
    _limit(count)
    parts: list[tuple[int, int]] = []
    for _ in range(count):
        offset, length = numbers(2)
        parts.append((offset, length))
    return checked(size, parts, stored - taken), taken


def _limit(count: int) -> None:
    if count > PARTS_LIMIT:
        raise FieldTooLong(f"sparse map of {count} parts, at most {PARTS_LIMIT} are read")
