"""Several images made into one, as overlayfs would show them on top of each other.

For chains of layers that are longer than the kernel's lists of lower directories, and for directories that an upper
layer only implies: those get the attributes that they have below. Rules: Linux, Documentation/filesystems/overlayfs.rst
(whiteouts, opaque directories).
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from orlop.erofs import layout
from orlop.erofs.directories import ROOT, Target, target_of
from orlop.erofs.inode import Inode
from orlop.erofs.layout import NAME_LIMIT, Damaged
from orlop.erofs.reader import ImageReader
from orlop.erofs.writer import ImageWriter

OPAQUE = b"trusted.overlay.opaque"

_PERMISSIONS = 0o7777


@dataclass(frozen=True, slots=True)
class Merged:
    """`entries` are the files and directories of the image, `devices` how many it lies on: all images' in turn."""

    entries: int
    image_size: int
    devices: int


def merge(images: Sequence[int], out: int, *, whole: bool = True, entries_limit: int = 10_000_000) -> Merged:
    """Writes to `out`, empty and open for reading and writing, what `images` (bottom first) are together.

    Its devices are those of the first image, then those of the second, and so on. Unless the images are the `whole` of
    a chain, whiteouts and opaque directories remain, for what lies below. Raises Damaged for an image that is not as
    this package writes them, Unrepresentable for too many devices or entries.
    """
    readers = [ImageReader(fd) for fd in images]
    sizes = [blocks * layout.BLOCK for reader in readers for blocks in reader.devices]
    merging = _Merging(readers, ImageWriter(out, len(sizes)), whole, entries_limit)
    merging.run()
    return Merged(merging.entries, merging.image.finish(sizes), len(sizes))


_Place = tuple[int, Inode]
"""Which image, and what in it."""


class _Merging:
    def __init__(self, readers: Sequence[ImageReader], image: ImageWriter, whole: bool, entries_limit: int) -> None:
        self.image = image
        self.entries = 0
        self._readers = readers
        self._whole = whole
        self._limit = entries_limit
        self._linked: dict[tuple[int, int], Target] = {}
        """What files with several names have become."""
        self._devices: list[int] = []
        count = 0
        for reader in readers:
            self._devices.append(count)
            count += len(reader.devices)

    def run(self) -> None:
        """Goes through directories, parents before children."""
        roots = [(number, reader.root()) for number, reader in enumerate(self._readers)]
        roots.reverse()
        pending = [(ROOT, self._describe(ROOT, roots, len(roots)))]
        while pending:
            number, layers = pending.pop()
            for name, places in self._names(layers).items():
                child = self._child(number, name, places)
                if child is not None:
                    pending.append(child)

    def _names(self, layers: Sequence[_Place]) -> dict[bytes, list[tuple[int, int, int]]]:
        """What each name means in each of `layers`, topmost first: (image, nid, type)."""
        found: dict[bytes, list[tuple[int, int, int]]] = {}
        for number, directory in layers:
            for name, nid, type in self._readers[number].entries(directory):
                if not name or len(name) > NAME_LIMIT or b"/" in name:
                    raise Damaged(f"directory {directory.nid} with the name {name!r}")
                found.setdefault(name, []).append((number, nid, type))
        return found

    def _child(
        self, parent: int, name: bytes, places: Sequence[tuple[int, int, int]]
    ) -> tuple[int, list[_Place]] | None:
        """Adds what `name` means; of a directory returns what is to be gone through."""
        number, nid, _ = places[0]
        top = self._readers[number].inode(nid)
        if top.is_whiteout and self._whole:
            return None
        self.entries += 1
        if self.entries > self._limit:
            raise layout.Unrepresentable(f"more than {self._limit} entries")
        if not top.is_directory:
            self.image.directories.names(parent)[name] = self._file(number, top)
            return None
        layers = [(number, top)]
        for below, nid_below, type in places[1:]:
            if type != layout.DIRECTORY:
                break
            layers.append((below, self._readers[below].inode(nid_below)))
        made = self.image.directories.add(parent, 0, 0, 0, 0)
        self.image.directories.names(parent)[name] = target_of(made)
        return made, self._describe(made, layers, len(places))

    def _describe(self, made: int, layers: Sequence[_Place], places: int) -> list[_Place]:
        """Gives a directory the attributes of the topmost of `layers` whose archive has it.

        `layers` are the directories there, `places` counts what else has the name too. Returns those of `layers` that
        are seen together: down to the first opaque one.
        """
        number, found = next((one for one in layers if not one[1].implied), layers[0])
        table = self.image.directories
        table.set(made, found.mode & _PERMISSIONS, found.uid, found.gid, found.mtime)
        table.implied[made] = found.implied
        xattrs = self._readers[number].xattrs(found)
        xattrs.pop(OPAQUE, None)
        opaque = next((n for n, one in enumerate(layers) if self._readers[one[0]].xattrs(one[1]).get(OPAQUE)), None)
        if not self._whole and (opaque is not None or len(layers) < places):
            xattrs[OPAQUE] = b"y"
        if xattrs:
            table.xattrs[made] = xattrs
        return list(layers if opaque is None else layers[: opaque + 1])

    def _file(self, number: int, found: Inode) -> Target:
        if found.links < 2:
            return self._copy(number, found)
        key = (number, found.nid)
        known = self._linked.get(key)
        if known is None:
            made = self._linked[key] = self._copy(number, found)
            return made
        shared = self.image.inode(known)
        shared.links += 1
        self.image.change(shared)
        return known

    def _copy(self, number: int, found: Inode) -> Target:
        reader = self._readers[number]
        xattrs = reader.xattrs(found) if found.xattr_size else {}
        mode, uid, gid, mtime = found.mode, found.uid, found.gid, found.mtime
        if stat.S_ISLNK(mode):
            return self.image.symlink(uid, gid, mtime, reader.link(found), xattrs)
        if not stat.S_ISREG(mode):
            return self.image.special(mode, uid, gid, mtime, found.value, xattrs)
        shift = self._devices[number]
        chunks = [
            (device, block) if block == layout.HOLE else (device + shift, block)
            for device, block in reader.chunks(found)
        ]
        return self.image.chunked(mode, uid, gid, mtime, found.size, found.value, chunks, xattrs)
