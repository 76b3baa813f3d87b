"""Blocks of directories: entries in the order of their names, then the names.

A lookup searches the blocks, then the entries of one, by halves; so all entries must be in order, `.` and `..` among
them. A block holds what fits, and the last one is as long as its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct

from orlop.erofs import layout
from orlop.erofs.layout import BLOCK, Damaged

_ENTRY = layout.DIRENT.size


def size(names: Sequence[bytes]) -> int:
    """The bytes of a directory with `names`, sorted."""
    whole = _ENTRY * len(names) + sum(map(len, names))
    if whole <= BLOCK:
        return whole
    done = used = 0
    for name in names:
        needed = _ENTRY + len(name)
        if used + needed > BLOCK:
            done += BLOCK
            used = 0
        used += needed
    return done + used


def blocks(entries: Sequence[tuple[bytes, int, int]]) -> Iterator[bytes]:
    """The blocks of a directory with `entries`, sorted: (name, nid, type). All but the last are padded."""
    first = used = 0
    for number, (name, _, _) in enumerate(entries):
        needed = _ENTRY + len(name)
        if used + needed > BLOCK:
            yield _block(entries[first:number]).ljust(BLOCK, b"\0")
            first, used = number, 0
        used += needed
    yield _block(entries[first:])


def _block(entries: Sequence[tuple[bytes, int, int]]) -> bytes:
    offset = _ENTRY * len(entries)
    fields: list[int] = []
    for name, nid, type in entries:
        fields += (nid, offset, type, 0)
        offset += len(name)
    return _packer(len(entries)).pack(*fields) + b"".join([name for name, _, _ in entries])


@lru_cache(maxsize=64)
def _packer(count: int) -> Struct:
    return Struct("<" + "QHBB" * count)


def parse(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The entries of a directory whose blocks are `data`: (name, nid, type). Raises Damaged."""
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        if len(block) <= _ENTRY:
            raise Damaged("directory block cut short")
        first = layout.DIRENT.unpack_from(block)[1]
        if first % _ENTRY or not _ENTRY <= first < len(block):
            raise Damaged("directory block without entries")
        found = list(layout.DIRENT.iter_unpack(block[:first]))
        ends = [entry[1] for entry in found[1:]]
        last = block.find(0, found[-1][1])
        ends.append(len(block) if last < 0 else last)
        for (nid, offset, type, _), end in zip(found, ends, strict=True):
            if not first <= offset < end <= len(block) or end - offset > layout.NAME_LIMIT:
                raise Damaged("directory entry without a name")
            yield block[offset:end], nid, type
