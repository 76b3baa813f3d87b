"""The mounts of kept layers: each index once, at `<root>/l/<id>`, in the daemon's mount namespace.

They are made when a snapshot above them is first mounted, stay when the daemon ends, and are found again in the mount
table. The paths are short, as a hundred of them must fit the page of options that clients give to mount(2).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from orlop import faults
from orlop.errors import DataLoss, Unknown
from orlop.mounts import erofs, mountinfo
from orlop.mounts.mount import MountError, reason, unmount

_DAMAGED = frozenset((errno.EUCLEAN, errno.EINVAL, errno.EIO, errno.EBADMSG, errno.ENOENT))

_log = logging.getLogger(__name__)


class LayerMounts:
    """Mounts below `directory`; `files` gives the index of a layer, and the files with its data. With `direct`, these
    may be read past their page cache, so that what containers read is not cached twice.

    Safe to use from several threads.
    """

    def __init__(
        self, directory: Path, files: Callable[[int], tuple[str, Sequence[str]]], *, direct: bool = False
    ) -> None:
        self._directory = directory
        self._prefix = f"{directory}/"
        self._files = files
        self._direct = direct
        self._lock = threading.Lock()
        self._mounted: dict[int, int] | None = None
        """The file system's device number by layer, of what is known to be mounted; None before the first look."""
        self._buffered: set[int] = set()
        """Of those, the ones that are read through the page cache of their tars."""

    def path(self, id: int) -> str:
        return f"{self._prefix}{id}"

    def ensure(self, ids: Iterable[int]) -> None:
        """All of `ids` are mounted on return. Raises DataLoss, naming the layer, for one whose files are damaged."""
        with self._lock:
            missing = [id for id in ids if not self._is_mounted(id)]
        # Asked without the lock: the records have one too, and `renew` comes from inside that.
        files = {id: self._files(id) for id in missing}
        with self._lock:
            for id in missing:
                if not self._is_mounted(id):
                    self._known()[id] = self._mount(id, *files[id])

    def are_mounted(self, ids: Iterable[int]) -> bool:
        """Whether all of `ids` are known to be, told at once: also False where somebody is just mounting something."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._mounted is not None and all(self._is_mounted(id) for id in ids)
        finally:
            self._lock.release()

    def release(self, needed: Callable[[], set[int]]) -> None:
        """Unmounts what is not `needed`, which is asked while no mount can be made. What is busy stays for now.

        Where `needed` asks the records, this is called inside a transaction of theirs: their lock comes first.
        """
        with self._lock:
            mounted = self._known()
            for id in mounted.keys() - needed():
                if self._unmount(id):
                    del mounted[id]

    def buffered(self) -> set[int]:
        """The layers that are read through the page cache of their tars, and need not be on a mount made anew."""
        with self._lock:
            return self._known().keys() & self._buffered if self._direct else set()

    def renew(self, id: int) -> None:
        """The layer has new files: the next user mounts them, users of the old mount keep it."""
        with self._lock:
            if self._known().pop(id, None) is not None:
                unmount(self.path(id), detach=True)

    def _known(self) -> dict[int, int]:
        if self._mounted is None:
            self._mounted = {}
            below = os.path.realpath(os.fsencode(self._directory))
            for entry in mountinfo.read():
                parent, name = os.path.split(entry.point)
                if parent == below and name.isdigit() and entry.type == "erofs":
                    self._mounted[int(name)] = os.makedev(*entry.device)
                    if "directio" not in entry.super_options:
                        self._buffered.add(int(name))
        return self._mounted

    def _is_mounted(self, id: int) -> bool:
        mounted = self._known()
        return id in mounted and mounted[id] == _device(self.path(id))

    def _mount(self, id: int, index: str, devices: Sequence[str]) -> int:
        target = self.path(id)
        os.makedirs(target, mode=0o700, exist_ok=True)
        try:
            # What has just been pulled is in memory: it is read from there, and not from the disk again.
            direct = self._direct and not erofs.is_cached(devices)
            erofs.mount_image(index, devices, target, direct=direct)
        except OSError as error:
            kind = DataLoss if error.errno in _DAMAGED else Unknown
            raise kind.verbatim(f"layer index {index} cannot be mounted: {reason(error)}") from error
        (self._buffered.discard if direct else self._buffered.add)(id)
        faults.point("snapshots.layers.mounted")
        return os.stat(target).st_dev

    def _unmount(self, id: int) -> bool:
        target = self.path(id)
        try:
            unmount(target)
            os.rmdir(target)
        except FileNotFoundError:
            return True
        except (MountError, OSError) as error:
            _log.info("layer mount %s stays for now: %s", target, error)
            return False
        return True


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None
