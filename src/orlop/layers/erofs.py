"""The `erofs` differ: layers that are EROFS images already, as their media type says, for snapshotters that take them.

`application/vnd.erofs.layer.v1` is the image, which is its own diff id; with `+zstd` it is compressed as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from orlop.core.content import ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.layer import Traits
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.erofs import layout
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError, Unimplemented
from orlop.layers.compression import Limits, decompress
from orlop.layers.keep import Keepers
from orlop.layers.pipeline import Digester, in_thread, pieces_of
from orlop.layers.stream import Copied

MEDIA_TYPE = "application/vnd.erofs.layer"


class ErofsDiffer:
    """Implements `orlop.core.diff.StreamDiffer` for such layers alone; it makes none."""

    def __init__(self, content: ContentStore, keepers: Keepers, *, limits: Limits | None = None) -> None:
        self._content = content
        self._keepers = keepers
        self._limits = limits or Limits()

    async def apply(
        self,
        scope: Scope,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """The descriptor of the image. Raises Unimplemented for other layers and snapshotters, InvalidArgument."""
        stage = self._stage(layer)
        try:
            reader = await self._content.open_reader(scope, layer.digest)
        except OrlopError as error:
            raise error.within("failed to get reader from content store") from error
        try:
            return await in_thread(lambda _: self._store(layer, stage(pieces_of(reader)), mounts))
        finally:
            await reader.close()

    async def apply_stream(
        self,
        layer: Descriptor,
        source: Iterable[bytes],
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """As `apply`, with the blob's bytes from `source`, perhaps while they arrive."""
        stage = self._stage(layer)
        return await in_thread(lambda _: self._store(layer, stage(iter(source)), mounts))

    async def verified(self, layer: Descriptor, applied: Descriptor) -> None:
        """Nothing: each snapshot has an image of its own."""

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
        raise Unimplemented(f"layers of media type {media_type!r} by the differ erofs: the differ walking makes layers")

    def _stage(self, layer: Descriptor) -> Callable[[Iterator[bytes]], Iterator[bytes]]:
        base, _, suffix = layer.media_type.partition("+")
        if not base.startswith(MEDIA_TYPE):
            raise Unimplemented(f"media type {layer.media_type} by the differ erofs")
        if not suffix:
            return lambda chunks: chunks
        if suffix != "zstd":
            raise InvalidArgument(f"unsupported erofs layer suffix: {suffix}")
        return lambda chunks: decompress(chunks, self._limits)

    def _store(self, layer: Descriptor, pieces: Iterator[bytes], mounts: Sequence[Mount]) -> Descriptor:
        place = self._keepers.place_of_image(mounts)
        if place is None:
            raise FailedPrecondition(
                f"layer {layer.digest} is an EROFS image ({layer.media_type}): only the snapshotter erofs takes it"
            )
        with place as into:
            with Digester() as digester:
                for _ in Copied(digester.passing(pieces), into.index):
                    pass
            if os.pread(into.index, 4, layout.SUPERBLOCK_AT) != layout.MAGIC.to_bytes(4, "little"):
                raise InvalidArgument(f"layer {layer.digest} is no EROFS image, as its media type says")
            into.keep(digester.digest, layer.digest, Traits())
        return Descriptor(layer.media_type.partition("+")[0], digester.digest, digester.size)
