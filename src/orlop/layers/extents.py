"""The chunks of sparse files: which blocks of the archive, or none, each part of a file is."""

from __future__ import annotations

from orlop.erofs import layout
from orlop.erofs.layout import BLOCK, BLOCK_BITS, Unrepresentable
from orlop.layers.tar import Entry

_SIZE_LIMIT = 1 << 44
_CHUNKS_LIMIT = 1 << 22
"""Of all sparse files of an archive, so that what small entries claim stays small."""


class Extents:
    """Divides the sparse files of one archive into chunks."""

    def __init__(self) -> None:
        self._left = _CHUNKS_LIMIT

    def chunks(self, entry: Entry) -> tuple[int, list[tuple[int, int]]]:
        """The format and chunks of a file, as `ImageWriter.chunked` takes them. Raises Unrepresentable."""
        parts = entry.parts or ()
        size = entry.size
        if not size:
            return layout.CHUNK_INDEXES, []
        if size > _SIZE_LIMIT:
            raise Unrepresentable(f"sparse file of {size} bytes")
        bounds = entry.data_offset
        stored = entry.data_offset
        for offset, length in parts:
            bounds |= offset | stored
            if offset + length < size:
                bounds |= length
            stored += length
        if bounds % BLOCK:
            raise Unrepresentable("sparse file whose parts do not begin at multiples of 512")
        bits = self._chunk_bits(parts, size)
        step = BLOCK << bits
        count = -(-size // step)
        self._left -= count
        if self._left < 0:
            raise Unrepresentable(f"sparse files of more than {_CHUNKS_LIMIT} chunks")
        found = [(0, layout.HOLE)] * count
        stored = entry.data_offset
        for offset, length in parts:
            for at in range(0, length, step):
                found[(offset + at) // step] = (1, (stored + at) >> BLOCK_BITS)
            stored += length
        return layout.CHUNK_INDEXES | bits, found

    @staticmethod
    def _chunk_bits(parts: tuple[tuple[int, int], ...], size: int) -> int:
        """The largest chunks (in bits above a block) at whose bounds all parts begin and end."""
        whole = ((size + BLOCK - 1) // BLOCK - 1).bit_length()
        bounds = 0
        for offset, length in parts:
            bounds |= offset
            if offset + length < size:
                bounds |= offset + length
        if bounds:
            whole = min(whole, (bounds & -bounds).bit_length() - 1 - BLOCK_BITS)
        return min(whole, layout.CHUNK_BITS_MASK)
