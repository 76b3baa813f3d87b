"""Activations: mounts that somebody must prepare before they can be mounted as they are.

A snapshotter may answer with mounts that mount(2) does not know: of images, of mount points that come to be only
while mounting, with directories or file systems to make first. The mount manager does all up to the last such one and
gives back the rest (plugin type `io.containerd.mount-manager.v1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.mount import Mount
from orlop.core.scope import Scope


@dataclass(frozen=True, slots=True)
class ActiveMount:
    """A mount that is in effect at `point` since `mounted_at` (nanoseconds since 1970)."""

    mount: Mount
    point: str
    mounted_at: int


@dataclass(frozen=True, slots=True)
class Activation:
    """What the manager has mounted under `name`, and the `system` mounts that are left to the caller."""

    name: str
    active: tuple[ActiveMount, ...]
    system: tuple[Mount, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


class MountHandler(Protocol):
    """Mounts one type that mount(2) does not do by itself (plugin type `io.containerd.mount-handler.v1`)."""

    def mount(self, mount: Mount, point: str) -> Mount:
        """Mounts at the directory or new file `point`, in a thread; returns the mount as it was done in the end."""

    def unmount(self, point: str) -> None:
        """Takes it off again. A point where nothing is mounted, or that is not there, is fine."""


class MountManager(Protocol):
    """The activations of a namespace, by name."""

    async def activate(
        self,
        scope: Scope,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Mapping[str, str] | None = None,
        temporary: bool = False,
        allowed: Sequence[str] = (),
    ) -> Activation:
        """Mounts what the caller cannot. `temporary`: mounts all, and leaves one bind mount to the caller. `allowed`
        are types, and transformations as `format/*`, that the caller takes as they are.

        Raises Unimplemented where nothing is to be done, AlreadyExists for a name in use, Unknown where a mount fails.
        """

    async def deactivate(self, scope: Scope, name: str) -> None:
        """Raises NotFound."""

    async def info(self, scope: Scope, name: str) -> Activation:
        """Raises NotFound."""

    async def list(self, scope: Scope) -> list[Activation]: ...
