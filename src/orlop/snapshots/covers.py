"""Directories that a kept layer only implies, as they are in the layers below it.

An index shows a directory that its archive does not have with a mode of its own, and an overlay shows what the topmost
of its directories says. So over such a layer comes its *cover*: an image of nothing but those directories, and the ones
on the way to them, with the attributes that they have below. It is one file of the snapshot, `snapshots/<id>/cover`,
since that alone knows what is below; it can be made again at any time, and is empty where there is nothing to mend.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orlop import faults
from orlop.core.snapshot import Usage
from orlop.erofs import layout
from orlop.erofs.directories import ROOT, target_of
from orlop.erofs.inode import Inode
from orlop.erofs.layout import Damaged, Unrepresentable
from orlop.erofs.reader import ImageReader
from orlop.erofs.writer import ImageWriter
from orlop.errors import DataLoss, Unavailable, of_call
from orlop.mounts import overlay
from orlop.mounts import syscalls as sc
from orlop.snapshots.layer_mounts import LayerMounts
from orlop.snapshots.layer_records import LayerRecords

_NAME = "cover"
_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_BELOW = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC


class Covers:
    """Covers of the snapshots below `root`. Safe to use from several threads."""

    def __init__(self, root: Path, records: LayerRecords) -> None:
        self._snapshots = root / "snapshots"
        self._records = records
        self._making = threading.RLock()  # again for what is below
        self.mounts = LayerMounts(root / "l" / "c", self._files)

    def ensure(self, id: int, index: Callable[[], str], lowers: Callable[[], Sequence[str]]) -> None:
        """Makes the cover of the snapshot `id` if it is not there.

        `index` is that of the snapshot's layer, `lowers` are the directories below it, nearest first, as an overlay
        has them. Raises DataLoss for a damaged index, ResourceExhausted for a full disk.
        """
        with self._making:
            if not os.path.lexists(self._path(id)):
                self._make(id, index(), lowers())

    def has(self, id: int) -> bool:
        """Whether there is a cover, and one that says something."""
        try:
            return bool(os.lstat(self._path(id)).st_size)
        except FileNotFoundError:
            return False

    def usage(self, id: int) -> Usage:
        try:
            return Usage(os.lstat(self._path(id)).st_blocks * 512, 1)
        except FileNotFoundError:
            return Usage(0, 0)

    def cleanup(self) -> None:
        """Takes off the mounts of snapshots that are gone; their files have gone with them."""
        with self._records.transaction():
            self.mounts.release(self._records.snapshots)

    def close(self) -> None:
        """Takes off the mounts that no active snapshot or view lies over. Safe to call again."""
        with contextlib.suppress(Unavailable), self._records.transaction():
            self.mounts.release(lambda: set(self._records.in_use()))

    def _make(self, id: int, index: str, lowers: Sequence[str]) -> None:
        made = f"{self._path(id)}.new"
        try:
            with contextlib.ExitStack() as stack:
                image = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, image)
                out = os.open(made, _NEW, 0o400)
                stack.callback(os.close, out)
                below = stack.enter_context(_seen_together(lowers))
                _Cover(ImageReader(image), out, below).write()
                os.fsync(out)
            faults.point("snapshots.covers.synced")
            os.rename(made, self._path(id))
        except (Damaged, Unrepresentable) as error:
            raise DataLoss(f"layer index {index}: {error}") from error
        except OSError as error:
            raise of_call(error, f"failed to cover layer index {index}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)

    def _files(self, id: int) -> tuple[str, Sequence[str]]:
        return self._path(id), ()

    def _path(self, id: int) -> str:
        return str(self._snapshots / str(id) / _NAME)


class _Cover:
    def __init__(self, layer: ImageReader, out: int, below: int) -> None:
        self._layer = layer
        self._image = ImageWriter(out, 0)
        self._below = below
        self._numbers: dict[bytes, int] = {b"": ROOT}

    def write(self) -> None:
        """Writes the image, or nothing where all implied directories are below as they are here, or not at all."""
        root = self._layer.root()
        self._set(ROOT, root)
        pending: list[tuple[bytes, Sequence[Inode]]] = [(b"", (root,))]
        while pending:
            path, way = pending.pop()
            for name, nid, type in self._layer.entries(way[-1]):
                if type == layout.DIRECTORY:
                    here = path + b"/" + name if path else name
                    inner = (*way, self._layer.inode(nid))
                    if inner[-1].implied:
                        self._mend(here, inner)
                    pending.append((here, inner))
        if len(self._numbers) > 1:
            self._image.finish(())

    def _mend(self, path: bytes, way: Sequence[Inode]) -> None:
        try:
            found = sc.openat2(self._below, path, _BELOW, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise
            self._inherit(path, way)
            return
        try:
            status, xattrs = os.fstat(found), _xattrs(found)
        finally:
            os.close(found)
        number = self._add(path, way)
        self._image.directories.set(number, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        if xattrs:
            self._image.directories.xattrs[number] = xattrs

    def _inherit(self, path: bytes, way: Sequence[Inode]) -> None:
        """A directory that the layer brings has its group from one above it that is set-group-id, and mended."""
        table = self._image.directories
        parent = self._numbers.get(path.rpartition(b"/")[0])
        if parent and table.modes[parent] & stat.S_ISGID and table.gids[parent] != way[-1].gid:
            table.gids[self._add(path, way)] = table.gids[parent]

    def _add(self, path: bytes, way: Sequence[Inode]) -> int:
        """The directory `path`, whose inodes from the root on are `way`, with those on the way to it."""
        known = self._numbers.get(path)
        if known is not None:
            return known
        above, _, name = path.rpartition(b"/")
        parent = self._add(above, way[:-1])
        made = self._numbers[path] = self._image.directories.add(parent, 0, 0, 0, 0)
        self._image.directories.names(parent)[name] = target_of(made)
        self._set(made, way[-1])
        return made

    def _set(self, number: int, found: Inode) -> None:
        """Gives a directory the attributes that it has in the layer, but for what hides directories below."""
        self._image.directories.set(number, stat.S_IMODE(found.mode), found.uid, found.gid, found.mtime)
        xattrs = {name: value for name, value in self._layer.xattrs(found).items() if not _is_private(name)}
        if xattrs:
            self._image.directories.xattrs[number] = xattrs


@contextlib.contextmanager
def _seen_together(lowers: Sequence[str]) -> Iterator[int]:
    """The directory that an overlay of `lowers` is, mounted nowhere."""
    if len(lowers) == 1:
        fd = os.open(lowers[0], _BELOW)
    else:
        fd = overlay.detached("overlay", 0, [f"lowerdir={':'.join(lowers)}"])
    try:
        yield fd
    finally:
        os.close(fd)


def _is_private(name: bytes) -> bool:
    return name.startswith(b"trusted.")


def _xattrs(fd: int) -> dict[bytes, bytes]:
    try:
        names = [os.fsencode(name) for name in os.listxattr(fd)]
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    return {name: os.getxattr(fd, name) for name in names if not _is_private(name)}
