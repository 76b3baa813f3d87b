"""What tests of registries share: readers of bytes in memory, images to push, and credentials."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import Reader
from orlop.core.descriptor import Descriptor
from orlop.core.registry import Credential, RegistryOptions
from orlop.registry.registries import HttpRegistries
from orlop.registry.repository import HostedRepository
from orlop.registry.settings import Settings

QUICK = Settings(
    retry_delay=0.001,
    retry_delay_limit=0.01,
    stall_timeout=20,
    ranges_from=2 << 20,
    range_size=1 << 20,
    single_rate=1 << 60,
)
"""The daemon's ways, with waits that do not hold up tests, and ranges however fast loopback is."""


class BytesReader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    async def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def fileno(self) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def reader_of(data: bytes) -> Callable[[], Awaitable[Reader]]:
    async def open_reader() -> Reader:
        return BytesReader(data)

    return open_reader


@dataclass
class FixedCredentials:
    """One credential for all hosts; `asked` has the hosts that wanted it."""

    username: str
    secret: str
    asked: list[str] = field(default_factory=list)

    async def of(self, host: str, reference: str, challenges: Sequence[str]) -> Credential | None:
        self.asked.append(host)
        return Credential(self.username, self.secret)


@dataclass(frozen=True)
class Document:
    """Bytes and what points at them."""

    data: bytes
    descriptor: Descriptor

    @classmethod
    def of(cls, data: bytes | dict[str, Any], media_type: str = media.OCI_LAYER) -> Document:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        return cls(raw, Descriptor(media_type, digests.of(raw), len(raw)))

    @property
    def json(self) -> dict[str, Any]:
        descriptor = self.descriptor
        return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def image_of(*layers: Document, **fields: Any) -> tuple[Document, Document]:
    """Config and manifest of an image of `layers`."""
    config = Document.of({"architecture": "amd64", "os": "linux"}, media.OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": config.json,
        "layers": [layer.json for layer in layers],
        **fields,
    }
    return config, Document.of(manifest, media.OCI_MANIFEST)


@asynccontextmanager
async def repository(
    reference: str, options: RegistryOptions | None = None, settings: Settings = QUICK
) -> AsyncIterator[HostedRepository]:
    """`reference` by registries of its own."""
    registries = HttpRegistries(settings)
    try:
        yield registries.repository(reference, options or RegistryOptions())
    finally:
        await registries.close()


async def push_image(target: HostedRepository, *layers: Document, **fields: Any) -> Document:
    """Pushes an image under the reference of `target`; returns its manifest."""
    config, manifest = image_of(*layers, **fields)
    for blob in (*layers, config):
        await target.push(blob.descriptor, reader_of(blob.data))
    await target.tag(manifest.descriptor, reader_of(manifest.data))
    return manifest


async def fetched(source: HostedRepository, descriptor: Descriptor, offset: int = 0) -> bytes:
    async with source.fetch(descriptor, offset) as chunks:
        return b"".join([chunk async for chunk in chunks])
