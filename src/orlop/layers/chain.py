"""Several differs asked in order: the first that takes the mounts and media type does the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orlop.core.descriptor import Descriptor
from orlop.core.diff import Differ, StreamDiffer
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.errors import Unimplemented, Unknown


class DifferChain:
    """Implements `orlop.core.diff.StreamDiffer`; only Unimplemented moves on to the next."""

    def __init__(self, differs: Sequence[Differ], *, sync_fs: bool = False) -> None:
        self._differs = differs
        self._sync_fs = sync_fs

    @classmethod
    def of(cls, names: Sequence[str], loaded: Mapping[str, Differ], *, sync_fs: bool = False) -> DifferChain:
        """The chain of `names`. Raises Unknown for one that is not loaded."""
        for name in names:
            if name not in loaded:
                raise Unknown(f"needed differ not loaded: {name}")
        return cls([loaded[name] for name in names], sync_fs=sync_fs)

    async def apply(
        self,
        scope: Scope,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """As the first differ does that does not raise Unimplemented."""
        refusal = Unimplemented("no differ is configured")
        for differ in self._differs:
            try:
                return await differ.apply(scope, layer, mounts, payloads=payloads, sync_fs=sync_fs or self._sync_fs)
            except Unimplemented as error:
                refusal = error
        raise refusal

    async def apply_stream(
        self,
        layer: Descriptor,
        source: Iterable[bytes],
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Typed] | None = None,
        sync_fs: bool = False,
    ) -> Descriptor:
        """As the first differ does that does not raise Unimplemented."""
        refusal = Unimplemented("no differ takes a layer while it arrives")
        for differ in self._differs:
            if not isinstance(differ, StreamDiffer):
                continue
            try:
                return await differ.apply_stream(
                    layer, source, mounts, payloads=payloads, sync_fs=sync_fs or self._sync_fs
                )
            except Unimplemented as error:
                refusal = error
        raise refusal

    async def verified(self, layer: Descriptor, applied: Descriptor) -> None:
        """Every differ is told; those that keep nothing of the layer have nothing to do."""
        for differ in self._differs:
            if isinstance(differ, StreamDiffer):
                await differ.verified(layer, applied)

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
        """As the first differ does that does not raise Unimplemented."""
        refusal = Unimplemented("no differ is configured")
        for differ in self._differs:
            try:
                return await differ.compare(
                    scope, lower, upper, media_type=media_type, ref=ref, labels=labels, epoch=epoch
                )
            except Unimplemented as error:
                refusal = error
        raise refusal
