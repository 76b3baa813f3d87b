"""Layers for tests of snapshotters that keep them: archives, a content store of plain files, and the real differ."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orlop.core.descriptor import Descriptor
from orlop.core.layer import Traits
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.errors import NotFound
from orlop.layers import media
from orlop.layers.differ import WalkingDiffer
from orlop.layers.keep import Keepers
from orlop.mounts import mountinfo
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import trees
from orlop.snapshots.overlayfs import OverlaySnapshotter

SCOPE = Scope("test")


def archive(files: Mapping[str, str | None]) -> bytes:
    """A tar of files with these texts; None, and a name that ends with a slash: a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            if text is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO((text or "").encode()))
    return out.getvalue()


def archive_of(upper: str) -> bytes:
    """The layer that an overlay's upper directory is, with the markers of OCI's image-spec for what it takes away."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory, names, files in os.walk(upper):
            for name in sorted(names + files):
                _add(tar, upper, os.path.join(directory, name))
    return out.getvalue()


def _add(tar: tarfile.TarFile, upper: str, path: str) -> None:
    inside = os.path.relpath(path, upper)
    status = os.lstat(path)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        directory, name = os.path.split(inside)
        tar.addfile(tarfile.TarInfo(os.path.join(directory, f".wh.{name}")))
        return
    entry = tar.gettarinfo(path, inside)
    entry.pax_headers = {"mtime": f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09}"}
    if entry.isreg():
        with open(path, "rb") as file:
            tar.addfile(entry, file)
    else:
        tar.addfile(entry)
    if entry.isdir() and "trusted.overlay.opaque" in os.listxattr(path):
        tar.addfile(tarfile.TarInfo(os.path.join(inside, ".wh..wh..opq")))


class Files:
    """A content store that can only be read."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root

    def put(self, data: bytes) -> Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (self.root / digest).write_bytes(data)
        return Descriptor(media.OCI_LAYER_GZIP, digest, len(data))

    async def open_reader(self, scope: Scope, digest: str) -> _Reader:
        if not (self.root / digest).exists():
            raise NotFound(f"content digest {digest}")
        return _Reader(self.root / digest)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def fileno(self) -> int:
        return self._fd

    async def close(self) -> None:
        os.close(self._fd)


@dataclass
class Layered:
    """An overlayfs snapshotter that keeps layers, and the differ that fills its snapshots."""

    root: Path
    driver: OverlaySnapshotter
    differ: WalkingDiffer
    files: Files

    async def apply(self, mounts: list[Mount], data: bytes) -> Descriptor:
        return await self.differ.apply(SCOPE, self.files.put(gzip.compress(data, mtime=0)), mounts)

    async def layer(self, name: str, parent: str, data: bytes) -> None:
        """The committed snapshot `name` of the archive `data`."""
        await self.apply(await self.driver.prepare(f"make-{name}", parent), data)
        await self.driver.commit(name, f"make-{name}")

    @property
    def kept(self) -> list[str]:
        """The layers on disk."""
        return sorted(os.listdir(self.root / "driver/layers"))

    @property
    def mounted(self) -> list[str]:
        """The layers that are mounted, one for each mount."""
        return mounted_below(self.root / "driver/l")


def mounted_below(directory: Path) -> list[str]:
    below = os.fsencode(os.path.realpath(directory))
    return sorted(os.path.basename(os.fsdecode(e.point)) for e in mountinfo.read() if e.lies_below(below))


@contextmanager
def layered(root: Path, temporary: TemporaryMounts, *, keeps: bool = True, direct: bool = False) -> Iterator[Layered]:
    root.mkdir(exist_ok=True)
    driver = OverlaySnapshotter(root / "driver", keeps_layers=keeps, reads_directly=direct)
    files = Files(root / "blobs")
    try:
        yield Layered(root, driver, WalkingDiffer(files, temporary, keepers=Keepers([driver])), files)  # type: ignore[arg-type]
    finally:
        driver._records.close()


class IndexingSnapshotter(OverlaySnapshotter):
    """Overlayfs that makes a kept layer of whatever was written to a snapshot when it is committed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, keeps_layers=True)

    def _commit(self, name: str, key: str, labels: dict[str, str], parent: str) -> None:
        from orlop.layers.index import index_layer

        with contextlib.suppress(NotFound):
            record = self._records.get(key)
            content = self._content(record.id)
            if record.files.layer is None and os.listdir(content) and not _has_trusted(content):
                os.rename(content, f"{content}.written")
                os.mkdir(content, 0o755)
                place = self._layers.place(record.id)
                with place as into:
                    data = archive_of(f"{content}.written")
                    index_layer(iter([data]), into.tar, into.index)
                    into.keep(f"sha256:{hashlib.sha256(data).hexdigest()}", "", Traits())
                trees.remove(f"{content}.written")
        super()._commit(name, key, labels, parent)


def _has_trusted(content: str) -> bool:
    """Whether something has attributes that no layer carries."""
    paths = (os.path.join(directory, name) for directory, _, names in os.walk(content) for name in names)
    return any(x.startswith("trusted.") and ".overlay." not in x for p in paths for x in _xattrs(p))


def _xattrs(path: str) -> Iterator[str]:
    yield from os.listxattr(path, follow_symlinks=False)
