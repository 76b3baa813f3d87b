"""Conversion: an image with its layers compressed otherwise, for fewer platforms, or with OCI's types for Docker's.

Only what changes is written anew, and always the same bytes: documents keep their other keys and the order of all.
An attestation is about one digest: it stays only where that manifest stays as it is.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import ContentInfo, ContentStore, read_whole, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument, NotFound
from orlop.images import children, documents, select
from orlop.images.documents import DescriptorDocument
from orlop.images.recompress import compression_of, recompress
from orlop.images.strict_json import Document
from orlop.images.survey import ATTESTATION
from orlop.layers.compression import Compression

ATTESTED = "vnd.docker.reference.digest"
_AT_A_TIME = 4

_DOCKER_TO_OCI = {
    media.DOCKER_INDEX: media.OCI_INDEX,
    media.DOCKER_MANIFEST: media.OCI_MANIFEST,
    media.DOCKER_CONFIG: media.OCI_CONFIG,
    **{
        f"application/vnd.docker.image.rootfs.{docker}diff.tar{compressed.replace('+', '.')}": (
            f"application/vnd.oci.image.layer.{oci}v1.tar{compressed}"
        )
        for docker, oci in (("", ""), ("foreign.", "nondistributable."))
        for compressed in ("", "+gzip", "+zstd")
    },
}
_TYPES = {
    Compression.NONE: (media.OCI_LAYER, media.DOCKER_LAYER),
    Compression.GZIP: (media.OCI_LAYER_GZIP, media.DOCKER_LAYER_GZIP),
    Compression.ZSTD: (media.OCI_LAYER_ZSTD, media.DOCKER_LAYER_ZSTD),
}
_DOCKER_LAYERS = frozenset(types[1] for types in _TYPES.values())
_TAR_LAYERS = frozenset(types[0] for types in _TYPES.values()) | _DOCKER_LAYERS

Progress = Callable[[Descriptor, int], None]
"""Told a layer and the bytes of it that have been read, in another thread."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is to become of an image. zstd means OCI's types too: Docker has none for it that others read."""

    compression: Compression | None = None
    """None leaves layers as they are; so are always those that may not be distributed, and those that are no tar."""
    oci: bool = False
    platforms: Sequence[Platform] | None = None
    """None keeps all."""


async def convert(
    content: ContentStore,
    scope: Scope,
    target: Descriptor,
    conversion: Conversion,
    progress: Progress = lambda _, __: None,
) -> Descriptor:
    """Stores what `target` becomes; it is `target` itself where nothing changes. `scope` should have a lease.

    Raises NotFound where content is missing or no platform fits, FailedPrecondition where a layer is not what the
    image's config says.
    """
    if conversion.compression is Compression.ZSTD:
        conversion = replace(conversion, oci=True)
    converter = _Converter(content, scope, conversion)
    if not await converter.plan(target, 0):
        wanted = ", ".join(map(str, conversion.platforms or ())) or "any platform"
        has = ", ".join(dict.fromkeys(converter.others))
        raise NotFound(f"{target.digest}: no manifest for {wanted}{has and f' (has {has})'}")
    await converter.recompress(progress)
    converted = await converter.document(target)
    await children.label(content, scope, converted)
    return converted


@dataclass(slots=True)
class _Converter:
    """First what is to be done is gathered, then layers are made, several at a time, then documents are written."""

    content: ContentStore
    scope: Scope
    conversion: Conversion
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    kept: dict[str, list[DescriptorDocument]] = field(default_factory=dict)
    """The entries that stay, by index."""
    layers: dict[str, tuple[Descriptor, str]] = field(default_factory=dict)
    """Layers to be made anew, and their diff ids."""
    others: list[str] = field(default_factory=list)
    """Platforms that were met and are not wanted."""
    made: dict[str, ContentInfo] = field(default_factory=dict)
    """What was made of layers."""
    documents: dict[str, Descriptor] = field(default_factory=dict)
    """What documents have become."""

    async def plan(self, target: Descriptor, depth: int) -> bool:
        """Reads all that is to be converted; False where nothing below `target` fits."""
        if depth > select.MAX_DEPTH:
            raise InvalidArgument(f"index {target.digest}: indexes nested more than {select.MAX_DEPTH} deep")
        if target.digest in self.kept:
            return bool(self.kept[target.digest])
        if media.is_manifest(target.media_type):
            return await self._plan_manifest(target)
        if not media.is_index(target.media_type):
            raise InvalidArgument(f"{target.digest}: {target.media_type!r} is neither a manifest nor an index")
        self.kept[target.digest] = []
        entries = (await documents.read_index(self.content, self.scope, target)).manifests
        kept = [entry for entry in entries if _is_attestation(entry) or await self._plan_entry(entry, depth)]
        if all(map(_is_attestation, kept)):
            return False
        self.kept[target.digest] = kept
        return True

    async def _plan_entry(self, entry: DescriptorDocument, depth: int) -> bool:
        if entry.platform is not None and not self._fits(entry.platform.noun()):
            self.others.append(str(entry.platform.noun()))
            return False
        return await self.plan(entry.noun(), depth + 1)

    async def _plan_manifest(self, target: Descriptor) -> bool:
        manifest = await documents.read_manifest(self.content, self.scope, target)
        if manifest.config.media_type not in media.CONFIGS:
            return True  # an artifact has no platform, and its layers are its own matter
        config = await documents.read_config(self.content, self.scope, manifest.config.noun())
        if not self._fits(config.platform):
            self.others.append(str(config.platform))
            return False
        to = self.conversion.compression
        if to is None:
            return True
        diff_ids = config.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise InvalidArgument(
                f"image config {manifest.config.digest}: {len(diff_ids)} diff ids for {len(manifest.layers)} layers"
            )
        for entry, diff_id in zip(manifest.layers, diff_ids, strict=True):
            layer = entry.noun()
            if layer.media_type not in _TAR_LAYERS or layer.digest in self.layers:
                continue
            if await compression_of(self.content, self.scope, layer.digest) is not to:
                self.layers[layer.digest] = layer, diff_id
        return True

    def _fits(self, platform: Platform) -> bool:
        wanted = self.conversion.platforms
        return wanted is None or any(select.rank(platform, one) == 0 for one in wanted)

    async def recompress(self, progress: Progress) -> None:
        to = self.conversion.compression
        turns = asyncio.Semaphore(_AT_A_TIME)

        async def one(layer: Descriptor, diff_id: str) -> None:
            assert to is not None
            async with turns:
                made = await recompress(
                    self.content, self.scope, layer, diff_id, to, lambda done: progress(layer, done)
                )
            self.made[layer.digest] = made

        tasks = [asyncio.ensure_future(one(*layer)) for layer in self.layers.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def document(self, target: Descriptor) -> Descriptor:
        """Writes what `target` becomes, after what is below it."""
        if target.digest not in self.documents:
            if media.is_index(target.media_type):
                self.documents[target.digest] = await self._index(target)
            else:
                self.documents[target.digest] = await self._manifest(target)
        return self.documents[target.digest]

    async def _index(self, target: Descriptor) -> Descriptor:
        kept = self.kept[target.digest]
        become = {entry.digest: await self.document(entry.noun()) for entry in kept if not _is_attestation(entry)}
        raw = await self._raw(target)
        entries = []
        for entry in _list(raw, "manifests"):
            digest = _value(entry, "digest")
            if digest in become:
                entries.append(_pointing(entry, become[digest]))
            elif any(digest == one.digest and _is_attested(one, become) for one in kept):
                entries.append(entry)
        _put(raw, "manifests", entries)
        return await self._written(target, raw)

    async def _manifest(self, target: Descriptor) -> Descriptor:
        manifest = await documents.read_manifest(self.content, self.scope, target)
        raw = await self._raw(target)
        config = manifest.config.noun()
        _put(raw, "config", _pointing(_value(raw, "config"), replace(config, media_type=self._oci(config.media_type))))
        layers = [self._layer(layer.noun()) for layer in manifest.layers]
        _put(raw, "layers", [_pointing(*pair) for pair in zip(_list(raw, "layers"), layers, strict=True)])
        return await self._written(target, raw)

    def _layer(self, layer: Descriptor) -> Descriptor:
        made = self.made.get(layer.digest)
        to = self.conversion.compression
        media_type = layer.media_type
        if to is not None and media_type in _TAR_LAYERS and (made is not None or layer.digest not in self.layers):
            media_type = _TYPES[to][media_type in _DOCKER_LAYERS]
        layer = replace(layer, media_type=self._oci(media_type))
        return layer if made is None else replace(layer, digest=made.digest, size=made.size)

    def _oci(self, media_type: str) -> str:
        return _DOCKER_TO_OCI.get(media_type, media_type) if self.conversion.oci else media_type

    async def _raw(self, target: Descriptor) -> dict[str, Any]:
        data = await read_whole(self.content, self.scope, target.digest, documents.LIMIT)
        raw = Document.parse(data, target.digest).value
        assert isinstance(raw, dict)  # it has been read as a document before
        return raw

    async def _written(self, target: Descriptor, raw: dict[str, Any]) -> Descriptor:
        """Stores a document, unless it says what `target` says."""
        media_type = self._oci(target.media_type)
        if _value(raw, "mediaType"):
            _put(raw, "mediaType", media_type)
        if raw == await self._raw(target):
            return target
        data = json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode()
        digest = digests.of(data)
        await write_whole(self.content, self.scope, f"convert-{self.id}-{digest}", data, digest)
        return replace(target, media_type=media_type, digest=digest, size=len(data))


def _is_attestation(entry: DescriptorDocument) -> bool:
    return ATTESTATION in (entry.annotations or {})


def _is_attested(attestation: DescriptorDocument, become: Mapping[str, Descriptor]) -> bool:
    """Whether the manifest that an attestation is about is there still, as it was."""
    digest = (attestation.annotations or {}).get(ATTESTED, "")
    return digest in become and become[digest].digest == digest


# Documents may spell their keys in any case (see `strict_json`); each is there once.


def _value(raw: Mapping[str, Any], key: str) -> Any:
    return next((value for name, value in raw.items() if name.casefold() == key.casefold()), None)


def _list(raw: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return _value(raw, key) or []


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    raw[next((name for name in raw if name.casefold() == key.casefold()), key)] = value


def _pointing(entry: Mapping[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """`entry` with the type, digest and size of `descriptor`."""
    changed = dict(entry)
    for key, value in (("mediaType", descriptor.media_type), ("digest", descriptor.digest), ("size", descriptor.size)):
        _put(changed, key, value)
    return changed
