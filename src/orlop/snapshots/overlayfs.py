"""The overlayfs snapshotter: each snapshot holds what it changes, and the kernel lays them over each other."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from orlop.core.mount import Mount
from orlop.core.snapshot import Kind, SnapshotInfo, Usage
from orlop.errors import Unknown
from orlop.snapshots import idmap
from orlop.snapshots.covers import Covers
from orlop.snapshots.directories import DirectorySnapshotter, make_directory
from orlop.snapshots.layer_records import LayerRecords
from orlop.snapshots.layers import Layers, Place
from orlop.snapshots.merged_layers import STEP, MergedLayers, fits
from orlop.snapshots.storage import Files, Record

UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"
UNPACKED_LABEL = "containerd.io/snapshot/orlop.unpacked"
"""In answers: why the layer of a snapshot is a directory, although layers are kept."""

_INDEX_PARAMETER = Path("/sys/module/overlay/parameters/index")
_WHOLE_ID_SPACE = ["0", "0", "4294967295"]
_DT_UNKNOWN = 0
_INODES_OF_LAYER = 2


class OverlaySnapshotter(DirectorySnapshotter):
    """Snapshots below `root`. Layout: `snapshots/<id>/fs`, and `work` where the snapshot is active.

    `mount_options` are added to every overlay; with `keeps_layers` a differ finds a place here for layers that are
    not unpacked (`core.layer.LayerKeeper`), and with `reads_directly` these are read past the page cache of their
    tars. With `remap_ids` a snapshot whose labels map ids is mounted so (see `idmap`); without, only the owner of its
    top directory is what they say. Raises Unknown if the file system of `root` has no d_type.
    """

    takes_images = False

    def __init__(
        self,
        root: Path,
        *,
        mount_options: Sequence[str] = (),
        upperdir_label: bool = False,
        sync_remove: bool = False,
        keeps_layers: bool = False,
        reads_directly: bool = False,
        remap_ids: bool = False,
    ) -> None:
        super().__init__(root, sync_remove=sync_remove)
        if not supports_d_type(root):
            raise Unknown(
                f"{root} does not support d_type. If the backing filesystem is xfs, please reformat with ftype=1 "
                "to enable d_type support"
            )
        self._upperdir_label = upperdir_label
        self._remap_ids = remap_ids
        self._options = (*mount_options, *_kernel_options(mount_options))
        self._keeps_layers = keeps_layers
        # Also where none are kept any more: those that were are mounted still.
        self._layers = Layers(root, LayerRecords(self._records), direct=reads_directly)
        self._merged = MergedLayers(root, self._layers, direct=reads_directly)
        self._covers = Covers(root, self._layers.records)

    def _fill(self, directory: str, kind: Kind, labels: Mapping[str, str], parent: int | None) -> None:
        content = os.path.join(directory, "fs")
        make_directory(content, 0o755)
        if kind is Kind.ACTIVE:
            make_directory(os.path.join(directory, "work"), 0o711)
        owner = idmap.root_owner(labels)
        if self._remap_ids and parent is None:
            owner = None  # it is mounted itself, with its ids mapped: on disk they are the container's
        elif owner is None and parent is not None:
            status = os.stat(self._content(parent))
            owner = status.st_uid, status.st_gid
        if owner is not None:
            os.chown(content, *owner, follow_symlinks=False)

    async def usage(self, key: str) -> Usage:
        """A layer that several snapshots have counts at the oldest of them."""
        own = await super().usage(key)
        return await asyncio.to_thread(self._with_layer, self._records.get(key), own)

    def _with_layer(self, record: Record, own: Usage) -> Usage:
        cover = self._covers.usage(record.id)
        own = Usage(own.size + cover.size, own.inodes + cover.inodes)
        layers = self._layers.records
        if record.files.layer is None or not layers.is_counted_at(record.files):
            return own
        layer = layers.get(record.files.layer)
        if layer is None:
            return own
        merged = self._merged.usage_at(layer.id)
        return Usage(own.size + layer.disk + merged.size, own.inodes + _INODES_OF_LAYER + merged.inodes)

    async def close(self) -> None:
        """Mounts of layers that containers may use stay."""
        await asyncio.to_thread(self._covers.close)
        await asyncio.to_thread(self._merged.close)
        await asyncio.to_thread(self._layers.close)
        await super().close()

    def place(self, mounts: Sequence[Mount]) -> AbstractContextManager[Place] | None:
        """As `core.layer.LayerKeeper` says."""
        id = self._id_of(mounts)
        if not self._keeps_layers or id is None:
            return None
        files = self._layers.records.snapshot(id)
        if files is None or files.layer is not None or os.listdir(self._content(id)):
            return None
        return self._layers.place(id)

    def place_ahead(self, life: float) -> AbstractContextManager[Place] | None:
        """As `core.layer.LayerKeeper` says."""
        return self._layers.place(None, life) if self._keeps_layers else None

    def forget_ahead(self) -> None:
        """As `core.layer.LayerKeeper` says."""
        self._layers.cleanup()

    def files(self, diff_id: str) -> tuple[str, str] | None:
        """As `core.layer.LayerKeeper` says."""
        return self._layers.files(diff_id)

    def remember(self, diff_id: str, source: str) -> None:
        """As `core.layer.LayerKeeper` says."""
        self._layers.records.remember(diff_id, source)

    def distrust(self, diff_id: str) -> None:
        """As `core.layer.LayerKeeper` says."""
        self._layers.distrust(diff_id)

    def current(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """As `core.layer.LayerKeeper` says."""
        id = self._id_of(mounts)
        files = None if id is None else self._layers.records.snapshot(id)
        if files is None or files.layer is None:
            return mounts
        key = self._layers.records.key(files.id)
        return mounts if key is None else self._mounts_of(self._records.get(key))

    def _id_of(self, mounts: Sequence[Mount]) -> int | None:
        """The snapshot whose directory `mounts` write to, if it is one of these."""
        if len(mounts) != 1 or "ro" in mounts[0].options:
            return None
        mount = mounts[0]
        written = mount.source if mount.type == "bind" else ""
        if mount.type == "overlay":
            written = next((o.removeprefix("upperdir=") for o in mount.options if o.startswith("upperdir=")), "")
        id = written.removeprefix(f"{self._snapshots}/").removesuffix("/fs")
        return int(id) if id.isascii() and id.isdigit() and written == self._content(int(id)) else None

    def _is_bare(self, record: Record) -> bool:
        if record.files.layer is None:
            return False
        content = self._content(record.id)
        status = os.lstat(content)
        changed = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (0o755, 0, 0)
        return not (changed or os.listxattr(content) or os.listdir(content))

    def _remove(self, key: str) -> None:
        super()._remove(key)
        if self._sync_remove:
            self._clean_layers()

    def _cleanup(self) -> None:
        super()._cleanup()
        self._clean_layers()

    def _clean_layers(self) -> None:
        self._covers.cleanup()
        self._layers.cleanup()
        self._merged.cleanup()

    def _mounts_of(self, record: Record) -> list[Mount]:
        mounts = self._laid_over(record, self._lowers)
        assert mounts is not None
        return mounts

    def _ready_mounts(self, record: Record) -> list[Mount] | None:
        return self._laid_over(record, self._ready_lowers)

    def _laid_over(
        self, record: Record, lowers_of: Callable[[Sequence[Files], Sequence[str]], list[str] | None]
    ) -> list[Mount] | None:
        is_view = record.info.kind is Kind.VIEW
        own = () if record.files.layer is None else (dataclasses.replace(record.files, bare=True),)
        mapped = idmap.mount_options(record.info.labels) if self._remap_ids else ()
        upper = mapped
        if not is_view:
            work = os.path.join(self._directory(record.id), "work")
            upper = (*mapped, f"workdir={work}", f"upperdir={self._content(record.id)}")
        lowers = lowers_of((*own, *record.parents), (*upper, *self._options))
        if lowers is None:
            return None
        if not lowers:
            return [Mount("bind", self._content(record.id), (*mapped, "ro" if is_view else "rw", "rbind"))]
        if is_view and len(lowers) == 1:
            return [Mount("bind", lowers[0], (*mapped, "ro", "rbind"))]
        return [Mount("overlay", "overlay", (*upper, f"lowerdir={':'.join(lowers)}", *self._options))]

    def _lowers(self, chain: Sequence[Files], others: Sequence[str]) -> list[str]:
        """The directories of `chain`, nearest first: those of snapshots and the mounts of kept layers.

        Where an overlay that also has the options `others` would not take so many, the lowest layers are merged.
        """
        for number in reversed(range(len(chain))):  # each cover is made of what is below it
            self._cover(chain[number], chain[number + 1 :])
        places = [place for files in chain for place in self._places(files)]
        for count in range(0, _kept_at_bottom(places) + 1, STEP):
            above = places[: len(places) - count]
            lowers = [path for place in above for path in place.paths]
            if count:
                lowers.append(self._merged.longest_path)
            if not lowers or fits(lowers, others):
                merged = [place.layer for place in reversed(places[len(above) :]) if place.layer is not None]
                return self._mounted(above, merged)
        return self._mounted(places, [])

    def _ready_lowers(self, chain: Sequence[Files], others: Sequence[str]) -> list[str] | None:
        """As `_lowers`, where that has nothing to make."""
        if any(files.implied for files in chain):
            return None
        places = [place for files in chain for place in self._places(files)]
        lowers = [path for place in places for path in place.paths]
        layers = [place.layer for place in places if place.layer is not None]
        if (lowers and not fits(lowers, others)) or not self._layers.mounts.are_mounted(layers):
            return None
        return lowers

    def _cover(self, files: Files, below: Sequence[Files]) -> None:
        """Makes the cover of a snapshot whose layer only names directories that may be below."""
        if files.implied and files.layer is not None and below:
            layer = files.layer
            self._covers.ensure(files.id, lambda: self._layers.intact(layer)[0], lambda: self._lowers(below, ()))

    def _places(self, files: Files) -> Iterator[_Place]:
        """Where a snapshot's files are, nearest first."""
        if not files.bare:
            yield _Place((self._content(files.id),))
        if files.layer is not None:
            layer = self._layers.mounts.path(files.layer)
            covered = files.implied and self._covers.has(files.id)
            yield _Place((self._covers.mounts.path(files.id), layer) if covered else (layer,), files.layer, files.id)

    def _mounted(self, above: Sequence[_Place], merged: Sequence[int]) -> list[str]:
        self._layers.mounts.ensure(place.layer for place in above if place.layer is not None)
        self._covers.mounts.ensure(place.snapshot for place in above if len(place.paths) > 1)
        lowers = [path for place in above for path in place.paths]
        return [*lowers, self._merged.mounted(merged)] if merged else lowers

    def _content(self, id: int) -> str:
        return os.path.join(self._directory(id), "fs")

    def _shown(self, record: Record) -> SnapshotInfo:
        labels = dict(record.info.labels)
        if self._upperdir_label:
            labels[UPPERDIR_LABEL] = self._content(record.id)
        if record.unpacked:
            labels[UNPACKED_LABEL] = record.unpacked
        return dataclasses.replace(record.info, labels=labels)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A snapshot's directory, or where its layer is mounted, perhaps with a cover over that."""

    paths: Sequence[str]
    layer: int | None = None
    snapshot: int = 0


def _kept_at_bottom(places: Sequence[_Place]) -> int:
    """How many of the lowest places are mounts of layers."""
    return next((count for count, place in enumerate(reversed(places)) if place.layer is None), len(places))


def in_user_namespace() -> bool:
    """Whether this process's root is not the host's."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != _WHOLE_ID_SPACE


def _kernel_options(configured: Sequence[str]) -> list[str]:
    names = {option.partition("=")[0] for option in configured}
    options = []
    if "userxattr" not in names and in_user_namespace():
        options.append("userxattr")
    if "index" not in names and _INDEX_PARAMETER.exists():
        options.append("index=off")
    return options


class _DirectoryEntry(ctypes.Structure):
    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


def supports_d_type(directory: Path) -> bool:
    """Whether the file system of `directory`, which has at least one entry, tells types when it is listed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    stream = libc.opendir(os.fsencode(directory))
    if not stream:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    try:
        while address := libc.readdir(ctypes.c_void_p(stream)):
            entry = ctypes.cast(address, ctypes.POINTER(_DirectoryEntry)).contents
            if entry.type == _DT_UNKNOWN and entry.name not in (b".", b".."):
                return False
        return True
    finally:
        libc.closedir(ctypes.c_void_p(stream))
