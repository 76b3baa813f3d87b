"""Images: import, list, remove."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import click

from orlop.cli import output
from orlop.cli.each import each
from orlop.client import Client
from orlop.core.image import Image
from orlop.core.platform import host
from orlop.errors import OrlopError
from orlop.images import documents, select


async def import_archive(client: Client, archive: str, *, name: str, unpack: bool, quiet: bool) -> int:
    try:
        source: BinaryIO = sys.stdin.buffer if archive == "-" else open(archive, "rb")  # noqa: SIM115, ASYNC230
    except OSError as error:
        click.echo(f"orlop: cannot read {archive}: {error.strerror}", err=True)
        return 1
    total = os.fstat(source.fileno()).st_size if archive != "-" else None
    with source if archive != "-" else nullcontext(), _progress(archive, total, quiet=quiet) as advance:
        images = await client.import_archive(source, name=name, unpack=unpack, progress=advance)
    for image in images:
        click.echo(image.name if quiet else f"{image.name}  {image.target.digest}")
    return 0


@contextmanager
def _progress(what: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not output.is_terminal():
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(f"importing {os.path.basename(what)}", total=total)
        yield lambda done: progress.update(task, completed=done)


async def show(client: Client, *, quiet: bool) -> int:
    images = await client.images.list(client.scope)
    if quiet:
        for image in images:
            click.echo(image.name)
        return 0
    rows = []
    for image in images:
        bytes_, platform = await _size(client, image)
        rows.append((image.name, output.short(image.target.digest), platform, bytes_, output.age(image.created_at)))
    output.table(("NAME", "DIGEST", "PLATFORM", "SIZE", "CREATED"), rows)
    return 0


async def _size(client: Client, image: Image) -> tuple[str, str]:
    """The bytes of an image's blobs for this host, and its platform; `-` where they are not all here."""
    try:
        _, manifest = await select.manifest_for(client.content, client.scope, image.target, host())
        config = await documents.read_config(client.content, client.scope, manifest.config.noun())
    except OrlopError:
        return "-", "-"
    total = image.target.size + manifest.config.size + sum(layer.size for layer in manifest.layers)
    return output.size(total), str(config.platform)


async def remove(client: Client, names: Iterable[str]) -> int:
    async def one(name: str) -> None:
        image = await client.image(name)
        await client.images.delete(client.scope, image.name, sync=True)

    return await each(names, one)
