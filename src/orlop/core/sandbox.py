"""Sandbox records: what groups containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.container import Runtime
from orlop.core.scope import Scope
from orlop.core.typed import Typed


@dataclass(frozen=True, slots=True)
class Sandbox:
    id: str
    runtime: Runtime
    spec: Typed | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, Typed] = field(default_factory=dict)
    sandboxer: str = ""
    created_at: int = 0
    updated_at: int = 0


class SandboxStore(Protocol):
    async def get(self, scope: Scope, id: str) -> Sandbox: ...

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Sandbox]: ...

    async def create(self, scope: Scope, sandbox: Sandbox) -> Sandbox: ...

    async def update(self, scope: Scope, sandbox: Sandbox, fields: Sequence[str]) -> Sandbox: ...

    async def delete(self, scope: Scope, id: str) -> None: ...
