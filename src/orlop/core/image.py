"""Image records: a name for a descriptor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore(Protocol):
    async def get(self, scope: Scope, name: str) -> Image: ...

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Image]: ...

    async def create(self, scope: Scope, image: Image, *, epoch: int | None = None) -> Image:
        """`epoch` (nanoseconds) replaces the time of the call in both time stamps."""

    async def update(
        self, scope: Scope, image: Image, fields: Sequence[str] | None, *, epoch: int | None = None
    ) -> Image: ...

    async def delete(self, scope: Scope, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """`target`: delete only if the name still points there. `sync`: return after a garbage collection."""
