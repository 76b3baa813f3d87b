"""Leases: what holds resources against garbage collection while a client works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.scope import Scope


@dataclass(frozen=True, slots=True)
class Lease:
    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class Resource:
    """`type` is `content`, `ingests`, `images` or `snapshots/<snapshotter>`; `id` a digest, ref, name or key."""

    type: str
    id: str


class LeaseStore(Protocol):
    async def create(self, scope: Scope, id: str = "", labels: Mapping[str, str] | None = None) -> Lease: ...

    async def delete(self, scope: Scope, id: str, *, sync: bool = False) -> None: ...

    async def add_resource(self, scope: Scope, id: str, resource: Resource) -> None: ...

    async def delete_resource(self, scope: Scope, id: str, resource: Resource) -> None: ...

    async def resources(self, scope: Scope, id: str) -> list[Resource]: ...

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Lease]: ...
