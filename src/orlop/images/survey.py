"""What an image is made of, and how much of it is here: its editions by platform, their configs and layers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orlop.core import media
from orlop.core.content import ContentStore, read_whole
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument, NotFound
from orlop.images import documents, select
from orlop.images.strict_json import Document
from orlop.images.unpack import chain_ids

ATTESTATION = "vnd.docker.reference.type"
"""The annotation of a manifest that is about another one; `vnd.docker.reference.digest` says which."""


class HistoryEntry(msgspec.Struct):
    """A step that made an image; an empty one made no layer."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class _Historic(msgspec.Struct):
    history: list[HistoryEntry] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layer:
    """`diff_id` and `chain_id` are empty for what is no layer of a root file system."""

    descriptor: Descriptor
    is_present: bool
    diff_id: str = ""
    chain_id: str = ""


@dataclass(frozen=True, slots=True)
class Edition:
    """What an image is for one platform: a manifest. Where it is not here, nothing more is known than its entry."""

    manifest: Descriptor
    platform: Platform | None
    is_present: bool
    config: Descriptor | None = None
    has_config: bool = False
    document: Mapping[str, Any] = field(default_factory=dict)
    """The image config as it is; empty where it is not here, or is no image's."""
    layers: Sequence[Layer] = ()

    @property
    def is_attestation(self) -> bool:
        return ATTESTATION in self.manifest.annotations

    @property
    def is_complete(self) -> bool:
        return self.is_present and self.has_config and all(layer.is_present for layer in self.layers)

    def blobs(self) -> Iterator[tuple[Descriptor, bool]]:
        """All content of this edition, and whether it is here."""
        yield self.manifest, self.is_present
        if self.config is not None:
            yield self.config, self.has_config
        for layer in self.layers:
            yield layer.descriptor, layer.is_present

    def history(self) -> list[tuple[HistoryEntry, Layer | None]]:
        """How the image was made, first step first, with the layer that each step made.

        Raises InvalidArgument where the config says something else than a list of steps.
        """
        what = f"image config {self.config.digest if self.config else ''}: history"
        layers = iter(self.layers)
        steps = Document(what, dict(self.document)).as_type(_Historic).history
        return [(step, None if step.empty_layer else next(layers, None)) for step in steps]


@dataclass(frozen=True, slots=True)
class Survey:
    indexes: Sequence[tuple[Descriptor, bool]]
    """The indexes on the way to the editions, and whether they are here."""
    editions: Sequence[Edition]

    def blobs(self) -> dict[str, tuple[Descriptor, bool]]:
        """All content by digest, and whether it is here; what is named twice comes once."""
        found = {descriptor.digest: (descriptor, present) for descriptor, present in self.indexes}
        for edition in self.editions:
            found |= {descriptor.digest: (descriptor, present) for descriptor, present in edition.blobs()}
        return found

    def edition(self, wanted: Platform) -> Edition | None:
        """The edition that fits `wanted` best, of those that are here."""
        ranked = [
            (rank, number)
            for number, edition in enumerate(self.editions)
            if edition.platform is not None and edition.is_present and not edition.is_attestation
            if (rank := select.rank(edition.platform, wanted)) is not None
        ]
        return self.editions[min(ranked)[1]] if ranked else None


async def survey(
    content: ContentStore, scope: Scope, target: Descriptor, inventory: frozenset[str] | None = None
) -> Survey:
    """Looks at all that `target` leads to. `inventory` are the digests that are here, where the caller knows them.

    Raises InvalidArgument for documents that are none.
    """
    walk = _Walk(content, scope, inventory)
    await walk.visit(target, None, 0)
    return Survey(walk.indexes, walk.editions)


@dataclass(slots=True)
class _Walk:
    content: ContentStore
    scope: Scope
    inventory: frozenset[str] | None
    indexes: list[tuple[Descriptor, bool]] = field(default_factory=list)
    editions: list[Edition] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    async def visit(self, target: Descriptor, platform: Platform | None, depth: int) -> None:
        if target.digest in self.seen:
            return
        if depth > select.MAX_DEPTH:
            raise InvalidArgument(f"index {target.digest}: indexes nested more than {select.MAX_DEPTH} deep")
        self.seen.add(target.digest)
        if not media.is_index(target.media_type):
            self.editions.append(await self._edition(target, platform))
            return
        present = await self._has(target.digest)
        self.indexes.append((target, present))
        if present:
            index = await documents.read_index(self.content, self.scope, target)
            for entry in index.manifests:
                named = entry.platform.noun() if entry.platform is not None else None
                await self.visit(entry.noun(), named, depth + 1)

    async def _edition(self, target: Descriptor, platform: Platform | None) -> Edition:
        if not await self._has(target.digest):
            return Edition(target, platform, False)
        if not media.is_manifest(target.media_type):
            return Edition(target, platform, True, has_config=True)
        manifest = await documents.read_manifest(self.content, self.scope, target)
        config = manifest.config.noun()
        layers = [layer.noun() for layer in manifest.layers]
        has_config, *has = await asyncio.gather(*(self._has(part.digest) for part in (config, *layers)))
        document: dict[str, Any] = {}
        diff_ids: Sequence[str] = ()
        if has_config and config.media_type in media.CONFIGS:
            parsed = await documents.read_config(self.content, self.scope, config)
            diff_ids = parsed.rootfs.diff_ids
            platform = platform or parsed.platform
            document = await self._raw(config)
        if len(diff_ids) != len(layers):
            diff_ids = [""] * len(layers)
        chain = chain_ids(diff_ids) if all(diff_ids) else diff_ids
        parts = [Layer(*part) for part in zip(layers, has, diff_ids, chain, strict=True)]
        return Edition(target, platform, True, config, has_config, document, parts)

    async def _raw(self, config: Descriptor) -> dict[str, Any]:
        data = await read_whole(self.content, self.scope, config.digest, documents.LIMIT)
        value = Document.parse(data, f"image config {config.digest}").value
        return value if isinstance(value, dict) else {}

    async def _has(self, digest: str) -> bool:
        if self.inventory is not None:
            return digest in self.inventory
        try:
            await self.content.info(self.scope, digest)
        except NotFound:
            return False
        return True
