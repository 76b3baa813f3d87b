"""What drivers share that keep each snapshot in a directory of its own, `<root>/snapshots/<id>`.

Order of durable steps. Made: the directory is filled under a temporary name, then, inside the transaction that adds
its record, gets its final one; so a record never lacks its directory. One that a layer is unpacked into may be lost
with the power until it is committed: nobody goes on with it after that (`core.snapshot.EXTRACTING`). Removed: the
record goes first, the directory with the next `cleanup`, before which all records that are gone are synced at once.
What a crash leaves is a directory without a record, which `cleanup` removes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from orlop import faults
from orlop.core.mount import Mount
from orlop.core.settling import Settling
from orlop.core.snapshot import EXTRACTING, Kind, SnapshotInfo, Usage
from orlop.errors import NO_ROOM, FailedPrecondition, OrlopError, of_call
from orlop.snapshots import trees
from orlop.snapshots.storage import Record, Records

_log = logging.getLogger(__name__)


class DirectorySnapshotter(ABC):
    """The ten verbs of `core.snapshot.Snapshotter`, but for how a directory is filled and mounted.

    `sync_remove`: Remove frees the disk before it returns.
    """

    mounts_failed: ClassVar[str] = "failed to get active mount"
    commit_failed: ClassVar[str] = "failed to commit snapshot {key}"
    remove_failed: ClassVar[str] = "failed to remove snapshot {key}"
    """What containerd's driver of the same name leads its refusals with."""

    def __init__(self, root: Path, *, sync_remove: bool = False) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self.root = root
        self._snapshots = root / "snapshots"
        self._snapshots.mkdir(mode=0o700, exist_ok=True)
        self._prefix = f"{self._snapshots}/"
        self._sync_remove = sync_remove
        self._names = Settling(lambda: sync_directory(self._snapshots))
        self._named: dict[int, int] = {}
        """Snapshots whose directories have their names, which need not last yet, by their ids."""
        self._making: set[str] = set()
        self._removing = threading.Lock()
        self._records = Records(root / "metadata.db")
        self._set_orphans_aside()

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await asyncio.to_thread(self._create, Kind.ACTIVE, key, parent, dict(labels or {}))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await asyncio.to_thread(self._create, Kind.VIEW, key, parent, dict(labels or {}))

    async def mounts(self, key: str) -> list[Mount]:
        with _led_by(self.mounts_failed):
            ready = self._ready_mounts(_mountable(self._records.committed(key)))
        return await asyncio.to_thread(self._mounts, key) if ready is None else ready

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        await asyncio.to_thread(self._commit, name, key, dict(labels or {}), parent)

    async def remove(self, key: str) -> None:
        await asyncio.to_thread(self._remove, key)

    async def remove_all(self, keys: Sequence[str]) -> list[str]:
        kept = await asyncio.to_thread(self._records.remove_all, keys)
        faults.point("snapshots.remove.recorded")
        return kept

    async def stat(self, key: str) -> SnapshotInfo:
        return self._shown(self._records.committed(key))

    async def update(self, info: SnapshotInfo, fields: Sequence[str] | None) -> SnapshotInfo:
        return self._shown(await asyncio.to_thread(self._records.update, info, fields))

    async def usage(self, key: str) -> Usage:
        record = await asyncio.to_thread(self._records.get, key)
        if record.info.kind is not Kind.ACTIVE:
            return record.usage
        return await asyncio.to_thread(self._measure, record)

    async def walk(self) -> list[SnapshotInfo]:
        return [self._shown(record) for record in await asyncio.to_thread(self._records.all)]

    async def cleanup(self) -> None:
        """Removes every directory without a record. One that cannot go is logged and left for the next time."""
        await asyncio.to_thread(self._cleanup)

    async def close(self) -> None:
        await asyncio.to_thread(self._records.close)

    @abstractmethod
    def _fill(self, directory: str, kind: Kind, labels: Mapping[str, str], parent: int | None) -> None:
        """Makes in the fresh `directory` what a new snapshot has; `parent` is the id of its parent."""

    @abstractmethod
    def _mounts_of(self, record: Record) -> list[Mount]: ...

    def _ready_mounts(self, record: Record) -> list[Mount] | None:
        """What `_mounts_of` would return, on the event loop; None where something has to be made or waited for."""
        return None

    @abstractmethod
    def _content(self, id: int) -> str:
        """The directory whose files are the snapshot `id`."""

    def _measure(self, record: Record) -> Usage:
        """What an active takes on disk by itself."""
        return trees.usage(self._content(record.id))

    def _is_bare(self, record: Record) -> bool:
        """Whether the directory of an active that is being committed says nothing."""
        return False

    def _shown(self, record: Record) -> SnapshotInfo:
        return record.info

    def _directory(self, id: int) -> str:
        return f"{self._prefix}{id}"

    def _create(self, kind: Kind, key: str, parent: str, labels: dict[str, str]) -> list[Mount]:
        with _needing_room("failed to create snapshot"), self._temporary_directory() as directory:
            # A quick answer before the work; `create` below decides, in its transaction.
            with _led_by("failed to create snapshot"):
                parent_id = self._records.parent_of_new(key, parent)
            self._fill(directory, kind, labels, parent_id)
            faults.point("snapshots.create.filled")
            final = ""
            lasts = EXTRACTING not in labels
            try:
                with self._records.transaction(durable=lasts):
                    with _led_by("failed to create snapshot"):
                        record = self._records.create(kind, key, parent, labels)
                    final = self._directory(record.id)
                    os.rename(directory, final)
                    faults.point("snapshots.create.renamed")
                    named = self._names.changed()
                    if lasts:
                        self._names.settle(named)
                    else:
                        self._named[record.id] = named
                    faults.point("snapshots.create.synced")
            except BaseException:
                if final:
                    trees.remove(final)
                raise
        faults.point("snapshots.create.committed")
        try:
            return self._mounts_of(record)
        except BaseException:
            # A caller that got an error has no snapshot.
            self._records.remove(key)
            self._discard(final)
            raise

    def _mounts(self, key: str) -> list[Mount]:
        with _led_by(self.mounts_failed):
            record = _mountable(self._records.get(key))
        return self._mounts_of(record)

    def _commit(self, name: str, key: str, labels: dict[str, str], parent: str) -> None:
        record = self._records.get(key)
        measured = self._measure(record)
        faults.point("snapshots.commit.measured")
        if EXTRACTING in record.info.labels:
            self._names.settle(self._named.get(record.id) or self._names.changed())
        with _led_by(self.commit_failed.format(key=key)):
            self._records.commit(key, name, labels, measured, parent, bare=self._is_bare(record))
        faults.point("snapshots.commit.recorded")
        self._named.pop(record.id, None)

    def _remove(self, key: str) -> None:
        with _led_by(self.remove_failed.format(key=key)):
            id = self._records.remove(key, durable=self._sync_remove)
        self._named.pop(id, None)
        faults.point("snapshots.remove.recorded")
        if self._sync_remove:
            self._discard(self._directory(id))

    def _cleanup(self) -> None:
        with self._removing:
            # A snapshot that is just being made does not get its final name in between.
            with self._records.reading():
                known = {str(id) for id in self._records.ids()}
                gone = [name for name in os.listdir(self._snapshots) if name not in known | self._making]
            if gone:
                self._records.settle()
            for name in gone:
                self._discard(str(self._snapshots / name))
                faults.point("snapshots.cleanup.removed")

    @staticmethod
    def _discard(directory: str) -> None:
        try:
            trees.remove(directory)
        except OSError as error:
            _log.warning("snapshot directory %s stays for now: %s", directory, error)

    def _set_orphans_aside(self) -> None:
        """Renames numbered directories that a crash left without a record: their number will be given again."""
        known = self._records.ids()
        for name in os.listdir(self._snapshots):
            if name.isascii() and name.isdigit() and int(name) not in known:
                os.rename(self._snapshots / name, self._snapshots / f"orphan-{name}-{os.urandom(6).hex()}")

    @contextlib.contextmanager
    def _temporary_directory(self) -> Iterator[str]:
        """A new directory, which has got its final name when all has gone well."""
        # Named before it is there, so that a cleanup never sees one it does not know.
        name = f"new-{os.urandom(8).hex()}"
        self._making.add(name)
        directory = self._prefix + name
        try:
            os.mkdir(directory, 0o700)
            yield directory
        except BaseException:
            self._discard(directory)
            raise
        finally:
            self._making.discard(name)


def _mountable(record: Record) -> Record:
    if record.info.kind is Kind.COMMITTED:
        raise FailedPrecondition(f"requested snapshot {record.info.name} not active or view")
    return record


@contextlib.contextmanager
def _led_by(prefix: str) -> Iterator[None]:
    try:
        yield
    except OrlopError as error:
        raise error.within(prefix) from error


@contextlib.contextmanager
def _needing_room(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise of_call(error, what) from error


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: str, mode: int) -> None:
    """Makes a directory of exactly `mode`, whatever the umask."""
    os.mkdir(path, mode)
    os.chmod(path, mode)
