"""Chains of layers that are longer than an overlay takes: the lowest ones as one image over all their tars.

Made when such a chain is first mounted, and shared by all chains that begin with the same layers: what is merged is a
multiple of `STEP` layers. Layout: `<root>/merged/<number>/index` and `layers` (their ids, bottom first), where the
number is a digest of the diff ids. A merged image is made anew from its layers at any time: what is on disk under
its final name is whole, and nothing records it. Only the bottom of a chain is merged: what it takes away from itself
is gone then, where whiteouts in the middle of a chain would need directories below them to be hidden.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from orlop import faults
from orlop.core.snapshot import Usage
from orlop.erofs.layout import Damaged, Unrepresentable
from orlop.erofs.merge import merge
from orlop.errors import DataLoss, FailedPrecondition, Unavailable, of_call
from orlop.snapshots import trees
from orlop.snapshots.directories import sync_directory
from orlop.snapshots.layer_mounts import LayerMounts
from orlop.snapshots.layer_records import Layer
from orlop.snapshots.layers import Layers

STEP = 64
LOWERS_LIMIT = 500
"""Lower directories that overlay takes (fs/overlayfs/params.h, OVL_MAX_STACK)."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_log = logging.getLogger(__name__)


class MergedLayers:
    """Merged images below `root`, of layers that are in `layers`. Safe to use from several threads."""

    def __init__(self, root: Path, layers: Layers, *, direct: bool = False) -> None:
        self._directory = root / "merged"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._layers = layers
        self._mounts = LayerMounts(root / "l" / "m", self._files, direct=direct)
        # Taken inside a transaction of the records or alone, never the other way round.
        self._lock = threading.Lock()
        self.longest_path = self._mounts.path(10**77)
        """As long as any that `mounted` gives."""
        layers.replaced = self._forget

    def mounted(self, ids: Sequence[int]) -> str:
        """The mount of the layers `ids`, bottom first, as one.

        Raises DataLoss for layers that are not what they were, ResourceExhausted for a full disk, FailedPrecondition
        for more entries than one image may have.
        """
        layers = [self._layers.record(id) for id in ids]
        indexes = [self._layers.intact(id)[0] for id in ids]
        number = _number(layers)
        with self._lock:
            if not self._index(number).exists():
                self._make(number, layers, indexes)
        self._mounts.ensure([number])
        return self._mounts.path(number)

    def cleanup(self) -> None:
        """Removes what was merged of layers that are gone, and what a crash has left."""
        with self._layers.records.transaction(), self._lock:
            known = {layer.id for layer in self._layers.records.all()}
            whole = {number for number in self._numbers() if self._ids(number) <= known}
            self._mounts.release(lambda: whole)
            for name in os.listdir(self._directory):
                if not (name.isdigit() and int(name) in whole):
                    self._discard(name)
                    faults.point("snapshots.merged.removed")

    def close(self) -> None:
        """Takes off the mounts that no active snapshot or view lies over. Safe to call again."""
        with contextlib.suppress(Unavailable), self._layers.records.transaction(), self._lock:
            used = set(self._layers.records.in_use().values())
            self._mounts.release(lambda: {number for number in self._numbers() if self._ids(number) <= used})

    def usage_at(self, id: int) -> Usage:
        """What is merged counts where its topmost layer does: `id`."""
        sizes = [
            os.lstat(self._index(number)).st_blocks * 512
            for number in self._numbers()
            if self._listed(number)[-1:] == [id]
        ]
        return Usage(sum(sizes), len(sizes))

    def _make(self, number: int, layers: Sequence[Layer], indexes: Sequence[str]) -> None:
        made = self._directory / f"new-{os.urandom(8).hex()}"
        try:
            made.mkdir(mode=0o700)
            with contextlib.ExitStack() as stack:
                images = []
                for index in indexes:
                    images.append(os.open(index, os.O_RDONLY | os.O_CLOEXEC))
                    stack.callback(os.close, images[-1])
                out = os.open(made / "index", _NEW, 0o400)
                stack.callback(os.close, out)
                merge(images, out)
                os.fsync(out)
            with open(made / "layers", "x") as file:
                file.write("\n".join(str(layer.id) for layer in layers))
                file.flush()
                os.fsync(file.fileno())
            faults.point("snapshots.merged.synced")
            sync_directory(made)
            os.rename(made, self._directory / str(number))
            faults.point("snapshots.merged.renamed")
            sync_directory(self._directory)
        except Damaged as error:
            raise DataLoss(f"the index of one of {len(layers)} layers from {layers[0].diff_id} on: {error}") from error
        except Unrepresentable as error:
            raise FailedPrecondition(
                f"{len(layers)} layers cannot be merged, and are too many else: {error}"
            ) from error
        except OSError as error:
            raise of_call(error, f"failed to merge {len(layers)} layers") from error
        finally:
            self._discard(made.name)

    def _forget(self, layer: int) -> None:
        """The layer has new files: what was merged of it has the old ones open."""
        with self._lock:
            for number in self._numbers():
                if layer in self._ids(number):
                    self._mounts.renew(number)
                    self._discard(str(number))

    def _files(self, number: int) -> tuple[str, Sequence[str]]:
        devices = [self._layers.intact(id)[1][0] for id in self._listed(number)]
        return str(self._index(number)), devices

    def _index(self, number: int) -> Path:
        return self._directory / str(number) / "index"

    def _numbers(self) -> list[int]:
        return [int(name) for name in os.listdir(self._directory) if name.isdigit()]

    def _listed(self, number: int) -> list[int]:
        try:
            return [int(id) for id in (self._directory / str(number) / "layers").read_text().split()]
        except FileNotFoundError:
            return []

    def _ids(self, number: int) -> set[int]:
        return set(self._listed(number)) or {0}

    def _discard(self, name: str) -> None:
        try:
            trees.remove(str(self._directory / name))
        except OSError as error:
            _log.warning("merged layers %s stay for now: %s", name, error)


def fits(lowers: Sequence[str], others: Iterable[str]) -> bool:
    """Whether an overlay takes these lower directories, and mount(2) the options as containerd's clients shorten
    them: by what the directories' paths have in common."""
    if len(lowers) > LOWERS_LIMIT:
        return False
    base = len(os.fsencode(os.path.commonpath([os.path.dirname(lower) for lower in lowers]))) + 1
    size = sum(len(os.fsencode(lower)) - base + 1 for lower in lowers)
    size += sum(len(os.fsencode(option)) + 1 for option in (*others, "lowerdir"))
    return size < os.sysconf("SC_PAGESIZE")


def _number(layers: Sequence[Layer]) -> int:
    """A directory's name that is a number, as those of layers are: 256 bits, as the archives' authors choose them."""
    named = "\n".join(layer.diff_id for layer in layers)
    return int.from_bytes(hashlib.sha256(named.encode()).digest())
