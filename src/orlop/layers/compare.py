"""The layer that makes one directory tree out of another, as a tar stream (OCI image-spec, layer.md, "Change Types").

Both trees are walked together, by name; what they hold is opened by descriptor, one name at a time, so that a
workload that changes its tree meanwhile cannot lead the walk elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from orlop.errors import Unknown
from orlop.layers import tar, tree, write
from orlop.layers.tar import Entry

_CAPABILITY = "security.capability"
_SECOND = 1_000_000_000
_PIECE = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}


@dataclass(frozen=True, slots=True)
class _Node:
    """One name in a directory that is open as `parent`."""

    name: bytes
    parent: int
    stat: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.stat.st_mode)

    def link(self) -> bytes:
        return os.readlink(self.name, dir_fd=self.parent)

    def capability(self) -> bytes:
        fd = tree.handle(self.name, self.parent)
        try:
            return os.getxattr(tree.proc_path(fd), _CAPABILITY)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return b""
            raise
        finally:
            os.close(fd)


def compare(lower: str, upper: str, output: Callable[[bytes], object], *, epoch: int | None = None) -> None:
    """Writes to `output` the archive that makes `upper` of `lower`; `epoch` (nanoseconds) bounds modification times.

    Raises Unknown if a file changes its size while it is read.
    """
    comparison = _Comparison(output, epoch)
    below = os.open(lower, _DIRECTORY)
    try:
        above = os.open(upper, _DIRECTORY)
        try:
            comparison.directory(below, above, b"")
        finally:
            os.close(above)
    finally:
        os.close(below)
    output(write.END)


class _Comparison:
    def __init__(self, output: Callable[[bytes], object], epoch: int | None) -> None:
        self._output = output
        self._epoch = epoch
        self._pending: list[tuple[bytes, _Node]] = []
        """The directories the walk is in that have not been written: they precede a change inside."""
        self._sources: dict[tuple[int, int], bytes] = {}
        """Where an inode of several names has been written."""
        self._unchanged: dict[tuple[int, int], list[tuple[bytes, list[Entry]]]] = {}
        """Names of an inode that were met before any change of it, each with the directories on the way to it."""
        self._written: set[bytes] = set()
        """Directories that have been written."""

    def directory(self, lower: int | None, upper: int, path: bytes) -> None:
        """Compares what is in two open directories; `path` ends with a slash, or is empty for the root."""
        old = _list(lower) if lower is not None else {}
        new = _list(upper)
        for name in sorted(old.keys() | new.keys()):
            before, after = old.get(name), new.get(name)
            if after is None:
                self._emit(write.whiteout(path, name))
                continue
            here = path + name
            if after.is_directory:
                self._enter(before, after, here + b"/")
            elif before is None or not _same(before, after):
                self._changed(here, after)
            elif after.stat.st_nlink > 1:
                self._met_unchanged(here, after)

    def _enter(self, before: _Node | None, after: _Node, path: bytes) -> None:
        merged = before is not None and before.is_directory
        self._pending.append((path, after))
        if before is None or not _same(before, after):
            self._write_pending()
        upper = os.open(after.name, _DIRECTORY, dir_fd=after.parent)
        try:
            lower = os.open(before.name, _DIRECTORY, dir_fd=before.parent) if merged and before is not None else None
            try:
                self.directory(lower, upper, path)
            finally:
                if lower is not None:
                    os.close(lower)
        finally:
            os.close(upper)
        if self._pending and self._pending[-1][0] == path:
            self._pending.pop()

    def _changed(self, path: bytes, node: _Node) -> None:
        kind = _TYPES.get(stat.S_IFMT(node.stat.st_mode))
        if kind is None:
            return  # A socket: it means nothing without the process that listens on it.
        entry = self._entry(path, kind, node)
        if node.stat.st_nlink > 1:
            inode = (node.stat.st_dev, node.stat.st_ino)
            if source := self._sources.get(inode):
                self._emit(_as_link(entry, path, source))
                return
            self._sources[inode] = path
            self._write_file(entry, node)
            for other, parents in self._unchanged.pop(inode, ()):
                for parent in parents:
                    self._write_directory(parent)
                self._output(write.head(_as_link(entry, other, path)))
            return
        self._write_file(entry, node)

    def _met_unchanged(self, path: bytes, node: _Node) -> None:
        inode = (node.stat.st_dev, node.stat.st_ino)
        if inode in self._sources:
            self._changed(path, node)
        else:
            # The directories are closed by the time a change may be met: what they are is read now.
            parents = [self._entry(above, tar.DIRECTORY, there) for above, there in self._pending]
            self._unchanged.setdefault(inode, []).append((path, parents))

    def _write_file(self, entry: Entry, node: _Node) -> None:
        if entry.type != tar.REGULAR or not entry.size:
            self._emit(entry)
            return
        fd = os.open(node.name, _FILE, dir_fd=node.parent)
        try:
            self._emit(entry)
            missing = entry.size
            while missing and (data := os.read(fd, min(missing, _PIECE))):
                self._output(data)
                missing -= len(data)
            if missing:
                raise Unknown(f"short write copying file: {tree.shown(tree.clean(entry.name))}")
            self._output(write.padding(entry.size))
        finally:
            os.close(fd)

    def _emit(self, entry: Entry) -> None:
        self._write_pending()
        self._output(write.head(entry))

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, []
        for path, node in pending:
            if path not in self._written:
                self._write_directory(self._entry(path, tar.DIRECTORY, node))

    def _write_directory(self, entry: Entry) -> None:
        if entry.name not in self._written:
            self._written.add(entry.name)
            self._output(write.head(entry))

    def _entry(self, path: bytes, kind: bytes, node: _Node) -> Entry:
        found = node.stat
        capability = node.capability() if kind == tar.REGULAR else b""
        size = found.st_size if kind == tar.REGULAR else 0
        mtime = found.st_mtime_ns if self._epoch is None else min(found.st_mtime_ns, self._epoch)
        device = kind in (tar.CHARACTER, tar.BLOCK_DEVICE)
        return Entry(
            name=path,
            type=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            size=size,
            mtime=mtime // _SECOND * _SECOND,
            data_offset=0,
            stored=size,
            link=node.link() if kind == tar.SYMLINK else b"",
            major=os.major(found.st_rdev) if device else 0,
            minor=os.minor(found.st_rdev) if device else 0,
            xattrs={_CAPABILITY.encode(): capability} if capability else {},
        )


def _as_link(entry: Entry, name: bytes, source: bytes) -> Entry:
    return replace(entry, name=name, type=tar.LINK, link=source, size=0, stored=0)


def _list(fd: int) -> dict[bytes, _Node]:
    names = os.listdir(os.fsencode(tree.proc_path(fd)))
    return {name: _Node(name, fd, os.stat(name, dir_fd=fd, follow_symlinks=False)) for name in names}


def _same(before: _Node, after: _Node) -> bool:
    old, new = before.stat, after.stat
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return True
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return False
    if before.capability() != after.capability():
        return False
    if after.is_directory:
        return True
    if old.st_size != new.st_size or old.st_mtime_ns // _SECOND != new.st_mtime_ns // _SECOND:
        return False
    if old.st_mtime_ns % _SECOND or new.st_mtime_ns % _SECOND:
        return old.st_mtime_ns == new.st_mtime_ns
    # Whole seconds on both sides: an archive may have cut them, so that only the content can tell.
    if stat.S_ISLNK(new.st_mode):
        return before.link() == after.link()
    return not stat.S_ISREG(new.st_mode) or not new.st_size or _same_content(before, after)


def _same_content(before: _Node, after: _Node) -> bool:
    return all(old == new for old, new in zip(_content(before), _content(after), strict=False))


def _content(node: _Node) -> Iterator[bytes]:
    fd = os.open(node.name, _FILE, dir_fd=node.parent)
    try:
        while data := os.read(fd, _PIECE):
            yield data
    finally:
        os.close(fd)
