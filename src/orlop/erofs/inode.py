"""Inodes: their fixed part, read and written in both of its forms."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orlop.erofs import layout
from orlop.erofs.layout import BLOCK, BLOCK_BITS, SLOT_BITS, Damaged, aligned

Read = Callable[[int, int], bytes]
"""The bytes at an offset of an image; fewer where it ends."""

_SECOND = 1_000_000_000


@dataclass(slots=True)
class Inode:
    """`value` is a device number, a chunk format or the first block of data, as type and `form` have it.

    `mtime` is in nanoseconds; `head` and `xattr_size` are the bytes of the fixed part and of the attributes behind it.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    mtime: int
    links: int
    size: int
    form: int
    value: int
    head: int = layout.EXTENDED.size
    xattr_size: int = 0
    implied: bool = False

    def pack(self) -> bytes:
        """The fixed part in its extended form."""
        seconds, nanoseconds = divmod(self.mtime, _SECOND)
        return layout.EXTENDED.pack(
            layout.FORMAT_EXTENDED | self.form,
            xattr_count(self.xattr_size),
            self.mode,
            0,
            self.size,
            self.value,
            self.nid & 0xFFFFFFFF,
            self.uid,
            self.gid,
            seconds,
            nanoseconds,
            self.links,
            layout.IMPLIED if self.implied else 0,
        )

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs takes it for one: a character device 0/0."""
        return stat.S_ISCHR(self.mode) and self.value == 0

    @property
    def file_type(self) -> int:
        return layout.FILE_TYPES[stat.S_IFMT(self.mode)]

    @property
    def body(self) -> int:
        """Where in the image its attributes begin."""
        return (self.nid << SLOT_BITS) + self.head

    @property
    def tail(self) -> int:
        """Where in the image its chunk indexes or its short data begin."""
        end = self.body + self.xattr_size
        return aligned(end, layout.CHUNK.size) if self.form == layout.CHUNK_BASED else end

    @property
    def chunk_bits(self) -> int:
        return BLOCK_BITS + (self.value & layout.CHUNK_BITS_MASK)

    @property
    def tail_size(self) -> int:
        """The bytes at `tail`."""
        if self.form == layout.CHUNK_BASED:
            return layout.CHUNK.size * -(-self.size >> self.chunk_bits)
        if self.form == layout.FLAT_INLINE:
            return self.size % BLOCK or min(self.size, BLOCK)
        return 0


def read(image: Read, nid: int, epoch: int = 0) -> Inode:
    """The inode `nid`; `epoch` is the time of compact ones. Raises Damaged."""
    block = image(nid << SLOT_BITS, layout.EXTENDED.size)
    if len(block) < layout.COMPACT.size:
        raise Damaged(f"inode {nid} beyond the image")
    format = block[0]
    form = format & layout.LAYOUT_MASK
    if format & layout.FORMAT_EXTENDED:
        if len(block) < layout.EXTENDED.size:
            raise Damaged(f"inode {nid} beyond the image")
        _, count, mode, _, size, value, _, uid, gid, seconds, nanoseconds, links, mark = layout.EXTENDED.unpack(block)
        mtime = seconds * _SECOND + nanoseconds
        head = layout.EXTENDED.size
    else:
        _, count, mode, links, size, _, value, _, uid, gid, _ = layout.COMPACT.unpack_from(block)
        mtime, mark, head = epoch, 0, layout.COMPACT.size
    if stat.S_IFMT(mode) not in layout.FILE_TYPES or form not in _FORMS:
        raise Damaged(f"inode {nid} of mode {mode:o} and format {format}")
    xattr_size = 12 + 4 * (count - 1) if count else 0
    return Inode(nid, mode, uid, gid, mtime, links, size, form, value, head, xattr_size, bool(mark & layout.IMPLIED))


def xattr_count(size: int) -> int:
    """What an inode says of `size` bytes of attributes."""
    return (size - 12) // 4 + 1 if size else 0


def chunk_format(size: int) -> int:
    """The format of a file of `size` bytes in as few chunks as possible."""
    blocks = -(-size >> BLOCK_BITS)
    return layout.CHUNK_INDEXES | min((blocks - 1).bit_length(), layout.CHUNK_BITS_MASK)


def chunks(image: Read, inode: Inode) -> Sequence[tuple[int, int]]:
    """(device, block) of each chunk of a file; (0, HOLE) for a hole. Raises Damaged."""
    data = image(inode.tail, inode.tail_size)
    if len(data) < inode.tail_size:
        raise Damaged(f"inode {inode.nid} with chunks beyond the image")
    return [
        (0, layout.HOLE) if block == layout.HOLE else (device, block)
        for _, device, block in layout.CHUNK.iter_unpack(data)
    ]


_FORMS = frozenset((layout.FLAT_PLAIN, layout.FLAT_INLINE, layout.CHUNK_BASED))
