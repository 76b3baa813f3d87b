"""Reads images as this package writes them: metadata, and where data lies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from orlop.erofs import directory, inode, layout, xattrs
from orlop.erofs.inode import Inode
from orlop.erofs.layout import BLOCK, BLOCK_BITS, Damaged
from orlop.erofs.superblock import DEVICES_LIMIT, Superblock, start_of_inodes

_WINDOW = 1 << 18
_LINK_LIMIT = 1 << 16


class ImageReader:
    """The image on `fd`, a file. Every method raises Damaged for what is not as it must be."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._window = b""
        self._window_at = 0
        self.superblock = Superblock.parse(os.pread(fd, start_of_inodes(DEVICES_LIMIT), 0))

    @property
    def devices(self) -> Sequence[int]:
        """The blocks of each device."""
        return self.superblock.devices

    def read(self, at: int, size: int) -> bytes:
        """Bytes of the image; fewer where it ends. Close ones are read together."""
        start = at - self._window_at
        if not 0 <= start <= start + size <= len(self._window):
            if size > _WINDOW:
                return os.pread(self._fd, size, at)
            self._window_at = at - at % BLOCK
            self._window = os.pread(self._fd, _WINDOW + BLOCK, self._window_at)
            start = at - self._window_at
        return self._window[start : start + size]

    def root(self) -> Inode:
        return self.inode(self.superblock.root)

    def inode(self, nid: int) -> Inode:
        return inode.read(self.read, nid, self.superblock.epoch)

    def entries(self, of: Inode) -> Iterator[tuple[bytes, int, int]]:
        """(name, nid, type) of what is in a directory, `.` and `..` left out."""
        for name, nid, type in directory.parse(self._data(of)):
            if name not in (b".", b".."):
                yield name, nid, type

    def link(self, of: Inode) -> bytes:
        """Where a symbolic link leads."""
        if of.size > _LINK_LIMIT:
            raise Damaged(f"symbolic link {of.nid} of {of.size} bytes")
        return self._data(of)

    def xattrs(self, of: Inode) -> dict[bytes, bytes]:
        area = self.superblock.xattrs_block << BLOCK_BITS
        return xattrs.decode(
            self.read(of.body, of.xattr_size), lambda at: self.read(area + at, xattrs.SHARED_SIZE_LIMIT)
        )

    def chunks(self, of: Inode) -> Sequence[tuple[int, int]]:
        """(device, block) of each chunk of a file, HOLE as block of those that are not stored; none of an empty one."""
        if of.form != layout.CHUNK_BASED:
            if of.size:
                raise Damaged(f"file {of.nid} without chunks")
            return ()
        if of.tail_size > self._size:
            raise Damaged(f"file {of.nid} of {of.size} bytes")
        return inode.chunks(self.read, of)

    def _data(self, of: Inode) -> bytes:
        """What the image itself holds of a directory or a symbolic link."""
        if of.form == layout.CHUNK_BASED or of.size > self._size:
            raise Damaged(f"inode {of.nid} of {of.size} bytes")
        plain = of.size - of.tail_size
        data = self.read(of.value << BLOCK_BITS, plain) + self.read(of.tail, of.tail_size)
        if len(data) < of.size:
            raise Damaged(f"inode {of.nid} with data beyond the image")
        return data
