"""Import: an archive (OCI image layout or `docker save`, plain, gzip or zstd) into content and image stores.

The archive is read once, forwards; its files may come in any order. Every file but the few that describe the archive
becomes a blob; what no image refers to is collected later.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import BlobWatcher, ContentInfo, ContentStore, Writer, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image, ImageStore
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, InvalidArgument, NotFound
from orlop.images import children, docker_archive, documents, names
from orlop.images.docker_archive import IMAGE_NAME, REF_NAME
from orlop.images.documents import DescriptorDocument
from orlop.layers import tar
from orlop.layers.compression import decompress
from orlop.layers.stream import ByteStream

LIMIT = 20 << 20
"""Bytes of a file that describes the archive."""
CHUNK = 1 << 20
MAX_FILES = 100_000
"""Entries of an archive that are read."""

_DESCRIBING = ("oci-layout", "index.json", "manifest.json")
_LINKS_LIMIT = 40


@dataclass(slots=True)
class _Found:
    """What an archive held: its describing files whole, and the blobs that the others became, by path."""

    files: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, ContentInfo] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def blob(self, path: str) -> ContentInfo:
        """The blob at `path`, through links. Raises InvalidArgument if there is none."""
        at = posixpath.normpath(path)
        for _ in range(_LINKS_LIMIT):
            if at not in self.links:
                break
            at = _within(posixpath.join(posixpath.dirname(at), self.links[at]))
        if at not in self.blobs:
            raise InvalidArgument(f"archive: manifest.json names the file {path!r}, which is not in it")
        return self.blobs[at]


async def import_archive(
    content: ContentStore,
    images: ImageStore,
    scope: Scope,
    source: BinaryIO,
    *,
    name: str = "",
    progress: Callable[[int], None] = lambda _: None,
) -> list[Image]:
    """Stores what `source` holds and returns its images. `scope` should have a lease: nothing else holds the blobs
    before their image exists. `progress` is told, in another thread, the bytes read so far.

    `name` is for an archive that names its image not at all, or by a tag alone. Raises InvalidArgument for what is no
    image archive, and Unknown or FailedPrecondition for one that is damaged.
    """
    found = await _Archive(content, scope, decompress(_chunks(source, progress))).read()
    named = _names([entry.noun() for entry in await _entries(content, scope, found, name=name)], name)
    if not named:
        raise InvalidArgument(
            f"archive: no image in it has a name (annotation {IMAGE_NAME} or {REF_NAME}, or RepoTags): give it one"
        )
    for _, target in named:
        await children.label(content, scope, target)
    return [await _store(images, scope, Image(full, target)) for full, target in named]


async def read_archive(
    content: ContentStore,
    scope: Scope,
    source: Iterable[bytes],
    *,
    compressed: bool = True,
    compress: bool = False,
    watcher: BlobWatcher | None = None,
) -> tuple[Descriptor, list[DescriptorDocument]]:
    """Stores what `source` holds, as `import_archive`, and returns its index and what that names, with annotations.

    A thread iterates `source`, which may block. Nothing gets a name, or is kept beyond the lease of `scope`. An archive
    of `docker save` has an index that is made here. `compressed`: gzip and zstd are told by what the archive begins
    with. `compress`: such an archive's plain layers become compressed ones. `watcher` sees blobs arrive.
    """
    chunks = decompress(iter(source)) if compressed else iter(source)
    found = await _Archive(content, scope, chunks, watcher).read()
    entries = await _entries(content, scope, found, compress=compress)
    data = found.files["index.json"] if "oci-layout" in found.files else docker_archive.index_of(entries)
    digest = digests.of(data)
    await write_whole(content, scope, f"index-{uuid.uuid4().hex[:12]}-{digest}", data, digest)
    return Descriptor(media.OCI_INDEX, digest, len(data)), entries


async def _entries(
    content: ContentStore, scope: Scope, found: _Found, *, name: str = "", compress: bool = False
) -> list[DescriptorDocument]:
    """What the archive's index names, or would, and is in it."""
    if "oci-layout" in found.files:
        return await _oci(content, scope, found)
    if "manifest.json" in found.files:
        document = found.files["manifest.json"]
        return await docker_archive.manifests(content, scope, document, found.blob, name=name, compress=compress)
    raise InvalidArgument("archive: unrecognized image format (neither oci-layout nor manifest.json in it)")


class _Archive:
    """An archive on its way into the content store."""

    def __init__(
        self, content: ContentStore, scope: Scope, chunks: Iterator[bytes], watcher: BlobWatcher | None = None
    ) -> None:
        self._content, self._scope, self._watcher = content, scope, watcher
        self._reader = tar.TarReader(ByteStream(chunks), entries_limit=MAX_FILES)
        # Of its own, so that two imports of one archive at a time do not wait for each other.
        self._id = uuid.uuid4().hex[:12]

    async def read(self) -> _Found:
        found = _Found()
        entries = iter(self._reader)
        while (entry := await asyncio.to_thread(next, entries, None)) is not None:
            path = _within(entry.name.decode(errors="surrogateescape"))
            target = entry.link.decode(errors="surrogateescape")
            if entry.type == tar.SYMLINK:
                found.links[path] = target
            elif entry.type == tar.LINK:
                found.links[path] = f"/{target}"
            elif entry.type == tar.REGULAR:
                if entry.parts is not None:
                    raise InvalidArgument(f"archive: {path!r} is a sparse file")
                if path in _DESCRIBING:
                    if path in found.files:
                        raise InvalidArgument(f"archive: {path} comes twice")
                    found.files[path] = await asyncio.to_thread(self._whole, path, entry)
                else:
                    found.blobs[path] = await self._blob(path, entry)
        # What a compressed stream says of its damage, it says at its end.
        await asyncio.to_thread(self._reader.stream.drain)
        return found

    def _whole(self, path: str, entry: tar.Entry) -> bytes:
        if entry.size > LIMIT:
            raise InvalidArgument(f"archive: {path} has {entry.size} bytes, at most {LIMIT} are read")
        return b"".join(bytes(piece) for _, piece in self._reader.data(entry))

    async def _blob(self, path: str, entry: tar.Entry) -> ContentInfo:
        expected = _expected(path)
        ref = f"tar-{self._id}-{path.encode(errors='replace').decode()[:200]}"
        try:
            writer: Writer = await self._content.open_writer(self._scope, ref, entry.size, expected)
        except AlreadyExists:
            return await self._content.info(self._scope, expected)
        if self._watcher is not None:
            writer = self._watcher.watched(writer)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._abort, ref)
            undo.push_async_callback(writer.close)
            shared = (await writer.status()).offset
            if shared and shared == entry.size:
                # Another namespace has the blob: there is nothing to write.
                return await writer.commit(entry.size, expected)
            if shared:
                await writer.truncate(0)  # what the archive holds is something else, and shall be found wrong
            await self._copy(entry, writer)
            digest = writer.digest()
            try:
                return await writer.commit(entry.size, expected)
            except AlreadyExists:
                return await self._content.info(self._scope, digest)

    async def _copy(self, entry: tar.Entry, writer: Writer) -> None:
        """Writes what an entry holds; while one piece is written the next is read."""
        pieces = self._reader.data(entry)
        writing: asyncio.Task[int] | None = None
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                if writing is not None:
                    await writing
                writing = asyncio.create_task(writer.write(bytes(piece[1])))
        finally:
            if writing is not None:
                await asyncio.wait([writing])
        if writing is not None:
            writing.result()

    async def _abort(self, ref: str) -> None:
        """A part of a file is of no use to a later import."""
        try:
            await self._content.abort(self._scope, ref)
        except NotFound:
            return  # it was committed


def _chunks(source: BinaryIO, progress: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    while chunk := source.read(CHUNK):
        total += len(chunk)
        progress(total)
        yield chunk


def _within(path: str) -> str:
    """A path from the archive's root; no name reaches above it."""
    return posixpath.normpath(f"/{path}").lstrip("/")


def _expected(path: str) -> str:
    """The digest that a layout's path promises, empty for another path."""
    parts = path.split("/")
    if len(parts) == 3 and parts[0] == "blobs":
        digest = f"{parts[1]}:{parts[2]}"
        if not digests.problem(digest):
            return digest
    return ""


async def _oci(content: ContentStore, scope: Scope, found: _Found) -> list[DescriptorDocument]:
    layout = documents.layout_of(found.files["oci-layout"], "archive: oci-layout")
    if layout.image_layout_version != "1.0.0":
        raise InvalidArgument(f"archive: unsupported OCI version {layout.image_layout_version}")
    if "index.json" not in found.files:
        raise InvalidArgument("archive: missing index.json in OCI layout 1.0.0")
    index = documents.index_of(found.files["index.json"], "", "archive: index.json")
    for entry in index.manifests:
        await content.info(scope, entry.digest)
    return index.manifests


def _names(entries: Sequence[Descriptor], name: str) -> list[tuple[str, Descriptor]]:
    """The images by their full names, of those that have one; `name` is for an only one without."""
    named = []
    for entry in entries:
        full = _name_of(entry, name if len(entries) == 1 else "")
        if full:
            named.append((full, entry))
    return named


def _name_of(entry: Descriptor, other: str) -> str:
    """The full name of an image, from its annotations and else from `other`; empty if neither has one."""
    own = entry.annotations.get(IMAGE_NAME) or entry.annotations.get(REF_NAME, "")
    if "/" in own or ":" in own:
        return names.normalize(own)
    # A bare word is a tag (OCI image-spec, annotations.md), of a name that the archive leaves out.
    return names.normalize(names.with_tag(other, own)) if other else ""


async def _store(images: ImageStore, scope: Scope, image: Image) -> Image:
    try:
        return await images.create(scope, image)
    except AlreadyExists:
        return await images.update(scope, image, ["target"])
