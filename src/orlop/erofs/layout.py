"""The structures of EROFS on disk, as far as images without compression need them.

Source of all facts: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Numbers are little-endian. What
is addressed by block is addressed in units of 512 bytes here, the smallest that EROFS knows, since members of a tar
archive begin at multiples of that.

    0       nothing
    1024    superblock, then a slot for each device that data lies on
            inodes, each at `32 * nid`, with their attributes, chunk indexes and short data behind them
            shared attributes, blocks of directories
"""

from __future__ import annotations

from struct import Struct

MAGIC = 0xE0F5E1E2
SUPERBLOCK_AT = 1024

BLOCK_BITS = 9
BLOCK = 1 << BLOCK_BITS
SLOT_BITS = 5
SLOT = 1 << SLOT_BITS
"""Inodes begin at multiples of this; a nid counts them."""

SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHHBB36x")
"""magic, checksum, compatible features, bits of a block, extensions, root, inodes, seconds, nanoseconds, blocks,
block of inodes (0: nids count from the start), block of shared attributes, uuid, volume, incompatible features,
compression, devices, where their slots are, bits of a directory's block above a block's, xattr prefixes.
"""
DEVICE = Struct("<64sII56x")
"""A tag, the device's blocks, and the block where it begins in a common numbering (unused: 0)."""

CHECKSUMMED = 0x1
MODIFICATION_TIMES = 0x2
CHUNKED_FILES = 0x4
DEVICE_TABLE = 0x8

EXTENDED = Struct("<HHHHQIIIIQII15xB")
"""format, xattr count, mode, 0, size, union, ino, uid, gid, seconds, nanoseconds, links, reserved.

The last of the reserved bytes is ours (the kernel passes over them): see `IMPLIED`.
"""
COMPACT = Struct("<HHHHIIIIHHI")
"""format, xattr count, mode, links, size, time since the superblock's, union, ino, uid, gid, 0."""

IMPLIED = 1
"""Marks a directory that its archive does not have, and that exists because something in it does."""

FORMAT_EXTENDED = 1
FLAT_PLAIN = 0 << 1
FLAT_INLINE = 2 << 1
CHUNK_BASED = 4 << 1
LAYOUT_MASK = 7 << 1

CHUNK_BITS_MASK = 0x1F
CHUNK_INDEXES = 0x20
CHUNK = Struct("<HHI")
"""0, device (0 is the image itself), block."""
HOLE = 0xFFFFFFFF
CHUNK_HOLE = CHUNK.pack(0xFFFF, 0, HOLE)
LARGEST_BLOCK = HOLE - 1

DIRENT = Struct("<QHBB")
"""nid, offset of the name in the block, type, 0."""
NAME_LIMIT = 255

REGULAR = 1
DIRECTORY = 2
CHARACTER = 3
BLOCK_DEVICE = 4
FIFO = 5
SOCKET = 6
SYMLINK = 7

FILE_TYPES = {
    0o100000: REGULAR,
    0o040000: DIRECTORY,
    0o020000: CHARACTER,
    0o060000: BLOCK_DEVICE,
    0o010000: FIFO,
    0o140000: SOCKET,
    0o120000: SYMLINK,
}
"""By the type bits of a mode."""


class Unrepresentable(ValueError):
    """What was to be written does not fit the format; the text says what."""


class Damaged(ValueError):
    """What was read is no image of this format; the text says where."""


def aligned(position: int, unit: int) -> int:
    """The first multiple of `unit`, a power of two, that is not before `position`."""
    return (position + unit - 1) & -unit
