"""Image documents: index, manifest and config, read as hostile input.

Digest and size were checked when the bytes were stored; here their meaning is: one type a document, no key twice or in
two spellings, numbers and counts within bounds (CVE-2021-41190, CVE-2024-3727 among others). `strict_json` has the
rules for keys.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from orlop.core import digest, media
from orlop.core.content import ContentStore, read_whole
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument
from orlop.images.strict_json import Document

LIMIT = 8 << 20
"""Bytes of a document that is read whole."""

MAX_ENTRIES = 10_000
MAX_LAYERS = 1_000

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
D = TypeVar("D", "Index", "Manifest")


class PlatformDocument(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list)

    def noun(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant, self.os_version, tuple(self.os_features))


class DescriptorDocument(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: Size
    annotations: dict[str, str] | None = None
    platform: PlatformDocument | None = None
    urls: list[str] | None = None
    artifact_type: str = ""

    def noun(self) -> Descriptor:
        return Descriptor(
            self.media_type,
            self.digest,
            self.size,
            self.annotations or {},
            tuple(self.urls or ()),
            self.artifact_type,
        )


class Index(msgspec.Struct, rename="camel"):
    manifests: list[DescriptorDocument]
    schema_version: int = 2
    media_type: str = ""
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, rename="camel"):
    config: DescriptorDocument
    layers: list[DescriptorDocument]
    schema_version: int = 2
    media_type: str = ""
    annotations: dict[str, str] | None = None


class RootFS(msgspec.Struct):
    type: str = ""
    diff_ids: list[str] = msgspec.field(default_factory=list)


class Process(msgspec.Struct, rename="pascal"):
    """What an image says of the process to run: `config` of an image config."""

    user: str = ""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""


class Config(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    config: Process | None = None
    rootfs: RootFS = msgspec.field(default_factory=RootFS)

    @property
    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)


class DockerManifest(msgspec.Struct, rename="pascal"):
    """An entry of `manifest.json` in a docker-save archive."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class Layout(msgspec.Struct, rename="camel"):
    """`oci-layout` of an archive."""

    image_layout_version: str


def layout_of(data: bytes, what: str) -> Layout:
    return Document.parse(data, what).as_type(Layout)


def docker_manifests_of(data: bytes, what: str) -> list[DockerManifest]:
    manifests = Document.parse(data, what).as_type(list[DockerManifest])
    _at_most(MAX_ENTRIES, len(manifests), "images", what)
    for manifest in manifests:
        _at_most(MAX_LAYERS, len(manifest.layers), "layers", what)
    return manifests


def index_of(data: bytes, media_type: str, what: str) -> Index:
    """The index in `data`, whose descriptor says that it is of `media_type` (empty: there is none)."""
    index = _typed(Document.parse(data, what), Index, media_type, {"layers", "config"})
    _at_most(MAX_ENTRIES, len(index.manifests), "manifests", what)
    for entry in index.manifests:
        digest.validate(entry.digest, f"{what}: manifest digest {entry.digest!r}")
    return index


def manifest_of(data: bytes, media_type: str, what: str) -> Manifest:
    """The manifest in `data`, whose descriptor says that it is of `media_type`."""
    manifest = _typed(Document.parse(data, what), Manifest, media_type, {"manifests"})
    _at_most(MAX_LAYERS, len(manifest.layers), "layers", what)
    for entry in (manifest.config, *manifest.layers):
        digest.validate(entry.digest, f"{what}: digest {entry.digest!r}")
    return manifest


def config_of(data: bytes, what: str) -> Config:
    """The image config in `data`. Raises InvalidArgument where a diff id is no digest."""
    config = Document.parse(data, what).as_type(Config)
    _at_most(MAX_LAYERS, len(config.rootfs.diff_ids), "diff ids", what)
    for diff_id in config.rootfs.diff_ids:
        digest.validate(diff_id, f"{what}: diff id {diff_id!r}")
    return config


async def read_index(content: ContentStore, scope: Scope, descriptor: Descriptor) -> Index:
    what = f"index {descriptor.digest}"
    return index_of(await _read(content, scope, descriptor, what), descriptor.media_type, what)


async def read_manifest(content: ContentStore, scope: Scope, descriptor: Descriptor) -> Manifest:
    what = f"manifest {descriptor.digest}"
    return manifest_of(await _read(content, scope, descriptor, what), descriptor.media_type, what)


async def read_config(content: ContentStore, scope: Scope, descriptor: Descriptor) -> Config:
    what = f"image config {descriptor.digest}"
    return config_of(await _read(content, scope, descriptor, what), what)


async def _read(content: ContentStore, scope: Scope, descriptor: Descriptor, what: str) -> bytes:
    data = await read_whole(content, scope, descriptor.digest, LIMIT)
    if len(data) != descriptor.size:
        raise InvalidArgument(f"{what}: has {len(data)} bytes, its descriptor says {descriptor.size}")
    return data


def _typed(document: Document, type_: type[D], media_type: str, foreign: set[str]) -> D:
    """`document` as `type_`, unless it could be taken for another kind: by its own type, or by the keys it has."""
    if "fslayers" in document.keys or media_type in media.SCHEMA_1:
        raise InvalidArgument(f"{document.what}: schema 1 image manifests are no longer supported")
    found = sorted(foreign & document.keys)
    if found:
        raise InvalidArgument(f"{document.what}: a {media_type or 'index'} cannot have {', '.join(found)}")
    read: D = document.as_type(type_)
    if read.schema_version == 1:
        raise InvalidArgument(f"{document.what}: schema 1 image manifests are no longer supported")
    if media_type and read.media_type and read.media_type != media_type:
        raise InvalidArgument(f"{document.what}: says it is {read.media_type!r}, its descriptor {media_type!r}")
    return read


def _at_most(limit: int, count: int, things: str, what: str) -> None:
    if count > limit:
        raise InvalidArgument(f"{what}: {count} {things}, at most {limit} are read")
