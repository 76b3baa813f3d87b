"""The native snapshotter: a snapshot is a whole copy of its parent. Slow and large, but it runs on any file system."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

from orlop.core.mount import Mount
from orlop.core.snapshot import Kind
from orlop.snapshots.copies import copy_tree
from orlop.snapshots.directories import DirectorySnapshotter
from orlop.snapshots.storage import Record


class NativeSnapshotter(DirectorySnapshotter):
    """Layout: `snapshots/<id>` is the content itself. A view with a parent is the parent's directory."""

    mounts_failed: ClassVar[str] = "failed to get snapshot mount"
    commit_failed: ClassVar[str] = "failed to commit snapshot"
    remove_failed: ClassVar[str] = "failed to remove"

    def _fill(self, directory: str, kind: Kind, labels: Mapping[str, str], parent: int | None) -> None:
        if parent is not None and kind is Kind.ACTIVE:
            copy_tree(self._content(parent), directory)
        else:
            os.chmod(directory, 0o755)  # noqa: S103 - the mode of a container's root directory

    def _mounts_of(self, record: Record) -> list[Mount]:
        if record.info.kind is Kind.VIEW:
            source = record.parents[0].id if record.parents else record.id
            return [Mount("bind", self._content(source), ("rbind", "ro"))]
        return [Mount("bind", self._content(record.id), ("rbind", "rw"))]

    def _ready_mounts(self, record: Record) -> list[Mount]:
        return self._mounts_of(record)

    def _content(self, id: int) -> str:
        return self._directory(id)
