"""Images: import, list, tag, remove."""

from __future__ import annotations

import difflib
import fnmatch
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import click

from orlop.cli import output
from orlop.cli.each import each
from orlop.client import Client
from orlop.core import rfc3339
from orlop.core.image import Image
from orlop.core.platform import host
from orlop.errors import AlreadyExists, NotFound, OrlopError
from orlop.images import documents, select
from orlop.images import names as names_


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


async def show(
    client: Client, *, names: Sequence[str], filters: Sequence[str], digests: bool, as_json: bool, quiet: bool
) -> int:
    found = await client.images.list(client.scope, filters)
    images = [image for image in found if not names or any(_fits(image.name, name) for name in names)]
    if quiet:
        for image in images:
            click.echo(output.plain(image.name))
        return 0
    sizes = [await _size(client, image) for image in images]
    if as_json:
        output.echo_json([_document(image, *size) for image, size in zip(images, sizes, strict=True)])
        return 0
    rows = []
    for image, (size, platform) in zip(images, sizes, strict=True):
        digest = image.target.digest if digests else output.short(image.target.digest)
        shown = output.size(size) if size is not None else "-"
        rows.append((image.name, digest, platform or "-", shown, output.age(image.created_at)))
    output.table(("NAME", "DIGEST", "PLATFORM", "SIZE", "CREATED"), rows)
    return 0


def _document(image: Image, size: int | None, platform: str | None) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.target.digest,
        "mediaType": image.target.media_type,
        "platform": platform,
        "size": size,
        "labels": dict(image.labels),
        "createdAt": rfc3339.render(image.created_at),
        "updatedAt": rfc3339.render(image.updated_at),
    }


def _fits(name: str, pattern: str) -> bool:
    """Whether an image's full name is what `pattern` says: a name with or without host and tag; `*` stands for any
    text."""
    short = names_.familiar(name)
    shapes = (name, short, _repository(name), _repository(short))
    return any(fnmatch.fnmatchcase(shape, pattern) for shape in shapes)


def _repository(name: str) -> str:
    """A name without its tag and digest."""
    path, slash, last = name.partition("@")[0].rpartition("/")
    return path + slash + last.partition(":")[0]


async def _size(client: Client, image: Image) -> tuple[int | None, str | None]:
    """The bytes of an image's blobs for this host, and its platform; None where they are not all here."""
    try:
        _, manifest = await select.manifest_for(client.content, client.scope, image.target, host())
        config = await documents.read_config(client.content, client.scope, manifest.config.noun())
    except OrlopError:
        return None, None
    total = image.target.size + manifest.config.size + sum(layer.size for layer in manifest.layers)
    return total, str(config.platform)


async def remove(client: Client, names: Sequence[str], *, quiet: bool) -> int:
    """Removes images; tells of the containers that go on without them, and of other names for the same."""
    containers = [] if quiet else await client.containers.list(client.scope)

    async def one(name: str) -> None:
        image = await _found(client, name)
        await client.images.delete(client.scope, image.name, sync=True)
        users = [container.id for container in containers if container.image == image.name]
        if users:
            click.echo(f"orlop: {image.name}: still run by {_some(users)}, which keep their file systems", err=True)
        if not quiet:
            others = await client.images.list(client.scope, [f"target.digest=={image.target.digest}"])
            if others:
                shown = _some([output.plain(other.name) for other in others])
                click.echo(f"orlop: {image.name}: its content stays: it is also {shown}", err=True)

    return await each(names, one)


async def _found(client: Client, name: str) -> Image:
    """The image. Where there is none, the error names those that are called much the same."""
    try:
        return await client.image(name)
    except NotFound as error:
        known: dict[str, list[str]] = {}
        for image in await client.images.list(client.scope):
            short = names_.familiar(image.name)
            known.setdefault(_repository(short), []).append(output.plain(short))
        alike = difflib.get_close_matches(_repository(name), known, n=2)
        near = [short for repository in alike for short in known[repository]][:3]
        hint = f"Is it {' or '.join(near)}?" if near else "'orlop images' lists what is here."
        raise NotFound.verbatim(f"{error}\n{hint}") from None


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


async def tag(client: Client, name: str, names: Sequence[str], *, force: bool) -> int:
    image = await _found(client, name)

    async def one(new: str) -> None:
        tagged = Image(names_.normalize(new), image.target, image.labels)
        try:
            await client.images.create(client.scope, tagged)
        except AlreadyExists:
            other = await client.images.get(client.scope, tagged.name)
            if other.target.digest != image.target.digest and not force:
                raise AlreadyExists.verbatim(
                    f"image {tagged.name!r} is {output.short(other.target.digest)} now; --force gives the name away"
                ) from None
            await client.images.update(client.scope, tagged, ["target", "labels"])

    return await each(names, one)
