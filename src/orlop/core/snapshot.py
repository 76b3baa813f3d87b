"""Snapshots: layered file systems, given as mounts.

Two protocols: `Snapshotter` is a driver that knows no namespaces (plugin type `io.containerd.snapshotter.v1`);
`SnapshotStore` is what callers use, namespaced records over the drivers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

from orlop.core.mount import Mount
from orlop.core.scope import Scope

EXTRACTION = "extract-"
"""How keys of snapshots begin that a layer is unpacked into; clients look for it."""
EXTRACTING = "orlop/extracting"
"""A label of such a snapshot while this daemon fills it: should the daemon be killed, it goes at the next start. A
driver need not make it durable before its commit."""


class Kind(IntEnum):
    """The numbers are those of the wire."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    name: str
    kind: Kind
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of disk blocks and inodes of one snapshot, without its parents."""

    size: int = 0
    inodes: int = 0


class Snapshotter(Protocol):
    """A driver: ten verbs over keys. Names are text of any form; no path is ever made of one."""

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]: ...

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]: ...

    async def mounts(self, key: str) -> list[Mount]: ...

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Turns the active `key` into the committed `name`. `parent` rebases where `key` has none."""

    async def remove(self, key: str) -> None: ...

    async def stat(self, key: str) -> SnapshotInfo: ...

    async def update(self, info: SnapshotInfo, fields: Sequence[str] | None) -> SnapshotInfo: ...

    async def usage(self, key: str) -> Usage: ...

    async def walk(self) -> list[SnapshotInfo]:
        """All snapshots, parents before children."""

    async def cleanup(self) -> None:
        """Frees what removed snapshots and crashes have left on disk."""

    async def close(self) -> None: ...


@runtime_checkable
class BulkRemover(Protocol):
    """A driver that removes many snapshots as fast as one."""

    async def remove_all(self, keys: Sequence[str]) -> list[str]:
        """Removes `keys`, children first, but for those that have a child and are returned. `cleanup` has to follow."""


class SnapshotStore(Protocol):
    """The snapshots of a namespace, by snapshotter."""

    async def prepare(
        self,
        scope: Scope,
        snapshotter: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> list[Mount]: ...

    async def view(
        self,
        scope: Scope,
        snapshotter: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> list[Mount]: ...

    async def mounts(self, scope: Scope, snapshotter: str, key: str) -> list[Mount]: ...

    async def commit(
        self,
        scope: Scope,
        snapshotter: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None: ...

    async def remove(self, scope: Scope, snapshotter: str, key: str) -> None: ...

    async def stat(self, scope: Scope, snapshotter: str, key: str) -> SnapshotInfo: ...

    async def update(
        self, scope: Scope, snapshotter: str, info: SnapshotInfo, fields: Sequence[str] | None
    ) -> SnapshotInfo: ...

    async def usage(self, scope: Scope, snapshotter: str, key: str) -> Usage: ...

    async def list(self, scope: Scope, snapshotter: str, filters: Sequence[str] = ()) -> list[SnapshotInfo]: ...
