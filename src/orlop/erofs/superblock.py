"""The superblock and the devices that data lies on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orlop.erofs import layout
from orlop.erofs.layout import BLOCK, SUPERBLOCK_AT, Damaged, Unrepresentable, aligned

DEVICES_LIMIT = 8192
"""The root's nid has 16 bits, and the slots of all devices lie before it."""

_CHECKSUM_SEED = 0x5045B54A
_END = (SUPERBLOCK_AT // BLOCK + 1) * BLOCK
"""Of the block that the superblock begins in: so far goes its checksum."""
_KNOWN = layout.CHUNKED_FILES | layout.DEVICE_TABLE


@dataclass(frozen=True, slots=True)
class Superblock:
    """`epoch` (nanoseconds) is the time of compact inodes; `devices` are the blocks of each device."""

    root: int
    inodes: int
    blocks: int
    xattrs_block: int
    uuid: bytes
    devices: tuple[int, ...]
    epoch: int = 0

    def __bytes__(self) -> bytes:
        """All of the image before its first inode."""
        seconds, nanoseconds = divmod(self.epoch, 1_000_000_000)
        image = bytearray(start_of_inodes(len(self.devices)))
        layout.SUPERBLOCK.pack_into(
            image,
            SUPERBLOCK_AT,
            layout.MAGIC,
            0,
            layout.CHECKSUMMED | layout.MODIFICATION_TIMES,
            layout.BLOCK_BITS,
            0,
            self.root,
            self.inodes,
            seconds,
            nanoseconds,
            self.blocks,
            0,
            self.xattrs_block,
            self.uuid,
            bytes(16),
            _KNOWN,
            0,
            len(self.devices),
            _DEVICES_AT // layout.DEVICE.size,
            0,
            0,
        )
        for number, blocks in enumerate(self.devices):
            layout.DEVICE.pack_into(image, _DEVICES_AT + number * layout.DEVICE.size, b"", blocks, 0)
        checksum = crc32c(_CHECKSUM_SEED, image[SUPERBLOCK_AT + 8 : _END])
        image[SUPERBLOCK_AT + 4 : SUPERBLOCK_AT + 8] = checksum.to_bytes(4, "little")
        return bytes(image)

    @classmethod
    def parse(cls, start: bytes) -> Superblock:
        """Of the first bytes of an image of ours, device slots included. Raises Damaged."""
        if len(start) < _END:
            raise Damaged("image shorter than its superblock")
        fields = layout.SUPERBLOCK.unpack_from(start, SUPERBLOCK_AT)
        magic, checksum, _, block_bits = fields[:4]
        if magic != layout.MAGIC:
            raise Damaged("no EROFS image")
        if block_bits != layout.BLOCK_BITS or fields[14] & ~_KNOWN or fields[10] != 0:
            raise Damaged("EROFS image of another kind")
        if crc32c(_CHECKSUM_SEED, start[SUPERBLOCK_AT + 8 : _END]) != checksum:
            raise Damaged("superblock with a wrong checksum")
        count, slots = fields[16], fields[17] * layout.DEVICE.size
        if slots + count * layout.DEVICE.size > len(start):
            raise Damaged("image shorter than its device slots")
        return cls(
            root=fields[5],
            inodes=fields[6],
            blocks=fields[9],
            xattrs_block=fields[11],
            uuid=fields[12],
            devices=tuple(
                layout.DEVICE.unpack_from(start, slots + number * layout.DEVICE.size)[1] for number in range(count)
            ),
            epoch=fields[7] * 1_000_000_000 + fields[8],
        )


_DEVICES_AT = SUPERBLOCK_AT + 128


def start_of_inodes(devices: int) -> int:
    """Where inodes begin in an image over so many devices. Raises Unrepresentable for too many."""
    if devices > DEVICES_LIMIT:
        raise Unrepresentable(f"{devices} devices, at most {DEVICES_LIMIT} are possible")
    return aligned(_DEVICES_AT + devices * layout.DEVICE.size, BLOCK)


def device_blocks(sizes: Sequence[int]) -> tuple[int, ...]:
    """The blocks of files of `sizes` bytes. Raises Unrepresentable beyond 2 TiB."""
    blocks = tuple((size + BLOCK - 1) >> layout.BLOCK_BITS for size in sizes)
    if any(count > layout.LARGEST_BLOCK for count in blocks):
        raise Unrepresentable("device of more than 2 TiB")
    return blocks


def crc32c(seed: int, data: bytes | bytearray) -> int:
    """CRC-32C (Castagnoli) without the inversions at begin and end, as the kernel computes it."""
    table = _table()
    crc = seed
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _table() -> list[int]:
    if not _TABLE:
        for value in range(256):
            crc = value
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
            _TABLE.append(crc)
    return _TABLE


_TABLE: list[int] = []
