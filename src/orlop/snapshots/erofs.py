"""The erofs snapshotter: each committed snapshot is an EROFS image, which whoever mounts it takes from the file.

Its mounts need the mount manager (`core.activation`). Layout, containerd's: `snapshots/<id>/` with `fs`, `work`,
`.erofslayer` (for differs that look for it), `layer.erofs`, and with `default_size` the writable `rwlayer.img`. Ours:
`layer.data`, what the image's files hold, where the image has metadata alone: a layer's tar, or files of a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from orlop import faults
from orlop.core.layer import KeptLayer, Traits
from orlop.core.mount import Mount
from orlop.core.snapshot import Kind, Usage
from orlop.erofs.layout import Damaged
from orlop.erofs.reader import ImageReader
from orlop.errors import FailedPrecondition, InvalidArgument, Unknown
from orlop.mounts.image import opened
from orlop.mounts.mount import reason
from orlop.snapshots import idmap, trees
from orlop.snapshots.directories import DirectorySnapshotter, make_directory, sync_directory
from orlop.snapshots.image_of_tree import write_image
from orlop.snapshots.storage import Record

IMAGE, DATA = "layer.erofs", "layer.data"
MAX_SIZE_LABEL = "containerd.io/snapshot/max-size"

_MARK = ".erofslayer"
_WRITABLE = "rwlayer.img"
_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_ONLY = ("ro", "loop")


class ErofsSnapshotter(DirectorySnapshotter):
    """Snapshots below `root`. `mount_options` are added to every overlay; with `default_size` (bytes) what a container
    writes goes to an image of that size, or of the size that the label for it says."""

    takes_images = True
    """A differ may give a place here an image that is whole by itself, and no tar."""

    def __init__(self, root: Path, *, mount_options: Sequence[str] = (), default_size: int = 0) -> None:
        super().__init__(root)
        self._options = tuple(mount_options)
        self._default_size = default_size

    def place(self, mounts: Sequence[Mount]) -> AbstractContextManager[Place] | None:
        """As `core.layer.LayerKeeper` says."""
        id = self._id_of(mounts)
        if id is None or self._has_image(id) or os.listdir(self._content(id)):
            return None
        return _place(self._directory(id))

    def current(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """As `core.layer.LayerKeeper` says."""
        id = self._id_of(mounts)
        return [self._image(id)] if id is not None and len(mounts) == 1 and self._has_image(id) else mounts

    def place_ahead(self, life: float) -> None:
        """None: a layer is part of its snapshot here."""

    def forget_ahead(self) -> None:
        """Nothing: a layer is part of its snapshot here."""

    def files(self, diff_id: str) -> None:
        """None: a layer is part of its snapshot here, and has no name of its own."""

    def remember(self, diff_id: str, source: str) -> None:
        """Nothing: no other snapshot has the same files."""

    def distrust(self, diff_id: str) -> None:
        """Nothing: no other snapshot has the same files."""

    def _id_of(self, mounts: Sequence[Mount]) -> int | None:
        """The snapshot whose directory `mounts` write to, if it is one of these."""
        if not mounts or "ro" in mounts[-1].options:
            return None
        last = mounts[-1]
        upper = next(
            (option.removeprefix("upperdir=") for option in last.options if option.startswith("upperdir=")), ""
        )
        written = upper or last.source
        if written.startswith("{{") and mounts[0].type.startswith("mkfs/"):
            written = mounts[0].source.removesuffix(_WRITABLE) + "fs"
        id = written.removeprefix(f"{self._snapshots}/").removesuffix("/fs")
        return int(id) if id.isascii() and id.isdigit() and written == self._content(int(id)) else None

    def _fill(self, directory: str, kind: Kind, labels: Mapping[str, str], parent: int | None) -> None:
        _max_size(labels, self._default_size)
        content = os.path.join(directory, "fs")
        make_directory(content, 0o755)
        if kind is Kind.ACTIVE:
            make_directory(os.path.join(directory, "work"), 0o711)
            with open(os.path.join(directory, _MARK), "x"):
                pass
        owner = idmap.root_owner(labels)
        if owner is None and parent is not None:
            # The directory of a parent stays, empty, with the owner of its root.
            status = os.stat(self._content(parent))
            owner = status.st_uid, status.st_gid
        if owner is not None:
            os.chown(content, *owner, follow_symlinks=False)

    def _mounts_of(self, record: Record) -> list[Mount]:
        chain = [parent.id for parent in record.parents]
        if record.info.kind is Kind.VIEW:
            if not chain:
                return [Mount("bind", self._content(record.id), ("ro", "rbind"))]
            if len(chain) == 1:
                return [self._image(chain[0])]
            return [*map(self._image, chain), self._overlay((), 0, len(chain))]
        size = _max_size(record.info.labels, self._default_size)
        if not size:
            if not chain:
                return [Mount("bind", self._content(record.id), ("rw", "rbind"))]
            work = os.path.join(self._directory(record.id), "work")
            upper: tuple[str, ...] = (f"workdir={work}", f"upperdir={self._content(record.id)}")
            return [*map(self._image, chain), self._overlay(upper, 0, len(chain))]
        make = ("X-containerd.mkfs.fs=ext4", f"X-containerd.mkfs.size={size}", "rw", "loop")
        writable = Mount("mkfs/ext4", os.path.join(self._directory(record.id), _WRITABLE), make)
        made = "X-containerd.mkdir.path={{ mount 0 }}"
        if not chain:
            options = (f"{made}/upper:0755", "rw", "rbind")
            return [writable, Mount("format/mkdir/bind", "{{ mount 0 }}/upper", options)]
        upper = (
            f"{made}/upper:0755",
            f"{made}/work:0755",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
        )
        return [writable, *map(self._image, chain), self._overlay(upper, 1, len(chain))]

    def _overlay(self, upper: Sequence[str], first: int, count: int) -> Mount:
        lower = f"mount {first}" if count == 1 else f"overlay {first} {first + count - 1}"
        return Mount("format/mkdir/overlay", "overlay", (*upper, f"lowerdir={{{{ {lower} }}}}", *self._options))

    def _image(self, id: int) -> Mount:
        directory = self._directory(id)
        data = os.path.join(directory, DATA)
        device = (f"device={data}",) if os.path.lexists(data) else ()
        return Mount("erofs", os.path.join(directory, IMAGE), (*_READ_ONLY, *device))

    def _has_image(self, id: int) -> bool:
        return os.path.lexists(os.path.join(self._directory(id), IMAGE))

    def _content(self, id: int) -> str:
        return os.path.join(self._directory(id), "fs")

    def _measure(self, record: Record) -> Usage:
        own = trees.usage(self._content(record.id))
        size, inodes = own.size, own.inodes
        for name in (IMAGE, DATA, _WRITABLE):
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(self._directory(record.id), name))
                size, inodes = size + status.st_blocks * 512, inodes + 1
        return Usage(size, inodes)

    def _commit(self, name: str, key: str, labels: dict[str, str], parent: str) -> None:
        record = self._records.get(key)
        if record.info.kind is Kind.ACTIVE:
            self._make_image(record)
        super()._commit(name, key, labels, parent)

    def _make_image(self, record: Record) -> None:
        content = self._content(record.id)
        if self._has_image(record.id):
            if os.listdir(content):
                raise FailedPrecondition(
                    f"failed to commit snapshot {record.info.name}: {content} was written to after a layer was applied"
                )
            return
        with _place(self._directory(record.id)) as place, self._written(record.id) as tree:
            write_image(tree, place.index, place.tar)
            place.keep("", "", Traits())
        for left in os.listdir(content):
            trees.remove(os.path.join(content, left))
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory(record.id), _WRITABLE))
        faults.point("snapshots.erofs.emptied")

    @contextmanager
    def _written(self, id: int) -> Iterator[str]:
        """The directory that has what was written to an active snapshot."""
        image = os.path.join(self._directory(id), _WRITABLE)
        if not os.path.lexists(image):
            yield self._content(id)
            return
        try:
            with opened(image, "ext4") as root:
                upper = f"/proc/self/fd/{root}/upper"
                # Without one, nobody has mounted the snapshot yet.
                yield upper if os.path.lexists(upper) else self._content(id)
        except OSError as error:
            raise Unknown(f"failed to mount writable layer {image}: {reason(error)}") from error


class Place:
    """Implements `core.layer.LayerPlace` in a snapshot's directory."""

    as_is = True

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fds: dict[str, int] = {}

    @property
    def tar(self) -> int:
        return self._file(DATA)

    @property
    def index(self) -> int:
        return self._file(IMAGE)

    def known(self, source: str, *, overlaid: bool) -> KeptLayer | None:
        """Always None: here each snapshot has a layer of its own."""
        return None

    def refuse(self, reason: str) -> None:
        """Nothing: the snapshot becomes an image in any case, at the latest when it is committed."""

    def keep(self, diff_id: str, source: str, traits: Traits) -> None:
        for fd in self._fds.values():
            os.fsync(fd)
        faults.point("snapshots.erofs.synced")
        with suppress(Damaged):  # an image that somebody else made: its root is taken to be root's
            root = ImageReader(self.index).root()
            os.chown(os.path.join(self._directory, "fs"), root.uid, root.gid, follow_symlinks=False)
        # The image comes last: with it the layer is whole.
        for name in (DATA, IMAGE):
            if name in self._fds:
                os.rename(self._path(name), os.path.join(self._directory, name))
                faults.point("snapshots.erofs.renamed")
        sync_directory(Path(self._directory))

    def close(self) -> None:
        while self._fds:
            name, fd = self._fds.popitem()
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, f"{name}.new")

    def _file(self, name: str) -> int:
        if name not in self._fds:
            self._fds[name] = os.open(self._path(name), _NEW, 0o400)
        return self._fds[name]


@contextmanager
def _place(directory: str) -> Iterator[Place]:
    place = Place(directory)
    try:
        yield place
    finally:
        place.close()


def _max_size(labels: Mapping[str, str], default: int) -> int:
    """Bytes of a writable image; 0 for none: the label has a say only where such images are made at all."""
    text = labels.get(MAX_SIZE_LABEL, "")
    if not text or not default:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text)):
        raise InvalidArgument(f'label {MAX_SIZE_LABEL}="{text}": a number of bytes is needed')
    return int(text)
