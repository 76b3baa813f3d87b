"""A layer's tar, kept as it is, and an EROFS image of names and attributes that points into it.

What the image shows is what `apply` makes of the same archive below an overlay: each rule here has its counterpart
there. The archive is hostile input: paths are resolved in tables in memory, and nothing on this machine is touched but
the two files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from orlop.erofs import layout
from orlop.erofs.directories import ROOT, TYPE_BITS, TYPE_MASK, Target, target_of
from orlop.erofs.inode import Inode
from orlop.erofs.layout import NAME_LIMIT, Unrepresentable
from orlop.erofs.writer import ImageWriter
from orlop.errors import OrlopError, ResourceExhausted, Unknown
from orlop.layers import apply as application
from orlop.layers import attributes, tar, tree
from orlop.layers.apply import OPAQUE, OVERLAY_OPAQUE, WHITEOUT
from orlop.layers.extents import Extents
from orlop.layers.stream import ByteStream, Copied
from orlop.layers.tar import Entry, TarReader
from orlop.layers.tree import Path

_LINKS_LIMIT = 255
_PLACES_LIMIT = 4096
_TARGET_LIMIT = 4095
_TYPE_BITS = {
    tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.FIFO: stat.S_IFIFO,
}


class NotIndexable(Exception):
    """The archive is none that an index can show; the text says why. It can be unpacked, or fails then."""


@dataclass(frozen=True, slots=True)
class LayerIndex:
    """What was indexed: files and directories, the bytes of the archive and of the image.

    `implied` directories are not in the archive, but on the way to what is. Over a layer that has one of them, this
    one's must be given that one's attributes, as `orlop.erofs.merge` does.
    """

    entries: int
    tar_size: int
    image_size: int
    implied: int = 0
    whiteouts: int = 0
    """Names that the archive takes away from layers below."""


def index_layer(pieces: Iterable[bytes], tar_fd: int, image_fd: int, *, entries_limit: int = 10_000_000) -> LayerIndex:
    """Writes the archive `pieces` to `tar_fd` as it is, and its index to `image_fd`, which can be read and is empty.

    All of `pieces` is written, also what follows the archive's end, and before anything is raised about its content:
    NotIndexable, or what `tar` and `apply` raise for an archive that cannot be applied. Nothing is synced.
    """
    copy = Copied(pieces, tar_fd)
    chunks = iter(copy)
    stream = ByteStream(chunks)
    try:
        layer = _Layer(ImageWriter(image_fd), entries_limit)
        layer.read(TarReader(stream, entries_limit=entries_limit))
        stream.drain()
        image_size = layer.image.finish([copy.size])
    except Unrepresentable as error:
        _exhaust(chunks)
        raise NotIndexable(str(error)) from error
    except (OrlopError, NotIndexable):
        _exhaust(chunks)
        raise
    return LayerIndex(layer.entries, copy.size, image_size, layer.implied, layer.whiteouts)


def _exhaust(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


class _Layer:
    def __init__(self, image: ImageWriter, entries_limit: int) -> None:
        self.image = image
        self.entries = 0
        self.implied = 0
        self.whiteouts = 0
        self._limit = entries_limit
        self._directories = image.directories
        self._extents = Extents()
        self._places: dict[bytes, int] = {}
        """Directories by names' texts up to the last slash: as long as nothing on the way there is removed."""
        self._now = 0
        """The time of the entry under way: directories on the way to it are as old."""

    def read(self, reader: TarReader) -> None:
        first = True
        for entry in reader:
            self._now = attributes.modified(entry)
            if first:
                self._directories.mtimes[ROOT] = self._now
                first = False
            try:
                self._one(entry)
            except OSError as error:
                application.refuse(entry, error)

    def _one(self, entry: Entry) -> None:
        name = entry.name
        if entry.type == tar.DIRECTORY:
            name = name.rstrip(b"/")
        place, _, base = name.rpartition(b"/")
        parent = self._places.get(place)
        if parent is None or base in _SPECIAL_NAMES:
            path = tree.clean(name)
            if not path:
                return
            application.check_owner(entry)
            parent = self._resolve(path[:-1], make=True)
            if path[-1] == base:
                self._remember(place, parent)
            base = path[-1]
        else:
            application.check_owner(entry)
        if base.startswith(WHITEOUT):
            self._whiteout(entry, parent, base)
            return
        if len(base) > NAME_LIMIT and entry.type != tar.LINK:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        match entry.type:
            case tar.REGULAR:
                self._put(parent, base, self._regular(entry))
            case tar.DIRECTORY:
                self._remember(name, self._directory(entry, parent, base))
            case tar.SYMLINK:
                self._put(parent, base, self._symlink(entry))
            case tar.LINK:
                self._link(entry, parent, base)
            case tar.CHARACTER | tar.BLOCK_DEVICE | tar.FIFO:
                self._put(parent, base, self._special(entry))
            case _:
                raise Unknown(f"unhandled tar header type {entry.type[0]}")

    def _remember(self, place: bytes, directory: int) -> None:
        if len(self._places) >= _PLACES_LIMIT:
            self._places.clear()
        self._places[place] = directory

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limit:
            raise ResourceExhausted(f"archive of more than {self._limit} entries")

    def _put(self, parent: int, name: bytes, target: Target) -> None:
        """Makes `name` mean what was just added, and nothing else any more."""
        names = self._directories.names(parent)
        if name in names:
            self._remove(parent, name)
        else:
            self._count()
        names[name] = target

    def _remove(self, parent: int, name: bytes) -> None:
        """Takes `name`, and all that is below it, out of the tree."""
        target = self._directories.names(parent).pop(name)
        if target & TYPE_MASK in (layout.DIRECTORY, layout.SYMLINK):
            self._places.clear()
        pending = [target]
        while pending:
            target = pending.pop()
            if target & TYPE_MASK == layout.DIRECTORY:
                pending.extend(self._directories.drop(target >> TYPE_BITS).values())
                continue
            found = self.image.inode(target)
            if found.links > 1:
                found.links -= 1
                self.image.change(found)

    def _resolve(self, path: Path, *, make: bool) -> int:
        """The directory that `path` leads to, links followed within the root; see `tree.Tree.resolve`."""
        directories = self._directories
        at = ROOT
        ahead = list(reversed(path))
        links = 0
        while ahead:
            part = ahead.pop()
            if part == b"..":
                at = directories.parents[at]
                continue
            target = directories.get(at, part)
            if target is None:
                if len(part) > NAME_LIMIT:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                if not make:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                at = self._imply(at, part)
                continue
            kind = target & TYPE_MASK
            if kind == layout.DIRECTORY:
                at = target >> TYPE_BITS
                continue
            if kind != layout.SYMLINK:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            links += 1
            if links > _LINKS_LIMIT:
                raise Unknown(f"failed to get root path: {tree.shown(path)}: too many links")
            link = self.image.link_target(target)
            if link.startswith(b"/"):
                at = ROOT
            ahead.extend(piece for piece in reversed(link.split(b"/")) if piece and piece != b".")
        return at

    def _imply(self, parent: int, name: bytes) -> int:
        """A directory that has no entry, or none yet. A set-group-id parent hands its group on."""
        self._count()
        self.implied += 1
        directories = self._directories
        gid = directories.gids[parent] if directories.modes[parent] & stat.S_ISGID else 0
        made = directories.add(parent, 0o755, 0, gid, self._now, implied=True)
        directories.names(parent)[name] = target_of(made)
        return made

    def _regular(self, entry: Entry) -> Target:
        xattrs = attributes.xattrs(entry, stat.S_IFREG) if entry.xattrs else _NO_XATTRS
        if entry.parts is None:
            return self.image.regular(
                entry.mode, entry.uid, entry.gid, self._now, entry.size, entry.data_offset >> layout.BLOCK_BITS, xattrs
            )
        format, chunks = self._extents.chunks(entry)
        return self.image.chunked(entry.mode, entry.uid, entry.gid, self._now, entry.size, format, chunks, xattrs)

    def _symlink(self, entry: Entry) -> Target:
        if not entry.link:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if len(entry.link) > _TARGET_LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return self.image.symlink(entry.uid, entry.gid, self._now, entry.link, attributes.xattrs(entry, stat.S_IFLNK))

    def _special(self, entry: Entry) -> Target:
        device = application.device(entry)
        if device >> 32:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        kind = _TYPE_BITS[entry.type]
        return self.image.special(
            kind | entry.mode & 0o7777, entry.uid, entry.gid, self._now, device, attributes.xattrs(entry, kind)
        )

    def _directory(self, entry: Entry, parent: int, name: bytes) -> int:
        directories = self._directories
        found = directories.get(parent, name)
        if found is not None and found & TYPE_MASK == layout.DIRECTORY:
            number = found >> TYPE_BITS
            self.implied -= directories.implied[number]
            directories.set(number, entry.mode, entry.uid, entry.gid, self._now)
        else:
            number = directories.add(parent, entry.mode, entry.uid, entry.gid, self._now)
            self._put(parent, name, target_of(number))
        had = directories.xattrs.get(number)
        if entry.xattrs or had:
            changed = {**(had or {}), **attributes.xattrs(entry, stat.S_IFDIR)}
            directories.xattrs[number] = attributes.after_chmod(changed, entry.mode)
        return number

    def _link(self, entry: Entry, parent: int, name: bytes) -> None:
        path = tree.clean(entry.link)
        if not path:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        try:
            place = self._resolve(path[:-1], make=False)
        except FileNotFoundError as error:
            raise NotIndexable(_beyond(entry)) from error
        if (place, path[-1]) == (parent, name):
            return
        target = self._directories.get(place, path[-1])
        if target is None:
            raise NotIndexable(_beyond(entry))
        if target & TYPE_MASK == layout.DIRECTORY:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if len(name) > NAME_LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._put(parent, name, target)
        if self._directories.get(place, path[-1]) is None:
            raise NotIndexable(_beyond(entry))  # It was in what `name` had been until now.
        found = self.image.inode(target)
        found.links += 1
        self._set(found, entry)

    def _set(self, found: Inode, entry: Entry) -> None:
        """Gives a file with several names the attributes of the entry of one of them, as chown and its like do."""
        kind = stat.S_IFMT(found.mode)
        found.uid, found.gid, found.mtime = entry.uid, entry.gid, self._now
        if kind != stat.S_IFLNK:
            found.mode = kind | entry.mode & 0o7777
        if not entry.xattrs and not found.xattr_size:
            self.image.change(found)
            return
        had = self.image.xattrs(found)
        had.pop(attributes.CAPABILITY, None)
        had.update(attributes.xattrs(entry, kind))
        self.image.change(found, attributes.after_chmod(had, entry.mode) if kind != stat.S_IFLNK else had)

    def _whiteout(self, entry: Entry, parent: int, name: bytes) -> None:
        if name == OPAQUE:
            self._directories.xattrs.setdefault(parent, {})[OVERLAY_OPAQUE] = b"y"
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise Unknown(f"invalid whiteout name: {tree.shown((name,))[1:]}: invalid archive")
        self.whiteouts += 1
        if len(hidden) > NAME_LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._put(parent, hidden, self.image.special(stat.S_IFCHR, entry.uid, entry.gid, self._now))


_NO_XATTRS: Mapping[bytes, bytes] = {}
_SPECIAL_NAMES = frozenset((b"", b".", b".."))


def _beyond(entry: Entry) -> str:
    shown = entry.link[:256].decode("utf-8", "backslashreplace")
    return f"hard link to {shown!r}, which is not in the same layer"
