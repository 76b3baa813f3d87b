"""Container records: metadata only; what runs is a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.scope import Scope
from orlop.core.typed import Typed


@dataclass(frozen=True, slots=True)
class Runtime:
    """The runtime a container or sandbox asks for, by name, with options for its shim."""

    name: str
    options: Typed | None = None


@dataclass(frozen=True, slots=True)
class Container:
    id: str
    runtime: Runtime
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    spec: Typed | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox: str = ""
    extensions: Mapping[str, Typed] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ContainerStore(Protocol):
    async def get(self, scope: Scope, id: str) -> Container: ...

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Container]: ...

    async def create(self, scope: Scope, container: Container) -> Container: ...

    async def update(self, scope: Scope, container: Container, fields: Sequence[str] | None) -> Container:
        """Replaces what `fields` (mask paths) name; None stands for everything mutable."""

    async def delete(self, scope: Scope, id: str) -> None: ...
