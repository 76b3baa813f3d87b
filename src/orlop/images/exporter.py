"""Export: images as an archive that is an OCI image layout and, for docker, has a `manifest.json` beside it.

The archive is the same for the same images, byte by byte: entries in the order of their names, times and owners zero.
Nothing is gathered: a blob goes out while it is read, and its digest is checked on the way.
"""

from __future__ import annotations

import asyncio
import hashlib
import tarfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import ContentStore, Reader
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.platform import Platform, host
from orlop.core.scope import Scope
from orlop.errors import DataLoss, InvalidArgument, NotFound
from orlop.images import documents, names, select

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
SOURCE = "containerd.io/distribution.source."

_CHUNK = 1 << 20
_BLOCK = 512

Write = Callable[[bytes], Awaitable[None]]


async def export_archive(
    content: ContentStore,
    scope: Scope,
    images: Sequence[Image],
    write: Write,
    *,
    platforms: Sequence[Platform] = (),
    all_platforms: bool = False,
    docker_manifest: bool = True,
    non_distributable: bool = True,
) -> None:
    """Writes an archive of the images, for the host's platform if none is named.

    Raises NotFound where content is missing or nothing is for the platforms, InvalidArgument for an image that is
    neither manifest nor index, and DataLoss for a blob that is not what its name says: then the archive ends there.
    """
    wanted = () if all_platforms else tuple(platforms) or (host(),)
    gathering = _Gathering(content, scope, wanted, non_distributable)
    for image in images:
        await gathering.add(image)
    files = {"oci-layout": (b'{"imageLayoutVersion":"1.0.0"}', 0o444), "index.json": (gathering.index(), 0o644)}
    if docker_manifest and gathering.docker:
        files["manifest.json"] = (gathering.docker_manifest(), 0o644)
    for algorithm in sorted({"sha256", *(digest.partition(":")[0] for digest in gathering.blobs)}):
        await write((_directory("blobs/") if algorithm == "sha256" else b"") + _directory(f"blobs/{algorithm}/"))
        for digest, blob in sorted(gathering.blobs.items()):
            if digest.startswith(f"{algorithm}:"):
                await _blob(content, scope, blob, write)
    for path, (data, mode) in sorted(files.items()):
        await write(_file(path, len(data), mode) + data + _padding(len(data)))
    await write(bytes(2 * _BLOCK))


@dataclass(slots=True)
class _Docker:
    """A manifest as docker names it."""

    config: Descriptor
    layers: list[Descriptor]
    tags: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Gathering:
    """What goes into an archive: the blobs by digest, and the documents that name the images."""

    content: ContentStore
    scope: Scope
    wanted: Sequence[Platform]
    non_distributable: bool
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    docker: dict[str, _Docker] = field(default_factory=dict)
    manifests: int = 0

    async def add(self, image: Image) -> None:
        target = image.target
        if not (media.is_manifest(target.media_type) or media.is_index(target.media_type)):
            raise InvalidArgument(f'image "{image.name}": only manifests may be exported, not {target.media_type!r}')
        before = self.manifests
        await self._document(target, 0)
        if self.manifests == before:
            wanted = " or ".join(map(str, self.wanted))
            raise NotFound(f'image "{image.name}": no manifest found for platform {wanted}')
        self.targets.append(await self._named(image))
        await self._for_docker(image)

    def index(self) -> bytes:
        return msgspec.json.encode({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": self.targets})

    def docker_manifest(self) -> bytes:
        return msgspec.json.encode(
            [
                {
                    "Config": _path(one.config.digest),
                    "RepoTags": one.tags or None,
                    "Layers": [_path(layer.digest) for layer in one.layers],
                }
                for one in self.docker.values()
            ]
        )

    async def _document(self, target: Descriptor, depth: int) -> None:
        if depth > select.MAX_DEPTH:
            raise InvalidArgument(f"index {target.digest}: indexes nested more than {select.MAX_DEPTH} deep")
        self.blobs[target.digest] = target
        if media.is_manifest(target.media_type):
            manifest = await documents.read_manifest(self.content, self.scope, target)
            for one in (manifest.config, *manifest.layers):
                if self.non_distributable or not media.is_non_distributable(one.media_type):
                    self.blobs[one.digest] = one.noun()
            self.manifests += 1
            return
        index = await documents.read_index(self.content, self.scope, target)
        for entry, fits in select.choose(index.manifests, self.wanted):
            if not fits:
                continue
            if not (media.is_manifest(entry.media_type) or media.is_index(entry.media_type)):
                self.blobs[entry.digest] = entry.noun()
            elif entry.digest not in self.blobs:
                await self._document(entry.noun(), depth + 1)
            else:
                self.manifests += 1

    async def _named(self, image: Image) -> dict[str, Any]:
        labels = (await self.content.info(self.scope, image.target.digest)).labels
        sources = {key: value for key, value in labels.items() if key.startswith(SOURCE)}
        own = {IMAGE_NAME: image.name, REF_NAME: _reference(image.name)}
        annotations: Mapping[str, str] = {**image.target.annotations, **sources, **own}
        return {
            "mediaType": image.target.media_type,
            "digest": image.target.digest,
            "size": image.target.size,
            "annotations": dict(sorted(annotations.items())),
        }

    async def _for_docker(self, image: Image) -> None:
        platform = self.wanted[0] if self.wanted else host()
        try:
            target, manifest = await select.manifest_for(self.content, self.scope, image.target, platform)
        except NotFound:
            return  # docker has no use for it
        if manifest.config.media_type not in media.CONFIGS or target.digest not in self.blobs:
            return
        layers = [layer.noun() for layer in manifest.layers]
        one = self.docker.setdefault(target.digest, _Docker(manifest.config.noun(), layers))
        if "@" not in image.name:
            one.tags.append(names.familiar(image.name))


def _reference(name: str) -> str:
    """What `org.opencontainers.image.ref.name` says of a name: its tag, or all of it where it has a digest."""
    last = name.rpartition("/")[2]
    return last.partition(":")[2] or name if "@" not in last else name


async def _blob(content: ContentStore, scope: Scope, blob: Descriptor, write: Write) -> None:
    reader = await content.open_reader(scope, blob.digest)
    try:
        await write(_file(_path(blob.digest), reader.size, 0o444))
        hasher = hashlib.new(digests.algorithm_of(blob.digest))
        offset = 0
        while data := await reader.read(offset, _CHUNK):
            await asyncio.gather(asyncio.to_thread(hasher.update, data), write(data))
            offset += len(data)
        await _end(reader, blob, hasher.hexdigest(), write)
    finally:
        await reader.close()


async def _end(reader: Reader, blob: Descriptor, found: str, write: Write) -> None:
    digest = f"{digests.algorithm_of(blob.digest)}:{found}"
    if digest != blob.digest:
        raise DataLoss(f"content {blob.digest}: unexpected digest {digest} copied")
    await write(_padding(reader.size))


def _path(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _file(path: str, size: int, mode: int) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = size, mode
    return _header(entry)


def _directory(path: str) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return _header(entry)


def _header(entry: tarfile.TarInfo) -> bytes:
    """The entry's header as other exporters write it, so that theirs and ours are equal: with device numbers of 0."""
    made = bytearray(entry.tobuf(tarfile.PAX_FORMAT))
    header = made[-_BLOCK:]
    header[329:345] = b"0000000\0" * 2
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    made[-_BLOCK:] = header
    return bytes(made)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
