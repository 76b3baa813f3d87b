"""Layers on disk, each a tar and its index: `<root>/layers/<id>/tar` and `index`, shared by all that have them.

Durable order: both files are written under a temporary name, get their final one, and are synced with it; then the
layer is recorded and given to its snapshot. That record is durable with the commit of the snapshot: a loss of power
before leaves an active without its layer. A layer goes the other way: record, mount, files. What a crash leaves is a
directory without a record, which `cleanup` removes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orlop import faults
from orlop.core.layer import KeptLayer, Traits
from orlop.core.settling import Settling
from orlop.errors import DataLoss, Unavailable
from orlop.mounts import erofs
from orlop.snapshots import trees, verity
from orlop.snapshots.directories import sync_directory
from orlop.snapshots.layer_mounts import LayerMounts
from orlop.snapshots.layer_records import Layer, LayerRecords

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_log = logging.getLogger(__name__)


class Layers:
    """The layers below `root` and their mounts. Safe to use from several threads."""

    def __init__(self, root: Path, records: LayerRecords, *, direct: bool = False) -> None:
        self._directory = root / "layers"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self.records = records
        self.mounts = LayerMounts(root / "l", self.intact, direct=direct)
        self.replaced: Callable[[int], None] = lambda _: None
        """Is told of layers that have new files."""
        self._names = Settling(lambda: sync_directory(self._directory))
        self._named: dict[int, int] = {}
        """Layers whose directories have their names, which may not be durable yet."""
        self._making: set[str] = set()
        self._expected: dict[int, float] = {}
        """Layers that no snapshot has yet, and until when they wait for one."""
        self._removing = threading.Lock()
        self._set_orphans_aside()

    def path(self, layer: Layer) -> Path:
        return self._directory / str(layer.id)

    @contextlib.contextmanager
    def place(self, snapshot: int | None, life: float = 0.0) -> Iterator[Place]:
        """Where a layer of the active `snapshot` is written, or, for none, one that no snapshot need have for `life`
        seconds. What was not kept is removed at the end."""
        name = f"new-{os.urandom(8).hex()}"
        self._making.add(name)
        place = Place(self, self._directory / name, snapshot, life)
        try:
            yield place
        finally:
            place.close()
            self._discard(name)
            self._making.discard(name)
            if place.id is not None:
                if not place.is_recorded:
                    self._discard(str(place.id))
                self._making.discard(str(place.id))

    def whole(self, layer: Layer | None) -> Layer | None:
        """`layer`, unless it is known to be damaged or its files are not there in their size."""
        if layer is None or layer.damaged:
            return None
        try:
            size = os.lstat(self.path(layer) / "tar").st_size
            os.lstat(self.path(layer) / "index")
        except FileNotFoundError:
            return None
        return layer if size == layer.size else None

    def reserve(self) -> int:
        """The id of a layer that will be recorded. Its directory is left alone meanwhile."""
        id = self.records.reserve()
        self._making.add(str(id))
        return id

    def number(self, made: Path, id: int) -> Path:
        """Gives the directory of a layer that has no record yet the name that it will have."""
        numbered = self._directory / str(id)
        os.rename(made, numbered)
        self._named[id] = self._names.changed()
        faults.point("snapshots.layers.renamed")
        return numbered

    def sync(self, id: int) -> None:
        """The name of the directory of a layer is durable on return."""
        self._names.settle(self._named.pop(id))
        faults.point("snapshots.layers.placed")

    def replace(self, layer: Layer, made: Path, disk: int) -> None:
        """Puts whole files where those of `layer` were; both are what they are by the same diff id."""
        directory = self.path(layer)
        directory.mkdir(mode=0o700, exist_ok=True)
        for name in ("tar", "index"):
            os.rename(made / name, directory / name)
            faults.point("snapshots.layers.replaced")
        sync_directory(directory)
        sync_directory(self._directory)
        self.records.mend(layer, disk)
        self.mounts.renew(layer.id)
        self.replaced(layer.id)

    def files(self, diff_id: str) -> tuple[str, str] | None:
        """The tar and the index of a layer; None if it is not kept."""
        layer = self.records.by_diff_id(diff_id)
        return None if layer is None else (str(self.path(layer) / "tar"), str(self.path(layer) / "index"))

    def distrust(self, diff_id: str) -> None:
        """From now on the layer is mounted no more, until another one that comes takes its place."""
        layer = self.records.by_diff_id(diff_id)
        if layer is not None:
            self.records.mark_damaged(layer)

    def cleanup(self) -> None:
        """Forgets the layers that no snapshot has, takes off their mounts, removes their files."""
        with self._removing:
            gone = self._drop_unused()
            faults.point("snapshots.layers.forgotten")
            # A mount whose layer stays does too: containers come and go, and with the mount its page cache would.
            with self.records.transaction():
                spare = self._spare_mounts()
                self.mounts.release(lambda: {layer.id for layer in self.records.all()} - spare)
            faults.point("snapshots.layers.unmounted")
            with self.records.transaction():
                names = {str(layer.id) for layer in self.records.all()} | self._making
                left = [name for name in os.listdir(self._directory) if name not in names]
            for name in left:
                self._discard(name)
                faults.point("snapshots.layers.removed")
            if gone:
                _log.debug("layers removed: %s", gone)

    def _drop_unused(self) -> list[int]:
        with self.records.transaction():
            now = time.monotonic()
            self._expected = {id: until for id, until in self._expected.items() if until > now}
            return self.records.drop_unused(self._expected)

    def expect(self, layer: Layer, life: float) -> None:
        """The layer stays for `life` seconds, also while no snapshot has it. Called inside a transaction."""
        self._expected[layer.id] = time.monotonic() + life

    def _spare_mounts(self) -> set[int]:
        """Mounts that nobody has now, and whose tars are in memory no more: the next ones are read directly."""
        used = set(self.records.in_use().values())
        idle = {layer.id: str(self.path(layer) / "tar") for layer in self.records.all() if layer.id not in used}
        return {id for id in self.mounts.buffered() & idle.keys() if not erofs.is_cached([idle[id]])}

    def close(self) -> None:
        """Takes off the mounts that no active snapshot or view lies over. Safe to call again."""
        with contextlib.suppress(Unavailable), self.records.transaction():
            self.mounts.release(lambda: set(self.records.in_use().values()))

    def record(self, id: int) -> Layer:
        """Raises DataLoss if there is none."""
        layer = self.records.get(id)
        if layer is None:
            raise DataLoss(f"layer {id} has no record")
        return layer

    def intact(self, id: int) -> tuple[str, Sequence[str]]:
        """Index and tar of the layer `id`. Raises DataLoss, naming it, where they are not what they were."""
        layer = self.record(id)
        directory = self.path(layer)
        tar, index = str(directory / "tar"), str(directory / "index")
        remedy = 'run "orlop image repair" for an image that has it'
        if layer.damaged:
            raise DataLoss(f"layer {layer.diff_id}: {tar} or its index was found damaged: {remedy}")
        for path in (tar, index):
            if not os.path.lexists(path):
                raise DataLoss(f"layer {layer.diff_id}: {path} is missing: {remedy}")
        if (size := os.lstat(tar).st_size) != layer.size:
            raise DataLoss(f"layer {layer.diff_id}: {tar} has {size} bytes, not {layer.size}: {remedy}")
        return index, (tar,)

    def _set_orphans_aside(self) -> None:
        """Renames numbered directories that a crash left without a record: their number will be given again."""
        known = {str(layer.id) for layer in self.records.all()}
        for name in os.listdir(self._directory):
            if name.isascii() and name.isdigit() and name not in known:
                os.rename(self._directory / name, self._directory / f"orphan-{name}-{os.urandom(6).hex()}")

    def _discard(self, name: str) -> None:
        try:
            trees.remove(str(self._directory / name))
        except OSError as error:
            _log.warning("layer directory %s stays for now: %s", name, error)


class Place:
    """Implements `core.layer.LayerPlace`: the two files, made when first asked for."""

    as_is = False

    def __init__(self, layers: Layers, directory: Path, snapshot: int | None, life: float) -> None:
        self._layers = layers
        self._directory = directory
        self._snapshot = snapshot
        self._life = life
        self._fds: dict[str, int] = {}
        self.id: int | None = None
        """What the layer is called, once its files are durable."""
        self.is_recorded = False

    @property
    def tar(self) -> int:
        return self._file("tar")

    @property
    def index(self) -> int:
        return self._file("index")

    def known(self, source: str, *, overlaid: bool) -> KeptLayer | None:
        records = self._layers.records
        with records.transaction(durable=False):
            layer = self._layers.whole(records.by_source(source))
            if layer is None or self._snapshot is None or (layer.whiteouts and not overlaid):
                return None
            self._attach(self._snapshot, layer, source)
        return KeptLayer(layer.diff_id, layer.size)

    def keep(self, diff_id: str, source: str, traits: Traits) -> None:
        size, disk = self._measure()
        # A layer that is there needs no second copy on disk: then nothing is synced.
        while not self._kept(diff_id, source, traits, size, disk):
            self._make_durable()
        faults.point("snapshots.layers.kept")

    def refuse(self, reason: str) -> None:
        if self._snapshot is not None:
            self._layers.records.note(self._snapshot, reason)

    def _kept(self, diff_id: str, source: str, traits: Traits, size: int, disk: int) -> bool:
        """Gives the snapshot the layer; False if that needs these files, which are not durable yet."""
        records = self._layers.records
        # One that is there may have been damaged: that it is mended must last.
        is_known = records.by_diff_id(diff_id) is not None
        if not is_known and self.id is None:
            return False
        with records.transaction(durable=is_known):
            found = records.by_diff_id(diff_id)
            layer = self._layers.whole(found)
            if layer is None:
                if self.id is None:
                    return False
                if found is None:
                    layer = records.add(self.id, diff_id, size, disk, traits)
                else:
                    layer = found
                    self._layers.replace(found, self._directory, disk)
            if found is not None:
                records.describe(layer, traits)
            if self._snapshot is None:
                records.remember(diff_id, source)
                self._layers.expect(layer, self._life)
            else:
                self._attach(self._snapshot, layer, source)
        self.is_recorded = layer.id == self.id
        return True

    def _attach(self, snapshot: int, layer: Layer, source: str) -> None:
        self._layers.records.attach(snapshot, layer, source)
        self._layers.expect(layer, 0.0)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _file(self, name: str) -> int:
        if not self._fds:
            self._directory.mkdir(mode=0o700)
        if name not in self._fds:
            self._fds[name] = os.open(self._directory / name, _NEW, 0o400)
        return self._fds[name]

    def _measure(self) -> tuple[int, int]:
        found = [os.fstat(fd) for fd in (self.tar, self.index)]
        return found[0].st_size, sum(status.st_blocks for status in found) * 512

    def _make_durable(self) -> None:
        self.id = self._layers.reserve()
        # They have their name already, so that a file system with a journal writes that once for all.
        self._directory = self._layers.number(self._directory, self.id)
        for fd in (self.index, self.tar):
            os.fsync(fd)
        faults.point("snapshots.layers.synced")
        self.close()
        for name in ("tar", "index"):
            verity.enable(self._directory / name)
        sync_directory(self._directory)
        self._layers.sync(self.id)
