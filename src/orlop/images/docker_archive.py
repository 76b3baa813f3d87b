"""What `docker save` writes names images by files alone (`manifest.json`): their manifests, and an index of them, are
made here, as containerd makes them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import ContentInfo, ContentStore, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.labels import UNCOMPRESSED
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument
from orlop.images import documents, names
from orlop.images.documents import DescriptorDocument, DockerManifest, PlatformDocument
from orlop.images.recompress import compression_of, held, recompress
from orlop.layers.compression import Compression

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_LAYER_TYPES = {
    Compression.NONE: media.DOCKER_LAYER,
    Compression.GZIP: media.DOCKER_LAYER_GZIP,
    Compression.ZSTD: media.DOCKER_LAYER_ZSTD,
}


async def manifests(
    content: ContentStore,
    scope: Scope,
    document: bytes,
    blob: Callable[[str], ContentInfo],
    *,
    name: str = "",
    compress: bool = False,
) -> list[DescriptorDocument]:
    """Stores a manifest for each image of `document`; an entry for each of its names. `blob` finds what a file became.

    `name` is for an only image without one. A layer that the store has compressed already is taken so; `compress`: the
    others are compressed too.
    """
    images = documents.docker_manifests_of(document, "archive: manifest.json")
    making = _Making(content, scope, blob, compress)
    found: list[DescriptorDocument] = []
    for image in images:
        target = await making.manifest(image)
        tags = image.repo_tags or ([name] if name and len(images) == 1 else [])
        found += [msgspec.structs.replace(target, annotations=_tagged(names.normalize(tag))) for tag in tags] or [
            target
        ]
    return found


def index_of(entries: Sequence[DescriptorDocument]) -> bytes:
    """The index that such an archive lacks."""
    described = [
        {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}
        | ({"annotations": entry.annotations} if entry.annotations else {})
        | ({"platform": _platform(entry.platform)} if entry.platform is not None else {})
        for entry in entries
    ]
    return msgspec.json.encode({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": described})


@dataclass(frozen=True, slots=True)
class _Making:
    content: ContentStore
    scope: Scope
    blob: Callable[[str], ContentInfo]
    compress: bool

    async def manifest(self, image: DockerManifest) -> DescriptorDocument:
        config = self.blob(image.config)
        layers = await self._layers([self.blob(path) for path in image.layers])
        data = msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": media.DOCKER_MANIFEST,
                "config": {"mediaType": media.DOCKER_CONFIG, "digest": config.digest, "size": config.size},
                "layers": [
                    {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers
                ],
            }
        )
        digest = digests.of(data)
        await write_whole(self.content, self.scope, f"manifest-{uuid.uuid4().hex[:12]}-{digest}", data, digest)
        return DescriptorDocument(media.DOCKER_MANIFEST, digest, len(data), platform=await self._platform(config))

    async def _layers(self, blobs: Sequence[ContentInfo]) -> list[Descriptor]:
        compressed = await self._compressed(blobs)
        found = []
        for blob in blobs:
            taken = compressed[blob.digest] = await self._taken(blob, compressed)
            kind = await compression_of(self.content, self.scope, taken.digest)
            found.append(Descriptor(_LAYER_TYPES[kind], taken.digest, taken.size))
        return found

    async def _taken(self, blob: ContentInfo, compressed: Mapping[str, ContentInfo]) -> ContentInfo:
        """What stands for a layer's file."""
        if blob.digest in compressed:
            return compressed[blob.digest]
        if not self.compress or await compression_of(self.content, self.scope, blob.digest) is not Compression.NONE:
            return blob
        plain = Descriptor(media.DOCKER_LAYER, blob.digest, blob.size)
        return await recompress(self.content, self.scope, plain, blob.digest, Compression.GZIP)

    async def _compressed(self, blobs: Sequence[ContentInfo]) -> dict[str, ContentInfo]:
        """Compressed forms of the blobs that the store knows of, by the digest of what is in them."""
        wanted = sorted({blob.digest for blob in blobs})
        filters = [f'labels."{UNCOMPRESSED}"=={digest}' for digest in wanted]
        known = await self.content.list(self.scope, filters) if filters else []
        found = {}
        for info in sorted(known, key=lambda info: info.digest):
            # From now on the lease of the import holds it.
            if (blob := await held(self.content, self.scope, info.digest)) is not None:
                found[info.labels[UNCOMPRESSED]] = blob
        return found

    async def _platform(self, config: ContentInfo) -> PlatformDocument | None:
        descriptor = Descriptor(media.DOCKER_CONFIG, config.digest, config.size)
        try:
            platform = (await documents.read_config(self.content, self.scope, descriptor)).platform
        except InvalidArgument:
            return None  # an image that cannot run is told of when it is run
        if not platform.os and not platform.architecture:
            return None
        return PlatformDocument(platform.os, platform.architecture, platform.variant)


def _platform(document: PlatformDocument) -> dict[str, str]:
    fields = {"architecture": document.architecture, "os": document.os, "variant": document.variant}
    return {key: value for key, value in fields.items() if value}


def _tagged(name: str) -> dict[str, str]:
    """The annotations that name an image."""
    return {IMAGE_NAME: name, REF_NAME: name.rpartition("/")[2].partition(":")[2]}
