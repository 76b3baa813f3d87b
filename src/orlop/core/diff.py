"""Differs: layers onto snapshots, and snapshots into layers (plugin type `io.containerd.differ.v1`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from orlop.core.content import BlobWatcher
from orlop.core.descriptor import Descriptor
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.errors import Unimplemented

LOOSE = "orlop.loose"
"""An option of an overlay that has no lower directories yet: a layer that needs to see them cannot be applied."""


class NeedsLower(Unimplemented):
    """A layer that takes something from those below it was to be applied where they are not there yet (`LOOSE`)."""


class Differ(Protocol):
    async def apply(
        self,
        scope: Scope,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """Unpacks `layer` from the content store onto `mounts`; the answer's digest is the diff id.

        Raises Unimplemented for mounts or media types of another differ, NeedsLower as `LOOSE` says.
        """

    async def compare(
        self,
        scope: Scope,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        epoch: int | None = None,
    ) -> Descriptor:
        """Stores the layer that makes `upper` out of `lower`; `epoch` (nanoseconds) bounds its time stamps."""


@runtime_checkable
class WatchingDiffer(Differ, Protocol):
    """A differ that prepares for layers while clients write them."""

    watcher: BlobWatcher | None


@runtime_checkable
class StreamDiffer(Differ, Protocol):
    """A differ that takes a layer while it arrives."""

    async def apply_stream(
        self,
        layer: Descriptor,
        source: Iterable[bytes],
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """As `apply`, with the blob's bytes from `source`, which a thread iterates and which may block there; what it
        raises ends the call. All of it is read, also what follows the archive.

        Raises Unimplemented, before anything is read, where `apply` must be called once the blob is stored.
        """

    async def verified(self, layer: Descriptor, applied: Descriptor) -> None:
        """The bytes of which `apply_stream` made `applied` had the digest of `layer`: what is kept of them may serve
        whoever comes with the same blob."""
