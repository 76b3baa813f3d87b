"""Stores over a temporary folder, and archives good and bad, for the tests of images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import busybox_image
from google.protobuf.message import Message

from orlop.content.local import LocalStore
from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.scope import Scope
from orlop.images import importer
from orlop.metadata.content import NamespacedContent
from orlop.metadata.database import Database
from orlop.metadata.images import ImageStore
from orlop.metadata.schema import MIGRATIONS

NS = Scope("images")
BUSYBOX = busybox_image.NAME
ARCHITECTURE = busybox_image._architecture()


class Silent:
    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        return


class World:
    """Content and images of one namespace, as the daemon keeps them."""

    def __init__(self, root: Path) -> None:
        self.db = Database(root / "meta.db", MIGRATIONS, sync=False)
        self.backend = LocalStore(root)
        self.content = NamespacedContent(self.db, self.backend, Silent(), "shared")
        self.images = ImageStore(self.db, Silent())

    async def load(self, archive: bytes, name: str = "") -> list[Image]:
        return await importer.import_archive(self.content, self.images, NS, io.BytesIO(archive), name=name)

    async def names(self) -> list[str]:
        return [image.name for image in await self.images.list(NS)]

    async def put(self, data: bytes, media_type: str) -> Descriptor:
        info = await write_whole(self.content, NS, f"put-{digests.of(data)}", data)
        return Descriptor(media_type, info.digest, len(data))

    async def put_json(self, document: Any, media_type: str) -> Descriptor:
        return await self.put(encoded(document), media_type)

    async def labels(self, digest: str) -> dict[str, str]:
        return dict((await self.content.info(NS, digest)).labels)


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    it = World(root)
    try:
        yield it
    finally:
        it.backend.close()
        it.db.close()


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def pointer(descriptor: Descriptor, **more: Any) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size, **more}


def entries_of(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def archive_of(
    files: dict[str, bytes] | Sequence[tuple[str, bytes]], links: dict[str, str] | None = None, kind: bytes = b"2"
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
        for name, data in files.items() if isinstance(files, dict) else files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def layout(index: Any, blobs: Sequence[bytes] = (), version: str = "1.0.0") -> bytes:
    """An OCI layout with this `index.json` and these blobs."""
    files = {"oci-layout": encoded({"imageLayoutVersion": version}), "index.json": index}
    if not isinstance(index, bytes):
        files["index.json"] = encoded(index)
    return archive_of(files | {f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}": blob for blob in blobs})


def described(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digests.of(data), "size": len(data), **more}


def named(descriptor: dict[str, Any], name: str = "example.org/x:1") -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": [descriptor | {"annotations": {importer.IMAGE_NAME: name}}]}


def small_image(platform: tuple[str, str] = ("linux", ARCHITECTURE), layers: Sequence[bytes] = ()) -> list[bytes]:
    """Manifest, config and layers of an image whose layers are gzipped tars."""
    tars = [gzip.decompress(layer) for layer in layers]
    config = encoded(
        {
            "os": platform[0],
            "architecture": platform[1],
            "rootfs": {"type": "layers", "diff_ids": list(map(digests.of, tars))},
        }
    )
    manifest = encoded(
        {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "config": described(config, media.OCI_CONFIG),
            "layers": [described(layer, media.OCI_LAYER_GZIP) for layer in layers],
        }
    )
    return [manifest, config, *layers]


def grown(descriptor: Descriptor, size: int) -> Descriptor:
    return replace(descriptor, size=size)
