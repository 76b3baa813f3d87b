"""Namespaces: what isolates every other object. One comes to be with the first object written under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NamespaceStore(Protocol):
    async def get(self, name: str) -> Namespace:
        """Never fails: an unknown name has no labels."""

    async def list(self) -> list[Namespace]: ...

    async def create(self, namespace: Namespace) -> Namespace: ...

    async def update(self, namespace: Namespace, fields: Sequence[str] | None) -> Namespace: ...

    async def delete(self, name: str) -> None: ...
