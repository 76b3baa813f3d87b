"""Checkpoints as content: a tar of what CRIU wrote, and the spec of the container.

A checkpoint that comes back may be anybody's. Of its archive only plain files are taken, by single names, into a fresh
directory of our own (CVE-2026-53489); nothing else in it is read here.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from orlop.core.content import ContentStore, Reader, write_whole
from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import InvalidArgument, OrlopError, Unknown
from orlop.layers import tar
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader

CHECKPOINT_TYPE = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG_TYPE = "application/vnd.containerd.container.checkpoint.config.v1+proto"
_PIECE = 1 << 20
_MAX_FILES = 100_000
_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
"""Of a file in a checkpoint. CRIU makes no directories."""


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


async def unpack_checkpoint(content: ContentStore, scope: Scope, checkpoint: Descriptor, directory: Path) -> None:
    """Writes the files of `checkpoint` to `directory`, which must not be there yet. Nothing stays if it fails.

    Raises NotFound if there is no such content, InvalidArgument for an archive that CRIU did not write.
    """
    reader = await content.open_reader(scope, checkpoint.digest)
    try:
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(_unpack, ByteStream(_read_from(reader, loop)), directory)
    except InvalidArgument:
        raise
    except OrlopError as error:
        raise InvalidArgument(f"checkpoint {checkpoint.digest}: {error}") from None
    except OSError as error:
        raise Unknown(f"checkpoint {checkpoint.digest}: {(error.strerror or str(error)).lower()}") from error
    finally:
        await reader.close()


def _read_from(reader: Reader, loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """The bytes of `reader`, which belongs to `loop`, for another thread."""
    offset = 0
    while offset < reader.size:
        length = min(_PIECE, reader.size - offset)
        part = asyncio.run_coroutine_threadsafe(reader.read(offset, length), loop).result()
        if not part:
            return
        yield part
        offset += len(part)


def _unpack(stream: ByteStream, directory: Path) -> None:
    directory.mkdir(0o700)
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        archive = TarReader(stream, entries_limit=_MAX_FILES)
        for entry in archive:
            name = entry.name.removeprefix(b"./").rstrip(b"/")
            if entry.type == tar.DIRECTORY and name in (b"", b"."):
                continue
            _check(entry, name)
            file = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=opened
            )
            with os.fdopen(file, "wb") as target:
                for _, piece in archive.data(entry):
                    target.write(piece)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        os.close(opened)


def _check(entry: Entry, name: bytes) -> None:
    shown = entry.name.decode("utf-8", "replace")
    if entry.type != tar.REGULAR or entry.parts is not None:
        raise InvalidArgument(f'checkpoint: "{shown}" is no plain file')
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f'checkpoint: "{shown}" is no name of a file that CRIU writes')


def _pack(directory: Path, archive: Path) -> None:
    import tarfile  # checkpoints are rare

    with tarfile.open(archive, "w") as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, arcname=path.name)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
