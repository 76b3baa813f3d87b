"""Ingests on disk: a directory each, named by the hash of its ref, so that no ref is ever part of a path.

Its files are containerd's: `data`, and what describes it: `startedat`, `updatedat`, `ref` and, where known, `total`.
`ref` is written last, so that a directory that has one is whole. One that is open and small has its data only: most
become blobs before anybody else asks, and a crash takes the others. Nothing is synced before the data is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orlop import faults
from orlop.content import disk
from orlop.core import rfc3339
from orlop.core.content import IngestStatus

_FILES = ("ref", "data", "total", "startedat", "updatedat")


@dataclass(frozen=True, slots=True)
class IngestDirectory:
    """The files of one ingest. Its methods block."""

    path: Path

    @classmethod
    def of(cls, root: Path, ref: str) -> IngestDirectory:
        return cls(root / hashlib.sha256(ref.encode()).hexdigest())

    @property
    def data(self) -> Path:
        return self.path / "data"

    def create(self) -> None:
        """Starts the ingest anew, dropping what an earlier one left. Until it is described, a crash takes it."""
        if not disk.make_directory(self.path):
            disk.empty_directory(self.path)
        faults.point("content.ingest.directory")

    def describe(self, status: IngestStatus) -> None:
        """Makes the ingest known to whoever opens the store after this process. Nothing for one that was aborted."""
        with contextlib.suppress(FileNotFoundError):
            disk.write_file(self.path / "startedat", rfc3339.render(status.started_at))
            if status.updated_at == status.started_at:
                # The same until it is replaced.
                os.link(self.path / "startedat", self.path / "updatedat")
            else:
                disk.write_file(self.path / "updatedat", rfc3339.render(status.updated_at))
            if status.total > 0:
                disk.write_file(self.path / "total", str(status.total))
            faults.point("content.ingest.described")
            disk.write_file(self.path / "ref", status.ref)
            faults.point("content.ingest.created")

    def status(self) -> IngestStatus | None:
        """What the files tell; None if there is no ingest, or not a whole one."""
        try:
            ref = disk.read_text(self.path / "ref")
            if IngestDirectory.of(self.path.parent, ref) != self:
                return None
            return IngestStatus(
                ref=ref,
                offset=os.stat(self.data, follow_symlinks=False).st_size,
                total=self._total(),
                started_at=rfc3339.parse(disk.read_text(self.path / "startedat")),
                updated_at=rfc3339.parse(disk.read_text(self.path / "updatedat")),
            )
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def touch(self, moment: int) -> None:
        """Records `moment` as the time of the last write."""
        disk.replace_file(self.path / "updatedat", rfc3339.render(moment))

    def remove(self) -> bool:
        """False if it was not there."""
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path / name)
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            with contextlib.suppress(FileNotFoundError):  # somebody else does the same
                disk.empty_directory(self.path)
                self.path.rmdir()
        return True

    def _total(self) -> int:
        try:
            text = disk.read_text(self.path / "total")
        except FileNotFoundError:
            return 0
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def ingest_directories(root: Path) -> Iterator[IngestDirectory]:
    """Every ingest directory under `root`, the broken ones too."""
    for name in sorted(os.listdir(root)):
        if len(name) == 64 and (root / name).is_dir():
            yield IngestDirectory(root / name)
