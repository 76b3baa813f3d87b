"""A tree of files as an EROFS image: its metadata in one file, the data of its files one after the other in another.

A workload shaped the tree: it is walked by descriptor, no link is followed, and what changes meanwhile is an error.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from orlop.erofs import layout
from orlop.erofs.directories import ROOT, Target, target_of
from orlop.erofs.writer import ImageWriter
from orlop.errors import Unknown

_MAX_DEPTH = 512
_PIECE = 1 << 24
_SPARSE_BITS = 7
"""Chunks of a sparse file have at least so many blocks (a power of two): 64 KiB."""
_CHUNKS_BITS = 16
"""A file has at most so many chunks (a power of two)."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o7777


def write_image(tree: str, image: int, data: int) -> None:
    """Writes what is at and below `tree` to the empty files `image` and `data`. Whiteouts stay what overlay has.

    Raises Unknown for a tree that is deeper than 512 levels, has what EROFS cannot hold, or changes meanwhile.
    """
    try:
        _Tree(ImageWriter(image), data).write(tree)
    except (OSError, layout.Unrepresentable) as error:
        text = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise Unknown(f"image of {tree}: {text}") from error


class _Tree:
    def __init__(self, image: ImageWriter, data: int) -> None:
        self._image = image
        self._data = data
        self._end = 0
        self._links: dict[tuple[int, int], Target] = {}

    def write(self, tree: str) -> None:
        with ExitStack() as closing:
            root = os.open(tree, _OPEN)
            closing.callback(os.close, root)
            status = os.fstat(root)
            self._image.directories.set(ROOT, status.st_mode & _MODE, status.st_uid, status.st_gid, status.st_mtime_ns)
            self._set_xattrs(root, ROOT)
            self._directory(root, ROOT, 0)
        self._image.finish([self._end])

    def _directory(self, fd: int, number: int, depth: int) -> None:
        if depth >= _MAX_DEPTH:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        names = self._image.directories.names(number)
        for text in sorted(os.listdir(fd)):
            name = os.fsencode(text)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                names[name] = target_of(self._inner(fd, name, number, depth))
            else:
                names[name] = self._file(fd, name, status)

    def _inner(self, fd: int, name: bytes, parent: int, depth: int) -> int:
        inner = os.open(name, _OPEN, dir_fd=fd)
        try:
            status = os.fstat(inner)
            made = self._image.directories.add(
                parent, status.st_mode & _MODE, status.st_uid, status.st_gid, status.st_mtime_ns
            )
            self._set_xattrs(inner, made)
            self._directory(inner, made, depth + 1)
        finally:
            os.close(inner)
        return made

    def _set_xattrs(self, fd: int, number: int) -> None:
        found = _xattrs(fd)
        if found:
            self._image.directories.xattrs[number] = found

    def _file(self, fd: int, name: bytes, status: os.stat_result) -> Target:
        identity = (status.st_dev, status.st_ino)
        known = self._links.get(identity)
        if known is not None:
            inode = self._image.inode(known)
            inode.links += 1
            self._image.change(inode)
            return known
        made = self._new(fd, name, status)
        if status.st_nlink > 1:
            self._links[identity] = made
        return made

    def _new(self, fd: int, name: bytes, status: os.stat_result) -> Target:
        owner = status.st_uid, status.st_gid
        mtime = status.st_mtime_ns
        if stat.S_ISREG(status.st_mode):
            file = os.open(name, _FILE, dir_fd=fd)
            try:
                status = os.fstat(file)
                mode, size, xattrs = status.st_mode & _MODE, status.st_size, _xattrs(file)
                if status.st_blocks * 512 < size:
                    bits = max(_SPARSE_BITS, (size >> layout.BLOCK_BITS >> _CHUNKS_BITS).bit_length())
                    chunks = self._sparse(file, size, layout.BLOCK << bits)
                    return self._image.chunked(mode, *owner, mtime, size, layout.CHUNK_INDEXES | bits, chunks, xattrs)
                block = self._end >> layout.BLOCK_BITS
                self._copy(file, 0, size)
                return self._image.regular(mode, *owner, mtime, size, block, xattrs)
            finally:
                os.close(file)
        # No descriptor can be had of these without side effects; the path leads through one that is held.
        xattrs = _xattrs(os.path.join(os.fsencode(f"/proc/self/fd/{fd}"), name))
        if stat.S_ISLNK(status.st_mode):
            return self._image.symlink(*owner, mtime, os.readlink(name, dir_fd=fd), xattrs)
        return self._image.special(status.st_mode, *owner, mtime, status.st_rdev, xattrs)

    def _sparse(self, file: int, size: int, chunk: int) -> list[tuple[int, int]]:
        """Copies what is not hole, a chunk at a time; returns where each chunk is."""
        chunks = []
        data = 0  # all before it is hole
        for start in range(0, size, chunk):
            end = min(start + chunk, size)
            if data <= start:
                data = _next_data(file, start, size)
            if data >= end:
                chunks.append((0, layout.HOLE))
                continue
            chunks.append((1, self._end >> layout.BLOCK_BITS))
            self._copy(file, start, end)
        return chunks

    def _copy(self, file: int, start: int, end: int) -> None:
        at = start
        while at < end:
            done = os.sendfile(self._data, file, at, min(end - at, _PIECE))
            if not done:
                raise OSError(errno.ESTALE, "a file became shorter while it was read")
            at += done
        self._end = layout.aligned(self._end + end - start, layout.BLOCK)
        os.ftruncate(self._data, self._end)
        os.lseek(self._data, self._end, os.SEEK_SET)


def _next_data(file: int, at: int, size: int) -> int:
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def _xattrs(of: int | bytes) -> dict[bytes, bytes]:
    follow = isinstance(of, int)
    try:
        names = os.listxattr(of, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return {}
        raise
    return {os.fsencode(name): os.getxattr(of, name, follow_symlinks=follow) for name in names}
