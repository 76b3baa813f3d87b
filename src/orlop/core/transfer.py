"""Transfers: images between a registry, an archive and the image store, and what is told of them on the way.

The four ends are the types of `containerd.types.transfer`; what goes to what is the Transfer service's to say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.registry import RegistryOptions
from orlop.core.scope import Scope


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing that happened: to the whole transfer, or to the part `name` of it, which belongs to `parents`.

    `progress` and `total` are bytes.
    """

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A further name for an image that comes, or a prefix of names for each image of an archive."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    """A full name that the archive has is taken although it does not begin with the prefix."""
    add_digest: bool = False
    """Also, or only, `name@digest`."""
    skip_named_digest: bool = False
    """No `name@digest` for an image that has a name."""


@dataclass(frozen=True, slots=True)
class UnpackRequest:
    """Images for `platform` are unpacked, into the default snapshotter if none is named."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class StoreEnd:
    """The image store. As a source it is the image `name`; as a destination it says what is fetched and kept."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: Sequence[Platform] = ()
    """Empty for all."""
    all_metadata: bool = False
    """Manifests and configs of other platforms too."""
    manifest_limit: int = 0
    extra_references: Sequence[ImageReference] = ()
    unpacks: Sequence[UnpackRequest] = ()


@dataclass(frozen=True, slots=True)
class RegistryEnd:
    """A reference at a registry."""

    reference: str
    options: RegistryOptions = field(default_factory=RegistryOptions)


@dataclass(frozen=True, slots=True)
class ImportEnd:
    """An archive that comes in pieces."""

    pieces: AsyncIterator[bytes]
    media_type: str = ""
    """Empty: plain, gzip or zstd by what it begins with."""
    force_compress: bool = False


class ByteSink(Protocol):
    """Where an archive goes to."""

    async def write(self, data: bytes) -> None: ...

    async def finish(self) -> None:
        """Returns when the other side has taken all of it, or has had time to."""


@dataclass(frozen=True, slots=True)
class ExportEnd:
    """An archive that is made."""

    sink: ByteSink
    media_type: str = ""
    platforms: Sequence[Platform] = ()
    """Empty for the host's."""
    all_platforms: bool = False
    skip_docker_manifest: bool = False
    skip_non_distributable: bool = False


End = StoreEnd | RegistryEnd | ImportEnd | ExportEnd


class Transferrer(Protocol):
    """Does transfers (plugin type `io.containerd.transfer.v1`)."""

    async def transfer(self, scope: Scope, source: End, destination: End, report: Report) -> bool:
        """False, and nothing done, for a pair of ends that it does not know."""
