"""Checkpoints as content: a tar of what CRIU wrote, and the spec of the container."""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from orlop.core.content import ContentStore, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common

CHECKPOINT_TYPE = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG_TYPE = "application/vnd.containerd.container.checkpoint.config.v1+proto"
_PIECE = 1 << 20


async def store_checkpoint(
    content: ContentStore, scope: Scope, write: Callable[[str], Awaitable[None]], spec: Typed | None
) -> list[Descriptor]:
    """Lets `write` fill a temporary directory, and stores it. Nothing but a lease protects the blobs."""
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ctrd-checkpoint"))
    try:
        images = directory / "images"
        images.mkdir(0o700)
        await write(str(images))
        archive = directory / "images.tar"
        await asyncio.to_thread(_pack, images, archive)
        info = await write_whole(content, scope, str(directory), _pieces(archive))
        stored = [Descriptor(CHECKPOINT_TYPE, info.digest, info.size)]
        document = common.any_of(spec)
        data = document.SerializeToString() if document is not None else b""
        info = await write_whole(content, scope, f"{directory}/spec", data)
        return [*stored, Descriptor(CONFIG_TYPE, info.digest, info.size)]
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _pack(directory: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, arcname=path.name)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
