"""Archives pass through the daemon: its memory does not grow with the image."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from real_daemon import Daemon

from orlop.client import Client, connect
from orlop.core.platform import host
from orlop.core.transfer import ExportEnd, ImageReference, ImportEnd, StoreEnd, UnpackRequest

pytestmark = [pytest.mark.root, pytest.mark.ctr]

MEGABYTE = 1 << 20
SMALL, LARGE = 4 * MEGABYTE, 256 * MEGABYTE
BOUND = 40 * MEGABYTE
"""What the daemon may take for a large image beyond what it has after a small one."""


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.USTAR_FORMAT)


def write_archive(path: Path, size: int) -> None:
    """What `docker save` writes of an image named `zeros:1` with one file of so many zeros; holes on this disk."""
    layer_size = 512 + size + 1024
    header, zeros = _header("zeros", size), bytes(MEGABYTE)
    hasher = hashlib.sha256(header)
    for _ in range(size // MEGABYTE):
        hasher.update(zeros)
    hasher.update(bytes(1024))
    config = {"os": "linux", "architecture": host().architecture}
    config |= {"rootfs": {"type": "layers", "diff_ids": [f"sha256:{hasher.hexdigest()}"]}}
    image = {"Config": "c.json", "RepoTags": ["zeros:1"], "Layers": ["l.tar"]}
    with path.open("wb") as out:
        for name, document in (("c.json", config), ("manifest.json", [image])):
            data = json.dumps(document).encode()
            out.write(_header(name, len(data)) + data + bytes(-len(data) % 512))
        out.write(_header("l.tar", layer_size) + header)
        out.truncate(out.tell() + layer_size - 512 + 1024)


class Sink:
    """Counts what an export gives."""

    size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)

    async def finish(self) -> None:
        return


class Memory:
    """The most memory that a process has had since this was made, beyond what it had then (bytes)."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def growth(self) -> int:
        return self._read("VmHWM") - self._before

    def _read(self, field: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) << 10


async def import_it(client: Client, archive: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        with archive.open("rb") as file:
            while data := await asyncio.to_thread(file.read, MEGABYTE):
                yield data

    prefix = ImageReference("x", is_prefix=True, allow_overwrite=True)
    end = StoreEnd("", extra_references=[prefix], unpacks=[UnpackRequest(host())])
    await client.transfer.import_archive(client.scope, ImportEnd(pieces()), end)


async def export_it(client: Client) -> int:
    sink = Sink()
    await client.transfer.export_archive(client.scope, StoreEnd("docker.io/library/zeros:1"), ExportEnd(sink))
    return sink.size


async def test_memory_does_not_grow_with_an_image_that_is_imported_or_exported(daemon: Daemon, tmp_path: Path) -> None:
    small, large = tmp_path / "small.tar", tmp_path / "large.tar"
    write_archive(small, SMALL)
    write_archive(large, LARGE)
    assert daemon.process is not None
    async with connect(daemon.address, f"memory{os.getpid()}") as client:
        await import_it(client, small)
        await export_it(client)  # what is loaded with the first use of each is loaded

        memory = Memory(daemon.process.pid)
        await import_it(client, large)
        assert memory.growth() < BOUND

        memory = Memory(daemon.process.pid)
        assert await export_it(client) > LARGE
        assert memory.growth() < BOUND
        for image in await client.images.list(client.scope):
            await client.images.delete(client.scope, image.name, sync=True)
