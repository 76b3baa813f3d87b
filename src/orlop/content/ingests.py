"""Ingests on disk: a directory each, named by the hash of its ref, so that no ref is ever part of a path.

Its files are containerd's: `ref`, `data`, `startedat`, `updatedat` and, where it is known, `total`. `ref` is written
last, so that a directory that has one is whole; nothing of it is synced before its data is.
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
from orlop.core import clock, rfc3339
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

    def create(self, ref: str, total: int) -> IngestStatus:
        """Starts the ingest anew, dropping what an earlier one left. Returns its status."""
        if not disk.make_directory(self.path):
            disk.empty_directory(self.path)
        faults.point("content.ingest.directory")
        now = clock.now()
        disk.write_file(self.path / "startedat", rfc3339.render(now))
        # The same until it is replaced.
        os.link(self.path / "startedat", self.path / "updatedat")
        if total > 0:
            disk.write_file(self.path / "total", str(total))
        faults.point("content.ingest.described")
        disk.write_file(self.data, "")
        disk.write_file(self.path / "ref", ref)
        faults.point("content.ingest.created")
        return IngestStatus(ref=ref, offset=0, total=total, started_at=now, updated_at=now)

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
